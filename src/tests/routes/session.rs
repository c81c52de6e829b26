//! Who may come in: `/api/login`, `/api/logout`, `/api/session`, tokens, links, and every route.

use jiff::SignedDuration;
use milepost::accounts;
use milepost::app::Clock;
use milepost::http::ROUTES;
use milepost::http::access::Needs;
use milepost::log::Database;
use reqwest::Method;
use serde_json::{Value, json};

use super::{cookie_of, log_in};
use crate::harness::{Answer, Client, Server, sql};

const EMAIL: &str = "admin@localhost";

/// Routes that ask nobody who they are: those that begin and end a session, those that prove
/// themselves by a signature, and those that load balancers ask.
const OPEN: &[&str] = &[
    "/api/webhooks/github",
    "/api/login",
    "/api/logout",
    // What proves the log, and tells nothing of what is in it.
    "/log/checkpoint",
    "/log/keys",
    "/log/tile/{*path}",
    "/healthz",
    "/readyz",
];

async fn who(client: &Client, cookie: &str) -> Answer {
    let request = client.request(Method::GET, "/api/session");
    client.send(request.header("cookie", format!("session_token={cookie}"))).await
}

fn database(server: &Server) -> Database {
    Database::new(&server.database_url()).unwrap()
}

async fn link(server: &Server, made_before: SignedDuration) -> String {
    let made_at = Clock.now() - made_before;
    accounts::make_link(&database(server), EMAIL, made_at).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_asks_who_it_is_but_those_that_cannot() {
    let server = Server::start().await;
    let client = server.client();
    for (path, methods) in ROUTES.iter().filter(|(path, _)| !OPEN.contains(path)) {
        let path = path.replace("{id}", "019ab0c2-7d2a-7a41-8c33-5b1f0d9e7a02");
        for (method, needs) in *methods {
            assert_ne!(*needs, Needs::Nobody, "{path}");
            let method: Method = method.to_uppercase().parse().unwrap();
            for (name, value) in [
                ("x-nothing", ""),
                ("authorization", "Bearer mp_wrong"),
                ("authorization", "Bearer "),
                ("authorization", "Basic YWRtaW46YWRtaW4="),
                ("cookie", "session_token=wrong"),
                ("cookie", "session_token="),
                ("x-signature", "00"),
            ] {
                let request = client.request(method.clone(), &path).header(name, value);
                let answer = client.send(request).await;
                assert_eq!(answer.status, 401, "{method} {path} with {name}: {value}");
            }
        }
    }
    for path in OPEN {
        let (_, methods) = ROUTES.iter().find(|(route, _)| route == path).unwrap();
        assert!(methods.iter().all(|(_, needs)| *needs == Needs::Nobody), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_until_it_is_revoked() {
    let server = Server::start().await;
    let client = server.client();
    let database = database(&server);
    accounts::ensure_token(&database, "monitor", "mp_secret").await.unwrap();
    let ask = async |token: &str| {
        let request = client.request(Method::GET, "/api/session").bearer_auth(token);
        client.send(request).await.into_json()
    };
    let (status, session) = ask("mp_secret").await;
    assert_eq!(status, 200);
    let rights = ["see", "events", "audit", "operate", "administer"];
    let (actor, nothing) = ("token:monitor", Value::Null);
    assert_eq!(
        session,
        json!({"actor": actor, "email": nothing, "role": "admin", "rights": rights, "expires_at": nothing})
    );
    assert_eq!(ask("mp_secret_not").await.0, 401);
    let small = client.request(Method::GET, "/api/session");
    let small = small.header("authorization", "bearer mp_secret");
    assert_eq!(client.send(small).await.status, 200, "a scheme is the same in small letters");
    accounts::ensure_token(&database, "monitor", "mp_another").await.unwrap();
    assert_eq!(ask("mp_secret").await.0, 401, "it was replaced");
    assert_eq!(ask("mp_another").await.0, 200);
    let id = accounts::token_named(&database, "monitor").await.unwrap().unwrap();
    let metadata = accounts::by_command_line(id.0);
    assert!(accounts::revoke_token(&database, id, &metadata).await.unwrap());
    assert_eq!(ask("mp_another").await.0, 401, "it was revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_begins_with_a_password_and_ends_with_a_log_out() {
    let server = Server::start().await;
    let client = server.client();
    let cookie = log_in(&server).await;
    let other = log_in(&server).await;
    assert_ne!(cookie, other);
    let (status, session) = who(&client, &cookie).await.into_json();
    assert_eq!((status.as_u16(), &session["email"]), (200, &json!(EMAIL)));
    let expires_at: jiff::Timestamp = session["expires_at"].as_str().unwrap().parse().unwrap();
    let left = expires_at.duration_since(Clock.now());
    assert!(left > SignedDuration::from_mins(23 * 60 + 50), "{left}");
    assert!(left <= SignedDuration::from_hours(24), "{left}");
    let log_out = client.request(Method::POST, "/api/logout");
    let answer = client.send(log_out.header("cookie", format!("session_token={cookie}"))).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "{\"success\":true}"));
    assert_eq!(cookie_of(&answer), "");
    assert_eq!(who(&client, &cookie).await.status, 401, "at once");
    assert_eq!(who(&client, &other).await.status, 200, "the other browser stays");
    // To end what has ended is no error.
    let log_out = client.request(Method::POST, "/api/logout");
    assert_eq!(client.send(log_out).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_after_its_time() {
    let server = Server::start().await;
    let client = server.client();
    let cookie = log_in(&server).await;
    let owner = sql(&server.database_url()).await;
    owner.batch_execute("UPDATE session SET expires_at = now()").await.unwrap();
    assert_eq!(who(&client, &cookie).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_tells_nothing() {
    let server = Server::start().await;
    let client = server.client();
    let log_in = async |email: &str, password: &str| {
        let request = client.request(Method::POST, "/api/login");
        client.send(request.json(&json!({"email": email, "password": password}))).await
    };
    let known = log_in(EMAIL, "wrong").await;
    let unknown = log_in("nobody@localhost", "wrong").await;
    let long = log_in(EMAIL, &"p".repeat(1_025)).await;
    for answer in [&known, &unknown, &long] {
        assert_eq!((answer.status.as_u16(), &answer.body), (401, &known.body));
        assert_eq!(answer.header("set-cookie"), "");
    }
    // An address is the same in capitals.
    let right = log_in("Admin@LOCALHOST", &server.ready("admin_password")).await;
    assert_eq!(right.status, 200);
    for body in [json!({}), json!({"email": EMAIL}), json!({"email": 1, "password": 2})] {
        let request = client.request(Method::POST, "/api/login").json(&body);
        assert_eq!(client.send(request).await.status, 400, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_logs_in_once_and_within_the_hour() {
    let server = Server::start().await;
    let client = server.client();
    let open = async |link: &str| {
        client.send(client.request(Method::GET, &format!("/login?once={link}&next=/jobs/1"))).await
    };
    let once = link(&server, SignedDuration::ZERO).await;
    let answer = open(&once).await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (303, "/jobs/1"));
    assert_eq!(who(&client, &cookie_of(&answer)).await.status, 200);
    let old = link(&server, SignedDuration::from_mins(61)).await;
    for link in [&*once, &old, "wrong", ""] {
        let answer = open(link).await;
        assert_eq!(answer.status, 401, "{link}");
        assert_eq!(answer.header("set-cookie"), "", "{link}");
        assert!(answer.text().contains("This link has been used, or is too old"), "{link}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_for_a_proxy_does_not_hide_the_session() {
    let server = Server::start().await;
    let client = server.client();
    let cookie = format!("session_token={}", log_in(&server).await);
    for (credentials, status) in
        [("Basic cHJveHk6c2VjcmV0", 200), ("basic", 200), ("Bearer x", 401)]
    {
        let request = client.request(Method::GET, "/api/session").header("cookie", &cookie);
        let answer = client.send(request.header("authorization", credentials)).await;
        assert_eq!(answer.status, status, "{credentials}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_leads_nowhere_but_here() {
    let server = Server::start().await;
    let client = server.client();
    let password = server.ready("admin_password");
    for (next, expected) in [
        ("/agents/1?before=2", "/agents/1?before=2"),
        ("", "/"),
        ("https://evil.example/", "/"),
        ("//evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/ok\r\nSet-Cookie: a=b", "/"),
    ] {
        let fields = [("email", EMAIL), ("password", &*password), ("next", next)];
        let answer = client.send(client.form("/login", &fields)).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("location")),
            (303, expected),
            "{next:?}"
        );
        assert_eq!(cookie_of(&answer).len(), 64);
        let once = link(&server, SignedDuration::ZERO).await;
        let query: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
        let path = format!("/login?once={once}&next={query}");
        let answer = client.send(client.request(Method::GET, &path)).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("location")),
            (303, expected),
            "{next:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_of_another_site_is_refused() {
    let server = Server::start().await;
    let client = server.client();
    let cookie = log_in(&server).await;
    let host = client.url.strip_prefix("http://").unwrap().to_owned();
    let bodies: [(&str, Value); 3] = [
        ("/api/agents", json!({"name": "mari"})),
        ("/api/login", json!({"email": EMAIL, "password": server.ready("admin_password")})),
        ("/api/logout", json!({})),
    ];
    for (path, body) in &bodies {
        for (name, value) in [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("origin", "https://evil.example"),
            ("origin", "null"),
        ] {
            let request = client.request(Method::POST, path).json(body).header(name, value);
            let request = request.header("cookie", format!("session_token={cookie}"));
            let answer = client.send(request).await;
            assert_eq!(answer.status, 403, "{path} with {name}: {value}");
            assert!(answer.text().contains("urn:milepost:problem:forbidden"), "{}", answer.text());
        }
    }
    // A page's form is answered with a page.
    for path in ["/agents", "/login", "/logout"] {
        let form = client.form(path, &[("name", "mari")]).header("sec-fetch-site", "cross-site");
        let form = form.header("cookie", format!("session_token={cookie}"));
        let answer = client.send(form).await;
        assert_eq!(answer.status, 403, "{path}");
        assert!(answer.header("content-type").starts_with("text/html"), "{path}");
    }
    assert_eq!(client.read("/api/events?type=AgentCreated").await["events"], json!([]));
    assert_eq!(who(&client, &cookie).await.status, 200);
    let own = client.request(Method::POST, "/api/agents").json(&json!({"name": "mari"}));
    let own = own.header("origin", format!("http://{host}"));
    let answer = client.send(own.header("cookie", format!("session_token={cookie}"))).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let made = client.read("/api/events?type=AgentCreated").await;
    let (_, session) = who(&client, &cookie).await.into_json();
    assert_eq!(made["events"][0]["metadata"]["actor"], session["actor"]);
    // A program's token is not sent by any browser unasked.
    let program = client.request(Method::POST, "/api/agents").json(&json!({"name": "liis"}));
    let program = program.header("sec-fetch-site", "cross-site");
    let answer = client.send(program.header("authorization", client.authorization())).await;
    assert_eq!(answer.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_kept_as_hashes() {
    let server = Server::start().await;
    let cookie = log_in(&server).await;
    let link = link(&server, SignedDuration::ZERO).await;
    let owner = sql(&server.database_url()).await;
    let query = "SELECT encode(token_sha256, 'hex') FROM session \
         UNION ALL SELECT encode(token_sha256, 'hex') FROM login_link \
         UNION ALL SELECT encode(token_sha256, 'hex') FROM api_token \
         UNION ALL SELECT password_hash FROM account";
    let kept: Vec<String> =
        owner.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    // `dev` makes a link of its own when it starts.
    assert_eq!(kept.len(), 5);
    let (token, password) = (server.ready("admin_token"), server.ready("admin_password"));
    for secret in [&cookie, &link, &token, &password] {
        assert!(kept.iter().all(|kept| !kept.contains(secret.as_str())));
    }
    assert!(kept.last().unwrap().starts_with("$argon2id$"));
}
