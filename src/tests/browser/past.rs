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

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_give_way_to_newer_ones_are_on_the_older_page() {
    /// Rows that the page keeps.
    const ROWS: u64 = 500;
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let browser = logged_in(&server).await;
    browser.open(&format!("{}/events?text={job}", server.url())).await;
    is_live(&browser).await;
    let older = "return document.querySelector('[data-slot=older]').checkVisibility()";
    assert_eq!(browser.run(older).await, false, "there is none");
    let mut newest = 0;
    for number in 0..ROWS {
        let step = format!("step {number}");
        let body = json!({"job_id": job, "status": "provisioning", "step": step});
        newest = client.deliver(body).await.1["position"].as_u64().unwrap();
    }
    let all = format!(
        "const rows = document.querySelector('.event-list').children;
         return rows.length === {ROWS} && rows[0].id === 'e{newest}' && Number(rows[{ROWS} - 1].dataset.position)"
    );
    let oldest = browser.wait_for("all of them were told", &all).await;
    assert_eq!(oldest, newest + 1 - ROWS);
    assert_eq!(browser.run(older).await, true);
    browser.run("document.querySelector('[data-slot=older]').click()").await;
    let next = "return new URLSearchParams(location.search).has('before')
        && document.querySelector('.event')?.dataset.position";
    let next = browser.wait_for("the older page", next).await;
    let before = client.read(&format!("/api/events?text={job}&before={oldest}&limit=1")).await;
    assert_eq!(next, before["events"][0]["position"].to_string());
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_does_not_lead_out_of_the_past() {
    let server = Server::start().await;
    server.client().job("mari").await;
    let browser = logged_in(&server).await;
    browser.open(&format!("{}/?at=2", server.url())).await;
    for (words, address) in [("mari & co", "?at=2&q=mari+%26+co"), ("", "?at=2")] {
        browser
            .run(&format!(
                "const filter = document.querySelector('#filter');
                 filter.value = '{words}';
                 filter.dispatchEvent(new Event('input'));"
            ))
            .await;
        assert_eq!(browser.run("return location.search").await, address);
    }
    browser.quit().await;
}
