//! A job moves on the pages as it moves in the log, with no reload.

use milepost::app::Clock;
use serde_json::{Value, json};

use super::{Browser, is_live, logged_in, statuses};
use crate::harness::{Options, Server, wait_until};

/// Notes each change of the first steps under a selector, when it has been drawn.
const OBSERVE: &str = "
    window.unmoved = true;
    window.seen = [];
    const note = () => {
        const now = statuses(arguments_of).join();
        if (now && window.seen.at(-1)?.now !== now) window.seen.push({now, at: Date.now()});
    };
    note();
    new MutationObserver(() => requestAnimationFrame(note)).observe(
        document.querySelector('main'),
        {subtree: true, childList: true, attributes: true},
    );
";

async fn observe(browser: &Browser, of: &str) {
    browser.run(&OBSERVE.replace("arguments_of", &Value::from(of).to_string())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_moves_on_the_overview_and_on_its_page() {
    let env = vec![
        ("MILEPOST_REHEARSAL_PACE", "0.3".to_owned()),
        ("MILEPOST_REHEARSAL_HEARTBEAT", "0.2".to_owned()),
    ];
    let server = Server::with(Options { rehearsal: true, env, ..Options::default() }).await;
    let client = server.client();
    let browser = logged_in(&server).await;

    let agent = client.agent("mari").await;
    let row = format!("#agent-{agent}");
    browser
        .wait_for("the new agent's row", &format!("return !!document.querySelector('{row}')"))
        .await;
    observe(&browser, &row).await;
    goes_through_all_steps(&server, &browser, &agent, &row).await;

    browser.open(&format!("{}/agents/{agent}", server.url())).await;
    is_live(&browser).await;
    observe(&browser, ".attempts").await;
    goes_through_all_steps(&server, &browser, &agent, "mp-follow").await;

    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}

/// Orders a server and watches it come, at `place`, without the page being loaded again.
async fn goes_through_all_steps(server: &Server, browser: &Browser, agent: &str, place: &str) {
    let path = format!("/api/agents/{agent}/provision");
    let (_, ordered) = server.client().post(&path, &json!({})).await;
    let job = ordered["job_id"].as_str().unwrap();
    wait_until("the job has succeeded", || async {
        let job = server.client().read(&format!("/api/jobs/{job}")).await;
        (job["status"] == "succeeded").then_some(())
    })
    .await;
    let done = format!("return document.querySelector('{place}').dataset.state === 'succeeded'");
    browser.wait_for("the page shows the end", &done).await;
    browser
        .wait_for(
            "the page has shown all five steps done",
            "return window.seen.at(-1).now === 'completed,completed,completed,completed,completed'",
        )
        .await;
    assert_eq!(browser.run("return window.unmoved").await, true, "the page was loaded again");
    let seen = browser.run("return window.seen.map(({now}) => now)").await;
    for step in [
        "completed,active,pending,pending,pending",
        "completed,completed,active,pending,pending",
        "completed,completed,completed,active,pending",
        "completed,completed,completed,completed,active",
    ] {
        assert!(seen.as_array().unwrap().contains(&step.into()), "{step} is not among {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_of_a_job_is_shown_with_and_without_scripts() {
    let server = Server::start().await;
    let client = server.client();
    let browser = logged_in(&server).await;
    let (agent, job) = client.job("mari").await;
    let page = Page::open(&server, &browser, &agent).await;

    page.shows("queued", ["active", "pending", "pending", "pending", "pending"]).await;
    let mut delays = Vec::new();
    for (body, steps) in [
        (json!({}), ["completed", "active", "pending", "pending", "pending"]),
        (json!({"step": "vm_created"}), ["completed", "completed", "active", "pending", "pending"]),
        (
            json!({"step": "ansible_started"}),
            ["completed", "completed", "completed", "active", "pending"],
        ),
        (
            json!({"step": "ansible_complete"}),
            ["completed", "completed", "completed", "completed", "active"],
        ),
    ] {
        let mut body = body;
        (body["job_id"], body["status"]) = (job.clone().into(), "provisioning".into());
        delays.push(page.moves(&body, "running", steps).await);
    }
    let body = json!({
        "job_id": job,
        "status": "running",
        "server_id": "42",
        "server_ip": "192.0.2.7",
        "tailscale_ip": "100.64.0.7",
    });
    delays.push(page.moves(&body, "succeeded", ["completed"; 5]).await);
    println!("answer to a drawn change, in ms: {delays:?}");
    let server_id = "return document.querySelector('[data-fact=server] code').textContent === '42'";
    browser.wait_for("the server's id", server_id).await;
    assert_eq!(browser.run("return window.unmoved").await, true, "the page was loaded again");
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_stands_where_it_happened() {
    let server = Server::start().await;
    let client = server.client();
    let browser = logged_in(&server).await;
    let (agent, job) = client.job("mari").await;
    let page = Page::open(&server, &browser, &agent).await;
    for step in ["vm_created", "ansible_started"] {
        let body = json!({"job_id": job, "status": "provisioning", "step": step});
        client.deliver(body).await;
    }
    let body = json!({
        "job_id": job,
        "status": "failed",
        "failed_step": "configure",
        "step": "ansible_started",
        "error": "fatal: UNREACHABLE! <b>not bold</b>",
    });
    let steps = ["completed", "completed", "completed", "error", "pending"];
    let delay = page.moves(&body, "retry_scheduled", steps).await;
    println!("answer to a drawn failure: {delay} ms");
    let words = "
        const failure = document.querySelector(
            '[data-attempt=\"1\"] [data-step=configuring] [data-part=failure]');
        return failure?.checkVisibility()
            && failure.querySelector('[data-slot=message]').textContent";
    let words = browser.wait_for("the words of the failure", words).await;
    assert_eq!(words, "fatal: UNREACHABLE! <b>not bold</b>");

    browser.open(&server.url()).await;
    let row = format!("#agent-{agent}");
    assert_eq!(statuses(&browser, &row).await, steps);
    let group = format!("return document.querySelector('{row}').closest('section').id");
    let other = client.agent("calm").await;
    let calm = format!("return document.querySelector('#agent-{other}')?.closest('section').id");
    assert_ne!(
        browser.run(&group).await,
        browser.wait_for("the calm agent's row", &calm).await,
        "what needs a person stands apart"
    );
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}

/// An agent's page, and what the server sends to those without scripts.
struct Page<'a> {
    server: &'a Server,
    browser: &'a Browser,
    path: String,
    cookie: String,
}

impl<'a> Page<'a> {
    async fn open(server: &'a Server, browser: &'a Browser, agent: &str) -> Self {
        let path = format!("{}/agents/{agent}", server.url());
        browser.open(&path).await;
        is_live(browser).await;
        observe(browser, ".attempts").await;
        let cookie = format!("session_token={}", browser.cookie("session_token").await);
        Self { server, browser, path, cookie }
    }

    /// Posts a callback, and waits until the page shows its effect: how long that took after the
    /// answer, in milliseconds.
    async fn moves(&self, body: &Value, state: &str, steps: [&str; 5]) -> i64 {
        let (status, answer) = self.server.client().callback(body).await;
        let answered = Clock.now().as_millisecond();
        assert!(status.is_success(), "{answer}");
        let drawn = format!(
            "return window.seen.find(({{now}}) => now === '{}')?.at ?? null",
            steps.join(",")
        );
        let drawn = self.browser.wait_for("the page shows the step", &drawn).await;
        self.shows(state, steps).await;
        (drawn.as_i64().unwrap() - answered).max(0)
    }

    async fn shows(&self, state: &str, steps: [&str; 5]) {
        let script =
            format!("return document.querySelector('mp-follow').dataset.state === '{state}'");
        self.browser.wait_for("the page shows the state", &script).await;
        assert_eq!(statuses(self.browser, ".attempts").await, steps);
        let request = reqwest::Client::new().get(&self.path).header("cookie", &self.cookie);
        let html = request.send().await.unwrap().text().await.unwrap();
        let follow = html.split_once("<mp-follow").unwrap().1.split_once('>').unwrap().0;
        assert!(follow.contains(&format!("data-state=\"{state}\"")), "{follow}");
        let plain: Vec<&str> = html
            .split("data-status=\"")
            .skip(1)
            .take(5)
            .map(|rest| rest.split_once('"').unwrap().0)
            .collect();
        assert_eq!(plain, steps, "without scripts");
    }
}
