//! One subscriber: what it wants, and how far it has come.
//!
//! Events are delivered each once and in order, whatever the subscriber's speed: from memory
//! while it is close behind, from the log in ranges while it is not. States are conflated: a slow
//! reader gets the newest, not all. Each message's id is a position up to which everything has
//! been delivered, so a reader may resume from any of them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use milepost_projections::board::agent_of;
use milepost_projections::job::job_of;
use milepost_projections::node::{Nodes, node_of};
use milepost_schemas::{AgentId, EventType, JobId, NodeId, Position, StreamId};
use serde::Serialize;
use tokio::sync::watch;

use super::encode;
use super::hub::{Registration, Topic};
use super::states::{instance_state, job_state, node_state, render};
use crate::app::App;
use crate::execute::{ExecuteError, read_job};
use crate::log::{Committed, DatabaseError, Escape, EventFilter, Opener, Since};
use crate::views;

/// Topics one stream may watch: a page watches one or two, a shared one those of all tabs.
pub const WANTS_MAX: usize = 64;

/// Events read from the log at once for a subscriber that is far behind; fewer where they are
/// large.
pub const RESUME_READ_EVENTS: usize = 1_000;

/// Events the first such read asks for, when nothing is known of their size.
const FIRST_READ_EVENTS: usize = 128;

/// Events looked at in memory at once.
const RING_EVENTS: usize = 1_024;

/// Messages handed over in one write.
const BATCH_FRAMES_MAX: usize = 256;

/// Bytes of events handed over in one write, with the event that goes beyond: what a reader that
/// has stopped reading keeps in memory.
const BATCH_BYTES_MAX: usize = 128 << 10;

/// How often a page's stream says that it is alive and how far it is.
const PAGE_TICK: Duration = Duration::from_secs(5);

/// How often a stream of events does.
const EVENTS_TICK: Duration = Duration::from_secs(15);

/// A place in a log, as message ids and `Last-Event-ID` write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Which log.
    pub epoch: i64,
    /// Everything up to here has been seen.
    pub position: Position,
}

impl std::str::FromStr for Cursor {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (epoch, position) = text.trim().split_once('-').ok_or(())?;
        let position = Position(position.parse().map_err(|_| ())?);
        Ok(Self { epoch: epoch.parse().map_err(|_| ())?, position })
    }
}

/// What a subscriber wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// The instance states of these agents.
    pub agents: Vec<AgentId>,
    /// The instance states of all agents.
    pub all_agents: bool,
    /// The states of these jobs.
    pub jobs: Vec<JobId>,
    /// The states of these nodes.
    pub nodes: Vec<NodeId>,
    /// The states of all nodes.
    pub all_nodes: bool,
    /// What the runs of these jobs print.
    pub logs: Vec<JobId>,
    /// All events that pass.
    pub events: Option<EventFilter>,
    /// The events of these agents, with their jobs' and instances'.
    pub events_of_agents: Vec<AgentId>,
    /// The events of these jobs.
    pub events_of_jobs: Vec<JobId>,
    /// The events of these nodes, with their jobs'.
    pub events_of_nodes: Vec<NodeId>,
    /// Whether the reader shows how fresh it is, and so is told even when nothing happens.
    pub bookmarks: bool,
}

impl Wants {
    fn topics(&self) -> Vec<Topic> {
        let agents = self.agents.iter().chain(&self.events_of_agents).copied().map(Topic::Agent);
        let jobs = self.jobs.iter().chain(&self.events_of_jobs).copied().map(Topic::Job);
        let nodes = self.nodes.iter().chain(&self.events_of_nodes).copied().map(Topic::Node);
        let logs = self.logs.iter().copied().map(Topic::Log);
        let mut topics: Vec<Topic> = agents.chain(jobs).chain(nodes).chain(logs).collect();
        topics.extend(self.all());
        topics
    }

    /// The topics of all things of a kind.
    fn all(&self) -> impl Iterator<Item = Topic> + use<> {
        let agents = self.all_agents.then_some(Topic::AllAgents);
        agents.into_iter().chain(self.all_nodes.then_some(Topic::AllNodes))
    }

    fn any_events(&self) -> bool {
        self.events.is_some()
            || !self.logs.is_empty()
            || !self.events_of_agents.is_empty()
            || !self.events_of_jobs.is_empty()
            || !self.events_of_nodes.is_empty()
    }

    /// Whether an event is part of a log that is followed.
    fn follows(&self, event: &Committed) -> bool {
        !self.logs.is_empty()
            && event.code == EventType::JobLogRecorded.code()
            && self.logs.iter().any(|job| job.log_stream() == event.stream)
    }

