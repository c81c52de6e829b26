//! An event in an export, in either format, with the exact bytes that the log holds.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use milepost_schemas::EventType;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::ledger::{Hash, Leaf};

/// The reverse-domain name before an event's type, as `CloudEvents` asks for one.
const TYPE_PREFIX: &str = "dev.milepost.";

/// Bytes of a line beyond which it is none: an event has a few hundred KiB at the most.
pub(super) const LINE_BYTES_MAX: u64 = 64 << 20;

/// An event of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its position.
    pub position: u64,
    /// Its stream.
    pub stream: Uuid,
    /// Its place there.
    pub version: u32,
    /// Its type's code.
    pub code: i16,
    /// The version of its type.
    pub schema_version: i16,
    /// When the log took it.
    pub recorded_at: Timestamp,
    /// Its header, as stored.
    pub header: Vec<u8>,
    /// Its body, as stored.
    pub body: Vec<u8>,
    /// The hash of its leaf, as it was sealed.
    pub leaf_hash: Hash,
}

/// `events/*.jsonl`.
#[derive(Serialize, Deserialize)]
struct Jsonl {
    position: u64,
    stream: Uuid,
    version: u32,
    #[serde(rename = "type")]
    kind: String,
    type_code: i16,
    schema_version: i16,
    recorded_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    header: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    header_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    leaf_hash: String,
}

/// A member of `events/*.json`. Attributes beyond those of `CloudEvents` have its names: small letters
/// and digits; what may be larger than 2^31 is text.
#[derive(Serialize, Deserialize)]
struct CloudEvent {
    specversion: String,
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    subject: String,
    time: Timestamp,
    datacontenttype: String,
    sequence: String,
    streamversion: u32,
    typecode: i16,
    schemaversion: i16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    header: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    headerbase64: Option<String>,
    leafhash: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

impl Line {
    /// An event at a position.
    pub fn of(position: u64, leaf: &Leaf<'_>) -> Self {
        Self {
            position,
            stream: leaf.stream,
            version: leaf.version,
            code: leaf.code,
            schema_version: leaf.schema_version,
            recorded_at: Timestamp::from_microsecond(leaf.recorded_at_us).unwrap_or_default(),
            header: leaf.header.to_vec(),
            body: leaf.body.to_vec(),
            leaf_hash: leaf.hash(),
        }
    }

    /// The leaf that it gives.
    pub fn leaf(&self) -> Leaf<'_> {
        Leaf {
            stream: self.stream,
            version: self.version,
            code: self.code,
            schema_version: self.schema_version,
            recorded_at_us: self.recorded_at.as_microsecond(),
            header: &self.header,
            body: &self.body,
        }
    }

    /// As a line of JSON.
    pub fn to_jsonl(&self) -> String {
        let (header, header_base64) = text_or_base64(&self.header);
        let (body, body_base64) = text_or_base64(&self.body);
        let line = Jsonl {
            position: self.position,
            stream: self.stream,
            version: self.version,
            kind: self.type_name().to_owned(),
            type_code: self.code,
            schema_version: self.schema_version,
            recorded_at: self.recorded_at,
            header,
            header_base64,
            body,
            body_base64,
            leaf_hash: self.leaf_hash.to_string(),
        };
        serde_json::to_string(&line).expect("a line is plain data")
    }

    /// As a `CloudEvent` of a log.
    pub fn to_cloudevent(&self, origin: &str, epoch: i64) -> String {
        let (header, headerbase64) = text_or_base64(&self.header);
        // Only what would come back as the same bytes goes in as JSON.
        let text = std::str::from_utf8(&self.body).ok();
        let data = text.and_then(|text| RawValue::from_string(text.to_owned()).ok());
        let data = data.filter(|data| data.get().as_bytes() == self.body);
        let data_base64 = data.is_none().then(|| STANDARD.encode(&self.body));
        let event = CloudEvent {
            specversion: "1.0".to_owned(),
            id: id(epoch, self.position),
            source: source(origin),
            kind: cloudevents_type(self.type_name(), self.schema_version),
            subject: self.stream.to_string(),
            time: self.recorded_at,
            datacontenttype: "application/json".to_owned(),
            sequence: self.position.to_string(),
            streamversion: self.version,
            typecode: self.code,
            schemaversion: self.schema_version,
            header,
            headerbase64,
            leafhash: self.leaf_hash.to_string(),
            data,
            data_base64,
        };
        serde_json::to_string(&event).expect("an event is plain data")
    }

    /// Reads a line of JSON.
    ///
    /// # Errors
    /// In words.
    pub fn from_jsonl(text: &str) -> Result<Self, String> {
        let line: Jsonl = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if let Ok(known) = EventType::from_code(line.type_code) {
            require("type", &line.kind, known.name())?;
        }
        Ok(Self {
            position: line.position,
            stream: line.stream,
            version: line.version,
            code: line.type_code,
            schema_version: line.schema_version,
            recorded_at: line.recorded_at,
            header: bytes("header", line.header, line.header_base64)?,
            body: bytes("body", line.body, line.body_base64)?,
            leaf_hash: hash(&line.leaf_hash)?,
        })
    }

