//! Which texts of an event may say something of a person, and whose they are.
//!
//! They are sealed before an event is stored, under the key of its subject; see `src/log/privacy/`
//! in the crate `milepost`. A text is classified here once, and nowhere else.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::SubjectKind;
use crate::{AgentId, Callback, Event, NodeId, StreamId};

impl Event {
    /// Shows each personal text to `each`, which may put another in its place.
    ///
    /// Personal is what people are called and reached by, and what tools and people say in words of
    /// their own. Ids, codes, names of steps, tasks, regions and dispatchers are not: whoever wrote
    /// the workflow or the playbook chose them. Within what a workflow adds to a step every text is
    /// personal but [what a server is](`OF_SERVER`); names of fields and numbers are not.
    pub fn personal(&mut self, each: &mut dyn FnMut(&mut String)) {
        match self {
            Self::AgentCreated(event) => each(&mut event.name),
            Self::JobQueued(event) => event.reason.iter_mut().for_each(each),
            Self::WorkflowDispatchFailed(event) => each(&mut event.reason),
            Self::WorkflowRunCancelRequested(event) => event.detail.iter_mut().for_each(each),
            Self::ProvisioningStepRecorded(event) => {
                if let Some(metadata) = event.metadata.as_mut().filter(|it| !is_of_server(it)) {
                    added(Arc::make_mut(metadata), each);
                }
            }
            Self::JobFailed(event) => each(&mut event.error_message),
            Self::JobCancelled(event) => event.reason.iter_mut().for_each(each),
            Self::JobPriorityChanged(event) => event.reason.iter_mut().for_each(each),
            Self::JobLogRecorded(event) => event.lines.iter_mut().for_each(each),
            Self::InstanceStarted(event) => {
                if let Some(server) = &mut event.server {
                    each(&mut server.server_ip);
                    each(&mut server.tailscale_ip);
                }
            }
            Self::CallbackRejected(event) => {
                if Uuid::try_parse(&event.job_id).is_err() {
                    each(&mut event.job_id);
                }
            }
            Self::NodeRegistered(event) => {
                each(&mut event.hostname);
                each(&mut event.public_ip);
                each(&mut event.ssh_user);
            }
            Self::NodeAddressTaken(event) => each(&mut event.address),
            Self::QueuePaused(event) => each(&mut event.reason),
            Self::QueueResumed(event) => event.reason.iter_mut().for_each(each),
            Self::CompensationStepTaken(event) => event.detail.iter_mut().for_each(each),
            Self::ProjectionRebuildRequested(event) => event.reason.iter_mut().for_each(each),
            Self::ProjectionRollbackRequested(event) => event.reason.iter_mut().for_each(each),
            Self::ProjectionOrderCancelled(event) => event.reason.iter_mut().for_each(each),
            Self::ProjectionEventSkipped(event) => each(&mut event.reason),
            Self::ProvisioningRequested(_)
            | Self::AgentActivated(_)
            | Self::ProvisioningEnded(_)
            | Self::WorkflowDispatchRequested(_)
            | Self::WorkflowDispatched(_)
            | Self::ProvisioningStarted(_)
            | Self::HeartbeatRecorded(_)
            | Self::JobSucceeded(_)
            | Self::JobRetried(_)
            | Self::LateCallbackRecorded(_)
            | Self::TaskStarted(_)
            | Self::WorkflowRunObserved(_)
            | Self::InstanceRequested(_)
            | Self::NodeProvisioningRequested(_)
            | Self::NodeActivated(_)
            | Self::NodeBecameUnreachable(_)
            | Self::NodeDecommissionRequested(_)
            | Self::NodeDecommissioned(_)
            | Self::NodeDecommissionEnded(_)
            | Self::CompensationRequested(_)
            | Self::CompensationCompleted(_)
            | Self::OrphanFound(_)
            | Self::OrphanRemoved(_)
            | Self::InstanceServerMissing(_)
            | Self::RunnerEndAwaited(_)
            | Self::RunnerEnded(_)
            | Self::CompensationPutOff(_)
            | Self::InstanceServerNotFound(_)
            | Self::ProjectionVerifyRequested(_)
            | Self::ProjectionSwitchRequested(_)
            | Self::ProjectionOrderEnded(_)
            | Self::LogKeyRotated(_)
            | Self::LogEpochBegun(_)
            | Self::LogRangeArchived(_)
            | Self::LogRangeRestored(_)
            | Self::AccountCreated(_)
            | Self::AccountRoleChanged(_)
            | Self::AccountDisabled(_)
            | Self::AccountEnabled(_)
            | Self::PasswordChanged(_)
            | Self::SessionBegan(_)
            | Self::SessionEnded(_)
            | Self::LogInFailed(_)
            | Self::ActionRefused(_)
            | Self::TokenCreated(_)
            | Self::TokenRevoked(_)
            | Self::PersonalDataErased(_) => {}
        }
    }

