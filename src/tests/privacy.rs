//! Personal data: sealed at rest, opened at the doors, and gone for good once it is erased.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use milepost::app::App;
use milepost::config::Config;
use milepost::domain::AgentCommand;
use milepost::execute;
use milepost::ledger::proof::includes;
use milepost::ledger::{Hash, note};
use milepost::log::Since;
use milepost_schemas::{AgentId, Metadata, Position, StreamId};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{
    Client, MASTER_KEY, MILEPOST, Options, Server, database, sql, text, wait_until,
};
use crate::ledger::{key, log, sealed};

/// Another master key.
const NEXT_MASTER_KEY: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

/// What is said of the agent and the node under test, each in a place of its own.
const NAME: &str = "ada-lovelace-9c41";
const STEP_IP: &str = "203.0.113.201";
const SERVER_IP: &str = "203.0.113.202";
const TAILSCALE_IP: &str = "100.77.66.55";
const LINE: &str = "TASK greets Augusta Byron";
const ERROR: &str = "no route to Ockham Park";
const REASON: &str = "Lord Byron called twice";
const HOSTNAME: &str = "marylebone.example.org";
const NODE_IP: &str = "203.0.113.203";
const SSH_USER: &str = "abyron";
const CLEAR: [&str; 10] =
    [NAME, STEP_IP, SERVER_IP, TAILSCALE_IP, LINE, ERROR, REASON, HOSTNAME, NODE_IP, SSH_USER];

/// An agent whose first job failed and whose second one succeeded, and a node.
struct Subjects {
    agent: String,
    failed: String,
    succeeded: String,
    node: String,
}

impl Subjects {
    async fn make(client: &Client) -> Self {
        let (agent, failed) = client.job(NAME).await;
        client.accept(json!({"job_id": failed, "status": "provisioning"})).await;
        let (step, metadata) = ("vm_created", json!({"server_ip": STEP_IP}));
        client
            .accept(json!({"job_id": failed, "status": "provisioning", "step": step,
                "metadata": metadata}))
            .await;
        client.accept(json!({"job_id": failed, "type": "log", "from": 1, "lines": [LINE]})).await;
        client.accept(json!({"job_id": failed, "status": "failed", "error": ERROR})).await;
        let cancel = json!({"reason": REASON});
        client.post(&format!("/api/jobs/{failed}/cancel"), &cancel).await;
        let order = client.post(&format!("/api/agents/{agent}/provision"), &json!({})).await;
        let succeeded = text(&order.1, "job_id");
        client.accept(json!({"job_id": succeeded, "status": "provisioning"})).await;
        client
            .accept(json!({"job_id": succeeded, "status": "running", "server_id": "4711",
                "server_ip": SERVER_IP, "tailscale_ip": TAILSCALE_IP}))
            .await;
        let node = json!({"hostname": HOSTNAME, "public_ip": NODE_IP, "ssh_user": SSH_USER});
        let (status, node) = client.post("/api/nodes", &node).await;
        assert_eq!(status, 201, "{node}");
        Self { agent, failed, succeeded, node: text(&node, "id") }
    }

    /// Everything that a reader can get of them, in one text.
    async fn shown(&self, client: &Client) -> String {
        let Self { agent, failed, succeeded, node } = self;
        let mut shown = String::new();
        for path in [
            "/api/agents".to_owned(),
            format!("/api/agents/{agent}"),
            format!("/api/agents/{agent}/instance"),
            "/api/jobs".to_owned(),
            format!("/api/jobs/{failed}"),
            format!("/api/jobs/{succeeded}"),
            format!("/api/jobs/{failed}/log"),
            format!("/api/jobs/{failed}/log.txt"),
            "/api/nodes".to_owned(),
            format!("/api/nodes/{node}"),
            "/api/events?limit=1000".to_owned(),
            "/".to_owned(),
            format!("/agents/{agent}"),
            format!("/jobs/{failed}"),
            "/nodes".to_owned(),
            format!("/nodes/{node}"),
        ] {
            let request = client.request(Method::GET, &path).bearer_auth(&client.token);
            let answer = client.send(request).await;
            assert_eq!(answer.status, 200, "{path}");
            shown.push_str(answer.text());
        }
        let events = client.events().await.len();
        let beginning = client.beginning().await;
        let mut stream = client.stream("/api/events/stream", Some(&beginning)).await;
        for _ in 0..events {
            shown.push_str(&stream.next_named("recorded").await.data);
        }
        let path = format!(
            "/api/stream?agent={agent}&agent=all&job={failed}&node={node}&node=all&log={failed}"
        );
        let mut stream = client.stream(&path, Some(&beginning)).await;
        loop {
            let message = stream.next().await.unwrap();
            shown.push_str(&message.data);
            if message.event == "bookmark" {
                return shown;
            }
        }
    }
}

