//! The subscribers of a process, and the newest state of whatever they watch.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use milepost_schemas::{AgentId, JobId, NodeId, Position};
use tokio::sync::{Notify, watch};

/// Changes of agents, and of nodes, remembered for those who watch all of them; who is further
/// behind gets a whole picture again.
const CHANGES_MAX: usize = 16_384;

/// Something a subscriber watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// The state of one agent's instance.
    Agent(AgentId),
    /// The state of one job.
    Job(JobId),
    /// The state of one node.
    Node(NodeId),
    /// What one job's runs print; it has no state.
    Log(JobId),
    /// The state of every agent's instance.
    AllAgents,
    /// The state of every node.
    AllNodes,
}

impl Topic {
    /// The topic of all things of this kind, where there is one.
    fn all(self) -> Option<Self> {
        match self {
            Self::Agent(_) => Some(Self::AllAgents),
            Self::Node(_) => Some(Self::AllNodes),
            Self::Job(_) | Self::Log(_) | Self::AllAgents | Self::AllNodes => None,
        }
    }
}

/// The subscribers and their states.
pub struct Hub {
    inner: Mutex<Inner>,
    /// How far the states have followed the log.
    position: watch::Sender<Position>,
}

#[derive(Default)]
struct Inner {
    watchers: HashMap<Topic, Vec<Arc<Notify>>>,
    /// The newest state of each topic that is watched, or that changed lately while all of its kind
    /// are; and the round it was made in.
    states: HashMap<Topic, (Position, Bytes)>,
    agents: Changes,
    nodes: Changes,
}

/// What changed of all things of a kind.
#[derive(Default)]
struct Changes {
    latest: VecDeque<(Position, Topic)>,
    /// Changes at or before this are forgotten.
    floor: Position,
}

impl Changes {
    fn from(floor: Position) -> Self {
        Self { latest: VecDeque::new(), floor }
    }

    /// Remembers a change; which one is forgotten for it.
    fn push(&mut self, position: Position, topic: Topic) -> Option<(Position, Topic)> {
        self.latest.push_back((position, topic));
        let forgotten = (self.latest.len() > CHANGES_MAX).then(|| self.latest.pop_front())??;
        self.floor = forgotten.0;
        Some(forgotten)
    }
}

impl Hub {
    /// An empty one, that begins to follow at `head`.
    pub fn new(head: Position) -> Arc<Self> {
        let (agents, nodes) = (Changes::from(head), Changes::from(head));
        let inner = Inner { agents, nodes, ..Inner::default() };
        Arc::new(Self { inner: Mutex::new(inner), position: watch::Sender::new(head) })
    }

    /// How far the states have followed the log.
    pub fn position(&self) -> Position {
        *self.position.borrow()
    }

    /// Wakes with each advance of the states.
    pub fn watch(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    /// Registers a subscriber for its topics.
    pub fn subscribe(self: &Arc<Self>, topics: Vec<Topic>) -> Registration {
        let notify = Arc::new(Notify::new());
        let mut inner = self.lock();
        for topic in &topics {
            inner.watchers.entry(*topic).or_default().push(Arc::clone(&notify));
        }
        Registration { hub: Arc::clone(self), topics, notify }
    }

    /// The state of a topic, if it changed after `after`.
    pub fn state_since(&self, topic: Topic, after: Position) -> Option<Bytes> {
        let inner = self.lock();
        let (position, frame) = inner.states.get(&topic)?;
        (*position > after).then(|| frame.clone())
    }

    /// The things of a kind that changed after `after`, newest state each; `None` when that is too
    /// long ago. `all` is the topic of all of them.
    pub fn changed_since(&self, all: Topic, after: Position) -> Option<Vec<Bytes>> {
        let mut inner = self.lock();
        let changes = inner.changes(all)?;
        if after < changes.floor {
            return None;
        }
        let start = changes.latest.partition_point(|(position, _)| *position <= after);
        let mut topics: Vec<Topic> = changes.latest.range(start..).map(|(_, it)| *it).collect();
        topics.sort_unstable();
        topics.dedup();
        let state = |topic: Topic| inner.states.get(&topic);
        Some(topics.into_iter().filter_map(state).map(|(_, frame)| frame.clone()).collect())
    }

    /// Whether anybody watches a topic.
    pub(super) fn is_watched(&self, topic: Topic) -> bool {
        self.lock().watchers.contains_key(&topic)
    }

    /// Keeps the states of a round and wakes who watches them; then says how far the log is
    /// followed. `whole`: the topics of all things of a kind of which the round holds each that
    /// changed, not only those that are watched by themselves. `logs`: those that grew; their followers
    /// read them.
    pub(super) fn publish(
        &self,
        states: Vec<(Topic, Bytes)>,
        logs: impl IntoIterator<Item = JobId>,
        upto: Position,
        whole: &[Topic],
    ) {
        let mut woken = Vec::new();
        {
            let mut inner = self.lock();
            for (topic, frame) in states {
                inner.keep(topic, frame, upto, &mut woken);
            }
            for job in logs {
                inner.wake(Topic::Log(job), &mut woken);
            }
            for all in [Topic::AllAgents, Topic::AllNodes] {
                // What nobody watched at the end of the round is not kept, and cannot be resumed.
                if !whole.contains(&all) || !inner.watchers.contains_key(&all) {
                    // Who began to watch them all during this round has to look for himself.
                    inner.wake(all, &mut woken);
                    if let Some(changes) = inner.changes(all) {
                        *changes = Changes::from(upto);
                    }
                }
            }
        }
        self.position.send_replace(upto);
        for notify in woken {
            notify.notify_one();
        }
    }

    /// The topics whose states are kept, or were shown to somebody who still watches.
    pub(super) fn shown(&self) -> Vec<Topic> {
        let inner = self.lock();
        inner.states.keys().chain(inner.watchers.keys()).copied().collect()
    }

    /// Whether anybody watches anything.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().watchers.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn wake(&self, topic: Topic, woken: &mut Vec<Arc<Notify>>) {
        woken.extend(self.watchers.get(&topic).into_iter().flatten().cloned());
    }

