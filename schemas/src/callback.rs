//! The callbacks a workflow posts, as they stand on the wire.
//!
//! Workflows are shell scripts: a number may come as a string and a string as a number, and both
//! are taken. What cannot be understood is refused with the field's name.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::Attempt;

/// The most lines one *log* callback brings; a sender with more says them in several.
pub const LOG_LINES_MAX: usize = 500;

/// The highest number a task or a line may have within its attempt.
pub const NUMBER_MAX: u64 = u32::MAX as u64;

/// One parsed callback.
#[derive(Clone, Debug, PartialEq)]
pub struct Callback {
    /// The job as the workflow names it; not yet known to exist, nor to be a UUID.
    pub job_id: String,
    /// The attempt it speaks for; older workflows send none.
    pub attempt: Option<Attempt>,
    /// The run that posts it.
    pub workflow_run_id: Option<String>,
    /// The sender's own id of this delivery.
    pub delivery_id: Option<String>,
    /// What it says.
    pub kind: CallbackKind,
}

/// What a callback says.
#[derive(Clone, Debug, PartialEq)]
pub enum CallbackKind {
    /// The run is alive.
    Heartbeat,
    /// The run has begun.
    Started,
    /// The run has reached a step.
    Step {
        /// The step's name on the wire, known or not.
        step: String,
        /// Whatever the workflow added.
        metadata: Option<Arc<Value>>,
    },
    /// The agent runs.
    Done {
        /// The server's id at the cloud provider.
        server_id: Option<String>,
        /// Its public address.
        server_ip: Option<String>,
        /// Its address in the tailnet.
        tailscale_ip: Option<String>,
    },
    /// The run failed.
    Failed {
        /// The tool's own words.
        error: Option<String>,
        /// The phase that failed: `provision`, `configure…`.
        failed_step: Option<String>,
        /// The last step that was reached.
        step: Option<String>,
        /// A server that may be left over.
        server_id: Option<String>,
    },
    /// A task of the run's tool has begun.
    Task {
        /// Its number within the attempt, from 1.
        number: u64,
        /// The play it belongs to.
        play: Option<String>,
        /// Its name.
        task: String,
    },
    /// The run's tool has printed something.
    Log {
        /// The number of the first line within the attempt, from 1.
        from: u64,
        /// The lines, in order.
        lines: Vec<String>,
    },
    /// A status this version does not know; kept, never applied.
    Unknown {
        /// The status or type as it came.
        status: String,
    },
}

impl CallbackKind {
    /// The kind's name in events, logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Heartbeat => "heartbeat",
            Self::Started => "started",
            Self::Step { .. } => "step",
            Self::Done { .. } => "done",
            Self::Failed { .. } => "failed",
            Self::Task { .. } => "task",
            Self::Log { .. } => "log",
            Self::Unknown { .. } => "unknown",
        }
    }

    /// Whether numbers of its own tell a repeat, whatever its delivery id: tasks and lines, of
    /// which a run sends many.
    pub fn is_numbered(&self) -> bool {
        match self {
            Self::Task { .. } | Self::Log { .. } => true,
            Self::Heartbeat
            | Self::Started
            | Self::Step { .. }
            | Self::Done { .. }
            | Self::Failed { .. }
            | Self::Unknown { .. } => false,
        }
    }

    /// The step that tells two callbacks of one kind apart.
    pub fn step(&self) -> Option<&str> {
        match self {
            Self::Step { step, .. } => Some(step),
            Self::Failed { step, .. } => step.as_deref(),
            Self::Unknown { status } => Some(status),
            Self::Heartbeat
            | Self::Started
            | Self::Done { .. }
            | Self::Task { .. }
            | Self::Log { .. } => None,
        }
    }
}

/// Why a body is no callback. Each is the sender's mistake: 400.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallbackError {
    /// Not a JSON object; with the parser's words.
    Malformed(String),
    /// No `job_id`.
    MissingJobId,
    /// Neither `status` nor `type`.
    MissingStatus,
    /// A field of the wrong kind; its name, and what was expected.
    Field(&'static str, &'static str),
}

impl std::fmt::Display for CallbackError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed(why) => write!(f, "the body is not a JSON object: {why}"),
            Self::MissingJobId => f.write_str("job_id is missing"),
            Self::MissingStatus => f.write_str("neither status nor type is given"),
            Self::Field(name, expected) => write!(f, "{name} must be {expected}"),
        }
    }
}