impl Client {
    /// Delivers a callback that is taken.
    async fn accept(&self, body: Value) {
        let (status, answer) = self.deliver(body).await;
        assert_eq!(status, 200, "{answer}");
    }

    async fn erase(&self, subject: &str) -> Value {
        let body = json!({"subject": subject, "reason": "request 17"});
        let (status, erased) = self.post("/api/privacy/erase", &body).await;
        assert_eq!(status, 200, "{erased}");
        erased
    }

    async fn name_of(&self, agent: &str) -> String {
        text(&self.read(&format!("/api/agents/{agent}")).await, "name")
    }
}

/// Every event's bytes, in order.
async fn stored(url: &str) -> Vec<(i64, Vec<u8>, Vec<u8>)> {
    let client = sql(url).await;
    let events = "SELECT position, header, body FROM event ORDER BY position";
    let rows = client.query(events, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

async fn wrapped(url: &str, subject: &str) -> Option<Vec<u8>> {
    let subject: Uuid = subject.parse().unwrap();
    let client = sql(url).await;
    let key = "SELECT wrapped FROM data_key WHERE stream_id = $1";
    client.query_one(key, &[&subject]).await.unwrap().get(0)
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Ok(kind) = std::fs::symlink_metadata(&path) else { continue };
        if kind.is_dir() {
            files(&path, found);
        } else if kind.is_file() {
            found.push(path);
        }
    }
}

/// The files below some folders that hold these bytes.
fn holding(folders: &[PathBuf], bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in folders {
        files(folder, &mut found);
    }
    // Postgres removes files of its own while this looks.
    let holds = |path: &PathBuf| {
        std::fs::read(path).is_ok_and(|file| memchr::memmem::find(&file, bytes).is_some())
    };
    found.into_iter().filter(holds).collect()
}

#[tokio::test]
async fn erased_data_is_in_no_file_no_answer_no_stream_and_no_log() {
    let server = Server::with(Options { embedded: true, ..Options::default() }).await;
    let (client, url) = (server.client(), server.database_url());
    let subjects = Subjects::make(&client).await;
    let shown = subjects.shown(&client).await;
    for clear in CLEAR {
        assert!(shown.contains(clear), "{clear} is not shown");
    }
    assert!(!shown.contains("mp1."), "a sealed text got out");

    let database = sql(&url).await;
    let cluster: String = database.query_one("SHOW data_directory", &[]).await.unwrap().get(0);
    let folders = [server.dir().to_owned(), PathBuf::from(cluster)];
    database.batch_execute("CHECKPOINT").await.unwrap();
    // The search finds what is there: a step's name, and the key in its table.
    let key = wrapped(&url, &subjects.agent).await.unwrap();
    assert!(!holding(&folders, b"vm_created").is_empty());
    let in_tables = |bytes: &[u8]| {
        let files = holding(&folders, bytes);
        files.into_iter().filter(|file| !file.to_string_lossy().contains("pg_wal")).count()
    };
    assert!(in_tables(&key) > 0, "the key is in no table");
    // Sealed before it was stored: it is in no row, index, dead tuple or piece of write-ahead log.
    for clear in CLEAR {
        let files = holding(&folders, clear.as_bytes());
        assert!(files.is_empty(), "{clear} is in {files:?}");
    }

    let before = stored(&url).await;
    for subject in [&subjects.agent, &subjects.node] {
        let erased = client.erase(subject).await;
        assert_eq!(erased["vacuumed"], true);
        assert_eq!(client.erase(subject).await["position"], erased["position"], "once is enough");
    }
    for statement in ["VACUUM", "CHECKPOINT"] {
        database.batch_execute(statement).await.unwrap();
    }
    assert_eq!(stored(&url).await[..before.len()], before, "what is stored was changed");
    assert_eq!(in_tables(&key), 0, "the key is still in a table");

    let shown = subjects.shown(&client).await;
    for clear in CLEAR {
        assert!(!shown.contains(clear), "{clear} is shown");
        let files = holding(&folders, clear.as_bytes());
        assert!(files.is_empty(), "{clear} is in {files:?}");
    }
    assert!(shown.contains("[erased]") && !shown.contains("mp1."), "{shown}");
    let last = client.events().await.pop().unwrap();
    assert_eq!(last["type"], "PersonalDataErased");
    assert_eq!(last["data"]["kind"], "node");
    assert_eq!(last["data"]["erased_by"], "token:dev");
    assert_eq!(last["data"]["reason"], "request 17");
}

#[tokio::test]
async fn an_erased_log_is_proven_event_by_event_and_its_exports_hold_none_of_it() {
    let server = Server::start().await;
    let client = server.client();
    let subjects = Subjects::make(&client).await;
    let (_, before) = sealed(&client).await;
    for subject in [&subjects.agent, &subjects.node] {
        client.erase(subject).await;
    }
    let (size, note) = sealed(&client).await;
    let key = key(&client).await;
    let kept = server.dir().join("kept");
    std::fs::write(&kept, before).unwrap();
    let secret = server.ready("callback_secret");
    let arguments =
        ["verify", "--callback-secrets", &secret, "--checkpoint", kept.to_str().unwrap()];
    let (code, words) = log(&server, &arguments).await;
    assert_eq!(code, Some(0), "{words}");

    let signed = note::open(&note, std::slice::from_ref(&key)).unwrap();
    let Subjects { agent, failed, succeeded, node } = &subjects;
    let streams = [agent, failed, succeeded, node];
    let events = client.events().await;
    let of_subjects = |event: &&Value| streams.iter().any(|stream| event["stream"] == **stream);
    let positions: Vec<u64> = events
        .iter()
        .filter(of_subjects)
        .map(|event| event["position"].as_u64().unwrap())
        .collect();
    assert!(positions.len() > streams.len(), "{positions:?}");
    for position in positions {
        let path = format!("/api/proofs/inclusion?position={position}&size={size}");
        let proof = client.read(&path).await;
        let leaf = STANDARD.decode(text(&proof, "leaf")).unwrap();
        let hashes = proof["hashes"].as_array().unwrap().iter();
        let hashes: Vec<Hash> = hashes.map(|it| it.as_str().unwrap().parse().unwrap()).collect();
        let hash = Hash::of_leaf(&leaf);
        assert!(includes(position - 1, signed.size, hash, signed.root, &hashes), "{position}");
        for clear in CLEAR {
            assert!(memchr::memmem::find(&leaf, clear.as_bytes()).is_none(), "{clear}");
        }
    }

    for format in ["jsonl", "cloudevents"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        let (code, words) = log(&server, &["export", path, "--format", format]).await;
        assert_eq!(code, Some(0), "{words}");
        let folders = [directory.path().to_owned()];
        assert!(!holding(&folders, b"vm_created").is_empty(), "the search finds nothing");
        for clear in CLEAR {
            let files = holding(&folders, clear.as_bytes());
            assert!(files.is_empty(), "{clear} is in {files:?}");
        }
        let verify = ["verify", "--bundle", path, "--key", &key.to_string()];
        let (code, words) = log(&server, &verify).await;
        assert_eq!(code, Some(0), "{words}");
    }
}

#[tokio::test]
async fn what_is_said_of_an_erased_subject_later_is_erased_at_once() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job(NAME).await;
    client.erase(&agent).await;
    client.accept(json!({"job_id": job, "status": "failed", "error": ERROR})).await;
    let failed = client.events().await.pop().unwrap();
    assert_eq!(failed["data"]["error_message"], "[erased]");
    assert_eq!(failed["metadata"].get("body"), None);
    assert!(failed["metadata"]["body_sha256"].is_string(), "its signature can still be checked");
}

