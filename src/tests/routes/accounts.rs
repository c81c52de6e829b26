//! `/api/accounts`, `/api/account`, `/api/tokens`, `/api/sessions`: who may what, and until when.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use milepost::accounts::throttle::{self, Keys};
use milepost::app::Clock;
use milepost::domain::access::{may, roles_with};
use milepost::http::access::Needs;
use milepost::http::{PAGES, ROUTES};
use milepost_schemas::{Right, Role};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::{cookie_of, log_in};
use crate::harness::{
    Answer, Client, MILEPOST, Messages, Options, PATIENCE, Server, sql, text, wait_until,
};

const PASSWORD: &str = "correct horse battery staple";

/// An id of nothing.
const NOTHING: &str = "019ab0c2-7d2a-7a41-8c33-5b1f0d9e7a02";

/// Somebody with an account, at a browser.
struct Person {
    client: Client,
    id: String,
    email: String,
    cookie: String,
}

impl Person {
    async fn new(server: &Server, name: &str, role: &str) -> Self {
        let (client, email) = (server.client(), format!("{name}@example.com"));
        let body = json!({"email": email, "password": PASSWORD, "role": role});
        let (status, account) = client.post("/api/accounts", &body).await;
        assert_eq!(status, 201, "{account}");
        let id = text(&account, "id");
        let cookie = enter(&client, &email, PASSWORD).await;
        Self { client, id, email, cookie }
    }

    fn ask(&self, client: &Client, method: Method, path: &str) -> RequestBuilder {
        let cookie = format!("session_token={}", self.cookie);
        client.request(method, path).header("cookie", cookie)
    }

    async fn get(&self, path: &str) -> Answer {
        self.client.send(self.ask(&self.client, Method::GET, path)).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.client.send(self.ask(&self.client, Method::POST, path).json(body)).await
    }

    async fn stream(&self, client: &Client) -> Messages {
        let path = "/api/stream?agent=all";
        client.follow(self.ask(client, Method::GET, path)).await.expect("the stream opens")
    }
}

async fn try_to_enter(client: &Client, email: &str, password: &str) -> Answer {
    let body = json!({"email": email, "password": password});
    client.send(client.request(Method::POST, "/api/login").json(&body)).await
}

async fn enter(client: &Client, email: &str, password: &str) -> String {
    let answer = try_to_enter(client, email, password).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    cookie_of(&answer)
}

/// A new token: its id and its secret.
async fn token(client: &Client, body: &Value) -> (String, String) {
    let (status, made) = client.post("/api/tokens", body).await;
    assert_eq!(status, 201, "{made}");
    (text(&made, "id"), text(&made, "secret"))
}

/// Every method of every route, page and form, with what it takes.
fn all() -> impl Iterator<Item = (Method, String, &'static str, Needs)> {
    ROUTES.iter().chain(PAGES).flat_map(|(path, methods)| {
        methods.iter().map(|(method, needs)| {
            let there = path.replace("{id}", NOTHING).replace("{*path}", "none.css");
            (method.to_uppercase().parse().unwrap(), there, *path, *needs)
        })
    })
}