    /// Keeps a state, unless whoever watched it left while it was made: nobody would remove it.
    fn keep(&mut self, topic: Topic, frame: Bytes, upto: Position, woken: &mut Vec<Arc<Notify>>) {
        if !self.is_shown(topic) {
            return;
        }
        self.wake(topic, woken);
        self.states.insert(topic, (upto, frame));
        let Some(all) = topic.all().filter(|all| self.watchers.contains_key(all)) else { return };
        self.wake(all, woken);
        let forgotten = self.changes(all).and_then(|changes| changes.push(upto, topic));
        // A state made in a later round is of a later change, which is remembered.
        if let Some((position, topic)) = forgotten
            && !self.watchers.contains_key(&topic)
            && self.states.get(&topic).is_some_and(|(made, _)| *made == position)
        {
            self.states.remove(&topic);
        }
    }

    /// Whether anybody watches a topic, by itself or with all of its kind.
    fn is_shown(&self, topic: Topic) -> bool {
        let watched = |topic: Topic| self.watchers.contains_key(&topic);
        watched(topic) || topic.all().is_some_and(watched)
    }

    /// What changed of all things of a kind.
    fn changes(&mut self, all: Topic) -> Option<&mut Changes> {
        match all {
            Topic::AllAgents => Some(&mut self.agents),
            Topic::AllNodes => Some(&mut self.nodes),
            Topic::Agent(_) | Topic::Job(_) | Topic::Node(_) | Topic::Log(_) => None,
        }
    }

    /// Nobody watches this topic any more: its states go.
    fn forget_unwatched(&mut self, gone: Topic) {
        match gone {
            Topic::AllAgents | Topic::AllNodes => {
                let watchers = &self.watchers;
                self.states
                    .retain(|topic, _| topic.all() != Some(gone) || watchers.contains_key(topic));
            }
            Topic::Agent(_) | Topic::Job(_) | Topic::Node(_) | Topic::Log(_) => {
                if !self.is_shown(gone) {
                    self.states.remove(&gone);
                }
            }
        }
    }
}

/// A subscriber's place in the hub; given back when dropped.
pub struct Registration {
    hub: Arc<Hub>,
    topics: Vec<Topic>,
    /// Wakes when a topic of its changes.
    pub notify: Arc<Notify>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        for topic in &self.topics {
            if let Some(watchers) = inner.watchers.get_mut(topic) {
                watchers.retain(|watcher| !Arc::ptr_eq(watcher, &self.notify));
                if watchers.is_empty() {
                    inner.watchers.remove(topic);
                    inner.forget_unwatched(*topic);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn agent(number: u128) -> Topic {
        Topic::Agent(AgentId(Uuid::from_u128(number)))
    }

    /// A round in which these agents changed, while all of them were watched at its beginning.
    fn round(hub: &Hub, upto: u64, agents: impl IntoIterator<Item = u128>) {
        let frame = Bytes::from(upto.to_string());
        let states = agents.into_iter().map(|number| (agent(number), frame.clone())).collect();
        hub.publish(states, [], Position(upto), &[Topic::AllAgents]);
    }

    #[test]
    fn a_state_whose_last_watcher_left_while_it_was_made_is_not_kept() {
        let hub = Hub::new(Position::START);
        let watching = hub.subscribe(vec![agent(1), Topic::AllAgents]);
        round(&hub, 1, [1]);
        assert_eq!(hub.shown().len(), 3, "its state, and who watches it");
        drop(watching);
        round(&hub, 2, [1]);
        assert!(hub.shown().is_empty());
        // Whoever comes back behind that round is told to look for himself.
        assert_eq!(hub.changed_since(Topic::AllAgents, Position(1)), None);
        assert_eq!(hub.changed_since(Topic::AllAgents, Position(2)), Some(Vec::new()));
    }

    #[test]
    fn an_open_overview_keeps_the_states_of_remembered_changes_only() {
        let hub = Hub::new(Position::START);
        let overview = hub.subscribe(vec![Topic::AllAgents]);
        let page = hub.subscribe(vec![agent(1)]);
        let newer = CHANGES_MAX as u128 + 10;
        round(&hub, 1, 1..=3);
        round(&hub, 3, 11..=newer);
        let inner = hub.lock();
        assert!(inner.states.contains_key(&agent(1)), "it is watched by itself");
        assert!(!inner.states.contains_key(&agent(2)));
        assert_eq!(inner.agents.latest.len(), CHANGES_MAX);
        assert!(inner.states.len() <= CHANGES_MAX + 1);
        drop(inner);
        assert_eq!(hub.changed_since(Topic::AllAgents, Position(0)), None);
        let last = hub.changed_since(Topic::AllAgents, Position(3));
        assert_eq!(last, Some(Vec::new()));
        drop((overview, page));
        assert!(hub.shown().is_empty());
    }

    #[test]
    fn a_state_stays_while_any_change_of_it_is_remembered() {
        let hub = Hub::new(Position::START);
        let _overview = hub.subscribe(vec![Topic::AllAgents]);
        round(&hub, 1, [1]);
        round(&hub, 2, [1]);
        // The first of its two changes is forgotten.
        round(&hub, 3, 2..=CHANGES_MAX as u128);
        let changed = hub.changed_since(Topic::AllAgents, Position(1)).unwrap();
        assert_eq!(changed.len(), CHANGES_MAX);
        assert!(hub.lock().states.contains_key(&agent(1)));
    }
}
