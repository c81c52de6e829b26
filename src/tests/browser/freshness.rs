//! The corner of every page tells the truth about how fresh the page is.

use serde_json::json;

use super::{is_live, logged_in, statuses};
use crate::harness::Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_page_says_that_its_server_is_gone_and_catches_up_when_it_is_back() {
    let mut server = Server::start().await;
    let other = Server::beside(&server).await;
    let browser = logged_in(&server).await;
    let (agent, job) = server.client().job("mari").await;
    browser.open(&format!("{}/agents/{agent}", server.url())).await;
    is_live(&browser).await;
    browser.run("window.unmoved = true").await;
    assert_eq!(browser.console().await, [""; 0]);

    server.kill().await;
    browser
        .wait_for(
            "the page says that it is cut off",
            "return ['reconnecting', 'stale'].includes(corner())
                && /reconnecting/.test(document.querySelector('mp-stream').textContent)",
        )
        .await;
    let queued = ["active", "pending", "pending", "pending", "pending"];
    assert_eq!(statuses(&browser, ".attempts").await, queued);
    // Meanwhile the workflow speaks to another node.
    for step in ["vm_created", "network_configured", "ansible_started"] {
        let body = json!({"job_id": job, "status": "provisioning", "step": step});
        assert_eq!(other.client().deliver(body).await.1["applied"], true);
    }
    assert_eq!(statuses(&browser, ".attempts").await, queued);

    server.restart().await;
    browser.wait_for("the page is live again", "return corner() === 'live'").await;
    let caught_up = ["completed", "completed", "completed", "active", "pending"];
    assert_eq!(statuses(&browser, ".attempts").await, caught_up);
    let missed = "return [...document.querySelectorAll('.event-list [data-slot=kind]')]
        .filter((kind) => kind.textContent === 'ProvisioningStepRecorded').length";
    assert_eq!(browser.run(missed).await, 3, "each missed event is listed once");
    assert_eq!(browser.run("return window.unmoved").await, true, "the page was loaded again");
    browser.quit().await;
}