impl std::error::Error for CallbackError {}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow, default)]
    job_id: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    status: Option<&'a RawValue>,
    #[serde(borrow, default)]
    step: Option<&'a RawValue>,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow, default)]
    attempt: Option<&'a RawValue>,
    #[serde(borrow, default)]
    workflow_run_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    delivery_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    server_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    server_ip: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tailscale_ip: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    failed_step: Option<&'a RawValue>,
    #[serde(borrow, default)]
    number: Option<&'a RawValue>,
    #[serde(borrow, default)]
    play: Option<&'a RawValue>,
    #[serde(borrow, default)]
    task: Option<&'a RawValue>,
    #[serde(borrow, default)]
    from: Option<&'a RawValue>,
    #[serde(borrow, default)]
    lines: Option<&'a RawValue>,
}

impl Callback {
    /// Reads one callback from its raw body.
    ///
    /// # Errors
    /// [`CallbackError`], which names the field at fault. Unknown fields are no error: the raw
    /// body keeps them.
    pub fn parse(body: &[u8]) -> Result<Self, CallbackError> {
        // serde would read an array as the struct's fields in order.
        if body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
            return Err(CallbackError::Malformed("it is an array".into()));
        }
        // serde skips unknown fields without a look at their bytes.
        let body = std::str::from_utf8(body)
            .map_err(|_| CallbackError::Malformed("it is not UTF-8".into()))?;
        let wire: Wire<'_> = serde_json::from_str(body)
            .map_err(|error| CallbackError::Malformed(error.to_string()))?;
        let job_id = text("job_id", wire.job_id)?.filter(|id| !id.is_empty());
        let kind = text("type", wire.kind)?;
        let status = text("status", wire.status)?;
        Ok(Self {
            job_id: job_id.ok_or(CallbackError::MissingJobId)?,
            attempt: attempt(wire.attempt)?,
            workflow_run_id: text("workflow_run_id", wire.workflow_run_id)?,
            delivery_id: text("delivery_id", wire.delivery_id)?.filter(|id| !id.is_empty()),
            kind: wire.kind_of(kind.as_deref(), status.as_deref())?,
        })
    }
}

impl Wire<'_> {
    fn kind_of(
        &self,
        kind: Option<&str>,
        status: Option<&str>,
    ) -> Result<CallbackKind, CallbackError> {
        Ok(match (kind, status) {
            (Some("heartbeat"), _) => CallbackKind::Heartbeat,
            (Some("task"), _) => CallbackKind::Task {
                number: number("number", self.number)?,
                play: text("play", self.play)?.filter(|play| !play.is_empty()),
                task: text("task", self.task)?
                    .filter(|task| !task.is_empty())
                    .ok_or(CallbackError::Field("task", "a string"))?,
            },
            (Some("log"), _) => {
                CallbackKind::Log { from: number("from", self.from)?, lines: lines(self.lines)? }
            }
            (_, Some("provisioning")) => match text("step", self.step)?.filter(|s| !s.is_empty()) {
                None => CallbackKind::Started,
                Some(step) => {
                    CallbackKind::Step { step, metadata: any(self.metadata).map(Arc::new) }
                }
            },
            (_, Some("running")) => self.done()?,
            (_, Some("failed")) => CallbackKind::Failed {
                error: words(self.error),
                failed_step: text("failed_step", self.failed_step)?,
                step: text("step", self.step)?.filter(|step| !step.is_empty()),
                server_id: text("server_id", self.server_id)?.filter(|id| !id.is_empty()),
            },
            (Some(other), None) | (_, Some(other)) => {
                CallbackKind::Unknown { status: other.to_owned() }
            }
            (None, None) => return Err(CallbackError::MissingStatus),
        })
    }

    /// The three facts of the server may stand at the top or inside `metadata`.
    fn done(&self) -> Result<CallbackKind, CallbackError> {
        let metadata = any(self.metadata);
        let fact = |name: &'static str, top: Option<&RawValue>| {
            let inner = metadata.as_ref().and_then(|value| value.get(name));
            let value = match text(name, top)? {
                Some(value) => Some(value),
                None => scalar(name, inner.cloned())?,
            };
            Ok(value.filter(|value| !value.is_empty()))
        };
        Ok(CallbackKind::Done {
            server_id: fact("server_id", self.server_id)?,
            server_ip: fact("server_ip", self.server_ip)?,
            tailscale_ip: fact("tailscale_ip", self.tailscale_ip)?,
        })
    }
}

fn any(raw: Option<&RawValue>) -> Option<Value> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
        .filter(|value: &Value| !value.is_null())
}

/// A string, or a number taken as one; `null` counts as absent.
fn text(name: &'static str, raw: Option<&RawValue>) -> Result<Option<String>, CallbackError> {
    let Some(json) = raw.map(RawValue::get) else { return Ok(None) };
    let wrong = |_| CallbackError::Field(name, "a string");
    if json.starts_with('"') {
        return serde_json::from_str(json).map(Some).map_err(wrong);
    }
    scalar(name, Some(serde_json::from_str(json).map_err(wrong)?))
}