#[tokio::test]
async fn every_process_forgets_a_key_with_the_event_that_erases_it() {
    let first = Server::start().await;
    let second = Server::beside(&first).await;
    let (here, there) = (first.client(), second.client());
    let (agent, job) = here.job(NAME).await;
    here.accept(json!({"job_id": job, "status": "failed", "error": ERROR})).await;
    let beginning = there.beginning().await;
    // The second process has the key in memory, an opened state and an opened frame of the ring.
    let mut states = there.stream(&format!("/api/jobs/{job}/stream"), None).await;
    assert!(states.next_named("job").await.data.contains(ERROR));
    let mut events = there.stream("/api/events/stream", Some(&beginning)).await;
    assert!(events.next_named("recorded").await.data.contains(NAME));
    assert_eq!(there.name_of(&agent).await, NAME);

    let begun = std::time::Instant::now();
    here.erase(&agent).await;
    assert_eq!(here.name_of(&agent).await, "[erased]");
    while events.next_named("recorded").await.json()["type"] != "PersonalDataErased" {}
    println!("the second process had the event after {:?}", begun.elapsed());
    assert_eq!(there.name_of(&agent).await, "[erased]");
    let mut again = there.stream("/api/events/stream", Some(&beginning)).await;
    assert!(again.next_named("recorded").await.data.contains("[erased]"));
    // The failure's own state may still be on its way.
    let mut state = states.next_named("job").await.data;
    while !state.contains("[erased]") {
        state = states.next_named("job").await.data;
    }
    assert!(!state.contains(ERROR), "{state}");
}

