//! GitHub's own webhooks: `workflow_run`, which tells how a run goes on.
//!
//! They come to the same address as callbacks and are told apart by the header `X-GitHub-Event`.
//! That header is not signed, so the body must be what it says: a callback with the header is no
//! `workflow_run`, and a `workflow_run` without it is no callback (it has no `job_id`).

use axum::http::HeaderMap;
use milepost_schemas::{CallbackEvidence, SignatureForm};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::Verified;
use super::github::{DELIVERY_ID_BYTES_MAX, IntakeError, Rules, check_hex, require_json};

/// The header that names what happened.
pub const EVENT_HEADER: &str = "x-github-event";

/// The largest body of a webhook of GitHub's: one of `workflow_run` describes two repositories,
/// an organisation and a person, 20 to 40 KiB with nothing unusual in them.
pub const BODY_BYTES_MAX: usize = 256 * 1024;

/// What a `workflow_run` webhook says, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct WorkflowRun {
    /// The run.
    pub id: u64,
    /// Its name.
    pub display_title: String,
    /// Where a person looks at it.
    pub html_url: String,
    /// From 1; higher when somebody ran it again.
    pub run_attempt: u32,
    /// Where it is.
    pub status: String,
    /// How it ended.
    pub conclusion: Option<String>,
}

#[derive(Deserialize)]
struct Body {
    workflow_run: Told,
    repository: Repository,
}

/// A run, and what started it. Anybody can give a run a name: the title of a pull request is one.
#[derive(Deserialize)]
struct Told {
    event: String,
    path: String,
    #[serde(flatten)]
    run: WorkflowRun,
}

#[derive(Deserialize)]
struct Repository {
    full_name: String,
}

/// What makes a run one of ours: only those who may write to the repository dispatch a workflow.
const DISPATCHED: &str = "workflow_dispatch";

/// Where GitHub looks for workflows.
const WORKFLOWS: &str = ".github/workflows/";

/// Checks a webhook of GitHub's. `None` for what does not concern Milepost: another event, a run of
/// another repository or workflow, or one that was not dispatched. Signed only in the form GitHub knows, `X-Hub-Signature-256`, which
/// is therefore taken here also when callbacks must be signed as Standard Webhooks.
///
/// # Errors
/// [`IntakeError`], by which nothing is recorded.
pub fn verify(
    rules: &Rules,
    repository: Option<&str>,
    workflow: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Option<Verified<WorkflowRun>>, IntakeError> {
    require_json(headers)?;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(signature) = header("x-hub-signature-256") else {
        return Err(IntakeError::Unauthorised("X-Hub-Signature-256 is missing"));
    };
    let signed = check_hex(rules, signature, body)?;
    if header(EVENT_HEADER) != Some("workflow_run") {
        return Ok(None);
    }
    let parsed: Body =
        serde_json::from_slice(body).map_err(|error| IntakeError::Webhook(error.to_string()))?;
    // Names of repositories do not tell case apart.
    let ours = |name: &str| name.eq_ignore_ascii_case(&parsed.repository.full_name);
    let told = parsed.workflow_run;
    // A reference may stand behind the path.
    let path = told.path.split('@').next().unwrap_or_default();
    let is_workflow = path.strip_prefix(WORKFLOWS) == Some(workflow);
    if !repository.is_some_and(ours) || !is_workflow || told.event != DISPATCHED {
        return Ok(None);
    }
    let delivery_id = header("x-github-delivery").map(str::to_owned);
    if delivery_id.as_ref().is_some_and(|id| id.len() > DELIVERY_ID_BYTES_MAX) {
        return Err(IntakeError::DeliveryId);
    }
    let evidence = CallbackEvidence {
        delivery_id,
        signature_form: SignatureForm::XSignature,
        key_id: signed.key_id,
        attempt: None,
        signature: signed.signature,
        signed_at: None,
        // It names people: what proves it is kept, not what it says of them.
        body: None,
        body_sha256: Some(hex::encode(Sha256::digest(body))),
    };
    Ok(Some(Verified { value: told.run, evidence }))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::super::github::Secret;
    use super::*;

    const SECRET: &str = "it-is-only-a-test-secret";
    const CALLBACK: &str =
        r#"{"job_id":"018f0000-0000-7000-8000-000000000001","type":"heartbeat"}"#;

    fn body() -> String {
        json!({
            "action": "completed",
            "workflow_run": {
                "id": 7, "display_title": "provision x attempt 1", "html_url": "https://g.example/7",
                "run_attempt": 1, "status": "completed", "conclusion": "cancelled",
                "event": "workflow_dispatch", "path": ".github/workflows/provision-agent.yml",
            },
            "repository": {"full_name": "milepost-dev/milepost"},
        })
        .to_string()
    }

    fn check(
        event: &str,
        body: &str,
        accept_x_signature: bool,
        tamper: bool,
    ) -> Result<Option<Verified<WorkflowRun>>, IntakeError> {
        let secret = Secret::new(SECRET).unwrap();
        let signature = format!("sha256={}", secret.sign(body.as_bytes()));
        let headers: HeaderMap = [
            ("content-type", "application/json"),
            (EVENT_HEADER, event),
            ("x-github-delivery", "d-1"),
            ("x-hub-signature-256", &signature),
        ]
        .into_iter()
        .map(|(name, value)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        })
        .collect();
        let rules = Rules { secrets: vec![secret], accept_x_signature };
        let sent = if tamper { format!("{body} ") } else { body.to_owned() };
        verify(
            &rules,
            Some("Milepost-Dev/milepost"),
            "provision-agent.yml",
            &headers,
            sent.as_bytes(),
        )
    }

    #[test]
    fn a_run_is_read_and_what_proves_it_is_kept_without_the_body() {
        let verified = check("workflow_run", &body(), true, false).unwrap().unwrap();
        assert_eq!(
            (verified.value.id, verified.value.conclusion.as_deref()),
            (7, Some("cancelled"))
        );
        assert_eq!(verified.evidence.delivery_id.as_deref(), Some("d-1"));
        assert_eq!(verified.evidence.body, None);
        let hash = hex::encode(Sha256::digest(body().as_bytes()));
        assert_eq!(verified.evidence.body_sha256, Some(hash));
    }

    #[test]
    fn githubs_form_is_taken_when_callbacks_must_use_the_other() {
        assert!(check("workflow_run", &body(), false, false).unwrap().is_some());
    }

    #[test]
    fn what_is_not_ours_is_nothing_and_what_is_forged_is_refused() {
        assert!(check("ping", &body(), true, false).unwrap().is_none());
        let other = body().replace("milepost-dev/", "somebody/");
        assert!(check("workflow_run", &other, true, false).unwrap().is_none());
        // A pull request's title is its run's name, and anybody can open one.
        for (ours, theirs) in
            [("workflow_dispatch", "pull_request"), ("provision-agent.yml", "ci.yml")]
        {
            let other = body().replace(ours, theirs);
            assert!(check("workflow_run", &other, true, false).unwrap().is_none(), "{theirs}");
        }
        let forged = check("workflow_run", &body(), true, true);
        assert!(matches!(forged, Err(IntakeError::Unauthorised(_))));
    }

    #[test]
    fn a_callback_with_the_header_is_no_webhook() {
        let confused = check("workflow_run", CALLBACK, true, false);
        assert!(matches!(confused, Err(IntakeError::Webhook(_))));
    }
}