    /// Whose the event is: an agent or a node, whatever stream it stands in. `None` for what is of
    /// neither, which its own stream stands for.
    pub fn subject(&self) -> Option<(SubjectKind, StreamId)> {
        match self {
            Self::AgentCreated(event) => Some(agent(event.agent_id)),
            Self::ProvisioningRequested(event) => Some(agent(event.agent_id)),
            Self::AgentActivated(event) => Some(agent(event.agent_id)),
            Self::ProvisioningEnded(event) => Some(agent(event.agent_id)),
            Self::InstanceRequested(event) => Some(agent(event.agent_id)),
            Self::InstanceStarted(event) => Some(agent(event.agent_id)),
            Self::CompensationRequested(event) => Some(agent(event.agent_id)),
            Self::CompensationStepTaken(event) => Some(agent(event.agent_id)),
            Self::CompensationCompleted(event) => Some(agent(event.agent_id)),
            Self::CompensationPutOff(event) => Some(agent(event.agent_id)),
            Self::InstanceServerMissing(event) => Some(agent(event.agent_id)),
            Self::InstanceServerNotFound(event) => Some(agent(event.agent_id)),
            Self::JobQueued(event) => either(event.agent_id, event.node_id),
            Self::WorkflowDispatchRequested(event) => either(event.agent_id, event.node_id),
            Self::WorkflowDispatched(event) => either(event.agent_id, event.node_id),
            Self::WorkflowDispatchFailed(event) => either(event.agent_id, event.node_id),
            Self::ProvisioningStarted(event) => either(event.agent_id, event.node_id),
            Self::ProvisioningStepRecorded(event) => either(event.agent_id, event.node_id),
            Self::HeartbeatRecorded(event) => either(event.agent_id, event.node_id),
            Self::JobSucceeded(event) => either(event.agent_id, event.node_id),
            Self::JobFailed(event) => either(event.agent_id, event.node_id),
            Self::JobRetried(event) => either(event.agent_id, event.node_id),
            Self::JobCancelled(event) => either(event.agent_id, event.node_id),
            Self::LateCallbackRecorded(event) => either(event.agent_id, event.node_id),
            Self::JobPriorityChanged(event) => either(event.agent_id, event.node_id),
            Self::TaskStarted(event) => either(event.agent_id, event.node_id),
            Self::JobLogRecorded(event) => either(event.agent_id, event.node_id),
            Self::WorkflowRunObserved(event) => either(event.agent_id, event.node_id),
            Self::WorkflowRunCancelRequested(event) => either(event.agent_id, event.node_id),
            Self::RunnerEndAwaited(event) => Some(node(event.node_id)),
            Self::RunnerEnded(event) => Some(node(event.node_id)),
            Self::NodeRegistered(event) => Some(node(event.node_id)),
            Self::NodeProvisioningRequested(event) => Some(node(event.node_id)),
            Self::NodeActivated(event) => Some(node(event.node_id)),
            Self::NodeBecameUnreachable(event) => Some(node(event.node_id)),
            Self::NodeDecommissionRequested(event) => Some(node(event.node_id)),
            Self::NodeDecommissioned(event) => Some(node(event.node_id)),
            Self::NodeDecommissionEnded(event) => Some(node(event.node_id)),
            Self::NodeAddressTaken(event) => Some(node(event.node_id)),
            Self::PersonalDataErased(event) => Some((event.kind, event.subject)),
            Self::CallbackRejected(_)
            | Self::QueuePaused(_)
            | Self::QueueResumed(_)
            | Self::OrphanFound(_)
            | Self::OrphanRemoved(_)
            | Self::ProjectionRebuildRequested(_)
            | Self::ProjectionRollbackRequested(_)
            | Self::ProjectionVerifyRequested(_)
            | Self::ProjectionSwitchRequested(_)
            | Self::ProjectionOrderCancelled(_)
            | Self::ProjectionOrderEnded(_)
            | Self::ProjectionEventSkipped(_)
            | Self::LogKeyRotated(_)
            | Self::LogEpochBegun(_)
            | Self::LogRangeArchived(_)
            | Self::LogRangeRestored(_)
            | Self::AccountCreated(_)
            | Self::AccountRoleChanged(_)
            | Self::AccountDisabled(_)
            | Self::AccountEnabled(_)
            | Self::PasswordChanged(_)
            | Self::SessionBegan(_)
            | Self::SessionEnded(_)
            | Self::LogInFailed(_)
            | Self::ActionRefused(_)
            | Self::TokenCreated(_)
            | Self::TokenRevoked(_) => None,
        }
    }
}