#[tokio::test]
async fn a_key_is_gone_if_and_only_if_that_is_recorded() {
    let mut server = Server::start().await;
    let url = server.database_url();
    let recorded = async |subject: &str| {
        let client = sql(&url).await;
        let subject: Uuid = subject.parse().unwrap();
        let events = "SELECT FROM event WHERE stream_id = $1 AND type = 120";
        !client.query(events, &[&subject]).await.unwrap().is_empty()
    };
    for _ in 0..4 {
        let client = server.client();
        let agent = client.agent(NAME).await;
        assert!(wrapped(&url, &agent).await.is_some() && !recorded(&agent).await);
        let body = json!({"subject": agent, "reason": "request 17"});
        let erase = client.request(Method::POST, "/api/privacy/erase").bearer_auth(&client.token);
        // The process ends at some moment of it.
        let (_, ()) = tokio::join!(erase.json(&body).send(), server.kill());
        server.restart().await;
        assert_eq!(wrapped(&url, &agent).await.is_none(), recorded(&agent).await);
        server.client().erase(&agent).await;
        assert!(wrapped(&url, &agent).await.is_none() && recorded(&agent).await);
        assert_eq!(server.client().name_of(&agent).await, "[erased]");
    }
    // Neither does anything else take a key away, nor a transaction that came to nothing.
    let agent = server.client().agent(NAME).await;
    let owner = sql(&url).await;
    let insert = format!(
        "BEGIN; INSERT INTO event SELECT size + 1, '{agent}', 9, 120, 1, now(), '{{}}', '{{}}' \
         FROM log_head; ROLLBACK"
    );
    owner.batch_execute(&insert).await.unwrap();
    assert!(wrapped(&url, &agent).await.is_some());
    owner.batch_execute("SET ROLE milepost_app").await.unwrap();
    for statement in ["UPDATE data_key SET wrapped = NULL", "DELETE FROM data_key"] {
        let refused = owner.batch_execute(statement).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{statement}");
    }
}

