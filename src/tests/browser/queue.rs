//! Whether the queue is paused, and what comes first in it, is seen without a reload.

use milepost::accounts::make_link;
use milepost::app::Clock;
use milepost::log::Database;
use serde_json::json;

use super::{Browser, is_live, logged_in};
use crate::harness::Server;

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_of_a_viewer_is_live() {
    let server = Server::start().await;
    let client = server.client();
    let email = "vera@example.com";
    let account = json!({"email": email, "password": "correct horse battery", "role": "viewer"});
    assert_eq!(client.post("/api/accounts", &account).await.0, 201);
    let database = Database::new(&server.database_url()).unwrap();
    let once = make_link(&database, email, Clock.now()).await.unwrap();
    let browser = Browser::start().await;
    browser.open(&format!("{}/login?once={once}", server.url())).await;
    is_live(&browser).await;
    let agent = client.agent("mari").await;
    let row = format!("return document.getElementById('agent-{agent}') !== null");
    browser.wait_for("the new agent has a row", &row).await;
    let refused = client.read("/api/events?type=ActionRefused").await;
    assert_eq!(refused["events"], json!([]));
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_and_its_end_appear_on_the_overview_as_they_happen() {
    let server = Server::start().await;
    let (client, browser) = (server.client(), logged_in(&server).await);
    browser.open(&server.url()).await;
    is_live(&browser).await;
    browser.run("window.unmoved = true").await;
    let (status, _) = client.post("/api/queue/pause", &json!({"reason": "a disk is full"})).await;
    assert_eq!(status, 200);
    browser
        .wait_for(
            "the pause and its reason are there",
            "return /a disk is full/.test(document.querySelector('aside.queue .paused')?.textContent)",
        )
        .await;
    let said = "return document.getElementById('announcer').textContent === 'The queue is paused.'";
    browser.wait_for("it is said to those who listen", said).await;
    let (status, _) = client.post("/api/queue/resume", &json!({})).await;
    assert_eq!(status, 200);
    browser
        .wait_for(
            "it can be paused again",
            "return document.querySelector('aside.queue details') !== null
                && document.querySelector('aside.queue .paused') === null",
        )
        .await;
    assert_eq!(browser.run("return window.unmoved").await, true);
    assert_eq!(browser.console().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_priority_appears_on_the_page_of_its_job() {
    let server = Server::start().await;
    let (client, browser) = (server.client(), logged_in(&server).await);
    let (_, job) = client.job("mari").await;
    browser.open(&format!("{}/jobs/{job}", server.url())).await;
    is_live(&browser).await;
    let prioritise = async |priority: i64| {
        let path = format!("/api/jobs/{job}/priority");
        let (status, answer) = client.post(&path, &json!({"priority": priority})).await;
        assert!(status.is_success(), "{answer}");
        let shown = format!(
            "return document.querySelector('[data-fact=priority] code').textContent === '{priority}'"
        );
        browser.wait_for("the priority is there", &shown).await;
    };
    let written = "return document.querySelector('[name=priority]').value";
    prioritise(50).await;
    assert_eq!(browser.run(written).await, "50");
    browser.run("document.querySelector('[name=priority]').value = '7'").await;
    prioritise(60).await;
    assert_eq!(browser.run(written).await, "7", "what somebody writes stays");
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}
