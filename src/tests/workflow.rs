//! The workflow's own commands: `jq` makes the body, `openssl` signs it, `curl` posts it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::{Client, PATIENCE, Server, text};

/// What a step of a workflow runs. Its arguments are `jq`'s: names, values, and the body.
const POST: &str = r#"
set -euo pipefail
filter=$1; shift
body=$(jq -cn --arg job_id "$JOB_ID" "$@" "{job_id: \$job_id} + $filter")
signature=$(printf '%s' "$body" | openssl dgst -sha256 -hmac "$MILEPOST_CALLBACK_SECRET" | sed 's/^.* //')
printf '%s' "$body" >&2
curl --silent --show-error --fail-with-body --max-time 10 \
  --header 'Content-Type: application/json' --header "X-Signature: sha256=$signature" \
  --data-binary "$body" "$CALLBACK_URL"
"#;

/// From an answer to the message that shows its effect; the product's aim is 100 ms.
const PUSH_MAX: Duration = Duration::from_secs(1);

/// What a callback leads to: the words of the contract's table.
struct Expected {
    status: &'static str,
    current_step: Option<&'static str>,
    steps: [&'static str; 5],
}

const DONE: &str = "completed";

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_from_started_to_running() {
    let server = Server::start().await;
    let mut run = Run::begin(&server, "mari").await;
    run.shows(&Expected {
        status: "pending",
        current_step: None,
        steps: ["active", "pending", "pending", "pending", "pending"],
    })
    .await;
    run.post("{status: \"provisioning\", workflow_run_id: $run}", &["--arg", "run", "4411"]).await;
    run.shows(&Expected {
        status: "provisioning",
        current_step: None,
        steps: [DONE, "active", "pending", "pending", "pending"],
    })
    .await;
    for (step, steps) in [
        ("vm_created", [DONE, DONE, "active", "pending", "pending"]),
        ("network_configured", [DONE, DONE, "active", "pending", "pending"]),
        ("ansible_started", [DONE, DONE, DONE, "active", "pending"]),
        ("ansible_complete", [DONE, DONE, DONE, DONE, "active"]),
    ] {
        run.step(step).await;
        run.shows(&Expected { status: "provisioning", current_step: Some(step), steps }).await;
    }
    run.post(
        "{status: \"running\", server_id: $id, server_ip: $ip, tailscale_ip: $tail}",
        &["--arg", "id", "42", "--arg", "ip", "192.0.2.7", "--arg", "tail", "100.64.0.7"],
    )
    .await;
    run.shows(&Expected { status: "running", current_step: None, steps: [DONE; 5] }).await;
    run.is_in_the_log(&server, "ProvisioningStepRecorded").await;
    println!("answer to message, in ms: {:?}", run.pushed_ms);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_fails_at_configure() {
    let server = Server::start().await;
    let mut run = Run::begin(&server, "mari").await;
    run.post("{status: \"provisioning\"}", &[]).await;
    run.step("vm_created").await;
    run.step("ansible_started").await;
    let words = "fatal: [mari]: UNREACHABLE! => \"quoted\"\nand a second line";
    run.post(
        "{status: \"failed\", failed_step: \"configure\", step: \"ansible_started\", error: $error}",
        &["--arg", "error", words],
    )
    .await;
    run.shows(&Expected {
        status: "failed",
        current_step: Some("ansible_started"),
        steps: [DONE, DONE, DONE, "error", "pending"],
    })
    .await;
    let state = run.client.read(&run.path).await;
    assert_eq!(state["instance"]["error"], words);
    assert_eq!(state["instance"]["job_status"], "retry_scheduled");
    run.is_in_the_log(&server, "JobFailed").await;
    println!("answer to message, in ms: {:?}", run.pushed_ms);
}

/// One run of the workflow, and a subscriber who watches it.
struct Run {
    client: Client,
    secret: String,
    job: String,
    path: String,
    messages: mpsc::UnboundedReceiver<(Instant, Value)>,
    /// When the last callback was answered, with what, and its body.
    answered: (Instant, Value, String),
    pushed_ms: Vec<f64>,
}

impl Run {
    async fn begin(server: &Server, name: &str) -> Self {
        let client = server.client();
        let (agent, job) = client.job(name).await;
        let path = format!("/api/agents/{agent}/instance");
        let mut stream = client.stream(&format!("{path}/stream"), None).await;
        let (sender, messages) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(message) = stream.next().await {
                if message.event == "instance" {
                    drop(sender.send((Instant::now(), message.json())));
                }
            }
        });
        let ordered = client.read(&path).await["position"].clone();
        let answered = (Instant::now(), json!({"position": ordered}), String::new());
        let secret = server.ready("callback_secret");
        Self { client, secret, job, path, messages, answered, pushed_ms: Vec::new() }
    }

