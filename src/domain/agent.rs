//! What may happen to an agent.

use milepost_projections::Agent;
use milepost_schemas::event::{AgentCreated, InstanceRequested, JobQueued, ProvisioningRequested};
use milepost_schemas::{AgentId, Event, InstanceId, JobId};

/// The longest name of an agent, in characters: a host name's label.
pub const NAME_CHARS_MAX: usize = 63;

/// The longest name of a region, in characters.
pub const REGION_CHARS_MAX: usize = 32;

/// Where a server is built when nobody says.
pub const DEFAULT_REGION: &str = "eu-central";

/// The regions that servers can be built in, the default first.
pub const REGIONS: [&str; 5] = [DEFAULT_REGION, "eu-north", "eu-west", "us-east", "us-west"];

/// The type of the job that builds an agent's server.
pub const PROVISION_AGENT: &str = "provision_agent";

/// An order to an agent.
#[derive(Clone, Debug)]
pub enum AgentCommand {
    /// Make one.
    Create {
        /// Its id.
        agent_id: AgentId,
        /// What people call it.
        name: String,
        /// Where; the default where nobody says.
        region: Option<String>,
    },
    /// Build a server for it.
    Provision {
        /// The job to do so.
        job_id: JobId,
        /// The server to be.
        instance_id: InstanceId,
        /// Where; the agent's own region where nobody says.
        region: Option<String>,
        /// Attempts it may take in all.
        max_attempts: u32,
        /// The ended job that is repeated by hand.
        retry_of: Option<JobId>,
        /// Why it is.
        reason: Option<String>,
    },
}

/// Why an order to an agent is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgentRefusal {
    /// No such agent.
    #[error("there is no such agent")]
    Unknown,
    /// There is one with this id.
    #[error("the agent exists already")]
    Exists,
    /// Another job changes it now.
    #[error("job {0} is active for this agent")]
    Busy(JobId),
    /// The name is empty, too long or holds control characters.
    #[error("a name has 1 to {NAME_CHARS_MAX} characters, none of them a control character")]
    Name,
    /// There is no such region.
    #[error("the region is one of {}", REGIONS.join(", "))]
    Region,
}

/// Decides what an order does. The events of one decision belong to the streams their ids name.
///
/// # Errors
/// [`AgentRefusal`]: nothing happens then.
pub fn decide(
    state: Option<&Agent>,
    agent_id: AgentId,
    command: AgentCommand,
) -> Result<Vec<Event>, AgentRefusal> {
    match (state, command) {
        (Some(_), AgentCommand::Create { .. }) => Err(AgentRefusal::Exists),
        (None, AgentCommand::Create { name, region, .. }) => {
            let name = name.trim().to_owned();
            let fits = (1..=NAME_CHARS_MAX).contains(&name.chars().count());
            if !fits || name.chars().any(char::is_control) {
                return Err(AgentRefusal::Name);
            }
            let region = known(region.unwrap_or_else(|| DEFAULT_REGION.into()))?;
            Ok(vec![AgentCreated { agent_id, name, region }.into()])
        }
        (None, AgentCommand::Provision { .. }) => Err(AgentRefusal::Unknown),
        (
            Some(agent),
            AgentCommand::Provision { job_id, instance_id, region, max_attempts, retry_of, reason },
        ) => {
            if let Some(active) = agent.active_job {
                return Err(AgentRefusal::Busy(active));
            }
            let region = known(region.unwrap_or_else(|| agent.region.clone()))?;
            let job_type = PROVISION_AGENT.to_owned();
            Ok(vec![
                ProvisioningRequested { agent_id, job_id, instance_id, region: region.clone() }
                    .into(),
                InstanceRequested { instance_id, agent_id, job_id, region: region.clone() }.into(),
                JobQueued {
                    job_id,
                    job_type,
                    agent_id: Some(agent_id),
                    node_id: None,
                    instance_id: Some(instance_id),
                    region: Some(region),
                    max_attempts,
                    retry_of,
                    reason,
                }
                .into(),
            ])
        }
    }
}

fn known(region: String) -> Result<String, AgentRefusal> {
    if REGIONS.contains(&region.as_str()) { Ok(region) } else { Err(AgentRefusal::Region) }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;

    const ID: AgentId = AgentId(Uuid::from_u128(1));
    const JOB: JobId = JobId(Uuid::from_u128(2));
    const INSTANCE: InstanceId = InstanceId(Uuid::from_u128(3));

    fn agent(active_job: Option<JobId>) -> Agent {
        Agent {
            id: ID,
            name: "mari".into(),
            region: "eu-north".into(),
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
            active_job,
            latest: None,
            activated: false,
            serving: None,
        }
    }

    fn create(name: &str, region: Option<&str>) -> Result<Vec<Event>, AgentRefusal> {
        let region = region.map(str::to_owned);
        decide(None, ID, AgentCommand::Create { agent_id: ID, name: name.into(), region })
    }

    fn provision(state: Option<&Agent>, region: Option<&str>) -> Result<Vec<Event>, AgentRefusal> {
        let command = AgentCommand::Provision {
            job_id: JOB,
            instance_id: INSTANCE,
            region: region.map(str::to_owned),
            max_attempts: 4,
            retry_of: None,
            reason: None,
        };
        decide(state, ID, command)
    }

    #[test]
    fn an_order_is_one_decision_over_three_streams() {
        let events = provision(Some(&agent(None)), None).unwrap();
        let names: Vec<_> = events.iter().map(|event| event.event_type().name()).collect();
        assert_eq!(names, ["ProvisioningRequested", "InstanceRequested", "JobQueued"]);
        assert!(
            matches!(&events[2], Event::JobQueued(job) if job.region.as_deref() == Some("eu-north"))
        );
    }

    #[test]
    fn a_second_order_while_one_is_active_is_refused() {
        assert_eq!(provision(Some(&agent(Some(JOB))), None), Err(AgentRefusal::Busy(JOB)));
    }

    #[test]
    fn an_unknown_agent_or_region_is_refused() {
        assert_eq!(provision(None, None), Err(AgentRefusal::Unknown));
        assert_eq!(provision(Some(&agent(None)), Some("mars")), Err(AgentRefusal::Region));
        assert_eq!(create("mari", Some("mars")), Err(AgentRefusal::Region));
    }

    #[test]
    fn a_name_has_1_to_63_characters() {
        assert!(create(&"ä".repeat(NAME_CHARS_MAX), None).is_ok());
        for name in ["", "   ", "a\nb", &"a".repeat(NAME_CHARS_MAX + 1)] {
            assert_eq!(create(name, None), Err(AgentRefusal::Name), "{name:?}");
        }
    }
}
