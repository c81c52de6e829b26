//! Archives: what leaves the database stays proven, what is still needed stays, a kill at any point
//! is finished by running again, and what was changed is found.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use milepost::app::App;
use milepost::config::Config;
use milepost::ledger::archive::{self, ArchiveError, Before, Limit, Order, Step};
use milepost::ledger::bundle::Line;
use milepost::ledger::verify::{Problem, Report, Trust};
use milepost_schemas::Position;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::tampering::{NO_DOUBLES, double};
use super::{audit, audit_with, command, key_file, log, record, sealed};
use crate::harness::{Client, Options, Server, database, sql, text, wait_until};
use crate::routes::log_in;

/// Positions of a partition in these tests.
const WIDTH: u64 = 256;

/// A log of two whole partitions and more: one agent's job is over and followed by another one.
struct Story {
    server: Server,
    archive: TempDir,
    agent: String,
    /// It has succeeded, and the agent has a newer one.
    over: String,
    /// It runs.
    open: String,
}

async fn story() -> Story {
    let url = database().await;
    let width = format!("SELECT set_partition_width({WIDTH})");
    sql(&url).await.batch_execute(&width).await.unwrap();
    let options = Options { database_url: Some(url), ..Options::default() };
    let server = Server::with(options).await;
    let client = server.client();
    let (agent, over, open) = two_jobs(&client).await;
    record(&client, 2 * WIDTH as usize).await;
    let story = Story { server, archive: tempfile::tempdir().unwrap(), agent, over, open };
    story.settle().await;
    story
}

/// An agent with a job that is over and a newer one that runs: their ids.
pub(super) async fn two_jobs(client: &Client) -> (String, String, String) {
    let (agent, over) = client.job("ada").await;
    step(client, &over, "vm_created").await;
    for _ in 0..40 {
        say(client, json!({"job_id": over, "type": "heartbeat"})).await;
    }
    say(client, json!({"job_id": over, "type": "log", "from": 1, "lines": ["one", "two"]})).await;
    say(client, json!({"job_id": over, "type": "log", "from": 3, "lines": ["three"]})).await;
    say(client, json!({"job_id": over, "status": "running"})).await;
    let path = format!("/api/agents/{agent}/provision");
    let (status, accepted) = client.post(&path, &json!({})).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{accepted}");
    let open = text(&accepted, "job_id");
    step(client, &open, "vm_created").await;
    (agent, over, open)
}

