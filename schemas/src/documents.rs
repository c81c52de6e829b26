//! The JSON Schemas and golden examples that stand beside the Rust types.

macro_rules! documents {
    ($($name:literal v $version:literal),+ $(,)?) => {
        /// The JSON Schema of an event's body, by the event's name and schema version.
        /// Source: `events/<Name>.v<version>.json`.
        pub fn event_schema(name: &str, version: i16) -> Option<&'static str> {
            match (name, version) {
                $(($name, $version) => {
                    Some(include_str!(concat!("../events/", $name, ".v", $version, ".json")))
                })+
                _ => None,
            }
        }

        /// One stored example of an event: `type`, `schema_version`, `data` and `metadata`.
        /// Source: `golden/<Name>.v<version>.json`, never edited.
        pub fn golden(name: &str, version: i16) -> Option<&'static str> {
            match (name, version) {
                $(($name, $version) => {
                    Some(include_str!(concat!("../golden/", $name, ".v", $version, ".json")))
                })+
                _ => None,
            }
        }
    };
}

// Every version ever written stays here.
documents! {
    "AgentCreated" v 1,
    "ProvisioningRequested" v 1,
    "AgentActivated" v 1,
    "ProvisioningEnded" v 1,
    "JobQueued" v 1,
    "WorkflowDispatchRequested" v 1,
    "WorkflowDispatched" v 1,
    "WorkflowDispatchFailed" v 1,
    "WorkflowDispatchFailed" v 2,
    "ProvisioningStarted" v 1,
    "ProvisioningStepRecorded" v 1,
    "HeartbeatRecorded" v 1,
    "JobSucceeded" v 1,
    "JobFailed" v 1,
    "JobRetried" v 1,
    "JobCancelled" v 1,
    "LateCallbackRecorded" v 1,
    "WorkflowRunObserved" v 1,
    "WorkflowRunCancelRequested" v 1,
    "RunnerEndAwaited" v 1,
    "RunnerEnded" v 1,
    "TaskStarted" v 1,
    "JobLogRecorded" v 1,
    "InstanceRequested" v 1,
    "InstanceStarted" v 1,
    "CallbackRejected" v 1,
    "JobPriorityChanged" v 1,
    "NodeRegistered" v 1,
    "NodeProvisioningRequested" v 1,
    "NodeActivated" v 1,
    "NodeBecameUnreachable" v 1,
    "NodeDecommissionRequested" v 1,
    "NodeDecommissioned" v 1,
    "NodeDecommissionEnded" v 1,
    "NodeAddressTaken" v 1,
    "QueuePaused" v 1,
    "QueueResumed" v 1,
    "CompensationRequested" v 1,
    "CompensationRequested" v 2,
    "CompensationStepTaken" v 1,
    "CompensationCompleted" v 1,
    "CompensationPutOff" v 1,
    "OrphanFound" v 1,
    "OrphanRemoved" v 1,
    "InstanceServerMissing" v 1,
    "LogKeyRotated" v 1,
    "LogEpochBegun" v 1,
    "InstanceServerNotFound" v 1,
    "ProjectionRebuildRequested" v 1,
    "ProjectionRollbackRequested" v 1,
    "ProjectionVerifyRequested" v 1,
    "ProjectionSwitchRequested" v 1,
    "ProjectionOrderCancelled" v 1,
    "ProjectionOrderEnded" v 1,
    "ProjectionEventSkipped" v 1,
    "AccountCreated" v 1,
    "AccountRoleChanged" v 1,
    "AccountDisabled" v 1,
    "AccountEnabled" v 1,
    "PasswordChanged" v 1,
    "SessionBegan" v 1,
    "SessionEnded" v 1,
    "LogInFailed" v 1,
    "ActionRefused" v 1,
    "TokenCreated" v 1,
    "TokenRevoked" v 1,
    "LogRangeArchived" v 1,
    "LogRangeRestored" v 1,
    "PersonalDataErased" v 1,
}

