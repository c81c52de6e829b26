//! What a server of ours is called, and how it is known again.

use std::collections::BTreeMap;

use milepost_schemas::{AgentId, Attempt, JobId};

/// The label every server of ours has, and its value.
pub const MANAGED_BY: (&str, &str) = ("managed-by", "milepost");

/// The label with the agent.
pub const AGENT_LABEL: &str = "milepost-agent";

/// The label with the job.
pub const JOB_LABEL: &str = "milepost-job";

/// The label with the number of the attempt.
pub const ATTEMPT_LABEL: &str = "milepost-attempt";

/// Hexadecimal digits of the agent's id in a name: for people; the job's id makes it unique.
const AGENT_DIGITS: usize = 8;

/// One attempt of a job: it has one server at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttemptId {
    /// The job.
    pub job_id: JobId,
    /// The attempt.
    pub attempt: Attempt,
}

impl AttemptId {
    /// The labels that only its server has.
    pub fn labels(self) -> [(&'static str, String); 3] {
        [
            (MANAGED_BY.0, MANAGED_BY.1.to_owned()),
            (JOB_LABEL, self.job_id.to_string()),
            (ATTEMPT_LABEL, self.attempt.to_string()),
        ]
    }

    /// The attempt a server's name, a device's host name or a key's description is of.
    pub fn of_name(name: &str) -> Option<Self> {
        let [prefix, agent, job, attempt] = name.split('-').collect::<Vec<_>>().try_into().ok()?;
        let well_formed = prefix == "mp" && agent.len() == AGENT_DIGITS && job.len() == 32;
        let id = Self { job_id: job.parse().ok()?, attempt: Attempt(attempt.parse().ok()?) };
        well_formed.then_some(id)
    }

    /// The attempt a server's labels say it is of.
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Option<Self> {
        let text = |name: &str| labels.get(name).map(String::as_str);
        let job_id = text(JOB_LABEL)?.parse().ok()?;
        let attempt = Attempt(text(ATTEMPT_LABEL)?.parse().ok()?);
        is_ours(labels).then_some(Self { job_id, attempt })
    }
}

/// Whether a server says it is ours.
pub fn is_ours(labels: &BTreeMap<String, String>) -> bool {
    labels.get(MANAGED_BY.0).is_some_and(|value| value == MANAGED_BY.1)
}

/// The server of one attempt: whose it is, from which follows what it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerIdentity {
    /// The agent.
    pub agent_id: AgentId,
    /// The attempt that builds it.
    pub attempt: AttemptId,
}

impl ServerIdentity {
    /// Its name, which is also its host name: the same at every try, so that making it twice
    /// makes one.
    pub fn name(&self) -> String {
        let AttemptId { job_id, attempt } = self.attempt;
        let agent = self.agent_id.0.simple().to_string();
        format!("mp-{}-{}-{attempt}", &agent[..AGENT_DIGITS], job_id.0.simple())
    }

    /// Its labels.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels: BTreeMap<_, _> =
            self.attempt.labels().map(|(name, value)| (name.to_owned(), value)).into();
        labels.insert(AGENT_LABEL.to_owned(), self.agent_id.to_string());
        labels
    }

    /// The labels another server would need to be this one, and has not.
    pub fn disagreements(&self, labels: &BTreeMap<String, String>) -> Vec<String> {
        let ours = self.labels().into_iter();
        ours.filter(|(name, value)| labels.get(name) != Some(value)).map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// The longest label of a host name (RFC 1035).
    const HOST_LABEL_MAX: usize = 63;

    const SERVER: ServerIdentity = ServerIdentity {
        agent_id: AgentId(Uuid::from_u128(0xAB_CDEF_0123_4567_89AB_CDEF_0123_4567)),
        attempt: AttemptId { job_id: JobId(Uuid::from_u128(7)), attempt: Attempt(2) },
    };

    #[test]
    fn the_name_has_the_agent_the_job_and_the_attempt() {
        assert_eq!(SERVER.name(), "mp-00abcdef-00000000000000000000000000000007-2");
        let last = AttemptId { attempt: Attempt(u32::MAX), ..SERVER.attempt };
        assert!(ServerIdentity { attempt: last, ..SERVER }.name().len() <= HOST_LABEL_MAX);
    }

    #[test]
    fn the_attempt_is_known_again_by_name_and_by_labels() {
        assert_eq!(AttemptId::of_name(&SERVER.name()), Some(SERVER.attempt));
        assert_eq!(AttemptId::of_labels(&SERVER.labels()), Some(SERVER.attempt));
        for foreign in ["", "web-1", "mp-00abcdef-7-2", "mp-x-00000000000000000000000000000007-2"] {
            assert_eq!(AttemptId::of_name(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn labels_that_differ_are_named() {
        let mut labels = SERVER.labels();
        assert!(SERVER.disagreements(&labels).is_empty());
        labels.insert("team".to_owned(), "blue".to_owned());
        assert!(SERVER.disagreements(&labels).is_empty(), "others may add theirs");
        labels.insert(ATTEMPT_LABEL.to_owned(), "1".to_owned());
        labels.remove(MANAGED_BY.0);
        assert_eq!(SERVER.disagreements(&labels), [MANAGED_BY.0, ATTEMPT_LABEL]);
        assert_eq!(AttemptId::of_labels(&labels), None);
    }
}