fn scalar(name: &'static str, value: Option<Value>) -> Result<Option<String>, CallbackError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {
            Err(CallbackError::Field(name, "a string"))
        }
    }
}

/// An error may come as text or as any JSON; both are somebody's words.
fn words(raw: Option<&RawValue>) -> Option<String> {
    match serde_json::from_str(raw?.get()) {
        Ok(Value::Null) => None,
        Ok(Value::String(text)) => Some(text),
        Ok(other) => Some(other.to_string()),
        // Half a surrogate pair, or too deep: the words as they came say more than none.
        Err(_) => raw.map(|raw| raw.get().to_owned()),
    }
}

/// A number of a task or a line.
fn number(name: &'static str, raw: Option<&RawValue>) -> Result<u64, CallbackError> {
    let number = text(name, raw)?.and_then(|text| text.parse().ok());
    number
        .filter(|number| (1..=NUMBER_MAX).contains(number))
        .ok_or(CallbackError::Field(name, "an integer from 1"))
}

/// A tool's output is bytes before it is text: what is no text becomes its own words.
fn lines(raw: Option<&RawValue>) -> Result<Vec<String>, CallbackError> {
    let expected = CallbackError::Field("lines", "a list of 1 to 500 strings");
    let Some(lines) = raw.and_then(|raw| serde_json::from_str::<Vec<&RawValue>>(raw.get()).ok())
    else {
        return Err(expected);
    };
    if lines.is_empty() || lines.len() > LOG_LINES_MAX {
        return Err(expected);
    }
    let is_text = |line: &&RawValue| line.get().starts_with('"');
    if !lines.iter().all(is_text) {
        return Err(expected);
    }
    Ok(lines.into_iter().filter_map(|line| words(Some(line))).collect())
}