/// Opens the log of a database with these master keys.
async fn open(url: &str, master_keys: &str) -> Result<std::sync::Arc<App>, String> {
    let config =
        Config::of_tool(url.to_owned(), master_keys.split(',').map(str::to_owned).collect());
    App::open(config, CancellationToken::new()).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn what_goes_to_the_feed_is_what_is_stored() {
    let url = database().await;
    let app = open(&url, MASTER_KEY).await.unwrap();
    let agent_id = AgentId(app.clock.id());
    let actor = "system:test".to_owned();
    let metadata =
        Metadata { actor, correlation_id: agent_id.0, causation_id: None, callback: None };
    let command = AgentCommand::Create { agent_id, name: NAME.to_owned(), region: None };
    execute::to_agent(&app, agent_id, command, metadata).await.unwrap();
    let Since::Events(events) = app.log.feed().since(Position::START, 10) else { panic!() };
    assert_eq!(events.len(), 1);
    let body = serde_json::to_vec(events[0].event().unwrap()).unwrap();
    assert_eq!((&*events[0].body, &body), (&*body, &stored(&url).await[0].2));
    assert!(memchr::memmem::find(&body, NAME.as_bytes()).is_none());
}

#[tokio::test]
async fn the_master_key_is_changed_without_a_key_being_lost() {
    let server = Server::start().await;
    let (client, url) = (server.client(), server.database_url());
    let agent = client.agent(NAME).await;
    let erased = client.agent("another").await;
    client.erase(&erased).await;
    let old = wrapped(&url, &agent).await.unwrap();
    let ended = tokio::process::Command::new(MILEPOST)
        .args(["privacy", "rewrap"])
        .env("DATABASE_URL", &url)
        .env("MILEPOST_MASTER_KEY", format!("{NEXT_MASTER_KEY},{MASTER_KEY}"))
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "1 keys wrapped anew\n");
    assert_ne!(wrapped(&url, &agent).await.unwrap(), old);
    assert!(wrapped(&url, &erased).await.is_none());
    says_so_where_it_may_not_rewrite_the_table(&url).await;
    // The old key opens nothing here any more, and a server with it does not start.
    let refused = open(&url, MASTER_KEY).await.map(|_| ()).unwrap_err();
    assert!(refused.contains("no master key given"), "{refused}");
    let env = vec![("MILEPOST_MASTER_KEY", NEXT_MASTER_KEY.to_owned())];
    let options = Options { database_url: Some(url), env, ..Options::default() };
    let renewed = Server::with(options).await;
    assert_eq!(renewed.client().name_of(&agent).await, NAME);
    assert_eq!(renewed.client().name_of(&erased).await, "[erased]");
}

/// Who does not own the table leaves the old keys in its file, and must not say otherwise.
async fn says_so_where_it_may_not_rewrite_the_table(url: &str) {
    let owner = sql(url).await;
    let names = owner.query_one("SELECT current_user::text, current_database()::text", &[]).await;
    let names = names.unwrap();
    let role = format!("reader_of_{}", names.get::<_, &str>(1));
    let create = format!("CREATE ROLE {role} LOGIN PASSWORD 'reader' IN ROLE milepost_app");
    owner.batch_execute(&create).await.unwrap();
    let (_, place) = url.split_once('@').unwrap();
    let ended = tokio::process::Command::new(MILEPOST)
        .args(["privacy", "rewrap"])
        .env("DATABASE_URL", format!("postgresql://{role}:reader@{place}"))
        .env("MILEPOST_MASTER_KEY", NEXT_MASTER_KEY)
        .output()
        .await
        .unwrap();
    owner.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    let words = format!("Run this again as the role {}", names.get::<_, &str>(0));
    assert!(!ended.status.success() && said.contains(&words), "{said}");
}

#[tokio::test]
async fn a_pause_whose_words_are_erased_still_holds_now_and_in_the_past() {
    let server = Server::start().await;
    let client = server.client();
    client.post("/api/queue/pause", &json!({"reason": REASON})).await;
    client.erase(&StreamId::QUEUE.to_string()).await;
    let erased = client.events().await.len();
    client.agent("another").await;
    for path in ["/api/queue".to_owned(), format!("/api/queue?at={erased}")] {
        let paused = &client.read(&path).await["paused"];
        assert_eq!((&paused["reason"], &paused["by"]), (&"[erased]".into(), &"token:dev".into()));
    }
    let overview = client.request(Method::GET, "/").bearer_auth(&client.token);
    assert!(client.send(overview).await.text().contains("The queue is paused."));
    assert_eq!(client.post("/api/queue/pause", &json!({"reason": "again"})).await.0, 409);
    assert_eq!(client.post("/api/queue/resume", &json!({})).await.0, 200);
    assert_eq!(client.read("/api/queue").await["paused"], Value::Null);
    let past = client.read(&format!("/api/queue?at={erased}")).await;
    assert_eq!(past["paused"]["reason"], "[erased]");
}

#[tokio::test]
async fn a_long_text_is_opened_before_it_is_cut() {
    let server = Server::start().await;
    let client = server.client();
    // The one is longer than what is shown only while it is sealed, the other always.
    for error in [ERROR.repeat(7), ERROR.repeat(20)] {
        let (_, job) = client.job(NAME).await;
        let failed = json!({"job_id": job, "status": "failed", "error": error});
        let (_, answer) = client.deliver(failed).await;
        let position = answer["position"].as_u64().unwrap();
        let shown = if error.len() <= 200 { error } else { format!("{}…", &error[..200]) };
        let diff = format!("/diff?at={}&against={position}", position - 1);
        for path in [format!("/events/{position}"), diff] {
            let page = client.request(Method::GET, &path).bearer_auth(&client.token);
            let page = client.send(page).await;
            let text = page.text();
            assert!(text.contains(&shown) && !text.contains("mp1."), "{path}: {text}");
        }
    }
}