fn agent(id: AgentId) -> (SubjectKind, StreamId) {
    (SubjectKind::Agent, id.stream())
}

fn node(id: NodeId) -> (SubjectKind, StreamId) {
    (SubjectKind::Node, id.stream())
}

fn either(agent_id: Option<AgentId>, node_id: Option<NodeId>) -> Option<(SubjectKind, StreamId)> {
    agent_id.map(agent).or_else(|| node_id.map(node))
}

/// What a workflow says of a server that says nothing of anybody: its id at the cloud provider, by
/// which it can still be found and removed when all else of its owner is erased, and its kind.
const OF_SERVER: [&str; 4] = ["server_id", "server_type", "location", "region"];

/// The longest of those, in bytes. A longer text is somebody's words.
const OF_SERVER_BYTES_MAX: usize = 40;

fn is_code(text: &str) -> bool {
    text.len() <= OF_SERVER_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn is_code_of_server(name: &str, value: &Value) -> bool {
    OF_SERVER.contains(&name) && value.as_str().is_some_and(is_code)
}

/// Whether what a workflow added to a step says what a server is, and no more.
fn is_of_server(metadata: &Value) -> bool {
    let plain = |(name, value): (&String, &Value)| is_code_of_server(name, value);
    metadata.as_object().is_some_and(|fields| fields.iter().all(plain))
}

/// Shows every text of what a workflow added to a step, except what a server is.
fn added(metadata: &mut Value, each: &mut dyn FnMut(&mut String)) {
    let Value::Object(fields) = metadata else { return texts(metadata, each) };
    for (name, value) in fields.iter_mut() {
        if !is_code_of_server(name, value) {
            texts(value, each);
        }
    }
}

/// Shows every text inside a JSON value.
fn texts(value: &mut Value, each: &mut dyn FnMut(&mut String)) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
        Value::String(text) => each(text),
        Value::Array(items) => items.iter_mut().for_each(|item| texts(item, each)),
        Value::Object(fields) => fields.values_mut().for_each(|field| texts(field, each)),
    }
}

