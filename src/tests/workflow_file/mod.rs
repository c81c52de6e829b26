//! The workflow file itself, executed against a live server.
//!
//! GitHub is a double, and dispatches the run; its steps run in bash, their callbacks go over HTTP
//! through a line that can fall silent. `milepost vm` is the program itself, and asks the doubles of
//! Hetzner and Tailscale, which count what is left. Ansible alone is a script.

mod expression;
mod line;
mod runner;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::doubles::github::{Github, Run};
use crate::doubles::{Clouds, hetzner, tailscale};
use crate::harness::{Client, Options, PATIENCE, Server, text, wait_until};
use line::{Line, Silence};
use runner::{Finished, Runner, read_yaml, write_program};

const WORKFLOW: &str = ".github/workflows/provision-agent.yml";

/// The callbacks of a run that goes well, in order.
const CALLBACKS: [&str; 5] =
    ["started", "vm_created", "ansible_started", "ansible_complete", "done"];

/// Times that make a minute of a workflow a second.
const HASTE: &[(&str, &str)] = &[
    ("MILEPOST_ANSWER_TIMEOUT", "0.4"),
    ("MILEPOST_PAUSE_FIRST", "0.1"),
    ("MILEPOST_PAUSE_MAX", "0.4"),
    ("MILEPOST_STARTED_FOR", "20"),
    ("MILEPOST_DONE_FOR", "20"),
    ("MILEPOST_FAILED_FOR", "20"),
    ("MILEPOST_HEARTBEAT_EVERY", "0.2"),
    ("MILEPOST_CREATE_PAUSE", "0.1"),
    ("MILEPOST_DESTROY_PAUSE", "0.1"),
    ("MILEPOST_POLL", "0.01"),
];

/// The program itself, where the workflow has built it.
const MILEPOST: &str = concat!("#!/bin/sh\nexec '", env!("CARGO_BIN_EXE_milepost"), "' \"$@\"\n");

/// Stands in for Ansible.
const ANSIBLE: &str = r#"#!/usr/bin/env bash
: "${MILEPOST_CALLBACK_SECRET:?}" "${MILEPOST_JOB_ID:?}"
echo "$@" >"$SITE/ansible-arguments"
cp "${2}" "$SITE/inventory"
if [[ -e $SITE/ansible-hangs ]]; then touch "$SITE/ansible-began"; sleep 600; fi
if [[ -e $SITE/ansible-fails ]]; then
  echo 'TASK [docker : add the repository]'
  echo 'fatal: [192.0.2.7]: FAILED! => {"msg": "no \"such\" key"}'
  exit 2
fi
echo 'PLAY RECAP *****'
echo '192.0.2.7 : ok=7 changed=3 unreachable=0 failed=0'
"#;

/// A server, GitHub, the line between its runs and the server, and where machines are made.
struct World {
    server: Server,
    github: Github,
    line: Line,
    clouds: Clouds,
}

impl World {
    async fn start() -> Self {
        let (github, line) = (Github::start().await, Line::start().await);
        github.knows(&read_yaml(WORKFLOW));
        let mut env = github.env();
        env.push(("MILEPOST_PUBLIC_URL", line.url.clone()));
        env.push(("MILEPOST_RETRY_DELAYS", "600".to_owned()));
        let server = Server::with(Options { env, ..Options::default() }).await;
        line.leads_to(&server.url());
        Self { server, github, line, clouds: Clouds::start().await }
    }

    fn client(&self) -> Client {
        self.server.client()
    }

    /// A job that GitHub has been told to run.
    async fn dispatched(&self) -> (String, String, Run) {
        let (agent, job) = self.client().job("mari").await;
        let run = wait_until("the run is dispatched", || async {
            self.github.runs().into_iter().find(|run| run.inputs["job_id"] == *job)
        })
        .await;
        (agent, job, run)
    }

