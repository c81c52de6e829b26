//! The callbacks of GitHub workflows: size, type, signature, then the body, in this order.

use std::fmt::Write as _;

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use milepost_schemas::{Callback, CallbackError, CallbackEvidence, CallbackKind, SignatureForm};
use sha2::{Digest, Sha256};

use super::redact::plain;
use super::{Redactor, Verified};

/// The largest body of a callback, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// How far a signed timestamp may be from now, in seconds, before or after.
pub const TIMESTAMP_SECONDS_MAX: i64 = 300;

/// Signatures tried in one `webhook-signature`; a sender that rotates sends two.
pub const SIGNATURES_MAX: usize = 8;

/// The longest delivery id, in bytes.
pub const DELIVERY_ID_BYTES_MAX: usize = 256;

/// A callback secret, ready to check with.
#[derive(Clone)]
pub struct Secret {
    /// The first 8 hex digits of SHA-256 over the secret's text: names it in events and logs.
    pub key_id: String,
    text: Hmac<Sha256>,
    standard: Hmac<Sha256>,
}

impl Secret {
    /// Reads a secret as it stands in the settings.
    ///
    /// # Errors
    /// A text that says `whsec_` and is not base64 after it, in words.
    pub fn new(secret: &str) -> Result<Self, String> {
        let standard = match secret.strip_prefix("whsec_") {
            Some(encoded) => STANDARD
                .decode(encoded)
                .map_err(|_| "a secret that begins with whsec_ is base64 after it".to_owned())?,
            None => secret.as_bytes().to_vec(),
        };
        let mac = |key: &[u8]| Hmac::new_from_slice(key).expect("HMAC takes a key of any length");
        Ok(Self {
            key_id: hex::encode(&Sha256::digest(secret.as_bytes())[..4]),
            text: mac(secret.as_bytes()),
            standard: mac(&standard),
        })
    }

    /// The hex signature of a body in the first form.
    pub fn sign(&self, body: &[u8]) -> String {
        hex::encode(self.text.clone().chain_update(body).finalize().into_bytes())
    }

    /// The base64 signature in the Standard Webhooks form.
    pub fn sign_standard(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let mac = self.standard.clone().chain_update(format!("{id}.{timestamp}."));
        STANDARD.encode(mac.chain_update(body).finalize().into_bytes())
    }
}

/// What is accepted.
#[derive(Clone)]
pub struct Rules {
    /// Secrets that are in force; more than one while they rotate.
    pub secrets: Vec<Secret>,
    /// Whether the first form is still accepted.
    pub accept_x_signature: bool,
}