    fn accepts(&self, event: &Committed) -> bool {
        if self.events.as_ref().is_some_and(|filter| filter.accepts(event)) {
            return true;
        }
        let Ok(fact) = event.event() else { return false };
        agent_of(fact).is_some_and(|agent| self.events_of_agents.contains(&agent))
            || job_of(fact).is_some_and(|job| self.events_of_jobs.contains(&job))
            || node_of(fact).is_some_and(|node| self.events_of_nodes.contains(&node))
    }
}

/// One subscriber.
pub struct Subscription {
    app: Arc<App>,
    wants: Box<Wants>,
    /// Everything up to here has been handed over.
    position: Position,
    /// Every state that changed up to here has been handed over. Behind `position` while events
    /// are caught up with: states wait for their events.
    states_shown: Position,
    /// The position of the last message that carried an id.
    told: Position,
    /// Present for a stream of states; a stream of events follows the feed itself.
    registration: Option<Registration>,
    head: watch::Receiver<Position>,
    greeting: Option<Greeting>,
    /// A page is told once that it has caught up.
    catching_up: bool,
    /// Events the next read of the log asks for: about as many as go out in one write.
    read_events: usize,
}

/// What a stream begins with.
struct Greeting {
    reset: bool,
    retry_ms: u64,
}

#[derive(Serialize)]
struct Bookmark {
    epoch: i64,
    position: Position,
    at: jiff::Timestamp,
}

impl Subscription {
    /// Subscribes from `since`, or from now on. A cursor of another log, beyond this one's head, or
    /// before events that were archived, gets a `reset` message and the stream from now on.
    pub fn new(app: Arc<App>, wants: Wants, since: Option<Cursor>) -> Self {
        let topics = wants.topics();
        let registration = (!topics.is_empty()).then(|| app.hub.subscribe(topics));
        let head = if registration.is_some() { app.hub.watch() } else { app.log.feed().watch() };
        let now = *head.borrow();
        let known = app.log.feed().head().max(now);
        let epoch = app.log.feed().epoch();
        let resumed = since
            .filter(|cursor| cursor.epoch == epoch && cursor.position <= known)
            .map(|cursor| cursor.position);
        let random = app.clock.id().as_u128() as u64;
        Self {
            position: resumed.unwrap_or(now),
            states_shown: resumed.unwrap_or(now),
            told: Position::START,
            greeting: Some(Greeting {
                reset: since.is_some() && resumed.is_none(),
                // Spread, so that a thousand browsers do not come back in the same instant.
                retry_ms: 1_000 + random % 2_000,
            }),
            catching_up: registration.is_some() || wants.bookmarks,
            read_events: FIRST_READ_EVENTS,
            app,
            wants: Box::new(wants),
            registration,
            head,
        }
    }

    /// How long the stream may be quiet before [`Self::tick`] is due.
    pub fn tick_after(&self) -> Duration {
        if self.tells_bookmarks() { PAGE_TICK } else { EVENTS_TICK }
    }

    fn tells_bookmarks(&self) -> bool {
        self.registration.is_some() || self.wants.bookmarks
    }

    /// The next messages, in order; waits until there are some. Dropping the future loses
    /// nothing.
    ///
    /// # Errors
    /// [`ExecuteError`] when the log cannot be read: end the stream, the reader comes back.
    pub async fn next(&mut self) -> Result<Vec<Bytes>, ExecuteError> {
        if self.greeting.is_some() {
            let frames = self.greet().await?;
            self.greeting = None;
            return Ok(frames);
        }
        loop {
            let upto = *self.head.borrow_and_update();
            let mut frames = Vec::new();
            if self.position < upto {
                frames = self.gather(upto).await?;
            }
            if self.catching_up && self.position == upto {
                self.catching_up = false;
                frames.push(self.bookmark("bookmark"));
            }
            if !frames.is_empty() {
                return Ok(frames);
            }
            if self.position >= upto {
                self.changed().await?;
            }
        }
    }

    /// What a quiet stream says: how far it has come, or at least that it is there.
    ///
    /// # Errors
    /// [`ExecuteError`] when the log cannot be read.
    pub async fn tick(&mut self) -> Result<Vec<Bytes>, ExecuteError> {
        let upto = *self.head.borrow_and_update();
        let mut frames = Vec::new();
        // States may be behind where the view was: then they are looked at again.
        if self.position < upto || self.states_shown < upto {
            frames = self.gather(upto).await?;
        }
        if self.tells_bookmarks() || self.position > self.told {
            frames.push(self.bookmark("bookmark"));
        } else if frames.is_empty() {
            frames.push(encode::comment("here"));
        }
        Ok(frames)
    }

