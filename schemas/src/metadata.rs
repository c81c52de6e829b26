//! The header of an event: who caused it, in answer to what, and what proves it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Everything about an event that is not the fact itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Who caused the event: `workflow:<key id>`, `account:<account id>`, `token:<name>`
    /// or `system:<part>`. In events of before accounts had streams: `account:<email>`.
    pub actor: String,
    /// What the event belongs to: the job, for all that a job does; else its own stream.
    pub correlation_id: Uuid,
    /// What it answers: an HTTP request (`request:<uuid>`) or an event (`<epoch>-<position>`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<String>,
    /// The proof of a signed callback, its fields standing beside the others.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<CallbackEvidence>,
}

/// Which of the two signature forms a callback carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureForm {
    /// `X-Signature` or `X-Hub-Signature-256`: hex HMAC-SHA256 of the body.
    XSignature,
    /// Standard Webhooks 1.0: base64 HMAC-SHA256 of `{id}.{timestamp}.{body}`.
    StandardWebhooks,
}

/// What an auditor needs to check a callback's signature again, years later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallbackEvidence {
    /// `webhook-id`, or `delivery_id` of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery_id: Option<String>,
    /// The form of the signature.
    pub signature_form: SignatureForm,
    /// Which secret verified it: the first 8 hex digits of SHA-256 over the secret's key bytes.
    pub key_id: String,
    /// The attempt the callback named, absent where it named none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The signature as it came, without its form's prefix.
    pub signature: String,
    /// `webhook-timestamp`, seconds since 1970; only in the Standard Webhooks form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_at: Option<i64>,
    /// The raw body that was signed. Absent where it held a secret, and where it brought lines of
    /// a log, which stand in the event: then its hash stands below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// SHA-256 of the raw body in hex, where the body itself was not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_sha256: Option<String>,
}
