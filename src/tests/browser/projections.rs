//! How the views stand is seen without a reload.

use serde_json::json;

use super::{is_live, logged_in};
use crate::harness::{Server, sql};

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_moves_on_the_page_of_the_projections() {
    let server = Server::start().await;
    let (client, browser) = (server.client(), logged_in(&server).await);
    client.job("one").await;
    browser.open(&format!("{}/projections", server.url())).await;
    is_live(&browser).await;
    browser.run("window.unmoved = true").await;

    // What somebody writes stays, whatever else comes.
    let opened = "
        const ask = document.querySelector('#board-acts details');
        ask.open = true;
        ask.querySelector('input').value = 'half a rea';
        ask.querySelector('input').focus();";
    browser.run(opened).await;
    client.agent("two").await;
    let position = client.read("/readyz").await["position"].to_string();
    let follows = format!(
        "return document.querySelector('#board-facts dd').textContent === '#{position}'
            && document.getElementById('board-state').textContent === 'Up to date'"
    );
    browser.wait_for("the position follows the log", &follows).await;

    let sql = sql(&server.database_url()).await;
    sql.batch_execute("UPDATE view_board_1 SET label = 'wrong'").await.unwrap();
    let (status, _) = client.post("/api/projections/board/rebuild", &json!({})).await;
    assert_eq!(status, 202);
    let waits =
        "return /rows differ; the first is/.test(document.getElementById('board-work').textContent)
        && document.querySelector('#board-work progress').value === 100";
    browser.wait_for("the rebuild waits, and what differs is there", waits).await;
    let said =
        "return /^board: waiting for you/.test(document.getElementById('announcer').textContent)";
    browser.wait_for("it is said to those who listen", said).await;
    let written = "return document.activeElement.value";
    assert_eq!(browser.run(written).await, "half a rea");
    let closed = "
        const ask = document.querySelector('#board-acts details');
        ask.open = false;
        ask.querySelector('summary').focus();";
    browser.run(closed).await;
    let take_over = "return document.querySelector('#board-acts button')?.textContent === 'Let the new rows take over'";
    browser.wait_for("the new rows can be let take over", take_over).await;
    assert_eq!(
        browser.run("return document.activeElement.id").await,
        "view-board",
        "who was in the form is at the heading of its view"
    );

    let (status, _) = client.post("/api/projections/board/switch", &json!({})).await;
    assert_eq!(status, 202);
    let ended = "return /switched at #/.test(document.getElementById('board-ends').textContent)
        && document.getElementById('board-work').childElementCount === 0
        && /generation 2$/.test(document.getElementById('board-facts').textContent.trim())";
    browser.wait_for("the end of the rebuild is there", ended).await;
    assert_eq!(browser.run("return window.unmoved").await, true, "the page was loaded again");
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}