macro_rules! node_examples {
    ($($name:literal v $version:literal),+ $(,)?) => {
        /// The stored example of a job's event where the job changes a node; [`golden`] has the
        /// one where it changes an agent. Source: `golden/<Name>.v<version>.node.json`.
        pub fn golden_of_node(name: &str, version: i16) -> Option<&'static str> {
            match (name, version) {
                $(($name, $version) => Some(include_str!(
                    concat!("../golden/", $name, ".v", $version, ".node.json")
                )),)+
                _ => None,
            }
        }
    };
}

node_examples! {
    "JobQueued" v 1,
    "WorkflowDispatchRequested" v 1,
    "WorkflowDispatched" v 1,
    "WorkflowDispatchFailed" v 1,
    "ProvisioningStarted" v 1,
    "ProvisioningStepRecorded" v 1,
    "HeartbeatRecorded" v 1,
    "JobSucceeded" v 1,
    "JobFailed" v 1,
    "JobRetried" v 1,
    "JobCancelled" v 1,
    "LateCallbackRecorded" v 1,
    "JobPriorityChanged" v 1,
    "WorkflowDispatchFailed" v 2,
    "TaskStarted" v 1,
    "JobLogRecorded" v 1,
    "WorkflowRunObserved" v 1,
    "WorkflowRunCancelRequested" v 1,
}

