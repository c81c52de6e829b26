//! Time travel and the browser of the log, in a browser.

use serde_json::json;

use super::{is_live, logged_in};
use crate::harness::Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_the_past_stands_still_while_the_log_goes_on() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let step = json!({"job_id": job, "status": "provisioning", "step": "vm_created"});
    let at = client.callback(&step).await.1["position"].as_u64().unwrap();
    let browser = logged_in(&server).await;
    browser.open(&format!("{}/agents/{agent}?at={at}", server.url())).await;
    let shown = "return document.querySelector('main').innerText";
    let before = browser.run(shown).await;
    // It takes part in no stream: what happens now is seen by another tab, and not here.
    let (past, _live) = browser.open_tab().await;
    browser.open(&format!("{}/agents/{agent}", server.url())).await;
    is_live(&browser).await;
    client.callback(&json!({"job_id": job, "status": "running"})).await;
    let moved = "return document.querySelector('mp-follow').dataset.state === 'succeeded'";
    browser.wait_for("the live page has moved", moved).await;
    browser.switch_to(&past).await;
    assert_eq!(browser.run(shown).await, before);
    assert_eq!(browser.run("return !!document.querySelector('mp-stream')").await, false);
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slider_goes_to_the_state_at_its_position() {
    let server = Server::start().await;
    let client = server.client();
    client.job("mari").await;
    let browser = logged_in(&server).await;
    browser.open(&format!("{}/?at=2", server.url())).await;
    browser
        .run(
            "const slider = document.querySelector('.past input[type=range]');
             slider.value = 1;
             slider.dispatchEvent(new Event('input', {bubbles: true}));
             slider.dispatchEvent(new PointerEvent('pointerup', {bubbles: true}));",
        )
        .await;
    browser.wait_for("the page of position 1", "return location.search === '?at=1'").await;
    browser.run("document.querySelector('.past .back').click()").await;
    browser.wait_for("the live page", "return location.search === ''").await;
    is_live(&browser).await;
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_events_come_in_at_the_top_when_they_match_and_wait_when_told_to() {
    let server = Server::start().await;
    let client = server.client();
    let browser = logged_in(&server).await;
    browser.open(&format!("{}/events?type=AgentCreated", server.url())).await;
    is_live(&browser).await;
    client.job("mari").await;
    let kinds = "return [...document.querySelectorAll('.event-list .kind')].map((it) => it.textContent).join()";
    browser.wait_for("the new agent", &format!("{kinds} === 'AgentCreated'")).await;
    browser.run("document.querySelector('[data-slot=follow]').click()").await;
    client.agent("juno").await;
    let waits =
        "return document.querySelector('[data-slot=follow]').textContent === 'Follow (1 new)'";
    browser.wait_for("it waits", waits).await;
    assert_eq!(browser.run(kinds).await, "AgentCreated");
    browser.run("document.querySelector('[data-slot=follow]').click()").await;
    assert_eq!(browser.run(kinds).await, "AgentCreated,AgentCreated");
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}
