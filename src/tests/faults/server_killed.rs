//! `kill -9` of the server.

use super::{Follower, Load, check_log};
use crate::harness::Server;

const KILLS: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_every_kill() {
    let mut server = Server::start().await;
    let client = server.client();
    let follower = Follower::start(&client).await;
    let load = Load::start(&[client], 0).await;
    for _ in 0..KILLS {
        load.more(150).await;
        server.kill().await;
        server.restart().await;
    }
    load.more(150).await;
    let (_, unanswered) = load.refused();
    let answered = load.stop().await;
    let size = check_log(&server.database_url(), &answered).await;
    let connections = follower.read_up_to(size).await;
    assert!(connections > KILLS as u64, "{connections}");
    println!("{} callbacks, {unanswered} tries without an answer", answered.len());
}