fn attempt(raw: Option<&RawValue>) -> Result<Option<Attempt>, CallbackError> {
    let expected = CallbackError::Field("attempt", "an integer from 1");
    let Some(text) = text("attempt", raw)?.filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.parse() {
        Ok(0) | Err(_) => Err(expected),
        Ok(number) => Ok(Some(Attempt(number))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Callback, CallbackError> {
        Callback::parse(body.as_bytes())
    }

    #[test]
    fn heartbeat_ignores_any_status_beside_it() {
        let callback = parse(r#"{"job_id":"j","type":"heartbeat","status":"failed"}"#).unwrap();
        assert_eq!(callback.kind, CallbackKind::Heartbeat);
    }

    #[test]
    fn provisioning_without_a_step_is_started() {
        let callback = parse(r#"{"job_id":"j","status":"provisioning","workflow_run_id":44}"#);
        let callback = callback.unwrap();
        assert_eq!(callback.kind, CallbackKind::Started);
        assert_eq!(callback.workflow_run_id.as_deref(), Some("44"));
    }

    #[test]
    fn provisioning_with_a_step_keeps_its_metadata() {
        let callback = parse(
            r#"{"job_id":"j","status":"provisioning","step":"vm_created","metadata":{"a":1}}"#,
        )
        .unwrap();
        assert_eq!(
            callback.kind,
            CallbackKind::Step {
                step: "vm_created".into(),
                metadata: Some(Arc::new(serde_json::json!({"a": 1}))),
            }
        );
    }

    #[test]
    fn server_facts_may_stand_inside_metadata() {
        let done = |body: &str| parse(body).unwrap().kind;
        let expected = CallbackKind::Done {
            server_id: Some("42".into()),
            server_ip: Some("192.0.2.1".into()),
            tailscale_ip: Some("100.64.0.1".into()),
        };
        assert_eq!(
            done(
                r#"{"job_id":"j","status":"running","metadata":{"server_id":42,"server_ip":"192.0.2.1","tailscale_ip":"100.64.0.1"}}"#
            ),
            expected
        );
        assert_eq!(
            done(
                r#"{"job_id":"j","status":"running","server_id":"42","server_ip":"192.0.2.1","tailscale_ip":"100.64.0.1"}"#
            ),
            expected
        );
    }

    #[test]
    fn missing_job_id_and_missing_status_are_told_apart() {
        assert_eq!(parse(r#"{"status":"running"}"#), Err(CallbackError::MissingJobId));
        assert_eq!(parse(r#"{"job_id":"j"}"#), Err(CallbackError::MissingStatus));
        assert!(matches!(parse("[1]"), Err(CallbackError::Malformed(_))));
        assert!(matches!(parse("{"), Err(CallbackError::Malformed(_))));
    }

    #[test]
    fn attempt_is_an_integer_from_1() {
        let attempt = |value: &str| {
            parse(&format!(r#"{{"job_id":"j","type":"heartbeat","attempt":{value}}}"#))
                .map(|callback| callback.attempt)
        };
        assert_eq!(attempt("2"), Ok(Some(Attempt(2))));
        assert_eq!(attempt("\"3\""), Ok(Some(Attempt(3))));
        assert_eq!(attempt("null"), Ok(None));
        for wrong in ["0", "-1", "1.5", "\"x\"", "[]", "4294967296"] {
            assert!(matches!(attempt(wrong), Err(CallbackError::Field("attempt", _))), "{wrong}");
        }
    }

    #[test]
    fn a_task_and_a_log_go_before_any_status() {
        let kind = |body: &str| parse(body).unwrap().kind;
        assert_eq!(
            kind(
                r#"{"job_id":"j","type":"task","status":"running","number":3,"play":"agent","task":"docker : add"}"#
            ),
            CallbackKind::Task {
                number: 3,
                play: Some("agent".into()),
                task: "docker : add".into()
            }
        );
        assert_eq!(
            kind(r#"{"job_id":"j","type":"log","status":"failed","from":"7","lines":["a","b"]}"#),
            CallbackKind::Log { from: 7, lines: vec!["a".into(), "b".into()] }
        );
    }

    #[test]
    fn a_task_or_a_log_that_cannot_be_numbered_or_read_is_refused() {
        for (rest, field) in [
            (r#""type":"task","task":"t""#, "number"),
            (r#""type":"task","task":"t","number":0"#, "number"),
            (r#""type":"task","task":"t","number":4294967296"#, "number"),
            (r#""type":"task","number":1"#, "task"),
            (r#""type":"task","number":1,"task":"""#, "task"),
            (r#""type":"log","lines":["a"]"#, "from"),
            (r#""type":"log","from":1"#, "lines"),
            (r#""type":"log","from":1,"lines":[]"#, "lines"),
            (r#""type":"log","from":1,"lines":"a""#, "lines"),
            (r#""type":"log","from":1,"lines":["a",1]"#, "lines"),
        ] {
            let error = parse(&format!(r#"{{"job_id":"j",{rest}}}"#)).unwrap_err();
            assert!(matches!(error, CallbackError::Field(name, _) if name == field), "{rest}");
        }
    }

    #[test]
    fn a_log_brings_at_most_its_most_lines() {
        let of = |count: usize| {
            let lines = serde_json::to_string(&vec!["x"; count]).unwrap();
            parse(&format!(r#"{{"job_id":"j","type":"log","from":1,"lines":{lines}}}"#))
        };
        assert!(of(LOG_LINES_MAX).is_ok());
        let expected = format!("a list of 1 to {LOG_LINES_MAX} strings");
        let error = of(LOG_LINES_MAX + 1).unwrap_err();
        assert!(matches!(error, CallbackError::Field("lines", words) if words == expected));
    }

    #[test]
    fn a_line_that_is_no_text_is_kept_in_its_own_words() {
        let kind = parse(r#"{"job_id":"j","type":"log","from":1,"lines":["a \udc80","b"]}"#);
        let CallbackKind::Log { lines, .. } = kind.unwrap().kind else { panic!("it is a log") };
        assert_eq!(lines, [r#""a \udc80""#, "b"]);
    }

    #[test]
    fn a_body_that_is_not_utf_8_is_refused_wherever_it_is_not() {
        for body in [
            b"{\"job_id\":\"j\",\"type\":\"heartbeat\",\"note\":\"\xff\"}".as_slice(),
            b"{\"job_id\":\"\xff\",\"type\":\"heartbeat\"}",
        ] {
            assert!(matches!(Callback::parse(body), Err(CallbackError::Malformed(_))));
        }
    }

    #[test]
    fn a_field_that_cannot_be_read_is_refused_not_taken_for_absent() {
        let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
        for wrong in [&deep, "1e999", r#""\ud800""#, "true", "{}"] {
            let body = format!(r#"{{"job_id":"j","status":"provisioning","step":{wrong}}}"#);
            assert_eq!(parse(&body), Err(CallbackError::Field("step", "a string")), "{wrong}");
        }
    }

    #[test]
    fn an_error_of_any_json_is_somebodys_words() {
        for (error, expected) in [
            ("null", None),
            (r#""no route""#, Some("no route")),
            (r#"{"code":4}"#, Some(r#"{"code":4}"#)),
            (r#""half \ud800 a pair""#, Some(r#""half \ud800 a pair""#)),
        ] {
            let body = format!(r#"{{"job_id":"j","status":"failed","error":{error}}}"#);
            let CallbackKind::Failed { error, .. } = parse(&body).unwrap().kind else {
                panic!("it failed");
            };
            assert_eq!(error.as_deref(), expected);
        }
    }

    #[test]
    fn an_unknown_status_is_kept_not_refused() {
        let callback = parse(r#"{"job_id":"j","status":"paused"}"#).unwrap();
        assert_eq!(callback.kind, CallbackKind::Unknown { status: "paused".into() });
    }
}