impl Callback {
    /// Whether a raw body says nothing of anybody: a heartbeat, a *started*, a task or a step with
    /// no fields but those we know, each of the kind it should be, and of a server no more than
    /// what it is. Such a body is kept as it came; any other, and what cannot be read, is sealed.
    pub fn holds_only_ids(body: &str) -> bool {
        let Ok(plain) = serde_json::from_str::<Plain<'_>>(body) else { return false };
        let known = match plain.kind {
            Some(kind) => matches!(kind, "heartbeat" | "task"),
            None => matches!(plain.status, Some(Status::Provisioning)),
        };
        known
            && Uuid::try_parse(plain.job_id).is_ok()
            && [plain.attempt, plain.workflow_run_id, plain.number].iter().flatten().all(is_number)
            && plain.metadata.is_none_or(OfServer::is_all_of)
    }
}

/// A body with no fields but those of plain callbacks. Names of steps and tasks are personal
/// nowhere.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain<'a> {
    #[serde(borrow)]
    job_id: &'a str,
    #[serde(borrow, default, rename = "type")]
    kind: Option<&'a str>,
    #[serde(default)]
    status: Option<Status>,
    #[serde(borrow, default)]
    attempt: Option<Short<'a>>,
    #[serde(borrow, default)]
    workflow_run_id: Option<Short<'a>>,
    #[serde(borrow, default)]
    number: Option<Short<'a>>,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
    #[serde(default, rename = "step")]
    _step: Option<String>,
    #[serde(default, rename = "play")]
    _play: Option<String>,
    #[serde(default, rename = "task")]
    _task: Option<String>,
    #[serde(default, rename = "delivery_id")]
    _delivery_id: Option<String>,
}

/// The fields of [`OF_SERVER`], and no other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfServer<'a> {
    #[serde(borrow, default)]
    server_id: Option<&'a str>,
    #[serde(borrow, default)]
    server_type: Option<&'a str>,
    #[serde(borrow, default)]
    location: Option<&'a str>,
    #[serde(borrow, default)]
    region: Option<&'a str>,
}

impl OfServer<'_> {
    fn is_all_of(metadata: &RawValue) -> bool {
        // serde would read an array as the fields in order.
        let fields = Some(metadata.get()).filter(|text| text.starts_with('{'));
        fields.and_then(|text| serde_json::from_str::<OfServer<'_>>(text).ok()).is_some_and(|it| {
            [it.server_id, it.server_type, it.location, it.region]
                .into_iter()
                .flatten()
                .all(is_code)
        })
    }
}

/// A heartbeat may have any `status`, and no event keeps it: one that we do not know may say
/// something.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Provisioning,
    Running,
    Failed,
}

