//! What may happen to a node. What is said of one goes into an Ansible inventory, so that nothing
//! enters the log that is not plainly a host name, an address, a user's name or a port.

use std::net::IpAddr;

use milepost_projections::{Node, NodeStatus};
use milepost_schemas::event::{
    JobQueued, NodeAddressTaken, NodeDecommissionRequested, NodeProvisioningRequested,
    NodeRegistered,
};
use milepost_schemas::{Event, JobId, NodeId};

/// The type of the job that makes a node ready.
pub const PROVISION_NODE: &str = "provision_node";

/// The type of the job that gives a node up.
pub const DECOMMISSION_NODE: &str = "decommission_node";

/// The longest host name, in characters. Source: RFC 1123, section 2.1.
pub const HOSTNAME_CHARS_MAX: usize = 253;

/// The longest label of a host name, in characters. Source: RFC 1123, section 2.1.
pub const LABEL_CHARS_MAX: usize = 63;

/// The longest name of a user, in characters. Source: useradd(8).
pub const USER_CHARS_MAX: usize = 32;

/// Whom to log in as when nobody says.
pub const DEFAULT_SSH_USER: &str = "root";

/// Where the SSH server listens when nobody says.
pub const DEFAULT_SSH_PORT: u16 = 22;

/// What people say of a node, as they say it.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// Its host name.
    pub hostname: String,
    /// Its public address.
    pub public_ip: String,
    /// Whom to log in as; the default where nobody says.
    pub ssh_user: Option<String>,
    /// Where its SSH server listens; the default where nobody says.
    pub ssh_port: Option<u16>,
}

/// What is said of a node, made sure of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    hostname: String,
    public_ip: IpAddr,
    ssh_user: String,
    ssh_port: u16,
}

/// An order to a node.
#[derive(Clone, Debug)]
pub enum NodeCommand {
    /// Make one known.
    Register {
        /// Its facts.
        host: Host,
        /// The nodes that its host name or its address belongs to, those given up left out.
        taken_by: Vec<NodeId>,
    },
    /// Make it ready.
    Provision(NodeOrder),
    /// Give it up.
    Decommission(NodeOrder),
}

/// The job of an order to a node.
#[derive(Clone, Debug)]
pub struct NodeOrder {
    /// The job.
    pub job_id: JobId,
    /// Attempts it may take in all.
    pub max_attempts: u32,
    /// The ended job that is repeated by hand.
    pub retry_of: Option<JobId>,
    /// Why it is.
    pub reason: Option<String>,
}

/// Why an order to a node is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeRefusal {
    /// No such node.
    #[error("there is no such node")]
    Unknown,
    /// There is one with this id, host name or address.
    #[error("node {0} has this host name or address already")]
    Exists(NodeId),
    /// Another job changes it now.
    #[error("job {0} is active for this node")]
    Busy(JobId),
    /// It was given up.
    #[error("the node is decommissioned, for good: register it anew")]
    Decommissioned,
    /// It is no host name.
    #[error(
        "a host name has 1 to {HOSTNAME_CHARS_MAX} characters: labels of 1 to {LABEL_CHARS_MAX} \
         letters, digits and inner hyphens, joined by dots, and it is no address"
    )]
    Hostname,
    /// It is no address that a node can have.
    #[error("the public address is an IPv4 or IPv6 address of one machine")]
    PublicIp,
    /// It is no user's name.
    #[error(
        "a user's name has 1 to {USER_CHARS_MAX} characters: small letters, digits, hyphens and \
         underscores, and begins with a letter or an underscore"
    )]
    SshUser,
    /// It is no port.
    #[error("a port is a number from 1 to 65535")]
    SshPort,
}

impl Host {
    /// Makes sure of what people say.
    ///
    /// # Errors
    /// [`NodeRefusal`] for the first thing that is not what it should be.
    pub fn parse(new: NewNode) -> Result<Self, NodeRefusal> {
        let hostname = new.hostname.to_ascii_lowercase();
        if !is_hostname(&hostname) {
            return Err(NodeRefusal::Hostname);
        }
        let public_ip = new.public_ip.parse::<IpAddr>().map_err(|_| NodeRefusal::PublicIp)?;
        // One machine has one address here, however it is written.
        let public_ip = public_ip.to_canonical();
        let broadcast = matches!(public_ip, IpAddr::V4(ip) if ip.is_broadcast());
        if public_ip.is_unspecified() || public_ip.is_multicast() || broadcast {
            return Err(NodeRefusal::PublicIp);
        }
        let ssh_user = new.ssh_user.unwrap_or_else(|| DEFAULT_SSH_USER.into());
        if !is_user(&ssh_user) {
            return Err(NodeRefusal::SshUser);
        }
        let ssh_port = new.ssh_port.unwrap_or(DEFAULT_SSH_PORT);
        if ssh_port == 0 {
            return Err(NodeRefusal::SshPort);
        }
        Ok(Self { hostname, public_ip, ssh_user, ssh_port })
    }

