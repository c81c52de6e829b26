//! The pages in a real browser: headless Chromium, driven by `WebDriver`.

mod axe;
mod driver;
mod freshness;
mod integrity;
mod log;
mod past;
mod progress;
mod projections;
mod queue;
mod tabs;

use serde_json::Value;

use crate::harness::Server;
use driver::Browser;

/// A browser whose user has logged in by the one-time link, at the overview.
async fn logged_in(server: &Server) -> Browser {
    let browser = Browser::start().await;
    browser.open(&server.login_link().await).await;
    assert_eq!(browser.run("return location.pathname").await, "/");
    is_live(&browser).await;
    browser
}

/// Waits until the corner says that the page is live.
async fn is_live(browser: &Browser) {
    browser.wait_for("the page is live", "return corner() === 'live'").await;
}

/// The statuses of an agent's five steps, as its page or its row shows them.
async fn statuses(browser: &Browser, of: &str) -> Vec<String> {
    let script = format!("return statuses({})", Value::from(of));
    serde_json::from_value(browser.run(&script).await).unwrap()
}