    async fn step(&mut self, step: &str) {
        self.post("{status: \"provisioning\", step: $step}", &["--arg", "step", step]).await;
    }

    async fn post(&mut self, filter: &str, arguments: &[&str]) {
        let output = tokio::process::Command::new("bash")
            .args(["-c", POST, "workflow", filter])
            .args(arguments)
            .env("JOB_ID", &self.job)
            .env("MILEPOST_CALLBACK_SECRET", &self.secret)
            .env("CALLBACK_URL", format!("{}/api/webhooks/github", self.client.url))
            .output()
            .await
            .unwrap();
        let at = Instant::now();
        let body = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{body}: {}", String::from_utf8_lossy(&output.stdout));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["applied"], true, "{answer}");
        self.answered = (at, answer, body);
    }

    /// The endpoint shows it, and the subscriber is told.
    async fn shows(&mut self, expected: &Expected) {
        let state = self.client.read(&self.path).await;
        expected.check(&state);
        let (answered, position) = (self.answered.0, self.answered.1["position"].as_u64());
        let told = async {
            loop {
                let (at, state) = self.messages.recv().await.expect("the stream goes on");
                if state["position"].as_u64() >= position {
                    return (at, state);
                }
            }
        };
        let (at, state) = tokio::time::timeout(PATIENCE, told).await.expect("it is told");
        expected.check(&state);
        assert!(at.saturating_duration_since(answered) < PUSH_MAX);
        // Negative where the message was there before `curl` had ended.
        let after = at.saturating_duration_since(answered).as_secs_f64();
        let before = answered.saturating_duration_since(at).as_secs_f64();
        self.pushed_ms.push(((after - before) * 1_000.0).round());
    }

    /// The last callback is in the log: the fact, the raw body and what proves it.
    async fn is_in_the_log(&self, server: &Server, kind: &str) {
        let events = self.client.events().await;
        let event = events.iter().rfind(|event| event["type"] == kind).unwrap();
        let metadata = &event["metadata"];
        assert_eq!(metadata["signature_form"], "x-signature");
        assert_eq!(text(metadata, "key_id"), server.secret().key_id);
        assert_eq!(
            text(metadata, "signature"),
            server.secret().sign(text(metadata, "body").as_bytes())
        );
        let body: Value = serde_json::from_str(&text(metadata, "body")).unwrap();
        assert_eq!(text(&body, "job_id"), self.job);
        assert_eq!(body["step"], event["data"]["step"]);
        let (_, answer, last) = &self.answered;
        let answered = &events[answer["position"].as_u64().unwrap() as usize - 1];
        assert_eq!(&text(&answered["metadata"], "body"), last);
    }
}

impl Expected {
    fn check(&self, state: &Value) {
        assert_eq!(state["instance"]["status"], self.status, "{state}");
        assert_eq!(state["instance"]["current_step"], json!(self.current_step), "{state}");
        let labels = [
            "Queued",
            "Creating Server",
            "Installing Dependencies",
            "Configuring Agent",
            "Running",
        ];
        let ids = ["queued", "creating", "installing", "configuring", "running"];
        for (index, step) in state["steps"].as_array().unwrap().iter().enumerate() {
            assert_eq!(step["id"], ids[index]);
            assert_eq!(step["label"], labels[index]);
            assert_eq!(step["status"], self.steps[index], "{}: {state}", ids[index]);
        }
    }
}