#[tokio::test]
async fn a_sealed_text_that_is_brought_in_opens_nowhere() {
    let server = Server::start().await;
    let (client, url) = (server.client(), server.database_url());
    let victim = client.agent(NAME).await;
    let rows = stored(&url).await;
    let event: Value = serde_json::from_slice(&rows[0].2).unwrap();
    let token = text(&event, "name");
    assert!(token.starts_with(&format!("mp1.{}.", victim.replace('-', ""))), "{token}");

    let (agent, job) = client.job("a-stranger").await;
    client.accept(json!({"job_id": job, "status": "provisioning", "attempt": 1})).await;
    // In a text that is kept as it is, in one that is sealed, in a name of a field, in an id.
    let step = json!({"job_id": job, "status": "provisioning", "step": token,
        "metadata": {token.clone(): token}, "delivery_id": token});
    let (status, answer) = client.callback(&step).await;
    assert_eq!(status, 200, "{answer}");
    let failed = json!({"job_id": job, "status": "failed", "error": token, "failed_step": token});
    client.accept(failed).await;
    client.accept(json!({"job_id": token, "status": "failed", "error": token})).await;
    client.erase(&victim).await;
    // Had it been opened before, it was without the erasure; now it must not read as erased either.
    for event in client.events().await {
        let kind = text(&event, "type");
        let is_victims = event["stream"] == victim.as_str();
        assert!(is_victims || !event.to_string().contains("[erased]"), "{kind}: {event}");
    }
    let page = client.request(Method::GET, &format!("/agents/{agent}")).bearer_auth(&client.token);
    let page = client.send(page).await;
    assert!(!page.text().contains("[erased]") && page.text().contains("mp1:"), "{}", page.text());
}

