//! The subscribers of a process, and the newest state of whatever they watch.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use milepost_schemas::{AgentId, JobId, Position};
use tokio::sync::{Notify, watch};

/// Changes of agents remembered for those who watch all of them; who is further behind gets a
/// whole picture again.
const CHANGED_AGENTS_MAX: usize = 16_384;

/// Something a subscriber watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// The state of one agent's instance.
    Agent(AgentId),
    /// The state of one job.
    Job(JobId),
    /// What one job's runs print; it has no state.
    Log(JobId),
    /// The state of every agent's instance.
    AllAgents,
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
    /// The newest state of each topic, and the round it was made in.
    states: HashMap<Topic, (Position, Bytes)>,
    changed: VecDeque<(Position, AgentId)>,
    /// Changes of agents at or before this are forgotten.
    changed_floor: Position,
}

impl Hub {
    /// An empty one, that begins to follow at `head`.
    pub fn new(head: Position) -> Arc<Self> {
        let inner = Inner { changed_floor: head, ..Inner::default() };
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

    /// The agents that changed after `after`, newest state each; `None` when that is too long ago.
    pub fn changed_since(&self, after: Position) -> Option<Vec<Bytes>> {
        let inner = self.lock();
        if after < inner.changed_floor {
            return None;
        }
        let start = inner.changed.partition_point(|(position, _)| *position <= after);
        let mut agents: Vec<AgentId> = inner.changed.range(start..).map(|(_, id)| *id).collect();
        agents.sort_unstable();
        agents.dedup();
        let state = |agent: AgentId| inner.states.get(&Topic::Agent(agent));
        Some(agents.into_iter().filter_map(state).map(|(_, frame)| frame.clone()).collect())
    }

    /// Whether anybody watches a topic.
    pub(super) fn is_watched(&self, topic: Topic) -> bool {
        self.lock().watchers.contains_key(&topic)
    }

    /// Keeps the states of a round and wakes who watches them; then says how far the log is
    /// followed. `all_agents`: whether the round holds every agent that changed, or only those
    /// that are watched by themselves. `logs`: those that grew; their followers read them.
    pub(super) fn publish(
        &self,
        states: Vec<(Topic, Bytes)>,
        logs: impl IntoIterator<Item = JobId>,
        upto: Position,
        all_agents: bool,
    ) {
        let mut woken = Vec::new();
        {
            let mut inner = self.lock();
            for (topic, frame) in states {
                inner.wake(topic, &mut woken);
                if let Topic::Agent(agent) = topic {
                    inner.changed.push_back((upto, agent));
                    inner.wake(Topic::AllAgents, &mut woken);
                }
                inner.states.insert(topic, (upto, frame));
            }
            for job in logs {
                inner.wake(Topic::Log(job), &mut woken);
            }
            if !all_agents {
                // Who began to watch them all during this round has to look for himself.
                inner.wake(Topic::AllAgents, &mut woken);
                inner.changed.clear();
                inner.changed_floor = upto;
            }
            while inner.changed.len() > CHANGED_AGENTS_MAX {
                inner.forget_oldest_change();
            }
        }
        self.position.send_replace(upto);
        for notify in woken {
            notify.notify_one();
        }
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

    /// Nobody watches this topic any more: its states go.
    fn forget_unwatched(&mut self, topic: Topic) {
        let Self { watchers, states, .. } = self;
        match topic {
            Topic::AllAgents => states.retain(|topic, _| watchers.contains_key(topic)),
            Topic::Agent(_) if watchers.contains_key(&Topic::AllAgents) => {}
            Topic::Agent(_) | Topic::Job(_) | Topic::Log(_) => {
                states.remove(&topic);
            }
        }
    }

    fn forget_oldest_change(&mut self) {
        if let Some((position, _)) = self.changed.pop_front() {
            self.changed_floor = position;
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