/// Why a callback is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
    /// 415.
    #[error("the content type is not application/json")]
    NotJson,
    /// 401.
    #[error("{0}")]
    Unauthorised(&'static str),
    /// 400.
    #[error(transparent)]
    Body(#[from] CallbackError),
    /// 400: a delivery id nobody could store.
    #[error("a delivery id has at most {DELIVERY_ID_BYTES_MAX} bytes")]
    DeliveryId,
}

/// Checks a callback and reads it. The size was checked before: nothing larger is read.
///
/// # Errors
/// [`IntakeError`], by which nothing is recorded.
pub fn verify(
    rules: &Rules,
    redactor: &Redactor,
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> Result<Verified<Callback>, IntakeError> {
    require_json(headers)?;
    let signed = check_signature(rules, headers, body, now)?;
    let mut callback = Callback::parse(body)?;
    if signed.id.is_some() {
        callback.delivery_id = signed.id;
    }
    if callback.delivery_id.as_ref().is_some_and(|id| id.len() > DELIVERY_ID_BYTES_MAX) {
        return Err(IntakeError::DeliveryId);
    }
    clean_error(&mut callback);
    // JSON escapes, or colours inside it, may hide a secret from a look at the raw bytes.
    let secret = redactor.finds(body) | (body.contains(&b'\\') && mask(redactor, &mut callback));
    if secret {
        mask(redactor, &mut callback);
    }
    let evidence = CallbackEvidence {
        delivery_id: callback.delivery_id.clone(),
        signature_form: signed.form,
        key_id: signed.key_id,
        attempt: callback.attempt.map(|attempt| attempt.0),
        signature: signed.signature,
        signed_at: signed.at,
        body: (!secret).then(|| String::from_utf8_lossy(body).into_owned()),
        body_sha256: secret.then(|| hex::encode(Sha256::digest(body))),
    };
    Ok(Verified { value: callback, evidence })
}

fn require_json(headers: &HeaderMap) -> Result<(), IntakeError> {
    let media_type = headers.get("content-type").and_then(|value| value.to_str().ok());
    let essence = media_type.map(|value| value.split(';').next().unwrap_or_default().trim());
    match essence {
        Some(essence) if essence.eq_ignore_ascii_case("application/json") => Ok(()),
        _ => Err(IntakeError::NotJson),
    }
}

struct Signed {
    form: SignatureForm,
    key_id: String,
    signature: String,
    id: Option<String>,
    at: Option<i64>,
}

fn check_signature(
    rules: &Rules,
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> Result<Signed, IntakeError> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(signatures) = header("webhook-signature") {
        return check_standard(
            rules,
            header("webhook-id"),
            header("webhook-timestamp"),
            signatures,
            body,
            now,
        );
    }
    let Some(value) = header("x-signature").or_else(|| header("x-hub-signature-256")) else {
        return Err(IntakeError::Unauthorised("no signature is given"));
    };
    if !rules.accept_x_signature {
        return Err(IntakeError::Unauthorised(
            "X-Signature is accepted no more: sign as Standard Webhooks",
        ));
    }
    let digits = value.trim();
    let digits = digits.strip_prefix("sha256=").unwrap_or(digits);
    let given = hex::decode(digits)
        .map_err(|_| IntakeError::Unauthorised("the signature is not hexadecimal"))?;
    let matching = rules.secrets.iter().find(|secret| {
        // Constant time: Mac compares so.
        secret.text.clone().chain_update(body).verify_slice(&given).is_ok()
    });
    let secret = matching.ok_or(IntakeError::Unauthorised("the signature does not match"))?;
    Ok(Signed {
        form: SignatureForm::XSignature,
        key_id: secret.key_id.clone(),
        signature: digits.to_ascii_lowercase(),
        id: None,
        at: None,
    })
}

fn check_standard(
    rules: &Rules,
    id: Option<&str>,
    timestamp: Option<&str>,
    signatures: &str,
    body: &[u8],
    now: Timestamp,
) -> Result<Signed, IntakeError> {
    let (Some(id), Some(timestamp)) = (id.filter(|id| !id.is_empty()), timestamp) else {
        return Err(IntakeError::Unauthorised("webhook-id or webhook-timestamp is missing"));
    };
    let at: i64 = timestamp
        .parse()
        .map_err(|_| IntakeError::Unauthorised("webhook-timestamp is not a number of seconds"))?;
    if now.as_second().abs_diff(at) > TIMESTAMP_SECONDS_MAX.unsigned_abs() {
        return Err(IntakeError::Unauthorised("webhook-timestamp is too far from now"));
    }
    let mut prefix = String::with_capacity(id.len() + timestamp.len() + 2);
    write!(prefix, "{id}.{timestamp}.").expect("a string takes every write");
    for given in signatures.split_ascii_whitespace().take(SIGNATURES_MAX) {
        let Some(encoded) = given.strip_prefix("v1,") else { continue };
        let Ok(decoded) = STANDARD.decode(encoded) else { continue };
        for secret in &rules.secrets {
            let mac = secret.standard.clone().chain_update(&prefix).chain_update(body);
            if mac.verify_slice(&decoded).is_ok() {
                return Ok(Signed {
                    form: SignatureForm::StandardWebhooks,
                    key_id: secret.key_id.clone(),
                    signature: encoded.to_owned(),
                    id: Some(id.to_owned()),
                    at: Some(at),
                });
            }
        }
    }
    Err(IntakeError::Unauthorised("no signature matches"))
}

/// Masks every text of a callback; says whether there was anything to mask.
fn mask(redactor: &Redactor, callback: &mut Callback) -> bool {
    let before = callback.clone();
    let text = |text: &mut String| *text = redactor.mask(text).into_owned();
    let hide = |value: &mut Option<String>| value.iter_mut().for_each(text);
    text(&mut callback.job_id);
    hide(&mut callback.workflow_run_id);
    hide(&mut callback.delivery_id);
    match &mut callback.kind {
        CallbackKind::Heartbeat | CallbackKind::Started => {}
        CallbackKind::Step { step, metadata } => {
            text(step);
            if let Some(metadata) = metadata {
                redactor.mask_json(metadata);
            }
        }
        CallbackKind::Done { server_id, server_ip, tailscale_ip } => {
            [server_id, server_ip, tailscale_ip].into_iter().for_each(hide);
        }
        CallbackKind::Failed { error, failed_step, step, server_id } => {
            [error, failed_step, step, server_id].into_iter().for_each(hide);
        }
        CallbackKind::Unknown { status } => text(status),
    }
    *callback != before
}

fn clean_error(callback: &mut Callback) {
    if let CallbackKind::Failed { error: Some(error), .. } = &mut callback.kind {
        *error = plain(error).into_owned();
    }
}
