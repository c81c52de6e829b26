//! Readers that take a few bytes now and then.

use super::streams_cut::fill;
use super::{Follower, Load, RawStream, check_log, load};
use crate::harness::{Server, wait_until};

const READERS: usize = 50;

/// Events in the log before anything begins.
const OLD: u64 = 3_000;

/// The smallest buffer a socket can have.
const RECEIVE_BYTES: u32 = 2_048;

/// What slow readers may cost the server beyond the events it keeps in memory anyway.
const GROWTH_BYTES_MAX: u64 = 24 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_cost_bounded_memory_and_hold_nobody_up() {
    let server = Server::start().await;
    let client = server.client();
    let beginning = client.beginning().await;
    // For those who begin with the oldest event.
    fill(&server.database_url(), OLD, 4_000).await;
    let healthy = Follower::start(&client).await;
    let load = Load::start(std::slice::from_ref(&client), 2_000).await;
    // Fills what the server keeps in memory of the log's end.
    load.more(4_000).await;
    wait_until("the healthy reader has caught up", || async {
        (healthy.reached() > OLD + 4_000).then_some(())
    })
    .await;
    let before = resident_bytes(server.pid());

    let mut readers = Vec::new();
    for number in 0..READERS {
        // Half of them begin with the oldest event, half with the next.
        let since = (number % 2 == 0).then_some(beginning.as_str());
        let path = "/api/events/stream";
        readers.push(RawStream::open(&client, path, since, Some(RECEIVE_BYTES)).await);
    }
    let (agent, _) = load.agents[0].clone();
    let begun = load.answered();
    let path = format!("/api/agents/{agent}/instance/stream");
    let state = RawStream::open(&client, &path, None, Some(RECEIVE_BYTES)).await;

    for _ in 0..20 {
        load.more(150).await;
        for reader in &mut readers {
            reader.sip(10);
        }
    }
    let answered = load.stop().await;
    let behind = (OLD + answered.len() as u64).saturating_sub(healthy.reached());
    let growth = resident_bytes(server.pid()).saturating_sub(before);
    println!(
        "{} events of 2 KB: the server grew by {:.1} MB for {READERS} slow readers; \
         the healthy one was {behind} events behind the last answer",
        answered.len(),
        growth as f64 / f64::from(1 << 20),
    );
    assert!(growth < GROWTH_BYTES_MAX, "{growth}");
    assert!(behind < 500, "{behind}");
    let size = check_log(&server.database_url(), &answered).await;
    healthy.read_up_to(size).await;

    let now = client.read(&format!("/api/agents/{agent}/instance")).await;
    let states = states_up_to(state, now["position"].as_u64().unwrap()).await;
    let changes = (answered.len() - begun as usize) / load::JOBS;
    println!("about {changes} changes came to the slow reader as {states} states");
    assert!(states < changes / 2, "{states}");
    drop(readers);
}

/// Reads states until the newest has come, and counts them.
async fn states_up_to(mut stream: RawStream, newest: u64) -> usize {
    let newest = format!("\"position\":{newest}}}\n\n");
    while !String::from_utf8_lossy(&stream.bytes).contains(&newest) {
        assert!(stream.more().await, "the newest state comes");
    }
    String::from_utf8_lossy(&stream.bytes).matches("event: instance\n").count()
}

/// The memory of a process that is in use.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1_024
}
