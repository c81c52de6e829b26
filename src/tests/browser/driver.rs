//! A `WebDriver` client: as much of it as the tests need.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::harness::{PATIENCE, wait_until};

/// What a machine without a browser is told.
const INSTALL: &str =
    "these tests drive a real browser: run `apt-get install -y chromium chromium-driver`";

/// What scripts of the tests may call.
const HELPERS: &str = "
    const corner = () => document.querySelector('mp-stream').dataset.state;
    const statuses = (of) => [...document.querySelectorAll(`${of} [data-step]`)]
        .slice(0, 5).map((step) => step.dataset.status);
";

/// A browser; it ends with its owner.
pub struct Browser {
    http: reqwest::Client,
    session: String,
    /// Ends the driver and the browser when this process's end of its standard input closes.
    guardian: Child,
}

impl Browser {
    /// Starts a browser with nothing in it.
    pub async fn start() -> Self {
        let driver = find(&["chromedriver"]);
        let browser = find(&["chromium", "google-chrome"]);
        let dir = tempfile::Builder::new().prefix("milepost-browser-").tempdir().unwrap();
        // The guardian removes it; a process that is killed runs no destructors.
        let dir = dir.keep();
        let guardian = guard(&driver, &dir);
        let port = wait_until("the driver listens", || async {
            let said = std::fs::read_to_string(dir.join("driver.log")).ok()?;
            let (_, after) = said.split_once("started successfully on port ")?;
            after.split_once('.').map(|(port, _)| port.to_owned())
        })
        .await;
        let http = reqwest::Client::new();
        let driver = format!("http://127.0.0.1:{port}/session");
        let profile = format!("--user-data-dir={}", dir.join("profile").display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-default-browser-check",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-default-apps",
            "--disable-extensions",
            "--disable-sync",
            "--window-size=1200,900",
            &profile,
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": browser, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let begun = answer(http.post(&driver).json(&wanted)).await;
        let id = begun["sessionId"].as_str().unwrap_or_else(|| panic!("{begun}"));
        Self { session: format!("{driver}/{id}"), http, guardian }
    }

    /// Goes to an address, and waits until the page has loaded.
    pub async fn open(&self, url: &str) {
        self.post("url", &json!({"url": url})).await;
    }

    /// Runs a script in the page; what it returns.
    pub async fn run(&self, script: &str) -> Value {
        let script = format!("{HELPERS}{script}");
        self.post("execute/sync", &json!({"script": script, "args": []})).await
    }

    /// Runs a script until it returns something true.
    pub async fn wait_for(&self, what: &str, script: &str) -> Value {
        wait_until(what, || async {
            let value = self.run(script).await;
            (value != Value::Null && value != false).then_some(value)
        })
        .await
    }

    /// A cookie's value.
    pub async fn cookie(&self, name: &str) -> String {
        let cookie = self.get(&format!("cookie/{name}")).await;
        cookie["value"].as_str().unwrap().to_owned()
    }

    /// Opens another tab and goes there; both tabs' handles.
    pub async fn open_tab(&self) -> (String, String) {
        let first = self.get("window").await.as_str().unwrap().to_owned();
        let second = self.post("window/new", &json!({"type": "tab"})).await;
        let second = second["handle"].as_str().unwrap().to_owned();
        self.switch_to(&second).await;
        (first, second)
    }

    /// Turns to a tab.
    pub async fn switch_to(&self, tab: &str) {
        self.post("window", &json!({"handle": tab})).await;
    }

    /// Closes the tab it is at.
    pub async fn close_tab(&self) {
        answer(self.http.delete(format!("{}/window", self.session))).await;
    }

    /// Gives the browser a command of its own protocol.
    pub async fn command(&self, name: &str, parameters: &Value) {
        self.post("goog/cdp/execute", &json!({"cmd": name, "params": parameters})).await;
    }

    /// What the console has said since it was last asked.
    pub async fn console(&self) -> Vec<String> {
        let Value::Array(entries) = self.post("se/log", &json!({"type": "browser"})).await else {
            panic!("the driver keeps the console's log");
        };
        entries.iter().map(Value::to_string).collect()
    }

    /// Ends the browser, and everything that came with it.
    pub async fn quit(mut self) {
        answer(self.http.delete(&self.session)).await;
        drop(self.guardian.stdin.take());
        tokio::time::timeout(PATIENCE, self.guardian.wait()).await.unwrap().unwrap();
    }

    async fn get(&self, what: &str) -> Value {
        answer(self.http.get(format!("{}/{what}", self.session))).await
    }

    async fn post(&self, what: &str, body: &Value) -> Value {
        answer(self.http.post(format!("{}/{what}", self.session)).json(body)).await
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Value {
    let response = request.send().await.unwrap();
    let status = response.status();
    let mut answer: Value = response.json().await.unwrap();
    assert!(status.is_success(), "{answer}");
    answer["value"].take()
}

/// Starts the driver in a process group of its own, and whoever ends that group; Ctrl-C reaches
/// neither.
fn guard(driver: &Path, dir: &Path) -> Child {
    let script = r#"setsid "$1" --port=0 >"$0/driver.log" 2>&1 & pid=$!
        cat; kill -KILL -$pid; wait $pid; rm -rf "$0""#;
    Command::new("sh")
        .args(["-c", script])
        .args([dir, driver])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn find(names: &[&str]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path);
    places
        .flat_map(|place| names.iter().map(move |name| place.join(name)))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{} is not installed: {INSTALL}", names.join(" or ")))
}