/// A number, or one in quotes: senders are shell scripts.
#[derive(Deserialize)]
#[serde(untagged)]
enum Short<'a> {
    Number(#[expect(dead_code, reason = "that it is one is all that matters")] u64),
    #[serde(borrow)]
    Text(&'a str),
}

fn is_number(field: &Short<'_>) -> bool {
    match field {
        Short::Number(_) => true,
        Short::Text(text) => text.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::EventType;
    use crate::documents::{event_schema, golden};

    /// Texts of events that say nothing of a person, by what they are called. Whoever adds an event
    /// adds its texts here or in [`Event::personal`].
    const NOT_PERSONAL: &[&str] = &[
        // Whose names are chosen by whoever wrote a workflow or a playbook, or by us.
        "region",
        "job_type",
        "dispatcher",
        "locked_by",
        "step",
        "failed_step",
        "play",
        "task",
        "error_code",
        "status",
        "conclusion",
        // Ids at other services, and the names machines are given there, made of our ids.
        "workflow_run_id",
        "run_url",
        "server_id",
        "resource_id",
        "OrphanFound.name",
        "OrphanRemoved.name",
        "InstanceServerNotFound.name",
        // What keeps the log itself: views, keys, archives, programs and routes.
        "projection",
        "ProjectionOrderEnded.error",
        "former_key",
        "key",
        "LogEpochBegun.reason",
        "location",
        "file_sha256",
        "root",
        "kept_root",
        "TokenCreated.name",
        "method",
        "route",
        // Who did it is what an audit trail is for.
        "cancelled_by",
        "changed_by",
        "paused_by",
        "resumed_by",
        "requested_by",
        "skipped_by",
        "begun_by",
        "archived_by",
        "restored_by",
        "erased_by",
        // Why something was erased outlives what was erased.
        "PersonalDataErased.reason",
    ];

    /// The places of a schema that hold free text: no id, no time, no word of a list.
    fn free_texts(schema: &Value, place: &str, found: &mut Vec<String>) {
        let holds = |kind: &str| match &schema["type"] {
            Value::Array(kinds) => kinds.iter().any(|it| it == kind),
            kinds => kinds == kind,
        };
        let bound = schema["format"] == "uuid"
            || schema["format"] == "date-time"
            || schema.get("enum").is_some()
            || schema.get("const").is_some();
        if holds("string") && !bound {
            found.push(place.to_owned());
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            free_texts(field, &format!("{place}/{name}"), found);
        }
        if schema["items"].is_object() {
            free_texts(&schema["items"], &format!("{place}/0"), found);
        }
    }

    /// The value with a text at some place, and all that leads there.
    fn put(value: &mut Value, place: &[&str], text: &str) {
        match place {
            [] => *value = json!(text),
            ["0"] => *value = json!([text]),
            [name, rest @ ..] => {
                if !value.is_object() {
                    *value = json!({});
                }
                put(&mut value[*name], rest, text);
            }
        }
    }

    fn is_sealed(kind: EventType, data: &Value, probe: &str) -> bool {
        let body = data.to_string();
        let mut event = Event::decode(kind.code(), kind.schema_version(), body.as_bytes())
            .unwrap_or_else(|error| panic!("{kind:?}: {error}: {body}"));
        event.personal(&mut |text| *text = "sealed".to_owned());
        !serde_json::to_string(&event).unwrap().contains(probe)
    }

    #[test]
    fn every_text_of_every_event_is_classified() {
        let mut used = BTreeSet::new();
        for kind in EventType::ALL {
            let document =
                |text: Option<&str>| -> Value { serde_json::from_str(text.unwrap()).unwrap() };
            let schema = document(event_schema(kind.name(), kind.schema_version()));
            let data = document(golden(kind.name(), kind.schema_version()))["data"].take();
            let mut places = Vec::new();
            free_texts(&schema, "", &mut places);
            for place in places {
                let mut data = data.clone();
                let parts: Vec<&str> = place.split('/').skip(1).collect();
                put(&mut data, &parts, "a-probe-of-203.0.113.9");
                if is_sealed(*kind, &data, "a-probe-of-203.0.113.9") {
                    continue;
                }
                let name = parts.iter().rfind(|part| **part != "0").copied().unwrap_or_default();
                let full = format!("{}.{name}", kind.name());
                let known = NOT_PERSONAL.iter().find(|it| **it == name || **it == full);
                used.insert(*known.unwrap_or_else(|| panic!("nobody classified {full}")));
            }
        }
        assert_eq!(used.len(), NOT_PERSONAL.len(), "{used:?}");
    }

    #[test]
    fn what_a_workflow_adds_to_a_step_is_sealed_at_every_depth() {
        let document = golden("ProvisioningStepRecorded", 1).unwrap();
        let mut data = serde_json::from_str::<Value>(document).unwrap()["data"].take();
        data["metadata"] = json!({"a": ["Ada", {"b": "Ada"}], "c": 7, "d": "Ada"});
        assert!(is_sealed(EventType::ProvisioningStepRecorded, &data, "Ada"));
    }

    #[test]
    fn what_a_server_is_stays_clear_where_it_is_no_more_than_a_code() {
        let document = golden("ProvisioningStepRecorded", 1).unwrap();
        let mut data = serde_json::from_str::<Value>(document).unwrap()["data"].take();
        let mut seals = |metadata: Value, probe: &str| {
            data["metadata"] = metadata;
            is_sealed(EventType::ProvisioningStepRecorded, &data, probe)
        };
        for name in OF_SERVER {
            assert!(!seals(json!({name: "probe-1"}), "probe-1"), "{name}");
            assert!(!seals(json!({name: "probe-1", "a": "Ada"}), "probe-1"), "{name}");
            assert!(seals(json!({name: "probe-1", "a": "Ada"}), "Ada"), "{name}");
            assert!(seals(json!({name: "203.0.113.9"}), "203.0.113.9"), "{name}");
            assert!(seals(json!({name: "Ada Lovelace"}), "Ada Lovelace"), "{name}");
            assert!(seals(json!({"a": {name: "probe-1"}}), "probe-1"), "{name}");
            let long = "a".repeat(OF_SERVER_BYTES_MAX + 1);
            assert!(seals(json!({name: long}), &long), "{name}");
        }
        assert!(seals(json!("Ada"), "Ada"));
    }

    #[test]
    fn every_personal_text_has_an_owner_or_a_stream_of_its_own() {
        let ownerless: BTreeSet<&str> = EventType::ALL
            .iter()
            .filter(|kind| {
                let document = golden(kind.name(), kind.schema_version()).unwrap();
                let data = serde_json::from_str::<Value>(document).unwrap()["data"].take();
                let body = data.to_string();
                let event =
                    Event::decode(kind.code(), kind.schema_version(), body.as_bytes()).unwrap();
                event.subject().is_none()
            })
            .map(|kind| kind.name())
            .collect();
        let kept = |name: &&str| {
            ["Account", "Password", "Session", "LogIn", "Action", "Token", "Log", "Projection"]
                .iter()
                .any(|part| name.starts_with(part))
        };
        let others: BTreeSet<&str> = ownerless.into_iter().filter(|name| !kept(name)).collect();
        let expected =
            ["CallbackRejected", "OrphanFound", "OrphanRemoved", "QueuePaused", "QueueResumed"];
        assert_eq!(others, BTreeSet::from(expected));
    }

    #[test]
    fn a_body_is_plain_only_where_its_event_says_as_much() {
        let job = r#""job_id":"018f0000-0000-7000-8000-000000000001""#;
        for plain in [
            r#""type":"heartbeat""#,
            r#""type":"heartbeat","status":"provisioning","attempt":"2","delivery_id":"d-1""#,
            r#""status":"provisioning","workflow_run_id":17"#,
            r#""status":"provisioning","step":"vm_created","attempt":1"#,
            r#""type":"task","number":1,"play":"node","task":"Install nginx""#,
            r#""status":"provisioning","step":"vm_created","metadata":{}"#,
            r#""status":"provisioning","step":"vm_created","metadata":{"server_id":"48211034"}"#,
            r#""status":"provisioning","step":"a","metadata":{"server_type":"cpx11","location":"nbg1"}"#,
        ] {
            assert!(Callback::holds_only_ids(&format!("{{{job},{plain}}}")), "{plain}");
        }
        for personal in [
            r#""type":"heartbeat","status":"Ada is here""#,
            r#""type":"heartbeat","owner":"Ada""#,
            r#""status":"provisioning","step":"vm_created","metadata":{"ip":"203.0.113.9"}"#,
            r#""status":"provisioning","step":"vm_created","metadata":{"location":"203.0.113.9"}"#,
            r#""status":"provisioning","step":"vm_created","metadata":{"region":["Ada"]}"#,
            r#""status":"provisioning","step":"vm_created","metadata":["Ada"]"#,
            r#""status":"provisioning","step":"a","metadata":{"region":"Ada L","region":"a"}"#,
            r#""status":"running""#,
            r#""status":"running","server_ip":"203.0.113.9""#,
            r#""status":"failed","error":"Ada""#,
            r#""status":"Ada""#,
            r#""type":"heartbeat","attempt":{"of":"Ada"}"#,
        ] {
            assert!(!Callback::holds_only_ids(&format!("{{{job},{personal}}}")), "{personal}");
        }
        for other in [r#"{"job_id":"Ada","type":"heartbeat"}"#, "no JSON", "[]", ""] {
            assert!(!Callback::holds_only_ids(other), "{other}");
        }
    }
}