    /// What no other node may have: the host name, and the address.
    pub fn addresses(&self) -> [String; 2] {
        [self.hostname.clone(), self.public_ip.to_string()]
    }
}

fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        (1..=LABEL_CHARS_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label of digits only makes it look like an address, whole or cut short.
    let ends_in_digits =
        text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    text.len() <= HOSTNAME_CHARS_MAX && text.split('.').all(label) && !ends_in_digits
}

fn is_user(text: &str) -> bool {
    let inner = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
    };
    (1..=USER_CHARS_MAX).contains(&text.len())
        && text.bytes().all(inner)
        && text.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
}

/// Decides what an order does. The events of one decision belong to the streams their ids name.
///
/// # Errors
/// [`NodeRefusal`]: nothing happens then.
pub fn decide(
    state: Option<&Node>,
    node_id: NodeId,
    command: NodeCommand,
) -> Result<Vec<Event>, NodeRefusal> {
    match (state, command) {
        (Some(node), NodeCommand::Register { .. }) => Err(NodeRefusal::Exists(node.id)),
        (None, NodeCommand::Register { host, taken_by }) => {
            if let Some(other) = taken_by.first() {
                return Err(NodeRefusal::Exists(*other));
            }
            let addresses = host.addresses();
            let Host { hostname, public_ip, ssh_user, ssh_port } = host;
            let public_ip = public_ip.to_string();
            let registered = NodeRegistered { node_id, hostname, public_ip, ssh_user, ssh_port };
            let taken = addresses.map(|address| NodeAddressTaken { node_id, address }.into());
            Ok(std::iter::once(registered.into()).chain(taken).collect())
        }
        (None, NodeCommand::Provision(_) | NodeCommand::Decommission(_)) => {
            Err(NodeRefusal::Unknown)
        }
        (Some(node), NodeCommand::Provision(order)) => {
            may_change(node)?;
            let job_id = order.job_id;
            let requested = NodeProvisioningRequested { node_id, job_id }.into();
            Ok(vec![requested, order.queued(node_id, PROVISION_NODE)])
        }
        (Some(node), NodeCommand::Decommission(order)) => {
            may_change(node)?;
            let job_id = order.job_id;
            let requested = NodeDecommissionRequested { node_id, job_id }.into();
            Ok(vec![requested, order.queued(node_id, DECOMMISSION_NODE)])
        }
    }
}

fn may_change(node: &Node) -> Result<(), NodeRefusal> {
    match (node.active_job, node.status) {
        (Some(active), _) => Err(NodeRefusal::Busy(active)),
        (None, NodeStatus::Decommissioned) => Err(NodeRefusal::Decommissioned),
        (None, NodeStatus::Active | NodeStatus::Provisioning | NodeStatus::Unreachable) => Ok(()),
    }
}