    /// Reads a `CloudEvent` of a log. What its attributes say twice they must say alike.
    ///
    /// # Errors
    /// In words.
    pub fn from_cloudevent(text: &str, origin: &str, epoch: i64) -> Result<Self, String> {
        let event: CloudEvent = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let position = event.sequence.parse().map_err(|_| "sequence is no position")?;
        require("id", &event.id, &id(epoch, position))?;
        require("source", &event.source, &source(origin))?;
        if let Ok(known) = EventType::from_code(event.typecode) {
            require("type", &event.kind, &cloudevents_type(known.name(), event.schemaversion))?;
        }
        let data = event.data.map(|data| data.get().to_owned());
        Ok(Self {
            position,
            stream: event.subject.parse().map_err(|_| "subject is no stream")?,
            version: event.streamversion,
            code: event.typecode,
            schema_version: event.schemaversion,
            recorded_at: event.time,
            header: bytes("header", event.header, event.headerbase64)?,
            body: bytes("data", data, event.data_base64)?,
            leaf_hash: hash(&event.leafhash)?,
        })
    }

    fn type_name(&self) -> &'static str {
        EventType::from_code(self.code).map_or("Unknown", EventType::name)
    }
}

fn id(epoch: i64, position: u64) -> String {
    format!("{epoch}-{position}")
}

fn source(origin: &str) -> String {
    format!("//{origin}")
}

fn cloudevents_type(name: &str, schema_version: i16) -> String {
    format!("{TYPE_PREFIX}{name}.v{schema_version}")
}

/// What no hash covers is taken only where it is what the rest gives.
fn require(name: &str, said: &str, expected: &str) -> Result<(), String> {
    if said == expected {
        return Ok(());
    }
    Err(format!("{name} is {said:?} where {expected:?} belongs"))
}

fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

fn bytes(name: &str, text: Option<String>, base64: Option<String>) -> Result<Vec<u8>, String> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(base64)) => STANDARD.decode(base64).map_err(|_| format!("{name} is no base64")),
        (Some(_), Some(_)) | (None, None) => Err(format!("{name} is not there once")),
    }
}

fn hash(text: &str) -> Result<Hash, String> {
    text.parse().map_err(|_| "the leaf's hash is none".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(header: &[u8], body: &[u8]) -> Line {
        let leaf = Leaf {
            stream: Uuid::from_u128(7),
            version: 3,
            code: 15,
            schema_version: 1,
            recorded_at_us: 1_764_000_000_000_001,
            header,
            body,
        };
        Line::of(4_711, &leaf)
    }

    #[test]
    fn the_exact_bytes_come_back() {
        for (header, body) in [
            (&b"{}"[..], &b"{}"[..]),
            (br#"{"actor":"a"}"#, br#"{"b":1.0,"a":1e2,"b":"\u0041"}"#),
            // Spaces that JSON does not need, escapes, a number no double holds.
            (b"{ }", b" { \"n\" : 12345678901234567890123 } "),
            // No JSON, and no text.
            (b"", b"\xff\xfe"),
            (b"\x80", b"{"),
        ] {
            let line = line(header, body);
            assert_eq!(Line::from_jsonl(&line.to_jsonl()).unwrap(), line);
            let event = line.to_cloudevent("m.example/log/1", 1);
            let read = Line::from_cloudevent(&event, "m.example/log/1", 1);
            assert_eq!(read.unwrap(), line, "{event}");
            assert_eq!(line.leaf().hash(), line.leaf_hash);
        }
    }

    #[test]
    fn labels_that_no_hash_covers_must_be_those_of_the_event() {
        let line = line(b"{}", b"{}");
        let text = line.to_jsonl();
        let relabelled = text.replace("ProvisioningStepRecorded", "ServerCreated");
        assert_ne!(text, relabelled);
        assert!(Line::from_jsonl(&relabelled).unwrap_err().contains("type"));
        let event = line.to_cloudevent("m.example/log/1", 1);
        for (label, from, to) in [
            ("type", "ProvisioningStepRecorded", "ServerCreated"),
            ("type", "Recorded.v1", "Recorded.v2"),
            ("id", "\"1-4711\"", "\"1-4712\""),
            ("id", "\"1-4711\"", "\"2-4711\""),
            ("source", "//m.example/log/1", "//n.example/log/1"),
        ] {
            let relabelled = event.replace(from, to);
            assert_ne!(event, relabelled);
            let refused = Line::from_cloudevent(&relabelled, "m.example/log/1", 1).unwrap_err();
            assert!(refused.starts_with(label), "{refused}");
        }
        // A type that a later version knows is taken by its code.
        let unknown = Line { code: i16::MAX, ..line };
        let later = unknown.to_jsonl().replace("Unknown", "SomethingLater");
        assert_eq!(Line::from_jsonl(&later).unwrap(), unknown);
    }

    #[test]
    fn a_cloudevent_has_what_the_specification_asks_for() {
        let event = line(br#"{"actor":"system:dev"}"#, br#"{"step":"vm_created"}"#);
        let event = event.to_cloudevent("m.example/log/1764000000", 1_764_000_000);
        let event: serde_json::Value = serde_json::from_str(&event).unwrap();
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["id"], "1764000000-4711");
        assert_eq!(event["source"], "//m.example/log/1764000000");
        assert_eq!(event["type"], "dev.milepost.ProvisioningStepRecorded.v1");
        assert_eq!(event["data"]["step"], "vm_created");
        // Names of attributes are small letters and digits, at most twenty.
        for name in event.as_object().unwrap().keys().filter(|name| *name != "data_base64") {
            assert!(name.len() <= 20, "{name}");
            assert!(
                name.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit()),
                "{name}"
            );
        }
    }
}
