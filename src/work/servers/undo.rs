//! Undoing what one attempt made, thing by thing, so that each can be told.

use milepost_schemas::event::{Resource, UndoOutcome};

use super::{KEY_LABEL, Servers};
use crate::clients::ClientError;
use crate::clients::hetzner::Server;
use crate::domain::job::compensation::Finding;
use crate::domain::{AttemptId, ServerIdentity};

impl Servers {
    /// Removes what an attempt made: the server with its labels, those the workflow named if their
    /// labels agree, its key and its machine in the tailnet. All are tried, whatever becomes of
    /// the others; what there is no trace of is not told of.
    pub async fn undo(&self, identity: ServerIdentity, named: &[String]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut servers = match self.of_attempt(identity.attempt).await {
            Ok(servers) => servers,
            Err(error) => {
                findings.push(failed(Resource::Server, None, &error));
                Vec::new()
            }
        };
        for id in named {
            self.add_named(id, &mut servers, &mut findings).await;
        }
        let mut keys = Vec::new();
        for server in &servers {
            let finding = self.undo_server(identity, server).await;
            if finding.outcome != UndoOutcome::Kept {
                keys.extend(server.labels.get(KEY_LABEL).cloned());
            }
            findings.push(finding);
        }
        // The machine last: nothing can join any more once server and key are gone.
        self.undo_keys(identity.attempt, keys, &mut findings).await;
        self.undo_devices(identity.attempt, &mut findings).await;
        findings
    }

    /// Reads a server that the workflow named, unless its labels have already told of it.
    async fn add_named(&self, id: &str, servers: &mut Vec<Server>, findings: &mut Vec<Finding>) {
        let Ok(number) = id.parse::<u64>() else {
            let detail = "this is no id of Hetzner's";
            findings.push(told(Resource::Server, id, UndoOutcome::Kept, Some(detail.to_owned())));
            return;
        };
        if servers.iter().any(|server| server.id == number) {
            return;
        }
        match self.hetzner.server(number).await {
            Ok(Some(server)) => servers.push(server),
            Ok(None) => {
                findings.push(told(Resource::Server, id, UndoOutcome::AlreadyGone, None));
            }
            Err(error) => findings.push(failed(Resource::Server, Some(id), &error)),
        }
    }

    async fn undo_server(&self, identity: ServerIdentity, server: &Server) -> Finding {
        let id = server.id.to_string();
        let differ = identity.disagreements(&server.labels);
        if !differ.is_empty() {
            let detail = format!("it is another's: its labels {} differ", differ.join(", "));
            return told(Resource::Server, &id, UndoOutcome::Kept, Some(detail));
        }
        outcome(Resource::Server, &id, self.hetzner.delete_server(server.id).await)
    }

    async fn undo_keys(
        &self,
        attempt: AttemptId,
        mut keys: Vec<String>,
        findings: &mut Vec<Finding>,
    ) {
        match self.tailscale.keys().await {
            Ok(all) => {
                // A key that is listed no more was used or is gone: there is nothing to undo.
                keys.retain(|id| all.iter().any(|key| key.id == *id));
                let its = all
                    .into_iter()
                    .filter(|key| AttemptId::of_name(&key.description) == Some(attempt));
                keys.extend(its.map(|key| key.id));
            }
            Err(error) => findings.push(failed(Resource::Key, None, &error)),
        }
        keys.sort();
        keys.dedup();
        for id in keys {
            let deleted = self.tailscale.delete_key(&id).await;
            findings.push(outcome(Resource::Key, &id, deleted));
        }
    }

    async fn undo_devices(&self, attempt: AttemptId, findings: &mut Vec<Finding>) {
        let devices = match self.devices_of(attempt).await {
            Ok(devices) => devices,
            Err(error) => {
                findings.push(failed(Resource::Device, None, &error));
                return;
            }
        };
        for id in devices {
            let deleted = self.tailscale.delete_device(&id).await;
            findings.push(outcome(Resource::Device, &id, deleted));
        }
    }
}

fn outcome(resource: Resource, id: &str, deleted: Result<(), ClientError>) -> Finding {
    match deleted {
        Ok(()) => told(resource, id, UndoOutcome::Removed, None),
        Err(error) => failed(resource, Some(id), &error),
    }
}

fn told(resource: Resource, id: &str, outcome: UndoOutcome, detail: Option<String>) -> Finding {
    Finding { resource, id: Some(id.to_owned()), outcome, detail }
}

fn failed(resource: Resource, id: Option<&str>, error: &dyn std::error::Error) -> Finding {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    let outcome = UndoOutcome::Failed;
    Finding { resource, id: id.map(str::to_owned), outcome, detail: Some(words) }
}