async fn say(client: &Client, body: Value) -> Value {
    let (status, answer) = client.deliver(body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

async fn step(client: &Client, job: &str, step: &str) -> Value {
    say(client, json!({"job_id": job, "status": "provisioning", "step": step})).await
}

impl Story {
    /// Waits until everything is sealed and folded.
    async fn settle(&self) {
        let (size, _) = sealed(&self.server.client()).await;
        let client = sql(&self.server.database_url()).await;
        wait_until("the views have folded everything", || async {
            let row = client
                .query_one("SELECT min(position) FROM view_generation WHERE state = 'active'", &[])
                .await
                .unwrap();
            (row.get::<_, i64>(0) as u64 >= size).then_some(())
        })
        .await;
    }

    fn directory(&self) -> &str {
        self.archive.path().to_str().unwrap()
    }

    /// Archives both whole partitions.
    async fn archive(&self) -> String {
        let arguments = ["archive", "--before", "600", "--to", self.directory()];
        let (code, words) = log(&self.server, &arguments).await;
        assert_eq!(code, Some(0), "{words}");
        words
    }

    /// An audit that reads the archive too.
    async fn audit_all(&self) -> Report {
        let keys = key_file(self.server.dir()).read().unwrap();
        let keys = keys.iter().map(|key| key.verifier("")).collect();
        let archive = Some(self.archive.path().to_owned());
        audit_with(&self.server, Trust { keys, archive, ..Trust::default() }).await
    }

    /// The first archived file.
    fn file(&self) -> PathBuf {
        let (first, last) = (1, WIDTH - 1);
        self.archive.path().join(format!("{first:012}-{last:012}.jsonl.zst"))
    }

    fn order(&self) -> Order {
        Order {
            before: Before::Position(Position(600)),
            directory: self.archive.path().to_owned(),
            dry_run: false,
            keep_table: false,
            by: "ada".to_owned(),
        }
    }

    async fn app(&self) -> std::sync::Arc<App> {
        let config = Config::of_tool(self.server.database_url(), Vec::new());
        App::open(config, CancellationToken::new()).await.unwrap()
    }
}

async fn count(server: &Server, sql_text: &str) -> i64 {
    sql(&server.database_url()).await.query_one(sql_text, &[]).await.unwrap().get(0)
}

fn is_clean(report: &Report) {
    assert!(report.is_clean(), "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_archived_is_gone_and_said_to_be_and_what_is_needed_goes_on() {
    let mut story = story().await;
    let client = story.server.client();
    let before = client.read(&format!("/api/jobs/{}", story.open)).await;
    let words = story.archive().await;
    assert!(words.contains("positions 256 to 511: dropped"), "{words}");
    assert!(words.contains("The log is in archives up to position 511."), "{words}");
    // In the process that has it in memory, and in one that must read it.
    for _ in 0..2 {
        let client = story.server.client();
        let (status, problem) = client.get("/api/events?after=0").await;
        assert_eq!((status, &problem["floor"]), (StatusCode::GONE, &511.into()), "{problem}");
        assert_eq!(client.get("/api/events?after=10").await.0, StatusCode::GONE);
        assert_eq!(client.get("/api/events?after=0&type=JobQueued").await.0, StatusCode::GONE);
        let events = client.read("/api/events?after=511").await;
        assert_eq!(events["events"][0]["position"], 512);
        // A stream that is needed is here whole, from its first event on.
        let whole = format!("/api/events?after=0&stream={}", story.open);
        assert_eq!(client.read(&whole).await["events"][0]["version"], 1);
        let gone = format!("/api/events?after=0&stream={}", story.over);
        assert_eq!(client.get(&gone).await.0, StatusCode::GONE);
        for path in ["", "/log", "/log.txt"] {
            let (status, problem) = client.get(&format!("/api/jobs/{}{path}", story.over)).await;
            assert_eq!((status, &problem["floor"]), (StatusCode::GONE, &511.into()), "{path}");
        }
        let instance = client.read(&format!("/api/agents/{}/instance", story.agent)).await;
        assert_eq!(instance["instance"]["current_step"], "vm_created");
        story.server.stop().await;
        story.server.restart().await;
    }
    let client = story.server.client();
    let after = client.read(&format!("/api/jobs/{}", story.open)).await;
    assert_eq!((&after["status"], &after["attempts"]), (&before["status"], &before["attempts"]));
    // The list has every job still: its view was folded before.
    let jobs = client.read("/api/jobs").await.to_string();
    assert!(jobs.contains(&story.over) && jobs.contains(&story.open));
    // The open job goes on where it was.
    assert_eq!(step(&client, &story.open, "ansible_started").await["applied"], true);
    assert_eq!(
        say(&client, json!({"job_id": story.open, "status": "running"})).await["applied"],
        true
    );
    story.settle().await;
    is_clean(&audit(&story.server).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_at_a_place_is_answered_the_same_or_said_to_be_archived() {
    let story = story().await;
    let client = story.server.client();
    let events = client.events().await;
    let Story { agent, over, open, .. } = &story;
    let mut places: Vec<String> =
        [0, 1, 3, 20, 44, 60, 255, 256, 511, 512, 513].map(|it: u64| it.to_string()).into();
    places.extend([2, 44, 300, 511, 512].map(|it: usize| text(&events[it - 1], "recorded_at")));
    places.push("2001-01-01T00:00:00Z".to_owned());
    let mut asked = Vec::new();
    for place in &places {
        for path in ["agents", "jobs", "nodes", "queue", "metrics"] {
            asked.push(format!("/api/{path}?at={place}"));
        }
        for path in ["", "/instance"] {
            asked.push(format!("/api/agents/{agent}{path}?at={place}"));
        }
        for path in ["", "/log", "/log.txt"] {
            asked.push(format!("/api/jobs/{over}{path}?at={place}"));
        }
        asked.push(format!("/api/jobs/{open}?at={place}"));
        asked.push(format!("/api/diff?at={place}&against=515"));
    }
    let mut before = Vec::new();
    for path in &asked {
        before.push(client.get(path).await);
    }
    story.archive().await;
    let (mut same, mut gone) = (0, 0);
    for (path, before) in asked.iter().zip(before) {
        let (status, answer) = client.get(path).await;
        if status == StatusCode::GONE {
            assert_eq!(answer["floor"], 511, "{path}");
            gone += 1;
        } else {
            assert_eq!((status, answer), before, "{path}");
            same += 1;
        }
    }
    assert!(same > 20 && gone > 20, "{same} are the same, and {gone} are gone");
    for path in ["queue", "metrics", "agents", "jobs"] {
        assert_eq!(client.get(&format!("/api/{path}?at=300")).await.0, StatusCode::GONE, "{path}");
    }
    // A search back that begins there would find what is left by chance.
    assert_eq!(client.get("/api/events?before=300").await.0, StatusCode::GONE);
    let heartbeat = events.iter().find(|it| it["stream"] == **over && it["version"] == 9).unwrap();
    let path = format!("/api/events/{}", heartbeat["position"]);
    assert_eq!(client.get(&path).await.0, StatusCode::GONE);
    // The events of a stream that is here whole are found by place, below the floor too.
    let of_agent = client.read(&format!("/api/events?stream={agent}&from=1&to=3")).await;
    assert_eq!(of_agent["events"][0]["position"], 1);
    let cookie = format!("session_token={}", log_in(&story.server).await);
    let page = client.request(reqwest::Method::GET, "/?at=300").header("cookie", cookie);
    let page = client.send(page).await;
    assert_eq!(page.status, StatusCode::GONE);
    assert!(page.text().contains("<h1>It is archived</h1>"), "{}", page.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_stream_never_looks_empty() {
    let mut story = story().await;
    let versions =
        format!("SELECT max(version)::bigint FROM event WHERE stream_id = '{}'", story.over);
    let version = count(&story.server, &versions).await;
    story.archive().await;
    assert_eq!(count(&story.server, &versions).await, version);
    let here = format!("SELECT count(*) FROM event WHERE stream_id = '{}'", story.over);
    assert_eq!(count(&story.server, &here).await, 1);
    story.server.stop().await;
    story.server.restart().await;
    let client = story.server.client();
    // What is said of it is kept, and changes nothing; who would begin it is told to stop.
    let late = say(&client, json!({"job_id": story.over, "status": "running"})).await;
    assert_eq!((&late["applied"], &late["reason"]), (&false.into(), &"job_ended".into()));
    // Its body may be its agent's, and is not kept where the agent's erasure does not reach.
    let kept = client.read(&format!("/api/events/{}", late["position"])).await;
    assert_eq!(kept["type"], "CallbackRejected");
    assert_eq!(kept["metadata"].get("body"), None, "{kept}");
    assert_eq!(kept["metadata"]["body_sha256"].as_str().map(str::len), Some(64), "{kept}");
    let started = json!({"job_id": story.over, "status": "provisioning"});
    assert_eq!(client.deliver(started).await.0, StatusCode::CONFLICT);
    let retry = client.post(&format!("/api/jobs/{}/retry", story.over), &json!({})).await;
    assert_eq!(retry.0, StatusCode::GONE);
    assert_eq!(count(&story.server, &versions).await, version);
    // Even one who believes it to be new is refused.
    let believed = format!(
        "SELECT stale_versions[1]::bigint FROM append_batch(0, ARRAY['{0}']::uuid[], ARRAY[0], 1, \
         ARRAY['{0}']::uuid[], ARRAY[1], ARRAY[16]::smallint[], ARRAY[1]::smallint[], \
         ARRAY['{{}}']::bytea[], ARRAY['{{}}']::bytea[], NULL, NULL)",
        story.over
    );
    assert_eq!(count(&story.server, &believed).await, version);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_events_that_resumes_below_the_floor_is_reset() {
    let mut story = story().await;
    story.archive().await;
    // A process that has the events in memory still has no gap to tell of.
    story.server.stop().await;
    story.server.restart().await;
    let client = story.server.client();
    let epoch = client.read("/api/events?limit=0").await["epoch"].clone();
    let agent = format!("/api/stream?events={}", story.agent);
    for path in ["/api/events/stream", &agent] {
        let mut stream = client.stream(path, Some(&format!("{epoch}-10"))).await;
        let reset = stream.next_named("reset").await;
        let position: u64 = reset.id.split_once('-').unwrap().1.parse().unwrap();
        assert!(position > 511, "{path}: {}", reset.id);
        // And goes on from there.
        step(&client, &story.open, "network_configured").await;
        let next = stream.next_named("recorded").await;
        assert!(next.id.split_once('-').unwrap().1.parse::<u64>().unwrap() > position);
    }
    let mut stream = client.stream("/api/events/stream", Some(&format!("{epoch}-511"))).await;
    assert!(stream.next().await.unwrap().id.ends_with("-512"));
}

#[tokio::test(flavor = "multi_thread")]
async fn audits_exports_and_replays_read_across_the_archive_and_the_database() {
    let story = story().await;
    let (size, _) = sealed(&story.server.client()).await;
    let replayed = log(&story.server, &["replay"]).await;
    assert_eq!(replayed.0, Some(0), "{}", replayed.1);
    let at = log(&story.server, &["replay", "--at", "300", "--stream", &story.over]).await;
    story.archive().await;
    story.settle().await;

    let report = audit(&story.server).await;
    is_clean(&report);
    assert!(report.archived > 40 && report.archived < 511, "{}", report.archived);
    assert_eq!(report.archives, [story.directory()]);
    let report = story.audit_all().await;
    is_clean(&report);
    assert_eq!((report.archived, report.events), (0, size + 2));
    let (code, words) = log(&story.server, &["verify"]).await;
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("were not read") && words.contains(story.directory()), "{words}");
    let (code, words) = log(&story.server, &["verify", "--archive", "/nowhere"]).await;
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("positions 1 to 255 are archived"), "{words}");

    let bundle = tempfile::tempdir().unwrap();
    let bundle = bundle.path().to_str().unwrap();
    let (code, words) = log(&story.server, &["export", bundle]).await;
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("events up to position 511 are archived"), "{words}");
    let (code, words) =
        log(&story.server, &["export", bundle, "--archive", story.directory()]).await;
    assert_eq!(code, Some(0), "{words}");
    let (code, words) = log(&story.server, &["verify", "--bundle", bundle]).await;
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains(&format!("{} events", size + 2)), "{words}");

    let (code, words) = log(&story.server, &["replay"]).await;
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("events up to position 511 are archived"), "{words}");
    let archive = ["--archive", story.directory()];
    // A server opens personal texts; an archive is sealed.
    let (code, words) = log(&story.server, &[&["replay"][..], &archive].concat()).await;
    assert_eq!((code, without_names(&words)), (replayed.0, without_names(&replayed.1)));
    let again = ["replay", "--at", "300", "--stream", &story.over];
    let (code, words) = log(&story.server, &[&again[..], &archive].concat()).await;
    assert_eq!((code, without_names(&words)), (at.0, without_names(&at.1)));
}

/// What was printed, without what agents are called.
fn without_names(words: &str) -> String {
    let mut parts = words.split("\"name\":\"");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.split_once('"').map_or("", |(_, rest)| rest))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_archived_comes_back_as_it_was() {
    const CONTENT: &str = "SELECT count(*) FROM event WHERE position < 512";
    const DIGEST: &str = "SELECT ('x' || substr(md5(string_agg(md5(e::text), '' ORDER BY position)), \
         1, 15))::bit(60)::bigint FROM event AS e WHERE position < 512";
    let story = story().await;
    let digest = count(&story.server, DIGEST).await;
    for round in 0..2 {
        story.archive().await;
        assert!(count(&story.server, CONTENT).await < 511);
        let arguments = ["restore", "--from", story.directory()];
        let (code, words) = log(&story.server, &arguments).await;
        assert_eq!(code, Some(0), "{round}: {words}");
        assert!(words.contains("positions 1 to 255: verified, and here again"), "{words}");
        assert_eq!(count(&story.server, CONTENT).await, 511);
        assert_eq!(count(&story.server, DIGEST).await, digest);
    }
    let client = story.server.client();
    assert_eq!(client.read("/api/events?after=0").await["events"][0]["position"], 1);
    let job = client.read(&format!("/api/jobs/{}", story.over)).await;
    assert_eq!(job["status"], "succeeded");
    story.settle().await;
    let report = audit(&story.server).await;
    is_clean(&report);
    assert_eq!(report.archived, 0);
    let told = client.read("/api/events?type=LogRangeRestored").await;
    assert_eq!(told["events"].as_array().unwrap().len(), 4, "{told}");
    // Nothing else is left, and nobody may change what came back.
    let tables = "SELECT count(*) FROM pg_class WHERE relkind = 'r' \
                  AND relname ~ '^event_[0-9]+_(kept|archived|restored|before)$'";
    assert_eq!(count(&story.server, tables).await, 0);
    let owner = sql(&story.server.database_url()).await;
    assert!(owner.batch_execute("DELETE FROM event WHERE position = 7").await.is_err());
    assert!(owner.batch_execute("DELETE FROM event_000000 WHERE position = 7").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_stops_behind_any_step_is_finished_by_the_next() {
    let story = story().await;
    let app = story.app().await;
    for stop in [Step::Written, Step::Verified, Step::Recorded, Step::Detached] {
        let mut watch = |_: &archive::Part, step: Step| {
            if step == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let stopped = archive::archive(&app, &story.order(), &mut watch).await;
        assert!(matches!(stopped, Err(ArchiveError::Stopped)), "{stop:?}: {stopped:?}");
        // Between any two steps the log is whole, and every job can be read or is said to be gone.
        story.settle().await;
        is_clean(&audit(&story.server).await);
        let status = story.server.client().get(&format!("/api/jobs/{}", story.open)).await.0;
        assert_eq!(status, StatusCode::OK);
    }
    let mut steps = Vec::new();
    let mut watch = |part: &archive::Part, step: Step| {
        steps.push((part.number, step));
        ControlFlow::Continue(())
    };
    let archived = archive::archive(&app, &story.order(), &mut watch).await.unwrap();
    assert_eq!(archived.floor, Position(511));
    // The first one was detached, and only its table was left.
    assert_eq!(steps[0], (0, Step::Dropped));
    assert_eq!(steps.last(), Some(&(1, Step::Dropped)));
    let nothing = archive::archive(&app, &story.order(), &mut |_, _| panic!()).await.unwrap();
    assert!(nothing.parts.is_empty());
    story.settle().await;
    is_clean(&story.audit_all().await);
    let told = "SELECT count(*) FROM event WHERE type = 130";
    assert_eq!(count(&story.server, told).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_archive_is_finished_by_the_next() {
    let story = story().await;
    let reader = sql(&story.server.database_url()).await;
    // Whoever reads the log holds up the exchange of a partition.
    reader.batch_execute("BEGIN; LOCK TABLE event IN ACCESS SHARE MODE").await.unwrap();
    let arguments = ["archive", "--before", "600", "--to", story.directory()];
    let mut child = command(&story.server, &arguments)
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let told = "SELECT count(*) FROM event WHERE type = 130";
    wait_until("the event is recorded", || async {
        (count(&story.server, told).await == 1).then_some(())
    })
    .await;
    child.kill().await.unwrap();
    reader.batch_execute("COMMIT").await.unwrap();
    assert_eq!(count(&story.server, "SELECT count(*) FROM archived_range").await, 0);
    wait_until("the session of the killed one is gone", || async {
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                     AND classid = (x'61726368697665'::bit(56)::bigint >> 32)::oid \
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        (count(&story.server, locks).await == 0).then_some(())
    })
    .await;
    story.archive().await;
    assert_eq!(count(&story.server, told).await, 2);
    story.settle().await;
    is_clean(&story.audit_all().await);
}

/// The lines of an archived file, changed and compressed anew.
fn rewrite(path: &Path, change: impl Fn(&mut Vec<String>)) {
    let text = zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap();
    let text = String::from_utf8(text).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    change(&mut lines);
    let mut encoder = zstd::Encoder::new(std::fs::File::create(path).unwrap(), 3).unwrap();
    encoder.write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
    encoder.finish().unwrap();
}

/// A line that says something else, with the hash that goes with it.
fn forged(line: &str) -> String {
    let mut line = Line::from_jsonl(line).unwrap();
    line.header.push(b' ');
    line.leaf_hash = line.leaf().hash();
    line.to_jsonl()
}

/// What somebody does to the lines of an archive.
type Change = fn(&mut Vec<String>);

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_archive_is_found_and_the_position_named() {
    let story = story().await;
    story.archive().await;
    story.settle().await;
    let whole = std::fs::read(story.file()).unwrap();
    let first = |report: &Report| report.first().map(|it| it.position);
    let changes: [(u64, Change); 5] = [
        (17, |lines| lines[16] = forged(&lines[16])),
        (17, |lines| lines[16] = lines[16].replacen("\"version\":", "\"version\":1", 1)),
        (200, |lines| drop(lines.remove(199))),
        (30, |lines| lines.swap(29, 30)),
        (255, |lines| lines.truncate(254)),
    ];
    for (position, change) in changes {
        rewrite(&story.file(), change);
        let report = story.audit_all().await;
        assert_eq!(first(&report), Some(position), "{:?}", report.findings);
        let (code, words) = log(&story.server, &["restore", "--from", story.directory()]).await;
        assert_eq!(code, Some(1), "{words}");
        assert!(words.contains(&format!("position {position}")), "{words}");
        // The newer range had come back.
        story.archive().await;
        std::fs::write(story.file(), &whole).unwrap();
    }
    for at in [whole.len() / 3, whole.len() / 2] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(story.file(), &bytes).unwrap();
        let report = story.audit_all().await;
        assert!(first(&report).is_some_and(|position| position < WIDTH), "{:?}", report.findings);
    }
    std::fs::write(story.file(), &whole).unwrap();
    is_clean(&story.audit_all().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_rest_of_an_archived_range_is_found() {
    const TRIGGERS: &str = "ALTER TABLE event DISABLE TRIGGER ALL; \
         ALTER TABLE event_000000 DISABLE TRIGGER ALL; ALTER TABLE event_000002 DISABLE TRIGGER ALL;";
    for with_archive in [false, true] {
        let story = story().await;
        story.archive().await;
        story.settle().await;
        let owner = sql(&story.server.database_url()).await;
        let audit = async || {
            if with_archive { story.audit_all().await } else { audit(&story.server).await }
        };
        let unique = "ALTER TABLE event DROP CONSTRAINT event_pkey";
        owner.batch_execute(&format!("{TRIGGERS} {unique}")).await.unwrap();
        owner.batch_execute(&double(1)).await.unwrap();
        let report = audit().await;
        let found = report.first().map(|it| (it.position, &it.problem));
        assert_eq!(found, Some((1, &Problem::Twice)), "{:?}", report.findings);
        owner.batch_execute(NO_DOUBLES).await.unwrap();
        is_clean(&audit().await);
        // The first event is the agent's, which is needed.
        let change = "UPDATE event SET body = body || ' ' WHERE position = 1";
        owner.batch_execute(&format!("{TRIGGERS} {change}")).await.unwrap();
        let report = audit().await;
        let found = report.first().map(|it| (it.position, &it.problem));
        assert!(
            matches!(found, Some((1, Problem::Changed { .. } | Problem::Kept { .. }))),
            "{found:?}"
        );
        let changed = |it: &&milepost::ledger::verify::Finding| {
            it.position == 1 && matches!(it.problem, Problem::Changed { .. })
        };
        assert!(report.findings.iter().any(|it| changed(&it)), "{:?}", report.findings);
        // An event that stayed is taken away.
        owner.batch_execute("DELETE FROM event WHERE position = 1").await.unwrap();
        let report = audit().await;
        assert!(
            matches!(report.first().unwrap().problem, Problem::Kept { .. }),
            "{:?}",
            report.findings
        );
        // Events are taken away as if they were archived.
        let hide = "DELETE FROM event WHERE position BETWEEN 512 AND 530; \
             INSERT INTO archived_range SELECT 512, 530, 'event_000002', '/srv', 0, sha256('')";
        owner.batch_execute(hide).await.unwrap();
        if !with_archive {
            let report = audit().await;
            let hidden = |it: &milepost::ledger::verify::Finding| {
                it.position == 512 && matches!(it.problem, Problem::Unarchived { .. })
            };
            assert!(report.findings.iter().any(hidden), "{:?}", report.findings);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_made_up_range_hides_nothing_before_or_behind_it() {
    let mut story = story().await;
    let (size, _) = sealed(&story.server.client()).await;
    story.server.stop().await;
    let owner = sql(&story.server.database_url()).await;
    owner
        .batch_execute(
            "ALTER TABLE event DISABLE TRIGGER ALL; ALTER TABLE event_000000 DISABLE TRIGGER ALL; \
             ALTER TABLE event_000001 DISABLE TRIGGER ALL; \
             ALTER TABLE archived_range DROP CONSTRAINT archived_range_is_one; \
             UPDATE event SET body = body || ' ' WHERE position = 7",
        )
        .await
        .unwrap();
    for (first, last) in [(300, 300), (0, 255), (1, 0), (-5, 255), (1, i64::MAX), (1, size as i64)]
    {
        let hide = format!(
            "INSERT INTO archived_range VALUES ({first}, {last}, 'event_000000', '/srv', 0, '')"
        );
        owner.batch_execute(&hide).await.unwrap();
        let report = audit(&story.server).await;
        let found = |problem: fn(&Problem) -> bool| {
            let problems = report.findings.iter().filter(|it| problem(&it.problem));
            problems.map(|it| it.position).collect::<Vec<_>>()
        };
        assert!(found(|it| matches!(it, Problem::Unarchived { .. })).contains(&1), "{first}");
        assert_eq!(found(|it| matches!(it, Problem::Changed { .. })), [7], "{first} to {last}");
        // Where events are missing that the range hides, that is found all the same.
        owner.batch_execute("DELETE FROM archived_range").await.unwrap();
    }
    let hide = "DELETE FROM event WHERE position BETWEEN 290 AND 300; \
         INSERT INTO archived_range VALUES (290, 300, 'event_000001', '/srv', 0, '')";
    owner.batch_execute(hide).await.unwrap();
    let (code, words) = log(&story.server, &["verify"]).await;
    assert_eq!(code, Some(3), "{words}");
    assert!(words.contains("up to 300 are said to be archived"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_restored_is_not_archived_by_an_old_event() {
    let story = story().await;
    story.archive().await;
    let owner = sql(&story.server.database_url()).await;
    let copy = "CREATE TABLE range_copy AS TABLE archived_range; \
         CREATE TABLE kept_copy AS SELECT position FROM event WHERE position < 512";
    owner.batch_execute(copy).await.unwrap();
    let (code, words) = log(&story.server, &["restore", "--from", story.directory()]).await;
    assert_eq!(code, Some(0), "{words}");
    story.settle().await;
    is_clean(&audit(&story.server).await);
    let hide = "ALTER TABLE event DISABLE TRIGGER ALL; \
         ALTER TABLE event_000000 DISABLE TRIGGER ALL; \
         ALTER TABLE event_000001 DISABLE TRIGGER ALL; \
         DELETE FROM event WHERE position < 512 AND position NOT IN (TABLE kept_copy); \
         INSERT INTO archived_range SELECT * FROM range_copy";
    owner.batch_execute(hide).await.unwrap();
    let report = audit(&story.server).await;
    let problems: Vec<_> = report.findings.iter().map(|it| (it.position, &it.problem)).collect();
    let expected =
        [(1, &Problem::Unarchived { last: 255 }), (256, &Problem::Unarchived { last: 511 })];
    assert_eq!(problems, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_archived_that_is_not_sealed_folded_and_asked_for() {
    let story = story().await;
    let app = story.app().await;
    let limit = async |before: Before| {
        let order = Order { before, dry_run: true, ..story.order() };
        let dry = archive::archive(&app, &order, &mut |_, _| panic!()).await.unwrap();
        (dry.parts.len(), dry.limit)
    };
    let at = |position| Before::Position(Position(position));
    assert_eq!(limit(at(255)).await, (0, Limit::Before(at(255))));
    assert_eq!(limit(at(256)).await, (1, Limit::Before(at(256))));
    assert_eq!(limit(at(600)).await, (2, Limit::Before(at(600))));
    let (parts, sealed) = limit(at(u64::MAX >> 1)).await;
    assert!(parts == 2 && matches!(sealed, Limit::Unsealed { sealed } if sealed >= 512));
    // Times: of the event that ends a partition.
    let last = story.server.client().read("/api/events?after=254&limit=1").await;
    let time: jiff::Timestamp = text(&last["events"][0], "recorded_at").parse().unwrap();
    assert_eq!(limit(Before::Time(time)).await.0, 0);
    let later = time.checked_add(jiff::SignedDuration::from_micros(1)).unwrap();
    assert_eq!(limit(Before::Time(later)).await.0, 1);
    let owner = sql(&story.server.database_url()).await;
    let behind = "INSERT INTO view_generation (projection, generation, version, state, position) \
                  VALUES ('jobs', 99, 1, 'active', 300)";
    owner.batch_execute(behind).await.unwrap();
    let (parts, held) = limit(at(600)).await;
    let name = "jobs".to_owned();
    assert_eq!((parts, held), (1, Limit::Projection { name, version: 1, position: 300 }));
    assert!(!story.file().exists());
    assert_eq!(count(&story.server, "SELECT count(*) FROM archived_range").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_table_stays_until_it_is_told_to_go() {
    let story = story().await;
    let arguments = ["archive", "--before", "600", "--to", story.directory(), "--keep-table"];
    let (code, words) = log(&story.server, &arguments).await;
    assert_eq!(code, Some(0), "{words}");
    assert_eq!(count(&story.server, "SELECT count(*) FROM event_000000_archived").await, 255);
    let owner = sql(&story.server.database_url()).await;
    assert!(owner.batch_execute("DELETE FROM event_000000_archived").await.is_err());
    let words = story.archive().await;
    assert!(words.contains("positions 1 to 255: dropped"), "{words}");
    assert!(owner.batch_execute("SELECT FROM event_000000_archived").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_tables_come_and_go_with_their_indexes_made_before_they_are_exchanged() {
    let story = story().await;
    let archive = ["archive", "--before", "600", "--to", story.directory(), "--keep-table"];
    let restore = ["restore", "--from", story.directory()];
    for arguments in [&archive[..], &restore, &archive, &restore, &archive] {
        let (code, words) = log(&story.server, arguments).await;
        assert_eq!(code, Some(0), "{words}");
        story.settle().await;
        // What is made while the log is locked is named after the partition it is made for.
        let made = "SELECT count(*) FROM pg_indexes WHERE tablename = 'event_000000' \
                    AND indexname ~ '^event_000000_(restored|kept)_'";
        assert_eq!(count(&story.server, made).await, 3);
        let all = "SELECT count(*) FROM pg_indexes WHERE tablename = 'event_000000'";
        assert_eq!(count(&story.server, all).await, 3);
    }
    is_clean(&audit(&story.server).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_goes_on_while_its_partition_leaves_stays_whole() {
    let story = story().await;
    let app = story.app().await;
    let client = story.server.client();
    let events = format!("SELECT count(*) FROM event WHERE stream_id = '{}'", story.over);
    let before = count(&story.server, &events).await;
    let mut recorded = 0;
    let mut watch = |part: &archive::Part, step: Step| {
        if part.number == 0 && step == Step::Recorded {
            recorded += 1;
        }
        if recorded == 1 && step == Step::Recorded {
            // What stays is chosen, and the partition is not exchanged yet.
            let late = say(&client, json!({"job_id": story.over, "status": "running"}));
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(late));
        }
        ControlFlow::Continue(())
    };
    archive::archive(&app, &story.order(), &mut watch).await.unwrap();
    assert_eq!(recorded, 2);
    assert_eq!(count(&story.server, &events).await, before + 1);
    story.settle().await;
    is_clean(&story.audit_all().await);
    is_clean(&audit(&story.server).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_epoch_begins_over_an_archive_whose_tiles_are_missing() {
    const STATE: &str = "SELECT epoch + size + (SELECT count(*) FROM tree_tile) FROM log_head";
    let mut story = story().await;
    story.archive().await;
    story.settle().await;
    story.server.stop().await;
    let owner = sql(&story.server.database_url()).await;
    owner.batch_execute("DELETE FROM tree_tile WHERE level = 1").await.unwrap();
    let before = count(&story.server, STATE).await;
    let (code, words) = log(&story.server, &["new-epoch", "--reason", "restored"]).await;
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("tiles of the first 511 events are missing"), "{words}");
    assert_eq!(count(&story.server, STATE).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn callbacks_are_taken_while_partitions_are_exchanged() {
    let story = story().await;
    let client = story.server.client();
    let posting = tokio::spawn(async move { record(&client, 400).await });
    story.archive().await;
    posting.await.unwrap();
    story.settle().await;
    is_clean(&story.audit_all().await);
}