    /// A machine for a run.
    fn machine(&self, run: &Run) -> Machine {
        let secrets = json!({
            "MILEPOST_CALLBACK_SECRET": self.server.ready("callback_secret"),
            "HCLOUD_TOKEN": hetzner::TOKEN,
            "TAILSCALE_OAUTH_CLIENT_ID": tailscale::CLIENT_ID,
            "TAILSCALE_OAUTH_CLIENT_SECRET": tailscale::CLIENT_SECRET,
            "AGENT_SSH_PRIVATE_KEY": "a key\nof two lines",
        });
        let mut runner = Runner::new(WORKFLOW, run.inputs.clone(), secrets);
        assert_eq!(runner.run_name(), run.name, "the name a run is looked for by");
        let site = Site(tempfile::tempdir().unwrap());
        runner.env.extend(HASTE.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        runner.env.insert("SITE".to_owned(), site.path("").display().to_string());
        // Its secrets come from the repository, as on GitHub.
        let addresses = self.clouds.env().into_iter();
        let addresses =
            addresses.filter(|(name, _)| name.ends_with("ENDPOINT") || name.ends_with("URL"));
        runner.env.extend(addresses.map(|(name, value)| (name.to_owned(), value)));
        write_program(&runner.path("built"), MILEPOST);
        runner.install("ansible-playbook", ANSIBLE);
        runner.install("pipx", "#!/bin/sh\n[ \"$1\" = install ]\n");
        self.github.change(run.id, |run| "in_progress".clone_into(&mut run.status));
        Machine { runner, site }
    }

    /// Runs it to its end, and tells GitHub how it went.
    async fn play(&self, machine: Machine, run: &Run) -> (Finished, Site) {
        let finished = tokio::time::timeout(PATIENCE * 2, machine.runner.run(run.id)).await;
        let finished = finished.expect("the run ends");
        self.github.complete(run.id, &finished.conclusion);
        (finished, machine.site)
    }

    async fn job_is(&self, job: &str, status: &str) -> Value {
        wait_until(&format!("the job is {status}"), || async {
            let state = self.client().read(&format!("/api/jobs/{job}")).await;
            (state["status"] == status).then_some(state)
        })
        .await
    }

    /// The machines that are there.
    fn servers(&self) -> usize {
        self.clouds.hetzner.state().servers.len()
    }

    /// The names of the callbacks that were answered with 200, heartbeats left out.
    fn taken(&self) -> Vec<String> {
        let taken = self
            .line
            .heard()
            .into_iter()
            .filter(|(name, status)| *status == 200 && name != "heartbeat");
        taken.map(|(name, _)| name).collect()
    }
}

struct Machine {
    runner: Runner,
    site: Site,
}

/// What is outside the machine: servers, and what the tools are told to do.
struct Site(tempfile::TempDir);

impl Site {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn says(&self, what: &str) {
        std::fs::write(self.path(what), "").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_goes_well_ends_with_a_server_and_a_job_that_succeeded() {
    let world = World::start().await;
    let (agent, job, run) = world.dispatched().await;
    let machine = world.machine(&run);
    let (finished, site) = world.play(machine, &run).await;
    assert_eq!(finished.conclusion, "success", "{}", finished.log);
    assert_eq!(world.taken(), CALLBACKS);
    assert!(world.line.heard().iter().any(|(name, _)| name == "heartbeat"));
    assert_eq!(world.clouds.leftovers(), ["server 42", "device n2CNTRL"]);
    let state = world.job_is(&job, "succeeded").await;
    assert_eq!(state["timeline"][0]["workflow_run_id"], run.id.to_string());
    let instance = world.client().read(&format!("/api/agents/{agent}/instance")).await;
    let instance = &instance["instance"];
    assert_eq!(text(instance, "server_id"), "42");
    assert_eq!(text(instance, "tailscale_ip"), "100.64.0.2");
    // Ansible was called as it should be, with this server and nothing else.
    let inventory = std::fs::read_to_string(site.path("inventory")).unwrap();
    assert!(inventory.starts_with("[target]\n192.0.2.42 "), "{inventory}");
    let arguments = std::fs::read_to_string(site.path("ansible-arguments")).unwrap();
    assert!(arguments.contains("StrictHostKeyChecking=accept-new"), "{arguments}");
    assert!(!finished.log.contains("hunter"));
    world.github.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_no_run_has_built_before_is_built() {
    let world = World::start().await;
    let (_, job, run) = world.dispatched().await;
    let mut machine = world.machine(&run);
    machine.runner.cached = false;
    let build = format!(
        "#!/bin/sh\nmkdir -p target/release && cp {} target/release/milepost\n",
        machine.runner.path("built").display()
    );
    machine.runner.install("cargo", &build);
    let (finished, _) = world.play(machine, &run).await;
    assert_eq!(finished.outcomes["Build milepost"], "success", "{}", finished.log);
    assert_eq!(finished.outcomes["Keep milepost for the next run"], "success");
    world.job_is(&job, "succeeded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_ansible_fails_the_server_is_undone_and_the_job_has_its_words() {
    let world = World::start().await;
    let (_, job, run) = world.dispatched().await;
    let machine = world.machine(&run);
    machine.site.says("ansible-fails");
    let (finished, _) = world.play(machine, &run).await;
    assert_eq!(finished.conclusion, "failure");
    assert_eq!(world.clouds.leftovers(), [""; 0], "{}", finished.log);
    assert_eq!(world.taken(), ["started", "vm_created", "ansible_started", "failed"]);
    let state = world.job_is(&job, "retry_scheduled").await;
    let attempt = &state["timeline"][0];
    assert_eq!(attempt["error_code"], "WORKFLOW_FAILED");
    assert_eq!(attempt["failed_step"], "configure");
    assert!(text(attempt, "error_message").contains(r#"FAILED! => {"msg": "no \"such\" key"}"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_server_does_not_join_it_is_undone() {
    let world = World::start().await;
    let (_, job, run) = world.dispatched().await;
    let mut machine = world.machine(&run);
    machine.runner.env.insert("MILEPOST_ENROL_TIMEOUT".to_owned(), "0".to_owned());
    world.clouds.tailscale.state().nobody_joins = true;
    let (finished, _) = world.play(machine, &run).await;
    assert_eq!(finished.conclusion, "failure");
    assert_eq!(finished.outcomes["Undo what was created"], "success", "{}", finished.log);
    assert_eq!(world.clouds.leftovers(), [""; 0]);
    assert_eq!(world.taken(), ["started", "failed"]);
    let state = world.job_is(&job, "retry_scheduled").await;
    let attempt = &state["timeline"][0];
    assert_eq!(attempt["failed_step"], "provision");
    assert!(text(attempt, "error_message").contains("tailnet"), "{attempt}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_a_job_cancels_its_run_which_undoes_its_server() {
    let world = World::start().await;
    let (_, job, run) = world.dispatched().await;
    let machine = world.machine(&run);
    machine.site.says("ansible-hangs");
    let (cancel, began) = (machine.runner.cancel.clone(), machine.site.path("ansible-began"));
    let cancelling = async {
        wait_until("Ansible is at work", || async { began.exists().then_some(()) }).await;
        let path = format!("/api/jobs/{job}/cancel");
        world.client().post(&path, &json!({"reason": "not wanted"})).await;
        wait_until("GitHub was told", || async {
            let told = world.github.runs().iter().any(|it| it.conclusion.is_some());
            told.then_some(())
        })
        .await;
        cancel.cancel();
    };
    let ((finished, _), ()) = tokio::join!(world.play(machine, &run), cancelling);
    assert_eq!(finished.conclusion, "cancelled");
    assert_eq!(finished.outcomes["Configure the agent"], "cancelled");
    assert_eq!(world.servers(), 0, "{}", finished.log);
    world.job_is(&job, "cancelled").await;
    let events = world.client().events().await;
    let of = |kind: &str| events.iter().find(|it| it["type"] == kind).map(|it| it["data"].clone());
    assert_eq!(of("WorkflowRunCancelRequested").unwrap()["accepted"], true);
    let late = events.iter().find(|event| event["data"]["kind"] == "failed").unwrap();
    assert_eq!(late["data"]["reason"], "job_ended");
    world.github.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_over_stops_at_the_gate_and_creates_nothing() {
    let world = World::start().await;
    let (_, job, run) = world.dispatched().await;
    world.client().post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    let machine = world.machine(&run);
    let (finished, _) = world.play(machine, &run).await;
    assert_eq!(finished.conclusion, "failure");
    assert_eq!(finished.outcomes["Create the server"], "skipped", "{}", finished.log);
    assert_eq!(world.servers(), 0);
    assert_eq!(world.line.heard(), [("started".to_owned(), 409)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_nothing_at_any_callback_changes_nothing_about_the_end() {
    // Thirty seconds, as a minute is a second here.
    let lasts = Duration::from_millis(1_200);
    for delivers in [false, true] {
        let silent = CALLBACKS.map(|at| async move {
            let world = World::start().await;
            world.line.falls_silent(Silence { at, lasts, delivers });
            let (_, job, run) = world.dispatched().await;
            let machine = world.machine(&run);
            let (finished, _) = world.play(machine, &run).await;
            let what = format!("{at}, delivered: {delivers}: {}", finished.log);
            assert_eq!(finished.conclusion, "success", "{what}");
            assert_eq!(world.servers(), 1, "{what}");
            assert!(world.line.heard().contains(&(at.to_owned(), 0)), "{what}");
            world.job_is(&job, "succeeded").await;
            let events = world.client().events().await;
            let ends = events.iter().filter(|event| event["type"] == "InstanceStarted");
            let [end] = ends.collect::<Vec<_>>()[..] else { panic!("{what}") };
            assert_eq!(end["data"]["server"]["server_id"], "42", "{what}");
        });
        futures_util::future::join_all(silent).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_at_the_end_hears_of_the_success_when_it_is_back() {
    let mut world = World::start().await;
    let (_, job, run) = world.dispatched().await;
    let machine = world.machine(&run);
    world.line.goes_down_at("done");
    let line = world.line.clone();
    let run_id = run.id;
    let playing = tokio::spawn(async move { (machine.runner.run(run_id).await, machine.site) });
    wait_until("success was told in vain, twice", || async {
        let vain = line.heard().iter().filter(|(name, _)| name == "done").count();
        (vain >= 2).then_some(())
    })
    .await;
    world.server.kill().await;
    world.server.restart().await;
    line.comes_up();
    let (finished, _) = tokio::time::timeout(PATIENCE, playing).await.unwrap().unwrap();
    assert_eq!(finished.conclusion, "success", "{}", finished.log);
    assert_eq!(world.servers(), 1, "a server that runs is not deleted");
    world.github.complete(run.id, "success");
    world.job_is(&job, "succeeded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_that_is_never_heard_of_is_found_by_asking_github() {
    let world = World::start().await;
    let (agent, job, run) = world.dispatched().await;
    let mut machine = world.machine(&run);
    machine.runner.env.insert("MILEPOST_DONE_FOR".to_owned(), "1".to_owned());
    world.line.goes_down_at("done");
    let (finished, _) = world.play(machine, &run).await;
    assert_eq!(finished.conclusion, "success", "{}", finished.log);
    assert_eq!(world.servers(), 1, "a server that runs is not deleted");
    world.job_is(&job, "succeeded").await;
    let instance = world.client().read(&format!("/api/agents/{agent}/instance")).await;
    assert_eq!(instance["instance"]["status"], "running");
    let events = world.client().events().await;
    let started = events.iter().find(|event| event["type"] == "InstanceStarted").unwrap();
    assert_eq!(started["data"]["missing"], json!(["server_id", "server_ip", "tailscale_ip"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_id_is_never_code() {
    let world = World::start().await;
    let (_, _, mut run) = world.dispatched().await;
    let pwned = tempfile::tempdir().unwrap();
    let target = pwned.path().join("pwn");
    for hostile in [
        format!("'\"; touch {}; \"'", target.display()),
        format!("$(touch {})`touch {}`", target.display(), target.display()),
        format!("x\ntouch {}\n", target.display()),
        "a\"},\"status\":\"running\",{\"".to_owned(),
        "@/etc/passwd".to_owned(),
        "--output /dev/full -K /dev/zero".to_owned(),
    ] {
        run.inputs["job_id"] = hostile.clone().into();
        run.inputs["agent_id"] = hostile.clone().into();
        run.name = format!("provision {hostile} attempt 1");
        let machine = world.machine(&run);
        let (finished, _) = world.play(machine, &run).await;
        // It belongs to no job, so this workflow stops at the gate; an old one would go on.
        assert_eq!(
            finished.outcomes["Create the server"], "skipped",
            "{hostile}: {}",
            finished.log
        );
        assert_eq!(world.servers(), 0, "{hostile}");
        assert!(!target.exists(), "{hostile}");
        let events = world.client().events().await;
        let kept = events
            .iter()
            .filter(|it| it["data"]["job_id"] == hostile && it["type"] == "CallbackRejected");
        assert!(kept.count() >= 1, "{hostile}: its body says what it is");
    }
}

#[test]
fn the_file_keeps_its_promises() {
    let workflow = read_yaml(WORKFLOW);
    assert_eq!(workflow["permissions"], json!({"contents": "read"}));
    assert_eq!(workflow["concurrency"]["group"], "provision-${{ inputs.agent_id }}");
    assert_eq!(workflow["concurrency"]["cancel-in-progress"], false);
    let job = &workflow["jobs"]["provision"];
    assert_eq!(job["timeout-minutes"], 60);
    let inputs = workflow["on"]["workflow_dispatch"]["inputs"].as_object().unwrap();
    let names: Vec<&str> = inputs.keys().map(String::as_str).collect();
    assert_eq!(names, ["agent_id", "attempt", "callback_url", "job_id", "region"]);
    let action = read_yaml(".github/actions/callback/action.yml");
    let steps = [&job["steps"], &action["runs"]["steps"]].map(|it| it.as_array().unwrap().clone());
    for step in steps.concat() {
        let script = step["run"].as_str().unwrap_or_default();
        assert!(!script.contains("${{"), "inputs reach scripts through env: {script}");
        assert!(!step["env"].to_string().contains("GITHUB_TOKEN"));
    }
}

#[test]
fn the_times_of_the_scripts_are_those_that_are_promised() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (script, defaults) in [
        (
            ".github/actions/callback/callback.sh",
            &[
                "MILEPOST_ANSWER_TIMEOUT:-15",
                "MILEPOST_PAUSE_FIRST:-1",
                "MILEPOST_PAUSE_MAX:-30",
                "MILEPOST_STARTED_FOR:-300",
                "MILEPOST_DONE_FOR:-240",
                "MILEPOST_FAILED_FOR:-180",
            ][..],
        ),
        (".github/actions/callback/heartbeats.sh", &["MILEPOST_HEARTBEAT_EVERY:-60"]),
        (
            ".github/provision/create-server.sh",
            &["MILEPOST_CREATE_TRIES:-3", "MILEPOST_CREATE_PAUSE:-20"],
        ),
        (".github/provision/destroy-server.sh", &["MILEPOST_DESTROY_TRIES:-3"]),
    ] {
        let text = std::fs::read_to_string(root.join(script)).unwrap();
        for default in defaults {
            assert!(text.contains(&format!("${{{default}}}")), "{script}: {default}");
        }
    }
}
