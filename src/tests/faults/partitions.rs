//! The log goes on from one partition to the next, whoever else uses it meanwhile.

use std::sync::Arc;

use milepost::app::App;
use milepost::execute::command_deadline;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::harness::{database, sql};
use crate::leases::{queued, worker};

/// Partitions of the log that are just as the first ones.
const PARTITIONS: &str = "SELECT count(*) FROM pg_inherits AS i \
     WHERE i.inhparent = 'event'::regclass \
     AND EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = i.inhrelid \
         AND t.tgname = 'event_is_append_only' AND t.tgenabled = 'A') \
     AND EXISTS (SELECT FROM pg_index AS x JOIN pg_inherits AS own ON own.inhrelid = x.indexrelid \
         WHERE x.indrelid = i.inhrelid AND x.indisprimary) \
     AND EXISTS (SELECT FROM pg_index AS x WHERE x.indrelid = i.inhrelid \
         AND x.indisunique AND x.indnatts = 2)";

/// A log whose partitions have 256 positions each, the process that writes it, and its owner.
async fn log() -> (Arc<App>, Client, String) {
    let url = database().await;
    let owner = sql(&url).await;
    owner.batch_execute("SELECT set_partition_width(256)").await.unwrap();
    (worker(&url).await, owner, url)
}

async fn append(app: &Arc<App>, events: usize) {
    let mut appends = JoinSet::new();
    for _ in 0..events {
        let (log, decision) = (app.log.clone(), queued(app));
        appends.spawn(async move { log.append(decision, command_deadline()).await.map(drop) });
    }
    for appended in appends.join_all().await {
        appended.unwrap();
    }
}

async fn count(owner: &Client, sql: &str) -> i64 {
    owner.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_made_while_the_log_is_read_without_an_end() {
    let (app, owner, url) = log().await;
    // As `pg_dump` does, until it has all of it.
    let reader = sql(&url).await;
    reader.batch_execute("BEGIN; LOCK TABLE event IN ACCESS SHARE MODE").await.unwrap();
    append(&app, 600).await;
    assert_eq!(count(&owner, "SELECT max(position) FROM event").await, 600);
    reader.batch_execute("COMMIT").await.unwrap();
    // The third one is written to, and the one behind it is there.
    assert_eq!(count(&owner, PARTITIONS).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_cannot_be_made_holds_nobody_up_before_it_is_needed() {
    let (app, owner, url) = log().await;
    append(&app, 10).await;
    let holder = sql(&url).await;
    holder.batch_execute("BEGIN; LOCK TABLE event IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
    append(&app, 300).await;
    append(&app, 100).await;
    assert_eq!(count(&owner, PARTITIONS).await, 2);
    holder.batch_execute("COMMIT").await.unwrap();
    append(&app, 200).await;
    assert_eq!(count(&owner, "SELECT max(position) FROM event").await, 610);
    assert_eq!(count(&owner, PARTITIONS).await, 4);
}
