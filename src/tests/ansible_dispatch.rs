//! The Ansible dispatcher: every way that `ansible-playbook` may end, and every way that it is
//! ended. Most tests have a script in its place, which is told what to do by a file.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use milepost::config::NODE_DISPATCHES_AT_ONCE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::doubles::github::Github;
use crate::harness::{Client, Options, Server, data_dir, sql, text, wait_until};

/// What stands in for `ansible-playbook`. It writes down how it was called, then does what the file
/// `play` says, or for `--syntax-check` the file `check`.
const SCRIPT: &str = r#"#!/bin/bash
here=${0%/*}
if [[ $1 == --version ]]; then cat "$here/version"; exit; fi
what=play
if [[ " $* " == *" --syntax-check "* ]]; then what=check; fi
printf '%s\n' "$@" >"$here/$what.arguments"
env >"$here/$what.environment"
pwd >"$here/$what.cwd"
cp "$2" "$here/inventory.ini"
cp "${4#@}" "$here/vars.json"
stat -c '%a %n' "${2%/*}" "$2" "${4#@}" >"$here/modes"
. "$here/$what"
"#;

/// A play that goes well.
const FINE: &str = "echo 'PLAY RECAP ****'; echo 'web-1    : ok=3    changed=1    failed=0'";

/// A secret of the server that has no business in a run.
const SECRET: &str = "correct-horse-battery";

struct Machine {
    server: Server,
    client: Client,
    dir: TempDir,
}

impl Machine {
    /// A server that dispatches to the script, which plays as told.
    async fn start(play: &str, more: &[(&'static str, &str)]) -> Self {
        let dir = data_dir();
        let script = dir.path().join("ansible-playbook");
        std::fs::write(&script, SCRIPT).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir_all(dir.path().join("ansible/playbooks")).unwrap();
        for playbook in ["node-provision.yml", "node-decommission.yml"] {
            std::fs::write(dir.path().join("ansible/playbooks").join(playbook), "[]").unwrap();
        }
        let given =
            [("version", "ansible-playbook [core 2.19.4]\n"), ("check", "exit 0"), ("play", play)];
        for (name, text) in given {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let mut env = vec![
            ("MILEPOST_DISPATCHER", "ansible".to_owned()),
            ("MILEPOST_ANSIBLE_PLAYBOOK", place("ansible-playbook")),
            ("MILEPOST_ANSIBLE_DIR", place("ansible")),
            ("MILEPOST_ANSIBLE_GRACE", "0.3".to_owned()),
            ("MILEPOST_GITHUB_TOKEN", SECRET.to_owned()),
            ("TMPDIR", place("")),
        ];
        env.retain(|(name, _)| more.iter().all(|(other, _)| name != other));
        env.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let server = Server::with(Options { env, ..Options::default() }).await;
        let client = server.client();
        Self { server, client, dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap()
    }

    /// A file that the script writes, once it is there and whole: it ends with a line's end.
    async fn written(&self, name: &str) -> String {
        wait_until(name, || async {
            std::fs::read_to_string(self.file(name)).ok().filter(|text| text.ends_with('\n'))
        })
        .await
    }

    async fn node(&self) -> String {
        let body = json!({"hostname": "web-1", "public_ip": "192.0.2.1", "ssh_port": 2222});
        let (status, node) = self.client.post("/api/nodes", &body).await;
        assert_eq!(status, 201, "{node}");
        text(&node, "id")
    }

    async fn order(&self, node: &str, what: &str) -> String {
        let (status, accepted) =
            self.client.post(&format!("/api/nodes/{node}/{what}"), &json!({})).await;
        assert_eq!(status, 202, "{accepted}");
        text(&accepted, "job_id")
    }

    /// A new node's job to make it ready.
    async fn job(&self) -> String {
        let node = self.node().await;
        self.order(&node, "provision").await
    }

    async fn state(&self, job: &str) -> Value {
        self.client.read(&format!("/api/jobs/{job}")).await
    }

    async fn until(&self, job: &str, status: &str) -> Value {
        wait_until(&format!("the job is {status}"), || async {
            Some(self.state(job).await).filter(|state| state["status"] == status)
        })
        .await
    }

    /// The first failure that was recorded.
    async fn failure(&self) -> Value {
        wait_until("an attempt has failed", || async {
            let failed = self.client.read("/api/events?type=JobFailed").await;
            failed["events"].as_array().unwrap().first().map(|event| event["data"].clone())
        })
        .await
    }

    async fn waits(&self, job: &str, words: &str) -> Value {
        wait_until(&format!("it waits: {words}"), || async {
            let state = self.state(job).await;
            let waits = state["waiting_because"].as_str().is_some_and(|it| it.contains(words));
            Some(state).filter(|_| waits)
        })
        .await
    }

    /// Waits until the server has told its operator something so many times.
    async fn has_said(&self, words: &str, times: usize) {
        wait_until(words, || async {
            (self.server.said().matches(words).count() >= times).then_some(())
        })
        .await;
    }

    /// The directories that runs have left behind.
    fn left_behind(&self) -> usize {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("milepost-")).count()
    }
}

fn is_alive(pid: &str) -> bool {
    // One that has ended and is not taken note of yet is a zombie.
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with('Z'))
}

async fn gone(pid: &str) {
    wait_until("the process is gone", || async { (!is_alive(pid)).then_some(()) }).await;
}

/// A play that goes on for ever, in a session of its own too, and takes no notice of SIGTERM.
const STUBBORN: &str = r#"
trap '' TERM
setsid bash -c 'trap "" TERM; echo $$ >"$0/grandchild"; while :; do read -t 60 <> <(:); done' "$here" &
echo $$ >"$here/child"
while :; do read -t 60 <> <(:); done
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_provisioned_and_decommissioned_as_the_contract_says() {
    let key = "ssh-ed25519 AAAAC3Nz mari@example.com";
    let more = [
        ("MILEPOST_NODE_SSH_KEYS", key),
        ("MILEPOST_SSH_PRIVATE_KEY_FILE", "/etc/milepost/id_ed25519"),
    ];
    let machine = Machine::start(FINE, &more).await;
    let node = machine.node().await;
    let job = machine.order(&node, "provision").await;
    let state = machine.until(&job, "succeeded").await;
    assert_eq!(machine.client.read(&format!("/api/nodes/{node}")).await["status"], "active");
    let kinds: Vec<String> =
        machine.client.events().await.iter().map(|event| text(event, "type")).collect();
    let expected = [
        "WorkflowDispatchRequested",
        "WorkflowDispatched",
        "ProvisioningStepRecorded",
        "ProvisioningStepRecorded",
        "JobSucceeded",
        "NodeActivated",
    ];
    assert_eq!(kinds[kinds.len() - expected.len()..], expected);
    let steps = state["timeline"][0]["steps"].as_array().unwrap();
    assert!(steps.iter().all(|step| step["status"] == "completed"), "{state:#}");

    let arguments = machine.read("play.arguments");
    let inventory = arguments.lines().nth(1).unwrap();
    let directory = inventory.strip_suffix("/inventory.ini").unwrap();
    let expected = format!(
        "-i\n{directory}/inventory.ini\n-e\n@{directory}/vars.json\n\
         --ssh-extra-args=-o StrictHostKeyChecking=accept-new\nplaybooks/node-provision.yml\n"
    );
    assert_eq!(arguments, expected);
    let check = expected.replace("accept-new\n", "accept-new\n--syntax-check\n");
    assert_eq!(machine.read("check.arguments"), check);
    let host = "web-1 ansible_host=192.0.2.1 ansible_user=root ansible_port=2222 \
                ansible_ssh_private_key_file=/etc/milepost/id_ed25519";
    assert_eq!(machine.read("inventory.ini"), format!("[target]\n{host}\n"));
    let expected = json!({
        "node_id": node,
        "node_hostname": "web-1",
        "node_public_ip": "192.0.2.1",
        "node_ssh_keys": [key],
    });
    assert_eq!(serde_json::from_str::<Value>(&machine.read("vars.json")).unwrap(), expected);
    let modes: Vec<String> =
        machine.read("modes").lines().map(|line| line.split(' ').next().unwrap().into()).collect();
    assert_eq!(modes, ["700", "600", "600"]);
    assert_eq!(machine.read("play.cwd").trim(), machine.file("ansible").to_str().unwrap());

    let job = machine.order(&node, "decommission").await;
    machine.until(&job, "succeeded").await;
    assert!(machine.read("play.arguments").ends_with("playbooks/node-decommission.yml\n"));
    wait_until("nothing is left", || async { (machine.left_behind() == 0).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_knows_what_its_callbacks_need_and_no_other_secret() {
    let machine = Machine::start(FINE, &[]).await;
    let job = machine.job().await;
    machine.until(&job, "succeeded").await;
    let environment = machine.read("play.environment");
    let has = |line: &str| environment.lines().any(|it| it == line);
    assert!(has(&format!("MILEPOST_JOB_ID={job}")) && has("MILEPOST_ATTEMPT=1"));
    let url = format!("MILEPOST_CALLBACK_URL={}/api/webhooks/github", machine.server.url());
    assert!(has(&url), "{environment}");
    let secret = machine.server.ready("callback_secret");
    assert!(has(&format!("MILEPOST_CALLBACK_SECRET={secret}")));
    let check = machine.read("check.environment");
    let ours: Vec<&str> = check.lines().filter(|line| line.starts_with("MILEPOST_")).collect();
    assert_eq!(ours, ["MILEPOST_SUPERVISED=1"], "a look tells nobody");
    for name in ["play", "check"] {
        let environment = machine.read(&format!("{name}.environment"));
        assert!(!environment.contains(SECRET) && !environment.contains("DATABASE_URL"));
        assert!(!machine.read(&format!("{name}.arguments")).contains(&secret));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_end_has_its_code_and_its_retry() {
    for (play, code, retried) in [
        ("exit 1", "ANSIBLE_PLAY_ERROR", true),
        ("exit 2", "ANSIBLE_HOST_FAILED", true),
        ("exit 4", "ANSIBLE_HOST_UNREACHABLE", true),
        ("exit 5", "ANSIBLE_OPTIONS_ERROR", false),
        ("exit 99", "ANSIBLE_INTERRUPTED", true),
        ("exit 250", "ANSIBLE_UNEXPECTED_ERROR", false),
        ("exit 3", "ANSIBLE_UNKNOWN_EXIT", false),
        ("kill -KILL $$", "ANSIBLE_INTERRUPTED", true),
        ("echo 'PLAY RECAP ***'", "ANSIBLE_NO_HOST", false),
    ] {
        let machine = Machine::start(&format!("echo why; {play}"), &[]).await;
        let node = machine.node().await;
        let job = machine.order(&node, "provision").await;
        let failure = machine.failure().await;
        assert_eq!(failure["error_code"], code, "{play}: {failure}");
        assert_eq!(failure["retry"].is_object(), retried, "{play}: {failure}");
        assert!(text(&failure, "error_message").contains("\nwhy"), "{failure}");
        let state = machine.state(&job).await;
        let status = if retried { "retry_scheduled" } else { "failed" };
        assert_eq!((&state["status"], &state["error_code"]), (&json!(status), &json!(code)));
        let node = machine.client.read(&format!("/api/nodes/{node}")).await;
        assert_eq!(node["status"], if retried { "provisioning" } else { "unreachable" }, "{play}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_playbook_that_cannot_be_read_is_never_played() {
    let machine = Machine::start(FINE, &[]).await;
    std::fs::write(machine.file("check"), "echo 'ERROR! no action' >&2; exit 4").unwrap();
    let job = machine.job().await;
    let state = machine.until(&job, "failed").await;
    assert_eq!(state["error_code"], "ANSIBLE_SYNTAX_ERROR");
    assert!(text(&state, "error_message").contains("ERROR! no action"), "{state}");
    assert!(!machine.file("play.arguments").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_keeps_the_job_waiting_with_the_reason() {
    let more = [("MILEPOST_ANSIBLE_PLAYBOOK", "/nowhere/ansible-playbook")];
    let machine = Machine::start(FINE, &more).await;
    let job = machine.job().await;
    let state = machine.waits(&job, "/nowhere/ansible-playbook cannot be run").await;
    assert_eq!(state["status"], "queued");

    let machine = Machine::start(FINE, &[]).await;
    std::fs::write(machine.file("version"), "ansible-playbook [core 2.15.9]\n").unwrap();
    let job = machine.job().await;
    machine.waits(&job, "is of ansible-core 2.15; 2.16 is needed").await;
    assert!(!machine.file("check.arguments").exists());

    let machine = Machine::start(FINE, &[("MILEPOST_ANSIBLE_DIR", "/nowhere")]).await;
    let job = machine.job().await;
    machine.waits(&job, "there is no playbooks/node-provision.yml in /nowhere").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_the_end_of_what_was_printed_without_secrets() {
    let play = format!(
        "for i in {{1..9000}}; do echo line $i {SECRET}; done\n\
         printf '\\e[31mcorrect-\\e[0mhorse-battery\\0 at last\\n' >&2; exit 2"
    );
    let machine = Machine::start(&play, &[]).await;
    machine.job().await;
    let failure = machine.failure().await;
    let message = text(&failure, "error_message");
    assert_eq!(failure["truncated"], true);
    assert!(message.len() <= 10 * 1024 && message.len() > 9 * 1024, "{}", message.len());
    assert!(message.ends_with("line 9000 [redacted]\n[redacted] at last"), "{message}");
    for event in machine.client.events().await {
        assert!(!event.to_string().contains(SECRET), "{event}");
    }
    let log = std::fs::read_to_string(machine.server.dir().join("server.log")).unwrap();
    assert!(!log.contains(SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_time_everything_that_a_run_has_started_is_ended() {
    let machine = Machine::start(STUBBORN, &[("MILEPOST_ANSIBLE_TIMEOUT", "1")]).await;
    machine.job().await;
    let (child, grandchild) = (machine.written("child").await, machine.written("grandchild").await);
    let failure = machine.failure().await;
    assert_eq!(failure["error_code"], "ANSIBLE_TIMEOUT");
    assert_eq!(failure["retry"]["attempt"], 2);
    // The attempt is over only when they are gone.
    assert!(!is_alive(&child) && !is_alive(&grandchild));
    wait_until("nothing is left", || async { (machine.left_behind() == 0).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_by_itself_leaves_nobody_behind() {
    // As `ssh` does with the connection that it keeps.
    let daemon = format!("setsid sleep 600 & echo $! >\"$here/daemon\"; {FINE}");
    let machine = Machine::start(&daemon, &[]).await;
    let job = machine.job().await;
    machine.until(&job, "succeeded").await;
    assert!(!is_alive(&machine.read("daemon")));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_start_it_is_said_what_is_missing() {
    let more = [
        ("MILEPOST_DISPATCHER", "github,ansible"),
        ("MILEPOST_ANSIBLE_DIR", "/nowhere"),
        ("MILEPOST_GITHUB_TOKEN", ""),
    ];
    let machine = Machine::start(FINE, &more).await;
    let printed = machine.server.dir().join("server.out");
    let names =
        ["MILEPOST_GITHUB_REPOSITORY", "MILEPOST_PUBLIC_URL", "MILEPOST_ANSIBLE_DIR: there is no"];
    wait_until("it is said", || async {
        let said = std::fs::read_to_string(&printed).ok()?;
        names.iter().all(|name| said.contains(name)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_a_run_is_ended_at_once() {
    let machine = Machine::start(STUBBORN, &[]).await;
    let job = machine.job().await;
    let (child, grandchild) = (machine.written("child").await, machine.written("grandchild").await);
    let begun = Instant::now();
    machine.client.post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    gone(&child).await;
    gone(&grandchild).await;
    // Not with the next renewal of its lease, which is 40 seconds away.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(machine.state(&job).await["status"], "cancelled");
    let late = machine.client.read("/api/events?type=JobFailed").await;
    assert_eq!(late["events"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_jobs_node_stays_guarded_until_nothing_runs_on_it_any_more() {
    // It takes no notice of SIGTERM: for three seconds it goes on.
    let machine = Machine::start(STUBBORN, &[("MILEPOST_ANSIBLE_GRACE", "3")]).await;
    let node = machine.node().await;
    let job = machine.order(&node, "provision").await;
    let child = machine.written("child").await;
    machine.client.post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    assert_eq!(machine.state(&job).await["status"], "cancelled");
    let again = format!("/api/nodes/{node}/provision");
    let (status, refused) = machine.client.post(&again, &json!({})).await;
    assert!(is_alive(&child), "it was asked too late");
    assert_eq!(status, 409, "{refused}");
    let owner = sql(&machine.server.database_url()).await;
    let guards = "SELECT count(*) FROM queue WHERE node_id IS NOT NULL";
    assert_eq!(owner.query_one(guards, &[]).await.unwrap().get::<_, i64>(0), 1, "by the index too");
    let ended = wait_until("its worker says that it has ended", || async {
        let ended = machine.client.read("/api/events?type=RunnerEnded").await;
        ended["events"].as_array().unwrap().first().cloned()
    })
    .await;
    assert!(!is_alive(&child));
    assert_eq!((&ended["data"]["node_id"], &ended["data"]["lapsed"]), (&json!(node), &Value::Null));
    assert_eq!(machine.client.read(&format!("/api/nodes/{node}")).await["status"], "unreachable");
    machine.order(&node, "provision").await;
}

/// A play that goes well once there is a file `go`.
const PATIENT: &str = r#"
echo $$ >"$here/child"
until [[ -e $here/go ]]; do read -t 0.05 <> <(:); done
echo 'PLAY RECAP ****'; echo 'web-1    : ok=3    changed=1    failed=0'
"#;

/// Takes from the server the right to read events, but for what appending needs.
const UNREADABLE: &str = "REVOKE SELECT ON event FROM milepost_app; \
                          GRANT SELECT (stream_id, version) ON event TO milepost_app";

/// Gives it back.
const READABLE: &str = "GRANT SELECT ON event TO milepost_app";

/// What the server says of a cancel that it cannot read.
const UNHEARD: &str = "whether a run goes on cannot be read";

/// What the server says of a word that the log did not take.
const UNRECORDED: &str = "a dispatch could not be recorded";

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_is_heard_though_the_log_cannot_be_read_at_that_moment() {
    let machine = Machine::start(STUBBORN, &[]).await;
    let job = machine.job().await;
    let (child, grandchild) = (machine.written("child").await, machine.written("grandchild").await);
    let owner = sql(&machine.server.database_url()).await;
    owner.batch_execute(UNREADABLE).await.unwrap();
    let cancel = format!("/api/jobs/{job}/cancel");
    let (status, answer) = machine.client.post(&cancel, &json!({})).await;
    assert_eq!(status, 202, "{answer}");
    machine.has_said(UNHEARD, 1).await;
    assert!(is_alive(&child));
    owner.batch_execute(READABLE).await.unwrap();
    // Not with the next renewal of its lease, which may be 40 seconds away.
    gone(&child).await;
    gone(&grandchild).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_word_that_comes_after_a_cancel_frees_the_node() {
    let machine = Machine::start(PATIENT, &[]).await;
    let job = machine.job().await;
    let child = machine.written("child").await;
    let owner = sql(&machine.server.database_url()).await;
    // So that the cancel does not end the run before it has ended by itself.
    owner.batch_execute(UNREADABLE).await.unwrap();
    machine.client.post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    machine.has_said(UNHEARD, 1).await;
    std::fs::write(machine.file("go"), "").unwrap();
    gone(&child).await;
    machine.has_said(UNRECORDED, 1).await;
    owner.batch_execute(READABLE).await.unwrap();
    let ended = wait_until("its worker says that it has ended", || async {
        let ended = machine.client.read("/api/events?type=RunnerEnded").await;
        ended["events"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(ended["data"]["lapsed"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_word_is_said_until_the_log_takes_it() {
    let machine = Machine::start(PATIENT, &[]).await;
    let job = machine.job().await;
    machine.written("child").await;
    let gate = sql(&machine.server.database_url()).await;
    gate.batch_execute("BEGIN; SELECT FROM log_head WHERE one_row FOR UPDATE").await.unwrap();
    std::fs::write(machine.file("go"), "").unwrap();
    // Neither the last step nor the end can be said in the time that a command has.
    machine.has_said(UNRECORDED, 1).await;
    machine.has_said(UNRECORDED, 2).await;
    gate.batch_execute("ROLLBACK").await.unwrap();
    let state = machine.until(&job, "succeeded").await;
    assert_eq!(state["attempt_count"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn playbooks_that_take_long_hold_up_no_agent() {
    let github = Github::start().await;
    let settings = github.env();
    let mut more: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    more.retain(|(name, _)| *name != "MILEPOST_DISPATCHER");
    more.push(("MILEPOST_DISPATCHER", "github,ansible"));
    let machine = Machine::start(PATIENT, &more).await;
    for number in 0..=NODE_DISPATCHES_AT_ONCE {
        let body = json!({
            "hostname": format!("web-{number}"),
            "public_ip": format!("192.0.2.{number}"),
        });
        let (status, node) = machine.client.post("/api/nodes", &body).await;
        assert_eq!(status, 201, "{node}");
        machine.order(&text(&node, "id"), "provision").await;
    }
    let owner = sql(&machine.server.database_url()).await;
    let under_way = "SELECT count(*) FROM queue WHERE state = 'running'";
    wait_until("every place is taken", || async {
        let count: i64 = owner.query_one(under_way, &[]).await.unwrap().get(0);
        (count == NODE_DISPATCHES_AT_ONCE as i64).then_some(())
    })
    .await;
    machine.client.job("mari").await;
    wait_until("the agent is dispatched", || async { (!github.runs().is_empty()).then_some(()) })
        .await;
    let waiting = "SELECT count(*) FROM queue WHERE state = 'queued' AND node_id IS NOT NULL";
    assert_eq!(owner.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_frees_a_cancelled_jobs_node_when_its_lease_has_run_out() {
    let more = [("MILEPOST_ANSIBLE_GRACE", "30"), ("MILEPOST_LEASE", "2")];
    let mut machine = Machine::start(STUBBORN, &more).await;
    let node = machine.node().await;
    let job = machine.order(&node, "provision").await;
    machine.written("child").await;
    machine.client.post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    machine.server.kill().await;
    let other = Server::beside(&machine.server).await;
    let client = other.client();
    let ended = wait_until("its time is over", || async {
        let ended = client.read("/api/events?type=RunnerEnded").await;
        ended["events"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(ended["data"]["lapsed"], true);
    let (status, _) = client.post(&format!("/api/nodes/{node}/provision"), &json!({})).await;
    assert_eq!(status, 202);
}

/// Who has started a process.
fn parent_of(pid: &str) -> Pid {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    Pid::from_raw(fields.split(' ').nth(1).unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_supervisor_takes_its_playbook_along_and_the_worker_ends_the_rest() {
    let machine = Machine::start(STUBBORN, &[]).await;
    machine.job().await;
    let (child, grandchild) = (machine.written("child").await, machine.written("grandchild").await);
    let supervisor = parent_of(&child);
    assert_eq!(parent_of(&supervisor.to_string()).as_raw().cast_unsigned(), machine.server.pid());
    kill(supervisor, Signal::SIGKILL).unwrap();
    gone(&child).await;
    gone(&grandchild).await;
    assert_eq!(machine.failure().await["error_code"], "ANSIBLE_INTERRUPTED");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_and_its_supervisor_leave_when_both_are_killed_the_next_start_ends() {
    let mut machine = Machine::start(STUBBORN, &[]).await;
    machine.job().await;
    let (child, grandchild) = (machine.written("child").await, machine.written("grandchild").await);
    let supervisor = parent_of(&child);
    // It cannot see its worker go.
    kill(supervisor, Signal::SIGSTOP).unwrap();
    machine.server.kill().await;
    kill(supervisor, Signal::SIGKILL).unwrap();
    gone(&child).await;
    assert_eq!(machine.left_behind(), 1, "with the node's address");
    machine.server.restart().await;
    gone(&grandchild).await;
    wait_until("nothing is left", || async { (machine.left_behind() == 0).then_some(()) }).await;
}

/// A process that stands still until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: u32) -> Self {
        let pid = Pid::from_raw(pid.cast_signed());
        kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stands_still_loses_its_run() {
    let machine = Machine::start(STUBBORN, &[("MILEPOST_LEASE", "2")]).await;
    machine.job().await;
    let (child, grandchild) = (machine.written("child").await, machine.written("grandchild").await);
    let _stopped = Stopped::new(machine.server.pid());
    // It closes no pipe, and its lease is somebody else's to end.
    gone(&child).await;
    gone(&grandchild).await;
    wait_until("nothing is left", || async { (machine.left_behind() == 0).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_ends_ends_its_run_and_says_so() {
    let mut machine = Machine::start(STUBBORN, &[]).await;
    let job = machine.job().await;
    let (child, grandchild) = (machine.written("child").await, machine.written("grandchild").await);
    machine.server.stop().await;
    assert!(!is_alive(&child) && !is_alive(&grandchild));
    let other = Server::beside(&machine.server).await;
    let state = other.client().read(&format!("/api/jobs/{job}")).await;
    assert_eq!(state["status"], "retry_scheduled", "{state}");
    assert_eq!(state["error_code"], "ANSIBLE_INTERRUPTED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_takes_its_run_along_and_loses_its_lease() {
    let more = [("MILEPOST_LEASE", "2")];
    let mut machine = Machine::start(STUBBORN, &more).await;
    let job = machine.job().await;
    let (child, grandchild) = (machine.written("child").await, machine.written("grandchild").await);
    machine.server.kill().await;
    gone(&child).await;
    gone(&grandchild).await;
    wait_until("nothing is left", || async { (machine.left_behind() == 0).then_some(()) }).await;
    let other = Server::beside(&machine.server).await;
    let client = other.client();
    let state = wait_until("the attempt is lost", || async {
        let state = client.read(&format!("/api/jobs/{job}")).await;
        (state["status"] == "retry_scheduled").then_some(state)
    })
    .await;
    assert_eq!(state["error_code"], "WORKER_LOST");
    let failed = client.read("/api/events?type=JobFailed").await;
    assert_eq!(failed["events"][0]["data"]["retry"]["attempt"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_claims_only_what_it_can_run() {
    let machine = Machine::start(FINE, &[]).await;
    let (_, agents) = machine.client.job("mari").await;
    let nodes = machine.job().await;
    machine.until(&nodes, "succeeded").await;
    let state = machine.state(&agents).await;
    assert_eq!((&state["status"], &state["attempt_count"]), (&json!("queued"), &json!(1)));
    let claims = machine.client.read("/api/events?type=WorkflowDispatchRequested").await;
    let claims = claims["events"].as_array().unwrap().clone();
    assert_eq!(claims.len(), 1, "{claims:?}");
    assert_eq!(claims[0]["data"]["dispatcher"], "ansible");
    // A rehearsal beside it takes the other, on the same database.
    let rehearsal = Options {
        database_url: Some(machine.server.database_url()),
        rehearsal: true,
        ..Options::default()
    };
    let other = Server::with(rehearsal).await;
    let client = other.client();
    wait_until("it is claimed", || async {
        let state = client.read(&format!("/api/jobs/{agents}")).await;
        (state["status"] != "queued").then_some(())
    })
    .await;
}

/// The real `ansible-playbook`: the one that is set, or that of the project's tools.
fn real_ansible() -> Option<PathBuf> {
    let set = std::env::var_os("MILEPOST_ANSIBLE_PLAYBOOK").map(PathBuf::from);
    let target = Path::new(env!("CARGO_BIN_EXE_milepost")).ancestors().nth(2).unwrap();
    let tools = [target.to_owned(), Path::new(env!("CARGO_MANIFEST_DIR")).join("target")];
    let found = tools.iter().flat_map(|it| std::fs::read_dir(it).into_iter().flatten().flatten());
    let named = found.filter(|it| it.file_name().to_string_lossy().starts_with("python-tools-"));
    set.or_else(|| named.map(|it| it.path().join("bin/ansible-playbook")).find(|it| it.is_file()))
}

/// How soon the server must know of a task. A second is promised; a machine that is busy with
/// other tests takes longer to get to it.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

/// The real `ansible-playbook`, with these tasks for a node that is this machine; nothing, and a
/// word about it, where there is none.
#[expect(clippy::explicit_write, reason = "the harness would keep to itself what a macro prints")]
async fn real(dir: &Path, tasks: &str, more: &[(&'static str, &str)]) -> Option<Machine> {
    let Some(ansible) = real_ansible() else {
        let why = "neither MILEPOST_ANSIBLE_PLAYBOOK nor .ci/python-tools has Ansible";
        writeln!(std::io::stderr(), "skipped: {why}").unwrap();
        return None;
    };
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("ansible");
    for name in ["ansible.cfg", "callback_plugins"] {
        std::os::unix::fs::symlink(ours.join(name), dir.join(name)).unwrap();
    }
    std::fs::create_dir(dir.join("playbooks")).unwrap();
    let play =
        "- name: Play\n  hosts: target\n  connection: local\n  gather_facts: false\n  tasks:\n";
    let playbook = dir.join("playbooks/node-provision.yml");
    std::fs::write(playbook, format!("{play}{tasks}")).unwrap();
    let mut settings = vec![
        ("MILEPOST_ANSIBLE_PLAYBOOK", ansible.to_str().unwrap()),
        ("MILEPOST_ANSIBLE_DIR", dir.to_str().unwrap()),
    ];
    settings.extend(more);
    Some(Machine::start(FINE, &settings).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_ansible_tells_its_tasks_and_lines_as_they_come() {
    let dir = data_dir();
    let marker = dir.path().join("marker");
    let tasks = format!(
        "    - name: Say who it is\n      ansible.builtin.debug:\n        \
         msg: \"{{{{ node_hostname }}}} at {{{{ node_public_ip }}}}\"\n    \
         - name: Mark the time\n      ansible.builtin.raw: date +%s.%N >{}\n",
        marker.display()
    );
    let Some(machine) = real(dir.path(), &tasks, &[]).await else { return };
    let job = machine.job().await;
    machine.until(&job, "succeeded").await;
    let tasks = machine.client.read("/api/events?type=TaskStarted").await;
    let tasks = tasks["events"].as_array().unwrap().clone();
    let names: Vec<String> = tasks.iter().map(|event| text(&event["data"], "task")).collect();
    assert_eq!(names, ["Say who it is", "Mark the time"]);
    let marked: f64 = std::fs::read_to_string(&marker).unwrap().trim().parse().unwrap();
    let known: Timestamp = text(&tasks[1], "recorded_at").parse().unwrap();
    // A task is told before it begins: most often the server knows of it first.
    let late = known.as_microsecond() as f64 / 1e6 - marked;
    println!("the server knew of the task {late:.3} s after it had begun");
    assert!(late < KNOWN_WITHIN.as_secs_f64(), "{late}");
    let log = machine.client.read(&format!("/api/jobs/{job}/log")).await;
    assert!(log.to_string().contains("web-1 at 192.0.2.1"), "{log}");
    assert!(log.to_string().contains("PLAY RECAP"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_ansible_goes_with_a_killed_worker() {
    let dir = data_dir();
    let marker = dir.path().join("marker");
    let tasks = format!(
        "    - name: Take long\n      ansible.builtin.raw: echo $$ $PPID >{}; exec sleep 600\n",
        marker.display()
    );
    let Some(mut machine) = real(dir.path(), &tasks, &[]).await else { return };
    machine.job().await;
    let pids = wait_until("the task has begun", || async {
        std::fs::read_to_string(&marker).ok().filter(|text| text.ends_with('\n'))
    })
    .await;
    machine.server.kill().await;
    for pid in pids.split_whitespace() {
        gone(pid).await;
    }
    wait_until("nothing is left", || async { (machine.left_behind() == 0).then_some(()) }).await;
}
