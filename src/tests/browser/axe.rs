//! Every page there is, now and in the past, is accessible by axe's rules, and at 360 px nothing
//! scrolls sideways.
//!
//! Pages are found by their links, beginning at the overview, one of each kind; a page that nothing
//! leads to is none.

use std::collections::{BTreeMap, VecDeque};
use std::process::Command;

use serde_json::{Value, json};

use super::{Browser, logged_in};
use crate::harness::{Client, Options, Server, text, wait_until};

/// Kinds of pages that must be among them: an address without its ids.
const EXPECTED: [&str; 16] = [
    "/",
    "/?at",
    "/agents/{id}",
    "/agents/{id}?at",
    "/jobs/{id}",
    "/jobs/{id}?at",
    "/nodes",
    "/nodes?at",
    "/nodes/{id}",
    "/nodes/{id}?at",
    "/events",
    "/events?at",
    "/events/{n}",
    "/diff",
    "/diff?at&against",
    "/integrity",
];

/// What a screen may be: its width, its height, and the scheme of its colours.
const SCREENS: [(u32, u32, &str); 4] =
    [(1280, 900, "light"), (1280, 900, "dark"), (360, 740, "light"), (360, 740, "dark")];

/// The links of a page that lead to pages.
const LINKS: &str = "
    return [...document.querySelectorAll('a[href]:not([download])')]
        .filter((link) => link.origin === location.origin)
        .map((link) => link.pathname + link.search)
        .filter((path) => !/^\\/(api|log|assets)\\//.test(path) && path !== '/login');
";

/// What axe finds: rule, place and words of each, with everything on the page unfolded.
const FINDINGS: &str = "
    document.querySelectorAll('details').forEach((it) => (it.open = true));
    return axe.run(document, {resultTypes: ['violations']}).then(({violations}) =>
        violations.flatMap(({id, nodes}) =>
            nodes.map(({target, failureSummary}) => `${id}: ${target.join(' ')}: ${failureSummary}`)));
";

/// axe-core's script, as `.ci/axe` installs it.
fn axe() -> String {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/axe")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(String::from_utf8(output.stdout).unwrap().trim_end()).unwrap()
}

/// A log with something of everything in it.
async fn something_of_everything(client: &Client) {
    let (_, failed) = client.job("mari-with-a-name-that-goes-on-and-on-and-on").await;
    let (_, running) = client.job("juno").await;
    client.job("cleo").await;
    client.agent("otto").await;
    for job in [&failed, &running] {
        client.callback(&json!({"job_id": job, "status": "provisioning"})).await;
        client
            .deliver(json!({"job_id": job, "status": "provisioning", "step": "vm_created"}))
            .await;
        let lines =
            json!(["TASK [docker : add the repository] ***", "\u{1b}[0;33mchanged\u{1b}[0m"]);
        client
            .callback(
                &json!({"job_id": job, "type": "log", "attempt": 1, "from": 1, "lines": lines}),
            )
            .await;
    }
    let error = "fatal: [203.0.113.7]: UNREACHABLE! => {\"changed\": false}";
    client
        .callback(&json!({"job_id": failed, "status": "failed", "error": error, "failed_step": "configure"}))
        .await;
    let host = json!({"hostname": "web-1.example.com", "public_ip": "192.0.2.1"});
    let (_, node) = client.post("/api/nodes", &host).await;
    client.post(&format!("/api/nodes/{}/provision", text(&node, "id")), &json!({})).await;
    client.post("/api/queue/pause", &json!({"reason": "an outage"})).await;
}

/// The kind of a page: its address without its ids, and of its query the names alone.
fn kind(path: &str) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let parts = path.split('/').map(|part| match part {
        _ if part.parse::<uuid::Uuid>().is_ok() => "{id}",
        _ if part.parse::<u64>().is_ok() => "{n}",
        part => part,
    });
    let path = parts.collect::<Vec<_>>().join("/");
    let names: Vec<String> =
        form_urlencoded::parse(query.as_bytes()).map(|(name, _)| name.into_owned()).collect();
    if names.is_empty() { path } else { format!("{path}?{}", names.join("&")) }
}

async fn set_screen(browser: &Browser, (width, height, scheme): (u32, u32, &str)) {
    let metrics =
        json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
    browser.command("Emulation.setDeviceMetricsOverride", &metrics).await;
    // Colours that are on their way from one scheme to the other are those of neither.
    let media = json!({"features": [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]});
    browser.command("Emulation.setEmulatedMedia", &media).await;
}

/// What is wrong with the page the browser is at, on every screen.
async fn findings(browser: &Browser, axe: &str) -> Vec<String> {
    browser.run(axe).await;
    let mut found = Vec::new();
    for screen in SCREENS {
        set_screen(browser, screen).await;
        let Value::Array(violations) = browser.run(FINDINGS).await else { panic!() };
        found.extend(violations.iter().map(|it| format!("{screen:?} {}", it.as_str().unwrap())));
        let wide = "return document.documentElement.scrollWidth - innerWidth";
        let overhang = browser.run(wide).await.as_i64().unwrap();
        if overhang > 0 {
            found.push(format!("{screen:?} scrolls {overhang} px sideways"));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn axe_finds_nothing_on_any_page_now_and_in_the_past() {
    let server = Server::with(Options::default()).await;
    let client = server.client();
    something_of_everything(&client).await;
    wait_until("something is sealed", || async {
        let asked = client.request(reqwest::Method::GET, "/log/checkpoint");
        (client.raw_status(asked).await == 200).then_some(())
    })
    .await;
    let axe = axe();
    let browser = logged_in(&server).await;
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut next = VecDeque::from(["/".to_owned(), "/?at=9".to_owned(), "/login".to_owned()]);
    while let Some(path) = next.pop_front() {
        let kind = kind(&path);
        if found.contains_key(&kind) {
            continue;
        }
        browser.open(&format!("{}{path}", server.url())).await;
        let links = browser.run(LINKS).await;
        next.extend(links.as_array().unwrap().iter().map(|link| link.as_str().unwrap().to_owned()));
        found.insert(kind, findings(&browser, &axe).await);
    }
    for kind in EXPECTED {
        assert!(found.contains_key(kind), "nothing leads to {kind}: {:?}", found.keys());
    }
    let wrong: Vec<String> = found
        .iter()
        .flat_map(|(kind, all)| all.iter().map(move |it| format!("{kind} {it}")))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    browser.quit().await;
}
