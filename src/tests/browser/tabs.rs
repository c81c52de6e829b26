//! The tabs of one browser share one stream.

use reqwest::Method;
use serde_json::json;

use super::{Browser, is_live, logged_in};
use crate::harness::{Client, Server, wait_until};

/// Notes the address of each stream that the tab opens.
const NOTE_STREAMS: &str = "
    window.opened = [];
    window.EventSource = class extends EventSource {
        constructor(address) {
            super(address);
            window.opened.push(address);
        }
    };
";

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

#[tokio::test(flavor = "multi_thread")]
async fn no_tab_shows_the_events_of_another_one() {
    let server = Server::start().await;
    let client = server.client();
    let (mari, job) = client.job("mari").await;
    let (juno, other) = client.job("juno").await;
    let browser = logged_in(&server).await;
    let note = "
        window.asked = [];
        const ask = window.fetch;
        window.fetch = (path, ...more) => { window.asked.push(String(path)); return ask(path, ...more); };";
    browser.run(note).await;
    let (overview, of_mari) = browser.open_tab().await;
    let (_, of_juno) = browser.open_tab().await;
    for (round, page) in ["agents/", "events?agent="].into_iter().enumerate() {
        browser.switch_to(&of_mari).await;
        browser.open(&format!("{}/{page}{mari}", server.url())).await;
        is_live(&browser).await;
        browser.switch_to(&of_juno).await;
        browser.open(&format!("{}/{page}{juno}", server.url())).await;
        is_live(&browser).await;
        let steps = ["first", "second", "third"].map(|name| format!("{name} of {round}"));
        let first = step(&client, &job, &steps[0]).await;
        let second = step(&client, &other, &steps[1]).await;
        let third = step(&client, &job, &steps[2]).await;
        // What was told before the one that is listed has been passed on as well.
        lists(&browser, second).await;
        let listed =
            |position: u64| format!("return document.getElementById('e{position}') !== null");
        assert_eq!(browser.run(&listed(first)).await, false, "{page}");
        browser.switch_to(&of_mari).await;
        lists(&browser, third).await;
        assert_eq!(browser.run(&listed(first)).await, true, "{page}");
        assert_eq!(browser.run(&listed(second)).await, false, "{page}");
    }
    // A page of older events has no newer ones, whatever another tab asks for.
    browser.switch_to(&of_mari).await;
    browser.open(&format!("{}/agents/{mari}?before=9", server.url())).await;
    is_live(&browser).await;
    browser.switch_to(&of_juno).await;
    browser.open(&format!("{}/events", server.url())).await;
    is_live(&browser).await;
    let newer = step(&client, &job, "vm_created").await;
    lists(&browser, newer).await;
    browser.switch_to(&of_mari).await;
    shows(&browser, ".attempts", "installing").await;
    let listed = format!("return document.getElementById('e{newer}') !== null");
    assert_eq!(browser.run(&listed).await, false);
    browser.switch_to(&overview).await;
    shows(&browser, &format!("#agent-{mari}"), "installing").await;
    assert_eq!(browser.run("return window.asked").await, json!([]), "the queue is as it was");
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tab_that_logs_in_again_takes_the_others_along() {
    let server = Server::start().await;
    let client = server.client();
    let browser = logged_in(&server).await;
    let (first, second) = browser.open_tab().await;
    browser.open(&server.url()).await;
    is_live(&browser).await;
    let cookie = format!("session_token={}", browser.cookie("session_token").await);
    let log_out = client.request(Method::POST, "/api/logout").header("cookie", cookie);
    assert_eq!(client.send(log_out).await.status, 200);
    let signed_out = "return corner() === 'signed-out'";
    browser.wait_for("the tab says so", signed_out).await;
    browser.switch_to(&first).await;
    browser.wait_for("the leading tab says so", signed_out).await;
    browser.switch_to(&second).await;
    let body = json!({"email": "admin@localhost", "password": server.ready("admin_password")});
    let log_in = format!(
        "return fetch('/api/login', {{
            method: 'POST',
            headers: {{'content-type': 'application/json'}},
            body: JSON.stringify({body}),
        }}).then(({{status}}) => status)"
    );
    assert_eq!(browser.run(&log_in).await, 200);
    browser.open(&server.url()).await;
    is_live(&browser).await;
    browser.switch_to(&first).await;
    is_live(&browser).await;
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_tab_has_nothing_told_again() {
    let server = Server::start().await;
    let client = server.client();
    let browser = logged_in(&server).await;
    browser.run(NOTE_STREAMS).await;
    let (agent, job) = client.job("mari").await;
    for number in 0..20 {
        step(&client, &job, &format!("step {number}")).await;
    }
    let told = step(&client, &job, "vm_created").await;
    shows(&browser, &format!("#agent-{agent}"), "installing").await;
    let (leading, _) = browser.open_tab().await;
    browser.open(&format!("{}/agents/{agent}", server.url())).await;
    is_live(&browser).await;
    browser.switch_to(&leading).await;
    let since = "return Number(/since=[0-9]+-([0-9]+)/.exec(window.opened.at(-1) ?? '')?.[1])";
    assert_eq!(browser.wait_for("the stream is opened anew", since).await, told);
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_tabs_than_one_stream_carries_are_live_when_they_are_looked_at() {
    let server = Server::start().await;
    let browser = logged_in(&server).await;
    browser.run(NOTE_STREAMS).await;
    // As seventeen pages of agents do it; they answer when the leading tab asks all.
    let tabs = "
        const script = document.querySelector('script[type=module]').src.replace('app.js', 'stream.js');
        window.others = new BroadcastChannel(`milepost-stream ${script}`);
        const tabs = Array.from({length: 17}, () => {
            const [agent, job] = [crypto.randomUUID(), crypto.randomUUID()];
            return {agent: [agent], job: [job], node: [], log: [job], events: [agent]};
        });
        window.say = (number, hidden) => window.others.postMessage(
            {kind: 'wants', tab: `tab ${number}`, mine: {wants: tabs[number], since: 0, hidden}});
        const sayAll = () => tabs.forEach((_, number) => window.say(number, true));
        window.others.onmessage = ({data}) => {
            if (data.kind === 'roll') sayAll();
            if (data.kind === 'link') window.carries = data.link.carries;
        };
        sayAll();";
    browser.run(tabs).await;
    let carried = "
        const topics = new URL(window.opened.at(-1) ?? '', location).searchParams.size - 1;
        return topics > 60 && corner() === 'live' && window.carries.length";
    let count = browser.wait_for("as many as fit are live", carried).await;
    assert_eq!(count, 16, "the overview and fifteen pages");
    assert_eq!(browser.run("return window.carries.includes('tab 0')").await, false);
    browser.run("window.say(0, false)").await;
    let looked_at = "return corner() === 'live' && window.carries.includes('tab 0')";
    browser.wait_for("the page that is looked at is live", looked_at).await;
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}

/// Waits until the page lists an event.
async fn lists(browser: &Browser, position: u64) {
    let script = format!("return document.getElementById('e{position}') !== null");
    browser.wait_for("the page lists the event", &script).await;
}

/// Tells a step; the position of its event.
async fn step(client: &Client, job: &str, step: &str) -> u64 {
    let body = json!({"job_id": job, "status": "provisioning", "step": step});
    let (_, answer) = client.deliver(body).await;
    assert_eq!(answer["applied"], true);
    answer["position"].as_u64().unwrap()
}

async fn shows(browser: &Browser, place: &str, step: &str) {
    let script = format!(
        "return document.querySelector('{place} [data-step={step}]')?.dataset.status === 'active'"
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