impl NodeOrder {
    fn queued(self, node_id: NodeId, job_type: &str) -> Event {
        let Self { job_id, max_attempts, retry_of, reason } = self;
        JobQueued {
            job_id,
            job_type: job_type.to_owned(),
            agent_id: None,
            node_id: Some(node_id),
            instance_id: None,
            region: None,
            max_attempts,
            retry_of,
            reason,
        }
        .into()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;

    const ID: NodeId = NodeId(Uuid::from_u128(1));
    const JOB: JobId = JobId(Uuid::from_u128(2));

    fn new(hostname: &str, public_ip: &str) -> NewNode {
        let (hostname, public_ip) = (hostname.into(), public_ip.into());
        NewNode { hostname, public_ip, ssh_user: None, ssh_port: None }
    }

    fn node(status: NodeStatus, active_job: Option<JobId>) -> Node {
        Node {
            id: ID,
            hostname: "web-1".into(),
            public_ip: "192.0.2.1".into(),
            ssh_user: "root".into(),
            ssh_port: 22,
            status,
            active_job,
            latest_job: active_job,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn order() -> NodeOrder {
        NodeOrder { job_id: JOB, max_attempts: 4, retry_of: None, reason: None }
    }

    fn names(events: &[Event]) -> Vec<&'static str> {
        events.iter().map(|event| event.event_type().name()).collect()
    }

    #[test]
    fn a_host_is_what_it_seems_to_be() {
        let long = ["a"; 127].join(".");
        for hostname in ["web-1", "WEB-1.Example.com", "1a.b", "xn--mri-0qa.ee", long.as_str()] {
            let host = Host::parse(new(hostname, "192.0.2.1")).unwrap();
            assert_eq!(host.hostname, hostname.to_lowercase());
        }
        for hostname in [
            "",
            " web-1",
            "web-1 ",
            "web_1",
            "-web",
            "web-",
            "web..example",
            "web.",
            ".web",
            "192.0.2.1",
            "web.1",
            "0x7f.1",
            "::1",
            "web\n[all:vars]",
            "web ansible_user=root",
            "web;id",
            "$(id)",
            "{{ lookup('pipe', 'id') }}",
            "märi",
            "web\0",
            "web#1",
            "[web]",
            &"a".repeat(LABEL_CHARS_MAX + 1),
            &format!("{long}.a"),
        ] {
            let refused = Host::parse(new(hostname, "192.0.2.1"));
            assert_eq!(refused, Err(NodeRefusal::Hostname), "{hostname:?}");
        }
    }

    #[test]
    fn an_address_is_one_machines_however_it_is_written() {
        for (text, address) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:DB8:0:0::1", "2001:db8::1"),
        ] {
            assert_eq!(Host::parse(new("web", text)).unwrap().public_ip.to_string(), address);
        }
        for text in [
            "",
            "192.0.2",
            "192.0.2.256",
            "192.0.2.1/24",
            "192.0.2.1:22",
            "192.0.2.1 -o x",
            "192.0.2.1\n",
            "fe80::1%eth0",
            "0.0.0.0",
            "::",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
            "localhost",
            "010.0.0.1",
        ] {
            assert_eq!(Host::parse(new("web", text)), Err(NodeRefusal::PublicIp), "{text:?}");
        }
    }

    #[test]
    fn a_user_and_a_port_are_no_more_than_that() {
        let user = |user: &str| {
            let ssh_user = Some(user.into());
            Host::parse(NewNode { ssh_user, ..new("web", "192.0.2.1") }).map(|host| host.ssh_user)
        };
        for fine in ["root", "_apt", "a1-b_c", &"a".repeat(USER_CHARS_MAX)] {
            assert_eq!(user(fine), Ok(fine.to_owned()));
        }
        let long = "a".repeat(USER_CHARS_MAX + 1);
        for wrong in ["", "Root", "1a", "-oProxyCommand=id", "a b", "a\n", "a$", "ä", &long] {
            assert_eq!(user(wrong), Err(NodeRefusal::SshUser), "{wrong:?}");
        }
        let ported = NewNode { ssh_port: Some(0), ..new("web", "192.0.2.1") };
        assert_eq!(Host::parse(ported), Err(NodeRefusal::SshPort));
        let host = Host::parse(new("web", "192.0.2.1")).unwrap();
        assert_eq!((host.ssh_user.as_str(), host.ssh_port), ("root", 22));
    }

    #[test]
    fn a_node_takes_its_host_name_and_its_address() {
        let host = Host::parse(new("Web", "192.0.2.1")).unwrap();
        let register = |taken_by: Vec<NodeId>| {
            decide(None, ID, NodeCommand::Register { host: host.clone(), taken_by })
        };
        let events = register(Vec::new()).unwrap();
        assert_eq!(names(&events), ["NodeRegistered", "NodeAddressTaken", "NodeAddressTaken"]);
        assert_eq!(host.addresses(), ["web", "192.0.2.1"]);
        assert_eq!(register(vec![ID]), Err(NodeRefusal::Exists(ID)));
    }

    #[test]
    fn a_node_is_changed_by_one_job_at_a_time() {
        for status in [NodeStatus::Active, NodeStatus::Provisioning, NodeStatus::Unreachable] {
            for (command, expected) in [
                (NodeCommand::Provision(order()), ["NodeProvisioningRequested", "JobQueued"]),
                (NodeCommand::Decommission(order()), ["NodeDecommissionRequested", "JobQueued"]),
            ] {
                let idle = node(status, None);
                assert_eq!(names(&decide(Some(&idle), ID, command.clone()).unwrap()), expected);
                let busy = node(status, Some(JOB));
                assert_eq!(decide(Some(&busy), ID, command), Err(NodeRefusal::Busy(JOB)));
            }
        }
    }

    #[test]
    fn a_node_that_is_unknown_or_given_up_is_not_changed() {
        for command in [NodeCommand::Provision(order()), NodeCommand::Decommission(order())] {
            assert_eq!(decide(None, ID, command.clone()), Err(NodeRefusal::Unknown));
            let gone = node(NodeStatus::Decommissioned, None);
            assert_eq!(decide(Some(&gone), ID, command), Err(NodeRefusal::Decommissioned));
        }
    }
}
