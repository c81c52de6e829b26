//! A process that is alone extends the log where it left it; what others append in between, it does
//! not hear of before it looks.

use std::collections::HashSet;

use milepost::execute::command_deadline;
use milepost::log::{Decision, Expected};
use milepost_schemas::event::{CallbackRejected, NotApplied};
use milepost_schemas::{Metadata, StreamId};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::{database, sql};
use crate::leases::worker;

/// The log is whole: positions are 1 to n, and so are the versions of every stream.
const WHOLE: &str = "SELECT size = (SELECT count(*) FROM event) \
     AND size = (SELECT max(position) FROM event) \
     AND NOT EXISTS (SELECT FROM event GROUP BY stream_id HAVING max(version) <> count(*)) \
     FROM log_head";

const STREAMS: u128 = 4;
const ROUNDS: u128 = 50;

fn stream(number: u128) -> StreamId {
    StreamId(Uuid::from_u128(number))
}

fn decision(number: u128, round: u128) -> Decision {
    let event = CallbackRejected {
        job_id: format!("{number} {round}"),
        kind: "heartbeat".into(),
        reason: NotApplied::UnknownJob,
    };
    Decision {
        events: vec![(stream(number), event.into())],
        expected: vec![(stream(number), Expected::Any)],
        metadata: Metadata {
            actor: "test".into(),
            correlation_id: stream(number).0,
            causation_id: None,
            callback: None,
        }
        .into(),
        queue: None,
    }
}

/// As another process does that only changes accounts, or a command on the operator's machine.
async fn append_beside(client: &Client, number: u128) {
    let append = "SELECT append_event($1, 1::smallint, 1::smallint, '{}'::bytea, '{}'::bytea)";
    client.query_one(append, &[&stream(number).0]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_append_in_between_is_neither_missed_nor_overwritten() {
    let url = database().await;
    let (app, beside) = (worker(&url).await, sql(&url).await);
    let mut positions = HashSet::new();
    let append = async |number, round| {
        let appended = app.log.append(decision(number, round), command_deadline()).await.unwrap();
        appended.position()
    };
    // In turns: each of its appends but the first finds the log, and the stream, moved on.
    for round in 0..ROUNDS {
        positions.insert(append(0, round).await);
        append_beside(&beside, 0).await;
    }
    // At once, and in other streams too.
    let theirs = async {
        for round in 0..ROUNDS {
            append_beside(&beside, round % STREAMS).await;
        }
    };
    let ours = async {
        let mut positions = Vec::new();
        for round in 0..ROUNDS {
            for number in 0..STREAMS {
                positions.push(append(number, ROUNDS + round).await);
            }
        }
        positions
    };
    let ((), ours) = tokio::join!(theirs, ours);
    positions.extend(ours);
    // The primary key would refuse a position that is taken, and the batch would be sent once more.
    assert_eq!(app.metrics.append_errors.get(), 0);
    assert_eq!(positions.len() as u128, ROUNDS + ROUNDS * STREAMS, "each has a place of its own");
    assert!(beside.query_one(WHOLE, &[]).await.unwrap().get::<_, bool>(0));
    let ours = "SELECT count(*) FROM event WHERE body <> '{}'";
    let ours: i64 = beside.query_one(ours, &[]).await.unwrap().get(0);
    assert_eq!(ours as u128, ROUNDS + ROUNDS * STREAMS, "and all are kept");
}
