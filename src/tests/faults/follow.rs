//! A reader that comes back with `Last-Event-ID`, as browsers do.

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::harness::{Client, Message, Messages, wait_until};

/// A reader of every event from the first one on.
pub struct Follower {
    reached: watch::Receiver<u64>,
    upto: watch::Sender<Option<u64>>,
    task: JoinHandle<u64>,
}

impl Follower {
    /// Begins to read; panics at an event that is missing, repeated or out of order.
    pub async fn start(client: &Client) -> Self {
        let (reach, reached) = watch::channel(0);
        let (upto, end) = watch::channel(None);
        let last_id = client.beginning().await;
        let task = tokio::spawn(follow(client.clone(), last_id, reach, end));
        Self { reached, upto, task }
    }

    /// How far it has come.
    pub fn reached(&self) -> u64 {
        *self.reached.borrow()
    }

    /// Lets it read up to a position; how often it had to connect.
    pub async fn read_up_to(self, position: u64) -> u64 {
        self.upto.send_replace(Some(position));
        self.task.await.unwrap()
    }
}

async fn follow(
    client: Client,
    mut last_id: String,
    reach: watch::Sender<u64>,
    mut end: watch::Receiver<Option<u64>>,
) -> u64 {
    let mut connections = 0;
    loop {
        let messages = wait_until("the stream opens", || async {
            client.try_stream("/api/events/stream", Some(&last_id)).await
        })
        .await;
        connections += 1;
        if read(messages, &mut last_id, &reach, &mut end).await {
            return connections;
        }
    }
}

/// Reads one connection; whether its last event was the last one wanted.
async fn read(
    mut messages: Messages,
    last_id: &mut String,
    reach: &watch::Sender<u64>,
    end: &mut watch::Receiver<Option<u64>>,
) -> bool {
    loop {
        if *end.borrow_and_update() == Some(*reach.borrow()) {
            return true;
        }
        let message = tokio::select! {
            message = messages.next() => message,
            Ok(()) = end.changed() => continue,
        };
        let Some(message) = message else { return false };
        check(&message, reach);
        *last_id = message.id;
    }
}

/// The next event is the one after the last, and nothing else.
fn check(message: &Message, reach: &watch::Sender<u64>) {
    assert_ne!(message.event, "reset");
    if message.event == "recorded" {
        let event = message.json();
        let next = *reach.borrow() + 1;
        assert_eq!(event["position"], next, "{}", message.data);
        assert_eq!(event["event_id"], message.id);
        reach.send_replace(next);
    }
}