/// The JSON Schema of a callback, by its kind's name. Source: `callbacks/<kind>.json`.
pub fn callback_schema(kind: &str) -> Option<&'static str> {
    match kind {
        "heartbeat" => Some(include_str!("../callbacks/heartbeat.json")),
        "started" => Some(include_str!("../callbacks/started.json")),
        "step" => Some(include_str!("../callbacks/step.json")),
        "done" => Some(include_str!("../callbacks/done.json")),
        "failed" => Some(include_str!("../callbacks/failed.json")),
        "task" => Some(include_str!("../callbacks/task.json")),
        "log" => Some(include_str!("../callbacks/log.json")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jsonschema::Validator;
    use serde_json::{Value, json};

    use super::*;
    use crate::{Callback, Event, EventType, Metadata};

    const CALLBACKS: [&str; 7] = ["heartbeat", "started", "step", "done", "failed", "task", "log"];

    fn versions() -> impl Iterator<Item = (EventType, i16)> {
        let of = |kind: &EventType| {
            (1..=kind.schema_version()).map(|version| (*kind, version)).collect()
        };
        EventType::ALL.iter().flat_map(move |kind| -> Vec<_> { of(kind) })
    }

    fn json(document: Option<&str>) -> Value {
        serde_json::from_str(document.expect("the document exists")).unwrap()
    }

    fn validator(schema: &Value) -> Validator {
        jsonschema::meta::validate(schema).unwrap();
        jsonschema::options().should_validate_formats(true).build(schema).unwrap()
    }

    /// Every stored example, with its type and version.
    fn examples() -> impl Iterator<Item = (EventType, i16, Value)> {
        versions().flat_map(|(kind, version)| {
            let node = golden_of_node(kind.name(), version);
            let all = std::iter::once(golden(kind.name(), version)).chain(node.map(Some));
            all.map(move |example| (kind, version, json(example)))
        })
    }

    fn files(directory: &str) -> BTreeSet<String> {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| name(entry).into_string().unwrap())
            .collect()
    }

    #[test]
    fn every_event_version_has_a_schema_and_a_golden_example_and_no_file_is_stray() {
        let expected: BTreeSet<String> =
            versions().map(|(kind, version)| format!("{}.v{version}.json", kind.name())).collect();
        assert_eq!(files("events"), expected);
        let of_nodes = versions()
            .filter(|(kind, version)| {
                let schema = json(event_schema(kind.name(), *version));
                schema["properties"]["agent_id"].is_object()
                    && schema["properties"]["node_id"].is_object()
            })
            .map(|(kind, version)| format!("{}.v{version}.node.json", kind.name()));
        assert_eq!(files("golden"), expected.iter().cloned().chain(of_nodes).collect());
        assert_eq!(
            files("callbacks"),
            CALLBACKS.iter().map(|kind| format!("{kind}.json")).collect()
        );
        for (kind, version) in versions() {
            assert!(event_schema(kind.name(), version).is_some(), "{kind:?}");
            assert!(golden(kind.name(), version).is_some(), "{kind:?}");
        }
    }

    #[test]
    fn every_golden_example_is_read_and_written_back_as_it_stands() {
        for (kind, version, stored) in examples() {
            assert_eq!(stored["type"], kind.name());
            assert_eq!(stored["schema_version"], version);
            let body = serde_json::to_vec(&stored["data"]).unwrap();
            let event = Event::decode(kind.code(), version, &body).unwrap();
            assert_eq!(event.event_type(), kind);
            // An older version is read through its upcasters, and written as the latest.
            if version == kind.schema_version() {
                assert_eq!(serde_json::to_value(&event).unwrap(), stored["data"], "{kind:?}");
            }
            let metadata: Metadata = serde_json::from_value(stored["metadata"].clone()).unwrap();
            assert_eq!(serde_json::to_value(&metadata).unwrap(), stored["metadata"], "{kind:?}");
        }
    }

    #[test]
    fn every_golden_example_fits_its_schema_and_no_unknown_field_does() {
        for (kind, version, mut stored) in examples() {
            let schema = validator(&json(event_schema(kind.name(), version)));
            let mut data = stored["data"].take();
            if let Err(error) = schema.validate(&data) {
                panic!("{kind:?}: {error}");
            }
            data["unknown"] = json!(1);
            assert!(!schema.is_valid(&data), "{kind:?}");
        }
    }

    #[test]
    fn a_job_changes_an_agent_or_a_node_and_not_both() {
        for (kind, version) in versions() {
            let Some(of_node) = golden_of_node(kind.name(), version) else { continue };
            let schema = validator(&json(event_schema(kind.name(), version)));
            let mut data = json(golden(kind.name(), version))["data"].take();
            data["node_id"] = json(Some(of_node))["data"]["node_id"].clone();
            assert!(!schema.is_valid(&data), "{kind:?} of both");
            for name in ["agent_id", "node_id"] {
                data.as_object_mut().unwrap().remove(name);
            }
            assert!(!schema.is_valid(&data), "{kind:?} of neither");
        }
    }

    /// Every field, at every depth, is described, and objects of events are closed.
    fn describes(schema: &Value, path: &str) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            assert!(field["description"].as_str().is_some_and(|words| !words.is_empty()), "{path}");
            describes(field, &path);
        }
    }

    #[test]
    fn every_schema_says_its_title_and_describes_every_field() {
        for (kind, version) in versions() {
            let schema = json(event_schema(kind.name(), version));
            assert_eq!(schema["title"], kind.name());
            assert_eq!(schema["additionalProperties"], false, "{kind:?}");
            assert!(schema["description"].is_string(), "{kind:?}");
            describes(&schema, kind.name());
        }
        for kind in CALLBACKS {
            let schema = json(callback_schema(kind));
            assert_eq!(schema["additionalProperties"], true, "{kind}");
            assert!(schema["title"].is_string() && schema["description"].is_string(), "{kind}");
            describes(&schema, kind);
        }
    }

    #[test]
    fn a_required_field_is_one_that_reading_cannot_do_without() {
        for (kind, version) in versions() {
            let schema = json(event_schema(kind.name(), version));
            let data = json(golden(kind.name(), version))["data"].take();
            let required: BTreeSet<_> = schema["required"]
                .as_array()
                .unwrap()
                .iter()
                .map(|it| it.as_str().unwrap())
                .collect();
            for name in schema["properties"].as_object().unwrap().keys() {
                let mut data = data.clone();
                data.as_object_mut().unwrap().remove(name);
                let body = serde_json::to_vec(&data).unwrap();
                let read = Event::decode(kind.code(), version, &body).is_ok();
                // `truncated` is always written, and read as false where it is not.
                let optional = !required.contains(name.as_str()) || name == "truncated";
                assert_eq!(read, optional, "{kind:?}.{name}");
            }
        }
    }

    /// The kinds whose schema takes a body.
    fn kinds_of(body: &Value) -> Vec<&'static str> {
        let takes = |kind: &&str| validator(&json(callback_schema(kind))).is_valid(body);
        CALLBACKS.into_iter().filter(takes).collect()
    }

    #[test]
    fn every_documented_body_fits_one_schema_and_is_read_as_that_kind() {
        let id = "0198f3b2-6a4e-7b22-9d14-2e7c5a9f3b02";
        let mut server =
            json!({"server_id": "42", "server_ip": "192.0.2.1", "tailscale_ip": "100.64.0.1"});
        for (kind, body) in [
            ("heartbeat", json!({"type": "heartbeat"})),
            ("heartbeat", json!({"type": "heartbeat", "status": "provisioning"})),
            ("heartbeat", json!({"type": "heartbeat", "attempt": 2, "delivery_id": "d"})),
            ("started", json!({"status": "provisioning"})),
            ("started", json!({"status": "provisioning", "workflow_run_id": "44", "attempt": 1})),
            ("started", json!({"status": "provisioning", "workflow_run_id": 44, "attempt": "1"})),
            ("step", json!({"status": "provisioning", "step": "vm_created"})),
            ("step", json!({"status": "provisioning", "step": "new", "metadata": {"a": [1]}})),
            ("done", json!({"status": "running"})),
            ("done", json!({"status": "running", "server_id": 42})),
            ("done", json!({"status": "running", "metadata": server.clone()})),
            ("failed", json!({"status": "failed"})),
            (
                "failed",
                json!({"status": "failed", "error": "words", "failed_step": "configure",
                "step": "ansible_started", "server_id": "42"}),
            ),
            ("failed", json!({"status": "failed", "error": {"code": 4}, "unknown_field": true})),
            ("task", json!({"type": "task", "number": 1, "task": "Gathering Facts"})),
            (
                "task",
                json!({"type": "task", "status": "running", "number": "2", "play": "agent",
                "task": "docker : add the repository", "attempt": 1}),
            ),
            ("log", json!({"type": "log", "from": 1, "lines": ["PLAY [agent]", ""]})),
            ("log", json!({"type": "log", "status": "failed", "from": 501, "lines": ["x"]})),
            ("done", {
                server["status"] = json!("running");
                server.clone()
            }),
        ] {
            let mut body = body;
            body["job_id"] = json!(id);
            assert_eq!(kinds_of(&body), [kind], "{body}");
            let callback = Callback::parse(body.to_string().as_bytes()).unwrap();
            assert_eq!(callback.kind.name(), kind, "{body}");
        }
    }

    #[test]
    fn what_is_refused_fits_no_schema() {
        for body in [
            json!({"status": "running"}),
            json!({"job_id": "j"}),
            json!({"job_id": "", "status": "running"}),
            json!({"job_id": "j", "status": "running", "attempt": 0}),
            json!({"job_id": "j", "status": "running", "attempt": "x"}),
            json!({"job_id": "j", "status": "running", "server_id": {}}),
            json!({"job_id": "j", "status": "running", "metadata": {"server_ip": []}}),
            json!({"job_id": "j", "status": "failed", "step": true}),
            json!({"job_id": "j", "type": "task", "task": "t"}),
            json!({"job_id": "j", "type": "task", "number": 0, "task": "t"}),
            json!({"job_id": "j", "type": "task", "number": 1}),
            json!({"job_id": "j", "type": "log", "from": 1, "lines": []}),
            json!({"job_id": "j", "type": "log", "from": 1, "lines": [1]}),
            json!({"job_id": "j", "type": "log", "from": 1, "lines": vec!["x"; 501]}),
            json!({"job_id": "j", "type": "log", "status": "running"}),
            json!({"job_id": "j", "status": "provisioning", "step": ["vm_created"]}),
            json!(["j"]),
        ] {
            assert_eq!(kinds_of(&body), [""; 0], "{body}");
            assert!(Callback::parse(body.to_string().as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn names_and_versions_nobody_wrote_have_no_document() {
        assert_eq!(event_schema("AgentCreated", 2), None);
        assert_eq!(golden("AgentRenamed", 1), None);
        assert_eq!(callback_schema("unknown"), None);
    }
}