async fn types(client: &Client) -> Vec<String> {
    client.events().await.iter().map(|event| text(event, "type")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_page_form_and_stream_lets_in_whom_the_matrix_says() {
    let server = Server::start().await;
    let client = server.client();
    let mut refused = 0;
    for role in Role::ALL {
        let person = Person::new(&server, role.as_str(), role.as_str()).await;
        let (_, secret) = token(&client, &json!({"name": role, "role": role})).await;
        for (method, path, route, needs) in all() {
            let right = match needs {
                Needs::Nobody => continue,
                Needs::Right(right) => Some(right),
                Needs::Somebody | Needs::OtherMethod => None,
            };
            let by_cookie = person.ask(&client, method.clone(), &path);
            let by_token = client.request(method.clone(), &path).bearer_auth(&secret);
            for request in [by_cookie, by_token] {
                if let Some(right) = right.filter(|right| !may(*role, &[], *right)) {
                    let answer = client.send(request).await;
                    assert_eq!(answer.status, 403, "{role}: {method} {route}");
                    let words = format!("This takes the role {}", roles_with(right));
                    assert!(answer.text().contains(&words), "{route}: {}", answer.text());
                    refused += 1;
                } else {
                    let status = client.raw_status(request).await;
                    assert!(![401, 403, 500].contains(&status), "{role}: {route} {status}");
                }
            }
        }
        // What a parameter takes beyond.
        let events = person.ask(&client, Method::GET, "/api/stream?agent=all&events=all");
        let expected = if may(*role, &[], Right::Events) { 200 } else { 403 };
        assert_eq!(client.raw_status(events).await, expected, "{role}");
    }
    assert!(refused > 150, "{refused}");
    // Nothing came of what was refused, and the log tells of few of them: 1, 4, 16 and 64.
    let told = client.read("/api/events?type=ActionRefused&limit=1000").await;
    let told = told["events"].as_array().unwrap();
    assert!((6..=24).contains(&told.len()), "{}", told.len());
    for event in told {
        let actor = text(&event["metadata"], "actor");
        assert!(actor.starts_with("account:") || actor.starts_with("token:"), "{event}");
    }
    assert_eq!(client.read("/api/agents").await, json!({"agents": []}));
}

#[test]
fn what_changes_something_takes_more_than_a_right_to_read() {
    for (method, _, route, needs) in all() {
        let fine = match needs {
            Needs::Right(Right::Operate) => method == Method::POST,
            // Where people are is for those who look after accounts.
            Needs::Right(Right::Administer) => method == Method::POST || route == "/api/sessions",
            Needs::Right(Right::See | Right::Events | Right::Audit) => method == Method::GET,
            Needs::Nobody => !route.starts_with("/api/") || method == Method::POST,
            Needs::Somebody => route.starts_with("/api/session") || route.contains("/account"),
            Needs::OtherMethod => false,
        };
        assert!(fine, "{method} {route}");
    }
    // A form takes what its route for programs takes.
    for (path, methods) in PAGES {
        let Some((_, api)) = ROUTES.iter().find(|(route, _)| *route == format!("/api{path}"))
        else {
            continue;
        };
        for (method, needs) in methods.iter().filter(|(method, _)| *method == "post") {
            assert!(api.contains(&(method, *needs)), "{path}");
        }
    }
}

#[test]
fn every_route_in_the_code_has_a_row() {
    let mut there = BTreeSet::new();
    let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let code = std::fs::read_to_string(path).unwrap();
                for rest in code.split(".route(").skip(1) {
                    there.insert(rest.split('"').nth(1).unwrap().to_owned());
                }
            }
        }
    }
    let rows = ROUTES.iter().chain(PAGES).map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(there, rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_a_page_or_a_problem_that_says_which_role_it_takes() {
    let server = Server::start().await;
    let viewer = Person::new(&server, "vera", "viewer").await;
    let answer = viewer.post("/api/agents", &json!({"name": "mari"})).await;
    let problem: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        problem,
        json!({
            "type": "urn:milepost:problem:forbidden",
            "title": "Forbidden",
            "status": 403,
            "detail": "This takes the role operator or admin; yours is viewer",
            "needs": "operate",
            "role": "viewer",
        })
    );
    let page = viewer.get("/accounts").await;
    assert_eq!(page.status, 403);
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(page.text().contains("This takes the role auditor or admin; yours is viewer"));
    // And what one may not do is not offered.
    let overview = viewer.get("/").await;
    assert!(!overview.text().contains("action=\"/agents\""), "{}", overview.text());
    assert!(!overview.text().contains("action=\"/queue/pause\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_within_a_second_of_its_right_on_every_node() {
    let first = Server::start().await;
    let second = Server::beside(&first).await;
    let (client, other) = (first.client(), second.client());
    let mut took = Vec::new();
    let causes = ["log-out", "own password", "password", "role", "disable", "session", "psql"];
    for (index, cause) in causes.into_iter().enumerate() {
        let person = Person::new(&first, &format!("person-{index}"), "operator").await;
        let mut streams = vec![person.stream(&client).await, person.stream(&other).await];
        let (id, sessions) = (&person.id, person.get("/api/account").await);
        let sessions: Value = serde_json::from_slice(&sessions.body).unwrap();
        let session = text(&sessions["sessions"][0], "id");
        let begun = Instant::now();
        let status = match cause {
            "log-out" => person.post("/api/logout", &json!({})).await.status,
            "own password" => {
                // From another browser.
                let cookie = enter(&client, &person.email, PASSWORD).await;
                let elsewhere = Person {
                    client: client.clone(),
                    id: id.clone(),
                    email: person.email.clone(),
                    cookie,
                };
                let body = json!({"current": PASSWORD, "password": "another long password"});
                elsewhere.post("/api/account/password", &body).await.status
            }
            "psql" => {
                let owner = sql(&first.database_url()).await;
                let delete = "DELETE FROM session AS s USING account AS a \
                     WHERE s.account_id = a.id AND a.email = $1";
                assert_eq!(owner.execute(delete, &[&person.email]).await.unwrap(), 1);
                reqwest::StatusCode::OK
            }
            _ => {
                let (path, body) = match cause {
                    "password" => (
                        format!("/api/accounts/{id}/password"),
                        json!({"password": "another long password"}),
                    ),
                    "role" => (format!("/api/accounts/{id}/role"), json!({"role": "viewer"})),
                    "disable" => (format!("/api/accounts/{id}/disable"), json!({})),
                    _ => (format!("/api/sessions/{session}/revoke"), json!({})),
                };
                client.post(&path, &body).await.0
            }
        };
        assert_eq!(status, 200, "{cause}");
        for stream in &mut streams {
            ended(stream).await;
        }
        took.push((cause, begun.elapsed()));
        assert_eq!(person.get("/api/session").await.status, 401, "{cause}");
    }
    let (id, secret) = token(&client, &json!({"name": "graphs", "role": "viewer"})).await;
    let open =
        |client: &Client| client.request(Method::GET, "/api/stream?agent=all").bearer_auth(&secret);
    let (mut here, mut there) =
        (client.follow(open(&client)).await.unwrap(), other.follow(open(&other)).await.unwrap());
    let begun = Instant::now();
    assert_eq!(client.post(&format!("/api/tokens/{id}/revoke"), &json!({})).await.0, 200);
    ended(&mut here).await;
    ended(&mut there).await;
    took.push(("token", begun.elapsed()));
    println!("streams ended after {took:?}");
    // Each with the request that ended it, and on a machine that does other things besides.
    took.sort_by_key(|(_, took)| *took);
    assert!(took[took.len() / 2].1 < Duration::from_secs(1), "{took:?}");
}

/// Reads a stream to its end.
async fn ended(stream: &mut Messages) {
    let reading = async { while stream.next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, reading).await.expect("the stream ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_within_a_second_of_its_session_and_not_before() {
    let server = Server::start().await;
    let person = Person::new(&server, "ada", "viewer").await;
    let owner = sql(&server.database_url()).await;
    let expires_at = Clock.now() + SignedDuration::from_secs(2);
    let update = "UPDATE session SET expires_at = $1";
    owner.execute(update, &[&expires_at]).await.unwrap();
    let mut stream = person.stream(&person.client).await;
    ended(&mut stream).await;
    let late = Clock.now().duration_since(expires_at);
    println!("the stream ended {late:#} after its session");
    assert!(!late.is_negative() && late < SignedDuration::from_secs(1), "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_streams_go_on_when_one_session_ends() {
    let server = Server::start().await;
    let client = server.client();
    let (ada, eve) =
        (Person::new(&server, "ada", "viewer").await, Person::new(&server, "eve", "viewer").await);
    let (mut stays, mut ends) = (ada.stream(&client).await, eve.stream(&client).await);
    client.post(&format!("/api/accounts/{}/disable", eve.id), &json!({})).await;
    ended(&mut ends).await;
    let agent = client.agent("mari").await;
    assert_eq!(stays.next_named("instance").await.json()["agent"]["id"], agent);
    // Who may not log in is told no more than who has the wrong password.
    let disabled = try_to_enter(&client, &eve.email, PASSWORD).await;
    let wrong = try_to_enter(&client, &eve.email, "wrong").await;
    assert_eq!((disabled.status.as_u16(), &disabled.body), (401, &wrong.body));
    client.post(&format!("/api/accounts/{}/enable", eve.id), &json!({})).await;
    enter(&client, &eve.email, PASSWORD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_token_is_narrowed_or_is_to_run_out_sooner() {
    let server = Server::start().await;
    let owner = sql(&server.database_url()).await;
    for (name, change) in [
        ("narrowed", "scopes = '{see}'"),
        // By a version that knows more rights than this one.
        ("unknown", "scopes = '{dance}'"),
        ("sooner", "expires_at = now() + interval '1 h'"),
    ] {
        // The server closes the connection of a stream that has ended: each time another one.
        let client = server.client();
        let (_, secret) = token(&client, &json!({"name": name, "role": "viewer"})).await;
        let request = client.request(Method::GET, "/api/stream?agent=all").bearer_auth(&secret);
        let mut stream = client.follow(request).await.unwrap();
        stream.next().await.unwrap();
        let update = format!("UPDATE api_token SET {change} WHERE name = '{name}'");
        owner.batch_execute(&update).await.unwrap();
        ended(&mut stream).await;
    }
}

/// Holds what every change of accounts takes first.
async fn hold_changes(server: &Server) -> tokio_postgres::Client {
    let gate = sql(&server.database_url()).await;
    gate.batch_execute("BEGIN; SELECT FROM access_change WHERE one_row FOR UPDATE").await.unwrap();
    gate
}

/// Waits until somebody waits for a lock.
async fn somebody_waits(server: &Server) {
    let watcher = sql(&server.database_url()).await;
    wait_until("somebody waits for a lock", || async {
        let waiting = "SELECT count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let waiting: i64 = watcher.query_one(waiting, &[]).await.unwrap().get(0);
        (waiting > 0).then_some(())
    })
    .await;
}

/// A one-time link's token for somebody.
async fn link(server: &Server, email: &str) -> String {
    let database = milepost::log::Database::new(&server.database_url()).unwrap();
    milepost::accounts::make_link(&database, email, Clock.now()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_comes_in_with_what_was_taken_away_while_it_was_looked_at() {
    let server = Server::start().await;
    let owner = sql(&server.database_url()).await;
    for (number, change) in
        ["UPDATE account SET password_hash = 'x'", "UPDATE account SET disabled_at = now()"]
            .into_iter()
            .enumerate()
    {
        let person = Person::new(&server, &format!("person-{number}"), "viewer").await;
        let of_person = format!("{change} WHERE email = '{}'", person.email);
        let gate = hold_changes(&server).await;
        let (answer, ()) =
            tokio::join!(try_to_enter(&person.client, &person.email, PASSWORD), async {
                somebody_waits(&server).await;
                gate.batch_execute(&format!("{of_person}; COMMIT")).await.unwrap();
            });
        assert_eq!(answer.status, 401, "{change}: {}", answer.text());
    }
    // Nor does somebody change a password that is another by then.
    let person = Person::new(&server, "ada", "viewer").await;
    let body = json!({"current": PASSWORD, "password": "another long password"});
    let gate = hold_changes(&server).await;
    let change = "UPDATE account SET password_hash = 'x' WHERE email = 'ada@example.com'; COMMIT";
    let (answer, ()) = tokio::join!(person.post("/api/account/password", &body), async {
        somebody_waits(&server).await;
        gate.batch_execute(change).await.unwrap();
    });
    assert_eq!(answer.status, 422, "{}", answer.text());
    let hash = "SELECT password_hash FROM account WHERE email = $1";
    let hash = owner.query_one(hash, &[&person.email]).await.unwrap();
    assert_eq!(hash.get::<_, &str>(0), "x");
    // A change of the password takes the links along.
    let path = format!("/login?once={}", link(&server, &person.email).await);
    let gate = hold_changes(&server).await;
    let (answer, ()) =
        tokio::join!(person.client.send(person.client.request(Method::GET, &path)), async {
            somebody_waits(&server).await;
            gate.batch_execute("DELETE FROM login_link; COMMIT").await.unwrap();
        });
    assert_eq!(answer.header("set-cookie"), "", "{}", answer.text());
    let began = "SELECT count(*) FROM session AS s INNER JOIN account AS a ON s.account_id = a.id \
         WHERE a.email LIKE '%@example.com'";
    let began: i64 = owner.query_one(began, &[]).await.unwrap().get(0);
    assert_eq!(began, 3, "those that were there before");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_ends_sessions_holds_nothing_while_it_waits_for_its_turn() {
    let server = Server::start().await;
    let client = server.client();
    let owner = sql(&server.database_url()).await;
    let orders = ["log in", "link", "log out", "password", "own password", "role", "session"];
    for (number, order) in orders.into_iter().enumerate() {
        let person = Person::new(&server, &format!("person-{number}"), "operator").await;
        let own: Value = serde_json::from_slice(&person.get("/api/account").await.body).unwrap();
        let session = text(&own["sessions"][0], "id");
        let once = link(&server, &person.email).await;
        let (id, new) = (&person.id, "another long password");
        let (path, body) = match order {
            "log in" => {
                ("/api/login".to_owned(), json!({"email": person.email, "password": PASSWORD}))
            }
            "link" => (format!("/login?once={once}"), Value::Null),
            "log out" => ("/api/logout".to_owned(), json!({})),
            "password" => (format!("/api/accounts/{id}/password"), json!({"password": new})),
            "own password" => {
                ("/api/account/password".to_owned(), json!({"current": PASSWORD, "password": new}))
            }
            "role" => (format!("/api/accounts/{id}/role"), json!({"role": "viewer"})),
            _ => (format!("/api/sessions/{session}/revoke"), json!({})),
        };
        let method = if order == "link" { Method::GET } else { Method::POST };
        let request = person.ask(&client, method, &path);
        let request = if path.contains(id) || path.contains(&session) {
            client.request(Method::POST, &path).bearer_auth(&client.token)
        } else {
            request
        };
        let request = if body.is_null() { request } else { request.json(&body) };
        let gate = hold_changes(&server).await;
        let (answer, ()) = tokio::join!(client.send(request), async {
            somebody_waits(&server).await;
            for table in ["account", "session", "login_link"] {
                let take = format!("SELECT FROM {table} FOR UPDATE NOWAIT");
                owner.batch_execute(&take).await.unwrap_or_else(|_| panic!("{order}: {table}"));
            }
            gate.batch_execute("ROLLBACK").await.unwrap();
        });
        assert!([200, 303].contains(&answer.status.as_u16()), "{order}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_address_is_nobodys_and_one_address_is_counted_once() {
    let server = Server::start().await;
    let client = server.client();
    let owner = sql(&server.database_url()).await;
    let counted = async || {
        let rows = owner.query("SELECT FROM log_in_failure", &[]).await.unwrap();
        rows.len()
    };
    // As many as are free: they count as one.
    for email in ["\0", "ada\0@example.com", "ada", "", &format!("{}@b.c", "a".repeat(300))] {
        let answer = try_to_enter(&client, email, PASSWORD).await;
        assert_eq!(answer.status, 401, "{email:?}: {}", answer.text());
    }
    assert_eq!(try_to_enter(&client, "@", PASSWORD).await.status, 429);
    owner.batch_execute("DELETE FROM log_in_failure").await.unwrap();
    // Lower case by Unicode ends in another letter than by the database.
    let (one, another) = ("οδοσ@example.com", "ΟΔΟΣ@example.com");
    let same = owner.query_one("SELECT lower($1) = lower($2)", &[&one, &another]).await.unwrap();
    for email in [one, another, " οδοσ@Example.COM "] {
        assert_eq!(try_to_enter(&client, email, "wrong").await.status, 401, "{email}");
    }
    let of_addresses = if same.get(0) { 2 } else { 4 };
    wait_until("nobody's run is counted too", || async {
        (counted().await == of_addresses + 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_log_in_is_answered_before_anything_is_told() {
    let server = Server::start().await;
    let client = server.client();
    let person = Person::new(&server, "ada", "viewer").await;
    // Nobody can write to the log.
    let gate = sql(&server.database_url()).await;
    gate.batch_execute("BEGIN; SELECT FROM log_head WHERE one_row FOR UPDATE").await.unwrap();
    for email in [&*person.email, "nobody@example.com"] {
        assert_eq!(try_to_enter(&client, email, "wrong").await.status, 401, "{email}");
    }
    gate.batch_execute("ROLLBACK").await.unwrap();
    wait_until("both are told", || async {
        let failed = client.read("/api/events?type=LogInFailed").await;
        (failed["events"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_wait_for_each_other_in_one_order_and_never_for_the_table_to_be_cut() {
    let server = Server::start().await;
    let owner = sql(&server.database_url()).await;
    let database = milepost::log::Database::new(&server.database_url()).unwrap();
    let keys = Keys::new("ada@example.com", [192, 0, 2, 1].into());
    let made = throttle::begin(&database, keys, 1, Clock.now()).await.unwrap().unwrap();
    // In the table the last of them stands first.
    owner
        .batch_execute(
            "CREATE TEMPORARY TABLE kept AS SELECT * FROM log_in_failure; \
             TRUNCATE log_in_failure; \
             INSERT INTO log_in_failure SELECT * FROM kept ORDER BY key DESC",
        )
        .await
        .unwrap();
    let first = "SELECT key FROM log_in_failure ORDER BY key LIMIT 1";
    let first: Vec<u8> = owner.query_one(first, &[]).await.unwrap().get(0);
    let gate = sql(&server.database_url()).await;
    gate.batch_execute("BEGIN").await.unwrap();
    let take = "SELECT FROM log_in_failure WHERE key = $1 FOR UPDATE";
    gate.execute(take, &[&first]).await.unwrap();
    let (taken, ()) = tokio::join!(throttle::succeeded(&database, made), async {
        somebody_waits(&server).await;
        let others = "SELECT FROM log_in_failure WHERE key <> $1 FOR UPDATE NOWAIT";
        owner.execute(others, &[&first]).await.expect("nobody has them yet");
        gate.batch_execute("ROLLBACK").await.unwrap();
    });
    taken.unwrap();
    let left = "SELECT sum(failures)::bigint FROM log_in_failure";
    assert_eq!(owner.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
    // What somebody has in their hands is cut the next time.
    owner
        .batch_execute(
            "INSERT INTO log_in_failure SELECT decode(md5(n::text), 'hex'), 1, now() - interval '2 h' \
             FROM generate_series(1, 3) AS n",
        )
        .await
        .unwrap();
    let old = "BEGIN; SELECT FROM log_in_failure WHERE key = decode(md5('1'), 'hex') FOR UPDATE";
    gate.batch_execute(old).await.unwrap();
    throttle::begin(&database, keys, 0, Clock.now()).await.unwrap().unwrap();
    let rows = owner.query("SELECT FROM log_in_failure", &[]).await.unwrap();
    assert_eq!(rows.len(), 3 + 1);
    gate.batch_execute("ROLLBACK").await.unwrap();
}

/// A client that stands behind a trusted proxy.
struct Behind<'a> {
    client: &'a Client,
    address: &'a str,
}

impl Behind<'_> {
    async fn log_in(&self, email: &str, password: &str) -> Answer {
        let body = json!({"email": email, "password": password});
        let request = self.client.request(Method::POST, "/api/login").json(&body);
        self.client.send(request.header("x-forwarded-for", self.address)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_is_slowed_on_every_node_and_the_owner_comes_in() {
    let env = vec![("MILEPOST_TRUSTED_PROXIES", "127.0.0.1".to_owned())];
    let first = Server::with(Options { env, ..Options::default() }).await;
    let second = Server::beside(&first).await;
    let (client, other) = (first.client(), second.client());
    let owner = Person::new(&first, "ada", "viewer").await;
    let guesser = Behind { client: &client, address: "203.0.113.6" };
    for _ in 0..5 {
        assert_eq!(guesser.log_in(&owner.email, "wrong").await.status, 401);
    }
    // From there not even the right password is looked at, here and on the other node.
    for client in [&client, &other] {
        let slowed = Behind { client, ..guesser }.log_in(&owner.email, PASSWORD).await;
        assert_eq!(slowed.status, 429, "{}", slowed.text());
        let wait: u64 = slowed.header("retry-after").parse().unwrap();
        assert!((1..=2).contains(&wait), "{wait}");
    }
    // Many addresses at one account share its delay once each has failed.
    for host in 1..=8 {
        let address = format!("203.0.113.1{host}");
        let one = Behind { client: &client, address: &address };
        assert_eq!(one.log_in(&owner.email, "wrong").await.status, 401, "{address}");
    }
    let again = Behind { client: &other, address: "203.0.113.11" };
    assert_eq!(again.log_in(&owner.email, "wrong").await.status, 429);
    // The owner comes in from where nobody has guessed, and was never thrown out.
    for (client, address) in [(&client, "192.0.2.1"), (&other, "192.0.2.2")] {
        let here = Behind { client, address };
        assert_eq!(here.log_in(&owner.email, PASSWORD).await.status, 200, "{address}");
    }
    assert_eq!(owner.get("/api/session").await.status, 200);
    // Addresses that nobody has are one run, whoever makes them up.
    for number in 0..6 {
        let email = format!("nobody-{number}@example.com");
        let address = format!("198.51.100.{number}");
        let one = Behind { client: &client, address: &address };
        assert_eq!(one.log_in(&email, "wrong").await.status, 401);
    }
    // 13 failures at the account are two events, 6 at nobody's are two.
    let told = wait_until("they are told", || async {
        let failed = client.read("/api/events?type=LogInFailed").await;
        let failed = failed["events"].as_array().unwrap();
        let told = failed.iter().map(|event| &event["data"]);
        let told = told.map(|it| (it["account_id"] == *owner.id, it["failures"].as_u64().unwrap()));
        let told: BTreeSet<_> = told.collect();
        (told.len() >= 4).then_some(told)
    })
    .await;
    assert_eq!(told, BTreeSet::from([(true, 1), (true, 4), (false, 1), (false, 4)]));
    // A page says the same.
    let form = client.form("/login", &[("email", &*owner.email), ("password", PASSWORD)]);
    let page = client.send(form.header("x-forwarded-for", guesser.address)).await;
    assert_eq!(page.status, 429);
    assert!(page.text().contains("Too many log-ins have failed"), "{}", page.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_tries_at_once_are_not_a_thousand_guesses() {
    let server = Server::start().await;
    let client = server.client();
    let owner = Person::new(&server, "ada", "viewer").await;
    let tries = (0..40).map(|_| try_to_enter(&client, &owner.email, "wrong"));
    let answers = futures_util::future::join_all(tries).await;
    let looked_at = answers.iter().filter(|answer| answer.status == 401).count();
    let turned_away = answers.iter().filter(|answer| answer.status == 429).count();
    assert_eq!(looked_at + turned_away, 40);
    // Five are free; a second or two may pass meanwhile, and let one more through each.
    assert!((5..=9).contains(&looked_at), "{looked_at}");
    let owner = sql(&server.database_url()).await;
    let rows = owner.query_one("SELECT count(*) FROM log_in_failure", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 3, "an account, an address, and both");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_failures_and_the_sessions_of_an_account_are_bounded() {
    let server = Server::start().await;
    let person = Person::new(&server, "ada", "viewer").await;
    let owner = sql(&server.database_url()).await;
    owner
        .batch_execute(
            "INSERT INTO log_in_failure (key, failures, last_at) \
             SELECT decode(md5(n::text), 'hex'), 1, now() - n * interval '1 ms' \
             FROM generate_series(1, 100100) AS n; \
             INSERT INTO session (token_sha256, account_id, expires_at, created_at) \
             SELECT decode(md5(n::text), 'hex'), a.id, now() + interval '1 day', now() - interval '1 h' \
             FROM generate_series(1, 60) AS n, account AS a WHERE a.email = 'ada@example.com'",
        )
        .await
        .unwrap();
    let keys = Keys::new("eve@example.com", [192, 0, 2, 1].into());
    let database = milepost::log::Database::new(&server.database_url()).unwrap();
    throttle::begin(&database, keys, 0, Clock.now()).await.unwrap().unwrap();
    let rows = owner.query_one("SELECT count(*) FROM log_in_failure", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), throttle::ROWS_MAX);
    let newest = enter(&person.client, &person.email, PASSWORD).await;
    let own = person.client.request(Method::GET, "/api/account");
    let own = person.client.send(own.header("cookie", format!("session_token={newest}"))).await;
    let own: Value = serde_json::from_slice(&own.body).unwrap();
    assert_eq!(own["sessions"].as_array().unwrap().len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_from_another_site_is_refused() {
    let server = Server::start().await;
    let client = server.client();
    let cookie = format!("session_token={}", log_in(&server).await);
    let before = types(&client).await;
    for (method, path, route, _) in all() {
        if method == Method::GET || route == "/api/webhooks/github" {
            continue;
        }
        for (name, value) in [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")]
        {
            let request = client.request(method.clone(), &path).header("cookie", &cookie);
            let answer = client.send(request.header(name, value)).await;
            assert_eq!(answer.status, 403, "{route} with {name}");
            assert!(answer.text().contains("comes from another site"), "{route}");
        }
    }
    assert_eq!(types(&client).await, before);
    let session = client.request(Method::GET, "/api/session").header("cookie", &cookie);
    assert_eq!(client.send(session).await.status, 200, "nobody was logged out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_another_site_opens_takes_a_persons_hand() {
    let server = Server::start().await;
    let client = server.client();
    let link = server.login_link().await;
    let path = link.strip_prefix(&client.url).unwrap();
    let request = client.request(Method::GET, path).header("sec-fetch-site", "cross-site");
    let page = client.send(request).await;
    assert_eq!((page.status.as_u16(), page.header("set-cookie")), (200, ""));
    assert!(page.text().contains("Press the button if you meant to"), "{}", page.text());
    let once = path.split_once("once=").unwrap().1;
    let form = client.form("/login", &[("once", once), ("next", "/nodes")]);
    let entered = client.send(form.header("sec-fetch-site", "same-origin")).await;
    assert_eq!((entered.status.as_u16(), entered.header("location")), (303, "/nodes"));
    assert_eq!(cookie_of(&entered).len(), 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_takes_another_identifier_and_ends_the_one_of_before() {
    let server = Server::start().await;
    let person = Person::new(&server, "ada", "viewer").await;
    let body = json!({"email": person.email, "password": PASSWORD});
    let again = cookie_of(&person.post("/api/login", &body).await);
    assert_ne!(again, person.cookie);
    assert_eq!(person.get("/api/session").await.status, 401);
    let person = Person { cookie: again, ..person };
    assert_eq!(person.get("/api/session").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_listed_and_ended_by_its_owner_and_by_an_admin_only() {
    let server = Server::start().await;
    let client = server.client();
    let (ada, eve) = (
        Person::new(&server, "ada", "viewer").await,
        Person::new(&server, "eve", "operator").await,
    );
    let own: Value = serde_json::from_slice(&ada.get("/api/account").await.body).unwrap();
    assert_eq!((&own["email"], &own["role"]), (&json!(ada.email), &json!("viewer")));
    let session = text(&own["sessions"][0], "id");
    assert_eq!(own["sessions"][0]["address"], "127.0.0.1");
    let path = format!("/api/account/sessions/{session}/revoke");
    assert_eq!(eve.post(&path, &json!({})).await.status, 404, "another's");
    assert_eq!(client.post(&path, &json!({})).await.0, 404, "a program has none");
    assert_eq!(ada.get("/api/session").await.status, 200);
    let all = client.read("/api/sessions").await;
    assert_eq!(all["sessions"].as_array().unwrap().len(), 2);
    assert!(!all.to_string().contains(&ada.cookie), "no secret");
    assert_eq!(ada.post(&path, &json!({})).await.status, 200);
    assert_eq!(ada.get("/api/session").await.status, 401);
    assert_eq!(client.post(&format!("/api/sessions/{session}/revoke"), &json!({})).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_changed_and_the_log_says_by_whom_and_no_address() {
    let server = Server::start().await;
    let client = server.client();
    let admin = Person::new(&server, "root", "admin").await;
    let person = Person::new(&server, "ada", "viewer").await;
    let at = |what: &str| format!("/api/accounts/{}/{what}", person.id);
    for (path, body, status) in [
        (
            "/api/accounts".to_owned(),
            json!({"email": "ADA@example.com", "password": PASSWORD, "role": "viewer"}),
            409,
        ),
        (
            "/api/accounts".to_owned(),
            json!({"email": "ada", "password": PASSWORD, "role": "viewer"}),
            422,
        ),
        (
            "/api/accounts".to_owned(),
            json!({"email": "b@c.d", "password": "short", "role": "viewer"}),
            422,
        ),
        (
            "/api/accounts".to_owned(),
            json!({"email": "b@c.d", "password": PASSWORD, "role": "root"}),
            400,
        ),
        (at("role"), json!({"role": "viewer"}), 409),
        (at("role"), json!({"role": "auditor"}), 200),
        (at("password"), json!({"password": "another long password"}), 200),
        (at("disable"), json!({}), 200),
        (at("disable"), json!({}), 409),
        (at("enable"), json!({}), 200),
        (format!("/api/accounts/{NOTHING}/disable"), json!({}), 404),
    ] {
        let answer = admin.post(&path, &body).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text());
    }
    let own = json!({"current": "wrong", "password": "yet another password"});
    assert_eq!(admin.post("/api/account/password", &own).await.status, 422);
    let events = client.read(&format!("/api/events?stream={}", person.id)).await;
    let told: Vec<_> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| (text(event, "type"), text(&event["metadata"], "actor")))
        .collect();
    let (admin_id, own) = (format!("account:{}", admin.id), format!("account:{}", person.id));
    let expected = [
        ("AccountCreated", "token:dev"),
        ("SessionBegan", &own),
        ("AccountRoleChanged", &admin_id),
        ("PasswordChanged", &admin_id),
        ("AccountDisabled", &admin_id),
        ("AccountEnabled", &admin_id),
    ];
    assert_eq!(told, expected.map(|(kind, actor)| (kind.to_owned(), actor.to_owned())));
    let log = json!(client.events().await).to_string();
    for secret in ["@example.com", PASSWORD, "another long password", &person.cookie] {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_admins_do_not_end_each_other_at_once() {
    let server = Server::start().await;
    let client = server.client();
    let owner = sql(&server.database_url()).await;
    let (ada, eve) =
        (Person::new(&server, "ada", "admin").await, Person::new(&server, "eve", "admin").await);
    // Of those who may log in, these two are left; programs do not count.
    let disable = "UPDATE account SET disabled_at = now() WHERE email = 'admin@localhost'";
    owner.execute(disable, &[]).await.unwrap();
    for _ in 0..5 {
        let path = |person: &Person, what: &str| format!("/api/accounts/{}/{what}", person.id);
        let (to_ada, to_eve) = (path(&ada, "disable"), path(&eve, "disable"));
        let none = json!({});
        let (a, b) = tokio::join!(client.post(&to_ada, &none), client.post(&to_eve, &none));
        let mut statuses = [a.0.as_u16(), b.0.as_u16()];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409], "{} {}", a.1, b.1);
        let disabled = if a.0 == 200 { &ada } else { &eve };
        assert_eq!(client.post(&path(disabled, "enable"), &none).await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_narrowed_runs_out_and_tells_its_last_use_to_the_minute() {
    let server = Server::start().await;
    let client = server.client();
    let reads = json!({"name": "graphs", "role": "admin", "scopes": ["see"]});
    let (id, secret) = token(&client, &reads).await;
    let ask = async |path: &str| {
        client.send(client.request(Method::GET, path).bearer_auth(&secret)).await.status.as_u16()
    };
    assert_eq!([ask("/api/agents").await, ask("/api/events").await], [200, 403]);
    // Where a parameter takes another right, the route's own is still taken.
    let reads_events = json!({"name": "tail", "role": "admin", "scopes": ["events"]});
    let (_, tail) = token(&client, &reads_events).await;
    for (path, status) in [("/api/stream?agent=all&events=all", 403), ("/api/events", 200)] {
        let request = client.request(Method::GET, path).bearer_auth(&tail);
        assert_eq!(client.send(request).await.status, status, "{path}");
    }
    assert_eq!(ask("/api/stream?agent=all&events=all").await, 403);
    let used = async || {
        let tokens = client.read("/api/tokens").await;
        let tokens = tokens["tokens"].as_array().unwrap().clone();
        tokens.into_iter().find(|token| token["id"] == *id).unwrap()["last_used_at"].clone()
    };
    let first: Timestamp = used().await.as_str().unwrap().parse().unwrap();
    assert_eq!(ask("/api/agents").await, 200);
    assert_eq!(used().await, json!(first), "not at every request");
    let owner = sql(&server.database_url()).await;
    let update =
        "UPDATE api_token SET last_used_at = now() - interval '61 s' WHERE name = 'graphs'";
    owner.execute(update, &[]).await.unwrap();
    assert_eq!(ask("/api/agents").await, 200);
    let later: Timestamp = used().await.as_str().unwrap().parse().unwrap();
    assert!(later >= first, "{later}");
    owner
        .execute("UPDATE api_token SET expires_at = now() WHERE name = 'graphs'", &[])
        .await
        .unwrap();
    assert_eq!(ask("/api/agents").await, 401, "it has run out");
    // One that has run out makes room for its successor; one in force does not.
    token(&client, &reads).await;
    for (body, status) in [
        (reads.clone(), 409),
        (json!({"name": "a b", "role": "viewer"}), 422),
        (json!({"name": "x", "role": "viewer", "expires_at": "2020-01-01T00:00:00Z"}), 422),
        (json!({"name": "x", "role": "viewer", "scopes": ["all"]}), 400),
        (json!({"name": "x"}), 400),
    ] {
        assert_eq!(client.post("/api/tokens", &body).await.0, status, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_https_cookies_and_pages_are_strict() {
    let env = vec![("MILEPOST_PUBLIC_URL", "https://milepost.example".to_owned())];
    let server = Server::with(Options { env, ..Options::default() }).await;
    let client = server.client();
    let body = json!({"email": "admin@localhost", "password": server.ready("admin_password")});
    let answer = client.send(client.request(Method::POST, "/api/login").json(&body)).await;
    assert!(answer.header("set-cookie").ends_with("; Max-Age=86400; Secure"));
    for path in ["/login", "/api/session", "/nowhere", "/healthz"] {
        let answer = client.send(client.request(Method::GET, path)).await;
        for (name, value) in [
            ("strict-transport-security", "max-age=31536000"),
            ("x-frame-options", "DENY"),
            ("x-content-type-options", "nosniff"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-embedder-policy", "require-corp"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(answer.header(name), value, "{path}: {name}");
        }
        assert!(answer.header("permissions-policy").contains("geolocation=()"));
        assert!(answer.header("content-security-policy").contains("frame-ancestors 'none'"));
    }
    let without = Server::start().await;
    let plain = without.client();
    let answer = plain.send(plain.request(Method::GET, "/login")).await;
    assert_eq!(answer.header("strict-transport-security"), "", "not without HTTPS");
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_look_after_accounts_without_scripts() {
    let server = Server::start().await;
    let admin = Person::new(&server, "root", "admin").await;
    let client = server.client();
    let submit = async |path: &str, fields: &[(&str, &str)]| {
        let form = client.form(path, fields).header("sec-fetch-site", "same-origin");
        client.send(form.header("cookie", format!("session_token={}", admin.cookie))).await
    };
    let fields = [("email", "ada@example.com"), ("password", PASSWORD), ("role", "operator")];
    let made = submit("/accounts", &fields).await;
    let id = made.header("location").strip_prefix("/accounts#account-").unwrap().to_owned();
    let fields = [("name", "deploy"), ("role", "operator"), ("scope", "read"), ("days", "30")];
    let shown = submit("/tokens", &fields).await;
    assert_eq!(shown.status, 200);
    let secret = shown.text().split("<code>mp_").nth(1).unwrap().split('<').next().unwrap();
    let secret = format!("mp_{secret}");
    let session = client.request(Method::GET, "/api/session").bearer_auth(&secret);
    let session = client.send(session).await.into_json().1;
    assert_eq!(session["rights"], json!(["see", "events"]), "an operator who only reads");
    let page = admin.get("/accounts").await;
    for words in ["ada@example.com", "deploy", "only see, events, audit", "This browser"] {
        assert!(page.text().contains(words), "{words}");
    }
    assert!(!page.text().contains(&secret), "it was shown once");
    for (path, fields) in [
        (format!("/accounts/{id}/role"), vec![("role", "viewer")]),
        (format!("/accounts/{id}/disable"), vec![]),
        (format!("/accounts/{id}/enable"), vec![]),
        (
            "/account/password".to_owned(),
            vec![("current", PASSWORD), ("password", "another long password")],
        ),
    ] {
        let answer = submit(&path, &fields).await;
        let status = if path == "/account/password" { 200 } else { 303 };
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        assert_eq!(answer.text().contains("The password was changed"), status == 200);
    }
    let account = admin.get("/account?changed=password").await;
    assert!(!account.text().contains("The password was changed"), "a link says so");
    // An event's actor is an id in the log, and a person's address on a page.
    let agent = submit("/agents", &[("name", "mari"), ("region", "eu-north")]).await;
    let page = admin.get(agent.header("location")).await;
    assert!(page.text().contains("account:root@example.com"), "{}", page.text());
    // And is searched for by either.
    for said in [admin.id.clone(), "Root%40example.com".to_owned()] {
        let found =
            client.read(&format!("/api/events?type=AgentCreated&actor=account:{said}")).await;
        let actor = format!("account:{}", admin.id);
        assert_eq!(found["events"][0]["metadata"]["actor"], actor, "{said}: {found}");
        let page = admin.get(&format!("/events?type=AgentCreated&actor=account:{said}")).await;
        assert_eq!(page.text().matches("<li class=\"event\"").count(), 2, "and the blank one");
    }
    let page = admin.get("/events?actor=account:root%40example.com").await;
    let follows = format!("data-actor=\"account:{}\"", admin.id);
    assert!(page.text().contains(&follows), "{}", page.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_calls_people_as_its_scripts_will() {
    let server = Server::start().await;
    let admin = Person::new(&server, "root", "admin").await;
    let viewer = Person::new(&server, "vera", "viewer").await;
    let (_, job) = server.client().job("mari").await;
    let cancelled = admin.post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    assert_eq!(cancelled.status, 202, "{}", cancelled.text());
    let path = format!("/jobs/{job}");
    // Whoever reads no events is told no names: the stream has none for them either.
    for (reader, by) in [(&admin, &admin.email), (&viewer, &admin.id)] {
        let page = reader.get(&path).await;
        assert!(page.text().contains(&format!("account:{by}")), "{by}: {}", page.text());
    }
    assert!(!viewer.get(&path).await.text().contains(&admin.email));
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_and_tokens_are_looked_after_from_the_command_line() {
    let server = Server::start().await;
    let client = server.client();
    let milepost = async |arguments: &[&str], input: &str| {
        use tokio::io::AsyncWriteExt as _;
        let mut child = tokio::process::Command::new(MILEPOST)
            .args(arguments)
            .env("DATABASE_URL", server.database_url())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // One that reads nothing may have ended by now.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()).await);
        let ran = child.wait_with_output().await.unwrap();
        let (out, err) = (ran.stdout, String::from_utf8(ran.stderr).unwrap());
        if ran.status.success() { Ok(String::from_utf8(out).unwrap()) } else { Err(err) }
    };
    let email = "ada@example.com";
    milepost(&["user", "create", email, "--role", "auditor"], PASSWORD).await.unwrap();
    let again =
        milepost(&["user", "create", email, "--role", "admin"], PASSWORD).await.unwrap_err();
    assert!(again.contains("has an account already"), "{again}");
    let person = enter(&client, email, PASSWORD).await;
    assert!(milepost(&["user", "list"], "").await.unwrap().contains("auditor   ada@example.com"));
    milepost(&["user", "role", email, "operator"], "").await.unwrap();
    let session = client.request(Method::GET, "/api/session");
    let session = session.header("cookie", format!("session_token={person}"));
    assert_eq!(client.send(session).await.status, 401);
    milepost(&["user", "password", email], "another long password\n").await.unwrap();
    enter(&client, email, "another long password").await;
    milepost(&["user", "disable", email], "").await.unwrap();
    assert_eq!(try_to_enter(&client, email, "another long password").await.status, 401);
    milepost(&["user", "disable", "--undo", email], "").await.unwrap();
    assert!(
        milepost(&["user", "disable", "admin@localhost"], "")
            .await
            .unwrap_err()
            .contains("last admin")
    );
    let make =
        ["token", "create", "ci", "--role", "auditor", "--scope", "read", "--expires", "30d"];
    let secret = milepost(&make, "").await.unwrap().trim().to_owned();
    let ask = async |path: &str| {
        client.send(client.request(Method::GET, path).bearer_auth(&secret)).await.status.as_u16()
    };
    assert_eq!([ask("/api/accounts").await, ask("/api/sessions").await], [200, 403]);
    let listed = milepost(&["token", "list"], "").await.unwrap();
    assert!(listed.contains("auditor   ci  only see,events,audit"), "{listed}");
    assert!(!listed.contains(&secret));
    milepost(&["token", "revoke", "ci"], "").await.unwrap();
    assert_eq!(ask("/api/accounts").await, 401);
    let told = client.read("/api/events?type=TokenRevoked").await;
    assert_eq!(told["events"][0]["metadata"]["actor"], "system:cli");
}
