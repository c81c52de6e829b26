//! The pages people read, and the forms on them.

use std::process::Command;

use milepost::http::{PAGES, ROUTES};
use reqwest::Method;
use serde_json::{Value, json};

use super::log_in;
use crate::harness::{Answer, Client, Server, text, wait_until};

/// A person at a browser without scripts.
struct Person {
    client: Client,
    cookie: String,
}

impl Person {
    async fn at(server: &Server) -> Self {
        let cookie = format!("session_token={}", log_in(server).await);
        Self { client: server.client(), cookie }
    }

    async fn open(&self, path: &str) -> Answer {
        let request = self.client.request(Method::GET, path);
        self.client.send(request.header("cookie", &self.cookie)).await
    }

    async fn submit(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let form = self.client.form(path, fields).header("sec-fetch-site", "same-origin");
        self.client.send(form.header("cookie", &self.cookie)).await
    }

    /// Submits a form that leads on; returns where to.
    async fn go(&self, path: &str, fields: &[(&str, &str)]) -> String {
        let answer = self.submit(path, fields).await;
        assert_eq!(answer.status, 303, "{path}: {}", answer.text());
        answer.header("location").to_owned()
    }
}

fn is_page(answer: &Answer) {
    assert!(answer.header("content-type").starts_with("text/html"), "{:?}", answer.headers);
    assert!(answer.text().starts_with("<!doctype html>"), "{}", answer.text());
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    let policy = answer.header("content-security-policy");
    for part in
        ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"]
    {
        assert!(policy.contains(part), "{part} is not in {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
}

/// The statuses of the first five steps of a page.
fn statuses(page: &str) -> Vec<(String, String)> {
    let value = |tag: &str, name: &str| {
        let start = tag.find(&format!("{name}=\""))? + name.len() + 2;
        Some(tag[start..].split('"').next()?.to_owned())
    };
    page.split('<')
        .filter_map(|tag| Some((value(tag, "data-step")?, value(tag, "data-status")?)))
        .take(5)
        .collect()
}

fn steps(statuses: [&str; 5]) -> Vec<(String, String)> {
    let ids = ["queued", "creating", "installing", "configuring", "running"];
    ids.iter().zip(statuses).map(|(id, status)| ((*id).into(), status.into())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_logged_in_is_sent_to_do_so_and_back() {
    let server = Server::start().await;
    let client = server.client();
    for (path, next) in [
        ("/", "/login?next=%2F"),
        ("/agents/1?before=2", "/login?next=%2Fagents%2F1%3Fbefore%3D2"),
        ("/jobs/1", "/login?next=%2Fjobs%2F1"),
    ] {
        let answer = client.send(client.request(Method::GET, path)).await;
        assert_eq!((answer.status.as_u16(), answer.header("location")), (303, next));
    }
    // A form cannot be sent again from a link.
    let answer = client.send(client.form("/agents", &[("name", "mari")])).await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (303, "/login?next=%2F"));
    let login = client.send(client.request(Method::GET, "/login?next=%2Fjobs%2F1")).await;
    assert_eq!(login.status, 200);
    is_page(&login);
    assert!(login.text().contains("name=\"next\" value=\"/jobs/1\""), "{}", login.text());
    let fields = [("email", "admin@localhost"), ("password", "wrong"), ("next", "/jobs/1")];
    let refused = client.send(client.form("/login", &fields)).await;
    assert_eq!(refused.status, 401);
    is_page(&refused);
    assert!(refused.text().contains("The address or the password is wrong"));
    // All that has come of it is that somebody tried.
    let events = wait_until("it is told", || async {
        let events = client.read("/api/events").await;
        (events["head"] != 0).then_some(events)
    })
    .await;
    assert_eq!((&events["head"], &events["events"][0]["type"]), (&json!(1), &json!("LogInFailed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_do_it_all_without_scripts() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    let agent = person.go("/agents", &[("name", "mari"), ("region", "eu-north")]).await;
    let page = person.open(&agent).await;
    is_page(&page);
    assert!(page.text().contains("<h1"), "{}", page.text());
    assert_eq!(statuses(page.text()), steps(["pending"; 5]));
    assert_eq!(person.go(&format!("{agent}/provision"), &[]).await, agent);
    let id = agent.strip_prefix("/agents/").unwrap();
    let shown = person.client.read(&format!("/api/agents/{id}/instance")).await;
    assert_eq!(shown["instance"]["region"], "eu-north");
    let job = format!("/jobs/{}", text(&shown["instance"], "job_id"));
    let cancelled = person.go(&format!("{job}/cancel"), &[("reason", "too dear")]).await;
    assert_eq!(cancelled, job);
    let page = person.open(&job).await;
    assert!(page.text().contains("too dear"), "{}", page.text());
    let again = person.go(&format!("{job}/retry"), &[]).await;
    assert_ne!(again, job);
    is_page(&person.open(&again).await);
    assert_eq!(person.go("/logout", &[]).await, "/login");
    assert_eq!(person.open("/").await.header("location"), "/login?next=%2F");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_the_steps_of_each_state() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    let client = &person.client;
    let (agent, job) = client.job("mari").await;
    let failed = json!({"status": "failed", "error": "<b>no</b> route & more"});
    let states: [(Option<Value>, [&str; 5]); 4] = [
        (None, ["active", "pending", "pending", "pending", "pending"]),
        (
            Some(json!({"status": "provisioning"})),
            ["completed", "active", "pending", "pending", "pending"],
        ),
        (
            Some(json!({"status": "provisioning", "step": "ansible_started"})),
            ["completed", "completed", "completed", "active", "pending"],
        ),
        (Some(failed), ["completed", "completed", "completed", "error", "pending"]),
    ];
    for (callback, expected) in states {
        if let Some(mut callback) = callback {
            callback["job_id"] = job.clone().into();
            client.callback(&callback).await;
        }
        for path in ["/".to_owned(), format!("/agents/{agent}"), format!("/jobs/{job}")] {
            let page = person.open(&path).await;
            assert_eq!(page.status, 200, "{path}");
            is_page(&page);
            assert_eq!(statuses(page.text()), steps(expected), "{path}");
        }
    }
    let page = person.open(&format!("/jobs/{job}")).await;
    assert!(page.text().contains("&#60;b&#62;no&#60;/b&#62; route &#38; more"), "{}", page.text());
    assert!(!page.text().contains("<b>no</b>"));
    let done = client.job("done").await;
    client.callback(&json!({"job_id": done.1, "status": "running"})).await;
    let page = person.open(&format!("/agents/{}", done.0)).await;
    assert_eq!(statuses(page.text()), steps(["completed"; 5]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_a_page_for_people_and_json_for_programs() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    let client = &person.client;
    let nobody = "019ab0c2-7d2a-7a41-8c33-5b1f0d9e7a02";
    for path in
        ["/agents/mari", "/jobs/1", "/agents/%FF", "/nothing", "/assets/nothing.css", "/api"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("/agents/{nobody}"), format!("/jobs/{nobody}")])
    {
        let answer = person.open(&path).await;
        assert_eq!(answer.status, 404, "{path}");
        is_page(&answer);
    }
    for path in ["/api/", "/api/nothing", "/api/agents/", "/api/jobs/1/2/3"] {
        let (status, problem) = client.get(path).await;
        assert_eq!((status.as_u16(), &problem["title"]), (404, &json!("Not found")), "{path}");
    }
    // The same for what is there, but takes other methods.
    for path in ["/api/agents", "/api/webhooks/github", "/healthz"] {
        let answer = client.send(client.request(Method::DELETE, path)).await;
        assert_eq!(answer.status, 405, "{path}");
        assert_eq!(answer.header("content-type"), "application/problem+json", "{path}");
    }
    let answer = client.send(client.request(Method::DELETE, "/agents")).await;
    assert_eq!(answer.status, 405);
    is_page(&answer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_no_text_names_nothing() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    let mut asked = 0;
    for (route, methods) in ROUTES.iter().chain(PAGES).filter(|(route, _)| route.contains('{')) {
        let part = |part: &str| if part.starts_with('{') { "%FF" } else { part }.to_owned();
        let path = route.split('/').map(part).collect::<Vec<_>>().join("/");
        for (method, _) in *methods {
            let method: Method = method.to_uppercase().parse().unwrap();
            let request = person.client.request(method.clone(), &path);
            let answer = person.client.send(request.header("cookie", &person.cookie)).await;
            assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text());
            let is_page = PAGES.iter().any(|(page, _)| page == route);
            let media_type = if is_page { "text/html" } else { "application/problem+json" };
            assert!(answer.header("content-type").starts_with(media_type), "{method} {path}");
            asked += 1;
        }
    }
    assert!(asked > 40, "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_a_page() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    let (agent, job) = person.client.job("mari").await;
    for (path, fields, status) in [
        (format!("/agents/{agent}/provision"), vec![], 409),
        (format!("/jobs/{job}/retry"), vec![], 409),
        ("/agents".to_owned(), vec![("name", " ")], 422),
        ("/agents".to_owned(), vec![("name", "liis"), ("region", "mars")], 422),
        ("/agents".to_owned(), vec![], 400),
        ("/agents/mari/provision".to_owned(), vec![], 404),
    ] {
        let answer = person.submit(&path, &fields).await;
        assert_eq!(answer.status, status, "{path} {fields:?}");
        is_page(&answer);
    }
    let answer = person.open(&format!("/jobs/{job}?before=yesterday")).await;
    assert_eq!(answer.status, 400);
    is_page(&answer);
    let long = "n".repeat(65_537);
    let answer = person.submit("/agents", &[("name", &*long)]).await;
    assert_eq!(answer.status, 413);
    is_page(&answer);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_page_needs_comes_from_here_and_is_kept_for_ever() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    let page = person.open("/").await;
    let assets: Vec<&str> =
        page.text().split('"').filter(|part| part.starts_with("/assets/")).collect();
    assert!(assets.len() >= 5, "{assets:?}");
    for path in assets {
        // Nobody has to be logged in to see how the log-in page looks.
        let answer = person.client.send(person.client.request(Method::GET, path)).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("cache-control"), "public, max-age=31536000, immutable", "{path}");
        assert!(!answer.header("etag").is_empty(), "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
    }
    for address in ["http://", "https://"] {
        for attribute in ["src", "href", "action"] {
            assert!(!page.text().contains(&format!("{attribute}=\"{address}")));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_says_which_events_it_shows() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    let (agent, job) = person.client.job("mari").await;
    for number in 0..3 {
        let step = format!("step_{number}");
        let body = json!({"job_id": job, "status": "provisioning", "step": step});
        person.client.callback(&body).await;
    }
    let page = person.open(&format!("/agents/{agent}")).await;
    for word in ["AgentCreated", "JobQueued", "step_0", "step_2"] {
        assert!(page.text().contains(word), "{word} is not in\n{}", page.text());
    }
    let older = person.open(&format!("/agents/{agent}?before=5")).await;
    assert!(older.text().contains("AgentCreated") && !older.text().contains("step_0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_register_provision_and_give_up_a_node() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    let fields = [
        ("hostname", "web-1.example.com"),
        ("public_ip", "192.0.2.1"),
        ("ssh_user", ""),
        ("ssh_port", ""),
    ];
    let node = person.go("/nodes", &fields).await;
    let page = person.open(&node).await;
    is_page(&page);
    assert!(page.text().contains("web-1.example.com"), "{}", page.text());
    let list = person.open("/nodes").await;
    is_page(&list);
    assert!(list.text().contains(&format!("href=\"{node}\"")), "{}", list.text());
    assert_eq!(person.go(&format!("{node}/provision"), &[]).await, node);
    let page = person.open(&node).await;
    assert!(page.text().contains("Running Playbook"), "{}", page.text());
    assert_eq!(person.submit(&format!("{node}/decommission"), &[]).await.status, 409);
    assert_eq!(person.submit("/nodes", &fields).await.status, 409);
    let wrong = [("hostname", "web 1"), ("public_ip", "192.0.2.1")];
    assert_eq!(person.submit("/nodes", &wrong).await.status, 422);
    let job = person.client.read("/api/jobs").await["jobs"][0]["id"].clone();
    let job = format!("/jobs/{}", job.as_str().unwrap());
    let shown = person.open(&job).await;
    is_page(&shown);
    assert!(shown.text().contains(&format!("href=\"{node}\"")), "{}", shown.text());
    let moved = [("priority", "7"), ("reason", "it is needed")];
    assert_eq!(person.go(&format!("{job}/priority"), &moved).await, job);
    assert_eq!(person.client.read(&format!("/api{job}")).await["priority"], 7);
    person.go(&format!("{job}/cancel"), &[("reason", "by mistake")]).await;
    assert_eq!(person.go(&format!("{node}/decommission"), &[]).await, node);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_is_seen_on_the_overview() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    assert_eq!(person.submit("/queue/pause", &[("reason", "")]).await.status, 400);
    assert_eq!(person.go("/queue/pause", &[("reason", "an <outage>")]).await, "/");
    let page = person.open("/").await;
    for words in ["The queue is paused.", "account:admin@localhost", "an &#60;outage&#62;"] {
        assert!(page.text().contains(words), "{words} is not in {}", page.text());
    }
    assert_eq!(person.go("/queue/resume", &[]).await, "/");
    assert!(!person.open("/").await.text().contains("The queue is paused."));
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_verify_and_rebuild_a_view() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    person.client.job("seen").await;
    let page = person.open("/projections").await;
    is_page(&page);
    for view in ["board", "jobs", "nodes", "compensations"] {
        assert!(page.text().contains(&format!("id=\"view-{view}\"")), "{}", page.text());
    }
    for (order, words) in [("verify", "equal at #"), ("rebuild", "switched at #")] {
        assert_eq!(person.go(&format!("/projections/board/{order}"), &[]).await, "/projections");
        wait_until("the page says what came of it", || async {
            person.open("/projections").await.text().contains(words).then_some(())
        })
        .await;
    }
    assert!(person.open("/projections").await.text().contains("by account:admin@localhost"));
    let skip = [("position", "1"), ("reason", "none")];
    assert_eq!(person.submit("/projections/board/skip", &skip).await.status, 409);
    assert_eq!(person.submit("/projections/board/retry", &[]).await.status, 400);
    assert_eq!(person.submit("/projections/none/verify", &[]).await.status, 404);
    assert_eq!(person.submit("/projections/board/else", &[]).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn links_of_a_page_of_the_past_stay_in_the_past() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    let (agent, job) = person.client.job("mari").await;
    let end = person.client.read("/api/metrics").await["position"].as_u64().unwrap();
    person.client.callback(&json!({"job_id": job, "status": "running"})).await;
    for (path, link) in [
        ("/".to_owned(), format!("href=\"/agents/{agent}?at={end}\"")),
        (format!("/agents/{agent}"), format!("href=\"/jobs/{job}?at={end}\"")),
        (format!("/jobs/{job}"), format!("href=\"/agents/{agent}?at={end}\"")),
        ("/nodes".to_owned(), format!("href=\"/?at={end}\"")),
        ("/events".to_owned(), format!("href=\"/nodes?at={end}\"")),
    ] {
        let page = person.open(&format!("{path}?at={end}")).await;
        is_page(&page);
        assert!(page.text().contains(&link), "{path} has no {link}\n{}", page.text());
        assert!(page.text().contains("As it was at"), "{path}");
        assert!(!page.text().contains("JobSucceeded</span>"), "{path} shows what came after");
        assert_eq!(page.text().matches("method=\"post\"").count(), 1, "{path}: only log out");
    }
    for (at, status) in [("x", 400), ("99999", 404), ("1", 404)] {
        let page = person.open(&format!("/jobs/{job}?at={at}")).await;
        assert_eq!(page.status, status, "{at}");
        is_page(&page);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_browsed_both_ways_with_filters_and_without_scripts() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    for number in 0..105 {
        person.client.agent(&format!("agent-{number}")).await;
    }
    let newest = person.open("/events").await;
    is_page(&newest);
    assert_eq!(newest.text().matches("<li class=\"event\"").count(), 101, "100, and the blank one");
    let older = newest.text().split("href=\"").find(|link| link.contains("before=")).unwrap();
    let older = older.split('"').next().unwrap().replace("&#38;", "&");
    let second = person.open(&format!("/events{older}")).await;
    assert!(second.text().contains("agent-0"), "{}", second.text());
    assert!(second.text().contains("rel=\"prev\">Newer"), "{}", second.text());
    let found = person.open("/events?text=agent-77&type=AgentCreated&actor=&stream=").await;
    assert_eq!(found.text().matches("<li class=\"event\"").count(), 2, "it, and the blank one");
    // Each page of a search asks for what the first one asked for.
    let found = person.open("/events?type=JobQueued&type=AgentCreated&type=").await;
    let older = found.text().split("href=\"").find(|link| link.contains("before=")).unwrap();
    assert!(older.starts_with("?type=JobQueued&#38;type=AgentCreated&#38;before="), "{older}");
    let none = person.open("/events?text=nowhere").await;
    assert!(none.text().contains("Nothing matches."), "{}", none.text());
    assert_eq!(person.open("/events?stream=x").await.status, 400);
    assert_eq!(person.open("/events?type=x").await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_page_shows_what_proves_it_and_what_it_changed() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    let (agent, job) = person.client.job("mari").await;
    let body = json!({"job_id": job, "status": "provisioning", "step": "vm_created"});
    let at = person.client.callback(&body).await.1["position"].as_u64().unwrap();
    let page = person.open(&format!("/events/{at}")).await;
    is_page(&page);
    let event = person.client.read(&format!("/api/events/{at}")).await;
    for words in [
        text(&event["metadata"], "signature"),
        text(&event["metadata"], "key_id"),
        "openssl dgst -sha256 -hmac".to_owned(),
        "instance.current_step".to_owned(),
        format!("/agents/{agent}?at={at}"),
        format!("/jobs/{job}?at={at}"),
        format!("/integrity?position={at}"),
    ] {
        assert!(page.text().contains(&words), "{words} is not in {}", page.text());
    }
    for path in ["/events/0", "/events/999999", "/events/x"] {
        assert_eq!(person.open(path).await.status, 404, "{path}");
    }
}

/// What a browser shows of the elements with this name, in order.
fn shown(page: &str, element: &str) -> Vec<String> {
    let (open, close) = (format!("<{element} tabindex=\"0\">"), format!("</{element}>"));
    let texts = page.split(&open).skip(1).map(|rest| rest.split(&close).next().unwrap());
    let letters = [("&#60;", "<"), ("&#62;", ">"), ("&#34;", "\""), ("&#39;", "'"), ("&#38;", "&")];
    let read = |text: &str| {
        letters.iter().fold(text.to_owned(), |text, (code, letter)| text.replace(code, letter))
    };
    texts.map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_cannot_break_out_of_the_command_that_checks_it() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    let (agent, job) = person.client.job("mari").await;
    let broken_out = server.dir().join("broken-out");
    let error = format!("can't & <b>\"won't\"</b>'; touch {}; '", broken_out.display());
    let body = json!({"job_id": job, "status": "failed", "error": error});
    let at = person.client.callback(&body).await.1["position"].as_u64().unwrap();
    let page = person.open(&format!("/events/{at}")).await;
    let event = person.client.read(&format!("/api/events/{at}")).await;
    let shown = shown(page.text(), "pre");
    assert_eq!(shown[0], text(&event["metadata"], "body"));
    let secret = server.ready("callback_secret");
    let mut shell = Command::new("sh");
    let run = shell.args(["-c", &shown[1]]).env("MILEPOST_CALLBACK_SECRET", secret);
    let printed = String::from_utf8(run.output().unwrap().stdout).unwrap();
    let signature = text(&event["metadata"], "signature");
    let digest = signature.trim_start_matches("sha256=");
    assert!(printed.trim_end().ends_with(&format!("= {digest}")), "{printed} is not {signature}");
    assert!(!broken_out.exists(), "the error was run");

    let erase = json!({"subject": agent, "reason": "request 17"});
    assert_eq!(person.client.post("/api/privacy/erase", &erase).await.0, 200);
    let page = person.open(&format!("/events/{at}")).await;
    assert!(page.text().contains("The body that was signed was sealed"), "{}", page.text());
    for words in ["byte for byte", "openssl"] {
        assert!(!page.text().contains(words), "{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_the_past_shows_no_event_that_came_later() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    for number in 1..=12 {
        person.client.agent(&format!("agent-{number}")).await;
    }
    for query in ["at=10&to=12&after=4", "at=10&to=12&before=13", "at=10&to=12", "at=10"] {
        let page = person.open(&format!("/events?{query}")).await;
        let shows = |position: u64| page.text().contains(&format!("id=\"e{position}\""));
        assert!(shows(9) && shows(10), "{query}: {}", page.text());
        assert!(!shows(11) && !shows(12), "{query}: {}", page.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_agent_that_needs_a_person_is_on_the_overview_however_many_came_after() {
    const NEWER: usize = milepost::views::LIST_ROWS_MAX;
    let server = Server::start().await;
    let person = Person::at(&server).await;
    let client = &person.client;
    let (failed, job) = client.job("failed").await;
    client.callback(&json!({"job_id": job, "status": "failed", "error": "no route"})).await;
    let settled = client.agent("settled").await;
    let mut makers = tokio::task::JoinSet::new();
    for maker in 0..20 {
        let client = client.clone();
        makers.spawn(async move {
            for number in 0..NEWER / 20 {
                client.agent(&format!("agent-{maker}-{number}")).await;
            }
        });
    }
    makers.join_all().await;
    let page = wait_until("the view has all of them", || async {
        let page = person.open("/").await.text().to_owned();
        page.contains("1,001 of 1,002 agents: the newest 1,000, and").then_some(page)
    })
    .await;
    let needs = page.split("id=\"needs\"").nth(1).unwrap().split("id=\"moving\"").next().unwrap();
    assert!(needs.contains(&format!("/agents/{failed}")), "{needs}");
    assert!(!page.contains(&settled), "it is older than a thousand");
    let newest = client.read("/api/agents").await["agents"].as_array().unwrap().clone();
    assert_eq!(newest.len(), NEWER);
    for at in ["", "&at=1005"] {
        let last = text(newest.last().unwrap(), "id");
        let older = client.read(&format!("/api/agents?before={last}{at}")).await;
        let older = older["agents"].as_array().unwrap().iter().map(|agent| text(agent, "id"));
        assert_eq!(older.collect::<Vec<_>>(), [settled.clone(), failed.clone()], "{at}");
    }
    assert_eq!(client.get("/api/agents?before=x").await.0, 400);
    assert_eq!(client.read(&format!("/api/nodes?before={failed}")).await["nodes"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_has_an_address_and_its_fields() {
    let server = Server::start().await;
    let person = Person::at(&server).await;
    let (agent, job) = person.client.job("mari").await;
    let end = person.client.read("/api/metrics").await["position"].as_u64().unwrap();
    person.client.callback(&json!({"job_id": job, "status": "running"})).await;
    let form = person.open("/diff").await;
    is_page(&form);
    let page = person.open(&format!("/diff?at={end}&agent={agent}")).await;
    is_page(&page);
    for words in ["instance.status", ">pending<", ">running<", "between them"] {
        assert!(page.text().contains(words), "{words} is not in {}", page.text());
    }
    assert_eq!(person.open("/diff?at=x").await.status, 400);
    is_page(&person.open("/integrity").await);
}