    async fn changed(&mut self) -> Result<(), ExecuteError> {
        let gone = || ExecuteError::Unavailable;
        match &self.registration {
            // Only when a topic of ours changed; the position alone is told by bookmarks.
            Some(registration) if self.wants.events.is_none() => {
                registration.notify.notified().await;
                Ok(())
            }
            Some(_) | None => self.head.changed().await.map_err(|_| gone()),
        }
    }

    async fn greet(&mut self) -> Result<Vec<Bytes>, ExecuteError> {
        let greeting = self.greeting.as_ref().expect("a stream greets once");
        let reset = greeting.reset;
        let mut frames = vec![encode::retry(greeting.retry_ms)];
        if reset {
            frames.push(self.bookmark("reset"));
        }
        let (app, upto) = (Arc::clone(&self.app), self.position);
        let mut states = Vec::new();
        for agent in &self.wants.agents {
            if let Some(board) = views::read_board(&app.log, *agent).await? {
                states.extend(instance_state(&app, &board));
            }
        }
        for job in &self.wants.jobs {
            match read_job(&app.log, *job).await {
                Ok(job) => states.extend(job.as_ref().map(job_state)),
                // It has ended, and no state of it will come any more.
                Err(ExecuteError::Database(DatabaseError::Archived { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        for node in &self.wants.nodes {
            if let Some(row) = views::read_node(&app.log, *node).await? {
                states.extend(node_state(&row));
            }
        }
        let mut states = render(&app, &states).await?;
        for all in self.wants.all() {
            let (all, whole) = self.all_states(all, upto).await?;
            states.extend(all);
            self.states_shown = self.states_shown.min(whole);
        }
        self.with_ids(states, upto, &mut frames);
        Ok(frames)
    }

    /// What came after the cursor, up to `upto`; moves the cursor as far as that goes.
    async fn gather(&mut self, upto: Position) -> Result<Vec<Bytes>, ExecuteError> {
        let mut frames = Vec::new();
        let mut reached = upto;
        if self.wants.any_events() {
            match self.events(upto, &mut frames).await {
                Ok(position) => reached = position,
                // What comes next was archived: nobody is to believe that there was nothing.
                Err(ExecuteError::Database(DatabaseError::Archived { .. })) => {
                    self.position = upto;
                    frames = vec![self.bookmark("reset")];
                }
                Err(error) => return Err(error),
            }
        }
        if reached == upto {
            // States come after the events they hold, and with the same right to be resumed from.
            let (states, whole) = self.states(self.states_shown, upto).await?;
            self.with_ids(states, upto, &mut frames);
            self.states_shown = whole;
        }
        self.position = reached;
        if !frames.is_empty() {
            self.told = reached;
        }
        Ok(frames)
    }

    async fn events(
        &mut self,
        upto: Position,
        frames: &mut Vec<Bytes>,
    ) -> Result<Position, ExecuteError> {
        match self.app.log.feed().since(self.position, RING_EVENTS) {
            Since::Events(events) => {
                let (mut reached, mut bytes) = (self.position, 0);
                for event in events.iter().take_while(|event| event.position <= upto) {
                    if frames.len() == BATCH_FRAMES_MAX || bytes >= BATCH_BYTES_MAX {
                        return Ok(reached);
                    }
                    reached = event.position;
                    bytes += self.push_event(event, frames).await?;
                }
                Ok(reached)
            }
            Since::Older(kept_from) => self.events_from_log(upto.min(kept_from), frames).await,
        }
    }

    /// Adds what an event is to this subscriber; how many bytes that is. Each form is rendered
    /// once for all: what a run prints as lines, everything else as the event it is.
    async fn push_event(
        &self,
        event: &Committed,
        frames: &mut Vec<Bytes>,
    ) -> Result<usize, DatabaseError> {
        let keys = self.app.log.keys();
        let before = frames.len();
        let as_event = self.wants.accepts(event);
        if self.wants.follows(event) {
            // Who resumes from the lines must not miss the event that follows them.
            let position = event.position.0 - u64::from(as_event);
            frames.push(encode::id(event.epoch, Position(position)));
            frames.push(event.rendered(keys, log_frame).await?);
        }
        if as_event && event.code == EventType::JobLogRecorded.code() {
            let opener = keys.opener(event.texts()).await?;
            frames.push(encode::event(event, &opener));
        } else if as_event {
            frames.push(event.rendered(keys, encode::event).await?);
        }
        Ok(frames[before..].iter().map(Bytes::len).sum())
    }

    async fn events_from_log(
        &mut self,
        upto: Position,
        frames: &mut Vec<Bytes>,
    ) -> Result<Position, ExecuteError> {
        let filter = self.filter().await?;
        let events = self.app.log.read(&filter, self.position, upto, self.read_events).await?;
        let mut reached = if events.len() < self.read_events { upto } else { self.position };
        let (mut bytes, mut taken) = (0, 0);
        for event in &events {
            if bytes >= BATCH_BYTES_MAX {
                // The rest is read again: next time fewer are asked for.
                reached = Position(event.position.0 - 1);
                break;
            }
            reached = reached.max(event.position);
            bytes += encode::event_bytes_max(event);
            taken += 1;
        }
        if self.wants.logs.is_empty() && taken > 0 {
            let texts = events[..taken].iter().flat_map(Committed::texts);
            let opener = self.app.log.keys().opener(texts).await?;
            frames.push(encode::events(&events[..taken], &opener));
        } else {
            for event in &events[..taken] {
                self.push_event(event, frames).await?;
            }
        }
        self.read_events =
            (BATCH_BYTES_MAX * taken.max(1) / bytes.max(1)).clamp(1, RESUME_READ_EVENTS);
        Ok(reached)
    }

    /// The wants as the log can be asked for them.
    async fn filter(&self) -> Result<EventFilter, ExecuteError> {
        if let Some(filter) = &self.wants.events {
            return Ok(filter.clone());
        }
        let mut streams: Vec<StreamId> =
            self.wants.events_of_jobs.iter().map(|job| job.stream()).collect();
        streams.extend(self.wants.logs.iter().map(|job| job.log_stream()));
        for node in &self.wants.events_of_nodes {
            streams.extend(views::streams_of_node(&self.app.log, *node).await?);
        }
        for agent in &self.wants.events_of_agents {
            streams.extend(views::streams_of_agent(&self.app.log, *agent).await?);
        }
        Ok(EventFilter { streams, types: Vec::new() })
    }

    /// The states that changed after `from`, and up to where they are whole.
    async fn states(
        &self,
        from: Position,
        upto: Position,
    ) -> Result<(Vec<Bytes>, Position), ExecuteError> {
        let hub = &self.app.hub;
        let agents = self.wants.agents.iter().copied().map(Topic::Agent);
        let jobs = self.wants.jobs.iter().copied().map(Topic::Job);
        let nodes = self.wants.nodes.iter().copied().map(Topic::Node);
        let each = agents.chain(jobs).chain(nodes);
        let mut states: Vec<Bytes> =
            each.filter_map(|topic| hub.state_since(topic, from)).collect();
        let mut whole = upto;
        for all in self.wants.all() {
            if let Some(changed) = hub.changed_since(all, from) {
                states.extend(changed);
            } else {
                let (all, shown) = self.all_states(all, upto).await?;
                states.extend(all);
                whole = whole.min(shown);
            }
        }
        Ok((states, whole))
    }

    /// The state of everything of a kind, and up to where they are whole: `upto`, or less where the
    /// view is behind.
    async fn all_states(
        &self,
        all: Topic,
        upto: Position,
    ) -> Result<(Vec<Bytes>, Position), ExecuteError> {
        let app = &self.app;
        if all == Topic::AllNodes {
            let (rows, whole) = app.views.rows::<Nodes>(upto).await?;
            let states: Vec<_> = rows.iter().filter_map(node_state).collect();
            return Ok((render(app, &states).await?, whole.min(upto)));
        }
        let (boards, whole) = app.views.boards(upto).await?;
        let states: Vec<_> = boards.iter().filter_map(|it| instance_state(app, it)).collect();
        Ok((render(app, &states).await?, whole.min(upto)))
    }

    fn with_ids(&self, states: Vec<Bytes>, upto: Position, frames: &mut Vec<Bytes>) {
        let epoch = self.app.log.feed().epoch();
        for state in states {
            frames.extend([encode::id(epoch, upto), state]);
        }
    }

    fn bookmark(&mut self, name: &'static str) -> Bytes {
        let epoch = self.app.log.feed().epoch();
        self.told = self.position;
        let bookmark = Bookmark { epoch, position: self.position, at: self.app.clock.now() };
        let data = serde_json::to_vec(&bookmark).expect("a bookmark is plain data");
        encode::message(epoch, self.position, name, &data)
    }
}

/// What a run printed as one message, but for its id, opened.
fn log_frame(event: &Committed, opener: &Opener) -> Bytes {
    match views::log_message(event) {
        Some(message) => encode::message_without_id("log", &opener.open(&message, Escape::Json)),
        None => encode::comment("lines that cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_an_epoch_and_a_position() {
        let cursor = Cursor { epoch: 1_795_220_000, position: Position(42) };
        assert_eq!("1795220000-42".parse(), Ok(cursor));
        for wrong in ["", "42", "a-b", "1-", "-1-2-3", "1--2"] {
            assert_eq!(wrong.parse::<Cursor>(), Err(()), "{wrong}");
        }
    }
}
