//! Streams that break, and readers that were away for long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{Follower, Load, check_log};
use crate::harness::{Client, Server, sql, text, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cut_anywhere_resumes_where_it_was() {
    let server = Server::start().await;
    let client = server.client();
    let cutter = Cutter::start(&client).await;
    let mut followers = Vec::new();
    for _ in 0..4 {
        followers.push(Follower::start(&client.at(cutter.url.clone())).await);
    }
    let load = Load::start(&[client], 200).await;
    load.more(1_500).await;
    let answered = load.stop().await;
    let size = check_log(&server.database_url(), &answered).await;
    for follower in followers {
        let connections = follower.read_up_to(size).await;
        assert!(connections > 20, "{connections}");
    }
    let cuts = cutter.cuts.load(Ordering::Relaxed);
    println!("{size} events through {cuts} cuts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_missed_events_come_in_one_connection_and_lead_to_live() {
    const MISSED: u64 = 100_000;
    let server = Server::start().await;
    let client = server.client();
    fill(&server.database_url(), MISSED, 100).await;
    let begun = std::time::Instant::now();
    let follower = Follower::start(&client).await;
    let load = Load::start(&[client], 0).await;
    wait_until("the missed events have come", || async {
        (follower.reached() >= MISSED).then_some(())
    })
    .await;
    println!("{MISSED} missed events in {:.1} s", begun.elapsed().as_secs_f64());
    load.more(200).await;
    let answered = load.stop().await;
    let size = check_log(&server.database_url(), &answered).await;
    assert_eq!(follower.read_up_to(size).await, 1, "in one connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_another_log_gets_a_reset() {
    let server = Server::start().await;
    let client = server.client();
    client.agent("mari").await;
    let beginning = client.beginning().await;
    let (epoch, _) = beginning.split_once('-').unwrap();
    for (agents, unknown) in ["1-1", &format!("{epoch}-1000"), "nonsense"].iter().enumerate() {
        let mut stream = client.stream("/api/events/stream", Some(unknown)).await;
        let reset = stream.next().await.unwrap();
        assert_eq!((reset.event.as_str(), reset.id), ("reset", format!("{epoch}-{}", agents + 1)));
        let later = client.agent(&format!("later-{agents}")).await;
        let event = stream.next_named("recorded").await.json();
        assert_eq!(text(&event["data"], "agent_id"), later);
    }
}

/// Writes events that belong to no job, as fast as Postgres takes them.
pub async fn fill(database_url: &str, count: u64, words: usize) {
    sql(database_url)
        .await
        .execute(
            "WITH head AS (
                 UPDATE log_head SET size = size + $1, recorded_at = clock_timestamp()
                 RETURNING size - $1 AS base, recorded_at
             )
             INSERT INTO event
                 (position, stream_id, version, type, schema_version, recorded_at, header, body)
             SELECT
                 base + n, s.id, 1, 40, 1, recorded_at,
                 convert_to(json_build_object(
                     'actor', 'workflow:00000000',
                     'correlation_id', s.id,
                     'signature_form', 'x-signature',
                     'key_id', '00000000',
                     'signature', repeat('0', 64),
                     'body', repeat('x', $2)
                 )::text, 'UTF8'),
                 convert_to(json_build_object(
                     'job_id', s.id, 'kind', 'heartbeat', 'reason', 'unknown_job'
                 )::text, 'UTF8')
             FROM head, (
                 SELECT n, gen_random_uuid() AS id FROM generate_series(1, $1::bigint) AS n
             ) AS s",
            &[&(count as i64), &(words as i32)],
        )
        .await
        .unwrap();
}

/// A proxy that cuts each connection after so many bytes of the answer, wherever that is.
struct Cutter {
    url: String,
    cuts: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Cutter {
    async fn start(client: &Client) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = client.url.strip_prefix("http://").unwrap().to_owned();
        let cuts = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&cuts);
        let task = tokio::spawn(async move {
            let mut random = 0x9e37_79b9_7f4a_7c15_u64;
            while let Ok((browser, _)) = listener.accept().await {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let server = TcpStream::connect(&server).await.unwrap();
                let (count, budget) = (Arc::clone(&count), 2_000 + random % 20_000);
                tokio::spawn(async move {
                    pass(browser, server, budget).await;
                    count.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        Self { url, cuts, task }
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(browser: TcpStream, server: TcpStream, budget: u64) {
    let (mut from_browser, mut to_browser) = browser.into_split();
    let (from_server, mut to_server) = server.into_split();
    let mut answer = from_server.take(budget);
    tokio::select! {
        _ = tokio::io::copy(&mut from_browser, &mut to_server) => {}
        _ = tokio::io::copy(&mut answer, &mut to_browser) => {}
    }
    let _ = to_browser.shutdown().await;
}
