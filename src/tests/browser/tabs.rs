//! The tabs of one browser share one stream.

use serde_json::json;

use super::{Browser, is_live, logged_in};
use crate::harness::{Client, Server, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn two_tabs_share_one_stream_and_the_second_outlives_the_first() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let browser = logged_in(&server).await;
    let (first, second) = browser.open_tab().await;
    browser.open(&format!("{}/agents/{agent}", server.url())).await;
    is_live(&browser).await;
    wait_until("one stream is open", || async { (streams(&client).await == 1).then_some(()) })
        .await;

    step(&client, &job, "vm_created").await;
    shows(&browser, ".attempts", "installing").await;
    browser.switch_to(&first).await;
    shows(&browser, &format!("#agent-{agent}"), "installing").await;
    assert_eq!(streams(&client).await, 1);
    assert_eq!(browser.console().await, [""; 0]);

    browser.close_tab().await;
    browser.switch_to(&second).await;
    step(&client, &job, "ansible_started").await;
    shows(&browser, ".attempts", "configuring").await;
    is_live(&browser).await;
    wait_until("one stream is open", || async { (streams(&client).await == 1).then_some(()) })
        .await;
    browser.quit().await;
}

async fn step(client: &Client, job: &str, step: &str) {
    let body = json!({"job_id": job, "status": "provisioning", "step": step});
    assert_eq!(client.deliver(body).await.1["applied"], true);
}

async fn shows(browser: &Browser, place: &str, step: &str) {
    let script = format!(
        "return document.querySelector('{place} [data-step={step}]').dataset.status === 'active'"
    );
    browser.wait_for("the tab shows the step", &script).await;
}

/// Streams that are open, as the server counts them.
async fn streams(client: &Client) -> u64 {
    let request = reqwest::Client::new().get(format!("{}/metrics", client.url));
    let text = request.bearer_auth(&client.token).send().await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("milepost_subscribers "));
    line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}
