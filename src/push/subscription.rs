//! One subscriber: what it wants, and how far it has come.
//!
//! Events are delivered each once and in order, whatever the subscriber's speed: from memory
//! while it is close behind, from the log in ranges while it is not. States are conflated: a slow
//! reader gets the newest, not all. Each message's id is a position up to which everything has
//! been delivered, so a reader may resume from any of them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use milepost_projections::board::{Boards, agent_of};
use milepost_projections::job::job_of;
use milepost_projections::node::{Nodes, node_of};
use milepost_projections::{Board, Projection};
use milepost_schemas::{AgentId, EventType, JobId, NodeId, Position, StreamId};
use serde::Serialize;
use tokio::sync::watch;
use uuid::Uuid;

use super::encode;
use super::hub::{Registration, Topic};
use super::states::{State, instance_state, job_state, node_state, render};
use crate::app::App;
use crate::execute::{ExecuteError, read_job};
use crate::log::{Committed, DatabaseError, Escape, EventFilter, Opener, Since};
use crate::views::{self, LIST_ROWS_MAX};

/// Topics one stream may watch. A page watches up to four, and a shared stream is of all tabs of a
/// browser: `stream.js` leaves out those that were not looked at for longest.
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

/// Rows of a view handed over in one write: about as many bytes as events are.
const PIECE_ROWS: usize = 64;

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

    /// Wants the events of one stream, with all other events it wants.
    pub fn add_stream(&mut self, stream: StreamId) {
        match &mut self.events {
            // All streams are among them.
            Some(filter) if filter.streams.is_empty() => {}
            Some(filter) => filter.streams.push(stream),
            None => {
                self.events = Some(EventFilter { streams: vec![stream], types: Vec::new() });
            }
        }
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
    /// What is yet to be handed over of all things of a kind, before anything else.
    pictures: Vec<Picture>,
    /// A page is told once that it has caught up.
    catching_up: bool,
    /// Events the next read of the log asks for: about as many as go out in one write.
    read_events: usize,
    /// When the log took the first of the events that were handed over from memory.
    recorded_at: Option<jiff::Timestamp>,
}

/// What a stream begins with.
struct Greeting {
    reset: bool,
    retry_ms: u64,
}

/// All things of a kind, handed over in pieces: a thousand of them are megabytes, which a reader
/// that has stopped reading would keep in memory.
struct Picture {
    all: Topic,
    /// The key of the last one that was handed over; the next is before it.
    before: Uuid,
    /// How many may follow.
    left: usize,
    /// How far the view is to be, at the least.
    at_least: Position,
}

#[derive(Serialize)]
struct Bookmark {
    epoch: i64,
    position: Position,
    at: jiff::Timestamp,
}

