//! The nodes: one row each, the newest first, and the form that makes one known.

use askama::Template;
use jiff::Timestamp;
use milepost_projections::NodeStatus;
use milepost_projections::answers::NodeAnswer;
use milepost_schemas::{NodeId, Position};
use uuid::Uuid;

use super::Frame;
use super::format::{Moment, number};
use super::standing::Standing;
use super::words::word_of;

/// `GET /nodes`.
#[derive(Clone, Debug, Template)]
#[template(path = "nodes.html")]
pub struct NodesPage {
    frame: Frame,
    rows: Vec<Row>,
    blank: Row,
}

/// One node.
#[derive(Clone, Debug, Template)]
#[template(path = "parts/node_row.html")]
struct Row {
    id: NodeId,
    name: String,
    address: String,
    status: &'static str,
    status_word: &'static str,
    position: Position,
    at: Moment,
    standing: Standing,
    query: String,
}

impl NodesPage {
    /// The page for those nodes, in their order.
    pub fn new(frame: Frame, nodes: &[NodeAnswer]) -> Self {
        let rows = nodes.iter().map(|node| Row::new(node, &frame)).collect();
        Self { rows, blank: Row::new(&blank(), &frame), frame }
    }
}

impl Row {
    fn new(node: &NodeAnswer, frame: &Frame) -> Self {
        let now = frame.now;
        let status = node.status.as_str();
        let updated_at = node.job.as_ref().map_or(node.updated_at, |job| job.updated_at);
        Self {
            id: node.id,
            name: node.hostname.clone(),
            address: node.public_ip.clone(),
            status,
            status_word: word_of("node-status", status),
            position: node.position,
            at: Moment::of(updated_at.max(node.updated_at), now),
            standing: Standing::of_node(node, now),
            query: frame.query(),
        }
    }

    fn position_text(&self) -> String {
        number(self.position.0)
    }
}

/// The node of the markup that scripts copy for one that has not been rendered.
fn blank() -> NodeAnswer {
    NodeAnswer {
        id: NodeId(Uuid::nil()),
        hostname: String::new(),
        public_ip: String::new(),
        ssh_user: String::new(),
        ssh_port: 0,
        status: NodeStatus::Provisioning,
        active_job_id: None,
        job: None,
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
        position: Position::START,
    }
}