#[tokio::test]
async fn nobody_has_a_text_opened_by_sending_it() {
    let server = Server::start().await;
    let (client, url) = (server.client(), server.database_url());
    client.agent(NAME).await;
    let event: Value = serde_json::from_slice(&stored(&url).await[0].2).unwrap();
    let token = text(&event, "name");
    let escaped = token.replace('.', "%2e");
    for path in [
        format!("/login?next=/{token}"),
        format!("/login?next=/{escaped}"),
        format!("/api/events?stream={token}"),
        format!("/api/events/stream?type={escaped}"),
        format!("/{token}"),
        format!("/agents/{token}"),
    ] {
        for known in [false, true] {
            let request = client.request(Method::GET, &path);
            let request = if known { request.bearer_auth(&client.token) } else { request };
            let answer = client.send(request).await;
            assert!(!answer.text().contains(NAME), "{path}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn plain_callbacks_are_kept_as_they_came_and_others_are_sealed() {
    let server = Server::start().await;
    let (client, url) = (server.client(), server.database_url());
    let (_, job) = client.job(NAME).await;
    let step =
        format!("{{\"job_id\":\"{job}\",\"status\":\"provisioning\",\"step\":\"vm_created\"}}");
    let failed = format!("{{\"job_id\":\"{job}\",\"status\":\"failed\",\"error\":\"{ERROR}\"}}");
    for body in [&step, &failed] {
        assert_eq!(client.send(client.signed(body.clone())).await.status, 200);
    }
    let body_of =
        |header: &[u8]| -> String { text(&serde_json::from_slice(header).unwrap(), "body") };
    let rows = stored(&url).await;
    let bodies: Vec<String> = rows
        .iter()
        .filter(|(_, header, _)| memchr::memmem::find(header, b"\"body\"").is_some())
        .map(|(_, header, _)| body_of(header))
        .collect();
    assert_eq!(bodies[0], step, "it was kept in other bytes");
    assert!(bodies[1..].iter().all(|body| body.starts_with("mp1.")), "{bodies:?}");
    // Opened, it is what was signed.
    let events = client.events().await;
    let evidence = events.iter().rfind(|event| event["type"] == "JobFailed").unwrap();
    assert_eq!(text(&evidence["metadata"], "body"), failed);
    assert_eq!(evidence["metadata"]["signature"], server.secret().sign(failed.as_bytes()));
}

#[tokio::test]
async fn only_a_subject_is_erased_and_never_without_a_reason() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job(NAME).await;
    let nobody = Uuid::nil().to_string();
    for (body, expected) in [
        (json!({"subject": agent}), 400),
        (json!({"subject": agent, "reason": " "}), 400),
        (json!({"reason": "why"}), 400),
        (json!({"subject": "ada", "reason": "why"}), 400),
        (json!({"subject": nobody, "reason": "why"}), 404),
        (json!({"subject": job, "reason": "why"}), 409),
    ] {
        let (status, answer) = client.post("/api/privacy/erase", &body).await;
        assert_eq!(status.as_u16(), expected, "{body}: {answer}");
    }
    let refused = client.request(Method::POST, "/api/privacy/erase");
    let refused = client.send(refused.json(&json!({"subject": agent, "reason": "why"}))).await;
    assert_eq!(refused.status, 401);
    assert_eq!(client.name_of(&agent).await, NAME);
    // From its page, as a person does.
    let form = client.form(&format!("/agents/{agent}/erase"), &[("reason", "asked to")]);
    assert_eq!(client.send(form.bearer_auth(&client.token)).await.status, 303);
    assert_eq!(client.name_of(&agent).await, "[erased]");
}

#[tokio::test]
async fn a_refused_callback_and_the_queue_are_subjects_of_their_own() {
    let server = Server::start().await;
    let client = server.client();
    client.accept(json!({"job_id": "Ada's own", "status": "failed", "error": ERROR})).await;
    let rejected = client.events().await.pop().unwrap();
    assert_eq!(rejected["data"]["job_id"], "Ada's own");
    client.erase(&text(&rejected, "stream")).await;
    let rejected = client.events().await.swap_remove(0);
    assert_eq!(rejected["data"]["job_id"], "[erased]");
    assert_eq!(rejected["metadata"]["body"], "[erased]");
}

#[tokio::test]
async fn an_erased_address_is_still_taken_and_no_stream_gives_it_away() {
    let server = Server::start().await;
    let client = server.client();
    let node = json!({"hostname": HOSTNAME, "public_ip": NODE_IP});
    let (_, first) = client.post("/api/nodes", &node).await;
    client.erase(&text(&first, "id")).await;
    let (status, refused) = client.post("/api/nodes", &node).await;
    assert_eq!((status.as_u16(), &refused["node_id"]), (409, &first["id"]));
    let guessed = Uuid::new_v5(&Uuid::NAMESPACE_DNS, NODE_IP.as_bytes());
    let streams = client.events().await;
    assert!(streams.iter().all(|event| event["stream"] != guessed.to_string().as_str()));
}

#[tokio::test]
async fn dev_makes_a_master_key_that_only_its_owner_reads() {
    use std::os::unix::fs::PermissionsExt as _;
    let env = vec![("MILEPOST_MASTER_KEY", String::new())];
    let mut server = Server::with(Options { env, ..Options::default() }).await;
    let file = server.dir().join("master.key");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let agent = server.client().agent(NAME).await;
    server.kill().await;
    server.restart().await;
    assert_eq!(server.client().name_of(&agent).await, NAME);
    // It is a secret like others: nobody gets it into the log.
    let key = std::fs::read_to_string(file).unwrap();
    let job = server.client().job("careless").await.1;
    let failed =
        json!({"job_id": job, "status": "failed", "error": format!("MILEPOST_MASTER_KEY={key}")});
    server.client().accept(failed).await;
    let reason = json!({"reason": format!("it is \u{1b}[1m{}\u{1b}[0m{}", &key[..9], &key[9..])});
    server.client().post("/api/queue/pause", &reason).await;
    let name = json!({"name": key});
    server.client().post("/api/agents", &name).await;
    let log = Value::Array(server.client().events().await).to_string();
    assert!(!log.contains(&key) && log.matches("[redacted]").count() >= 3, "{log}");
    let reached = wait_until("the queue is paused", || async {
        let queue = server.client().read("/api/queue").await;
        queue["paused"]["reason"].as_str().map(str::to_owned)
    });
    assert!(!reached.await.contains(&key[9..]));
}