impl Subscription {
    /// Subscribes from `since`, or from now on. A cursor of another log, beyond this one's head, or
    /// before events that were archived, gets a `reset` message and the stream from now on. One that
    /// is beyond what this process has seen may be another node's: the database is asked.
    pub fn new(app: Arc<App>, wants: Wants, since: Option<Cursor>) -> Self {
        let topics = wants.topics();
        let registration = (!topics.is_empty()).then(|| app.hub.subscribe(topics));
        let head = if registration.is_some() { app.hub.watch() } else { app.log.feed().watch() };
        let now = *head.borrow();
        let epoch = app.log.feed().epoch();
        let resumed = since.filter(|cursor| cursor.epoch == epoch).map(|cursor| cursor.position);
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
            pictures: Vec::new(),
            catching_up: registration.is_some() || wants.bookmarks,
            read_events: FIRST_READ_EVENTS,
            recorded_at: None,
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

    /// Whether it is still being told how things stand. Until it has been, it is not quiet, however
    /// long that takes.
    pub fn is_greeted(&self) -> bool {
        self.greeting.is_none() && self.pictures.is_empty()
    }

    /// The next messages, in order; waits until there are some, or a picture is whole. Dropping the
    /// future loses nothing.
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
            if !self.pictures.is_empty() {
                // Also where it has nothing more: what follows may take long, and is timed.
                return self.piece().await;
            }
            let upto = *self.head.borrow_and_update();
            let mut frames = Vec::new();
            if self.position < upto {
                frames = self.gather(upto).await?;
            }
            if self.catching_up && self.position >= upto && self.pictures.is_empty() {
                self.catching_up = false;
                frames.push(self.bookmark("bookmark"));
            }
            if !frames.is_empty() {
                return Ok(frames);
            }
            if self.position >= upto && self.pictures.is_empty() {
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

    /// Notes that all that was handed over has been written.
    pub fn written(&mut self) {
        if let Some(recorded_at) = self.recorded_at.take() {
            let lag = self.app.clock.now().duration_since(recorded_at);
            // The database may have another clock.
            self.app.metrics.delivery_lag_seconds.observe(lag.as_secs_f64().max(0.0));
        }
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
        let mut frames = vec![encode::retry(greeting.retry_ms)];
        if greeting.reset || self.is_beyond_the_log().await? {
            self.position = self.position.min(*self.head.borrow());
            self.states_shown = self.position;
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
        self.with_ids(render(&app, &states).await?, upto, &mut frames);
        self.pictures = self.wants.all().map(|all| Picture::new(all, upto)).collect();
        Ok(frames)
    }

    /// Whether the cursor is of no event that this log has, by this node's word or the database's.
    async fn is_beyond_the_log(&self) -> Result<bool, ExecuteError> {
        if self.position <= self.app.log.feed().head() {
            return Ok(false);
        }
        let (epoch, size) = self.app.log.head().await?;
        Ok(epoch != self.app.log.feed().epoch() || self.position > size)
    }

    /// The next things of the first picture. What has changed since a view held them is told after
    /// the last piece.
    async fn piece(&mut self) -> Result<Vec<Bytes>, ExecuteError> {
        let picture = &self.pictures[0];
        let limit = picture.left.min(PIECE_ROWS);
        let (states, last, whole) = if picture.all == Topic::AllNodes {
            self.rows_of::<Nodes>(picture, limit, node_state).await?
        } else {
            let state = |board: &Board| instance_state(&self.app, board);
            self.rows_of::<Boards>(picture, limit, state).await?
        };
        let mut frames = Vec::new();
        self.with_ids(states, self.position, &mut frames);
        self.states_shown = self.states_shown.min(whole);
        let picture = &mut self.pictures[0];
        picture.left -= limit;
        match last {
            Some(last) if picture.left > 0 => {
                (picture.before, picture.at_least) = (last, whole.min(picture.at_least));
            }
            Some(_) | None => drop(self.pictures.remove(0)),
        }
        Ok(frames)
    }

    /// Rows of a picture as messages; the key of the last one, where more may follow; and up to
    /// where they are whole.
    async fn rows_of<P: Projection>(
        &self,
        picture: &Picture,
        limit: usize,
        state: impl Fn(&P::State) -> Option<State>,
    ) -> Result<(Vec<Bytes>, Option<Uuid>, Position), ExecuteError> {
        let Picture { before, at_least, .. } = *picture;
        let (rows, whole) = self.app.views.rows_before::<P>(at_least, before, limit).await?;
        let states: Vec<State> = rows.iter().filter_map(|(_, row)| state(row)).collect();
        let last = rows.last().map(|(key, _)| *key).filter(|_| rows.len() == limit);
        Ok((render(&self.app, &states).await?, last, whole))
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
            self.states(upto, &mut frames);
            self.states_shown = upto;
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
                    if bytes > 0 {
                        self.recorded_at.get_or_insert(event.recorded_at);
                    }
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

    /// The wants as the log can be asked for them: all that they name together.
    async fn filter(&self) -> Result<EventFilter, ExecuteError> {
        let mut streams: Vec<StreamId> =
            self.wants.events_of_jobs.iter().map(|job| job.stream()).collect();
        streams.extend(self.wants.logs.iter().map(|job| job.log_stream()));
        for node in &self.wants.events_of_nodes {
            streams.extend(views::streams_of_node(&self.app.log, *node).await?);
        }
        for agent in &self.wants.events_of_agents {
            streams.extend(views::streams_of_agent(&self.app.log, *agent).await?);
        }
        Ok(match &self.wants.events {
            Some(filter) if streams.is_empty() || filter.streams.is_empty() => filter.clone(),
            Some(filter) => {
                streams.extend(&filter.streams);
                EventFilter { streams, types: Vec::new() }
            }
            None => EventFilter { streams, types: Vec::new() },
        })
    }

    /// Adds the states that changed since they were last shown. Of things of a kind that is too long
    /// ago to tell, the whole picture follows.
    fn states(&mut self, upto: Position, frames: &mut Vec<Bytes>) {
        let (hub, from) = (&self.app.hub, self.states_shown);
        let agents = self.wants.agents.iter().copied().map(Topic::Agent);
        let jobs = self.wants.jobs.iter().copied().map(Topic::Job);
        let nodes = self.wants.nodes.iter().copied().map(Topic::Node);
        let each = agents.chain(jobs).chain(nodes);
        let mut states: Vec<Bytes> =
            each.filter_map(|topic| hub.state_since(topic, from)).collect();
        for all in self.wants.all() {
            match hub.changed_since(all, from) {
                Some(changed) => states.extend(changed),
                None => self.pictures.push(Picture::new(all, upto)),
            }
        }
        self.with_ids(states, upto, frames);
    }

    fn with_ids(&self, states: Vec<Bytes>, upto: Position, frames: &mut Vec<Bytes>) {
        let id = encode::id(self.app.log.feed().epoch(), upto);
        frames.extend(states.into_iter().flat_map(|state| [id.clone(), state]));
    }

    fn bookmark(&mut self, name: &'static str) -> Bytes {
        let epoch = self.app.log.feed().epoch();
        self.told = self.position;
        let bookmark = Bookmark { epoch, position: self.position, at: self.app.clock.now() };
        let data = serde_json::to_vec(&bookmark).expect("a bookmark is plain data");
        encode::message(epoch, self.position, name, &data)
    }
}

impl Picture {
    fn new(all: Topic, at_least: Position) -> Self {
        Self { all, before: Uuid::max(), left: LIST_ROWS_MAX, at_least }
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
