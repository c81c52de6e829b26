//! Runs a job of a workflow file as GitHub's runner does: step after step, each in a bash of its
//! own, with contexts, outputs, conditions, composite actions and cancellation. What it does not
//! know fails the test.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::expression::{Scope, words};

/// Actions of others that the runner plays; their commit is given after the `@`.
const CHECKOUT: &str = "actions/checkout";
const CACHE_RESTORE: &str = "actions/cache/restore";
const CACHE_SAVE: &str = "actions/cache/save";

/// Between the signals a cancelled step gets; on GitHub 7.5 s and 2.5 s.
const GRACE: Duration = Duration::from_millis(300);

const WORKFLOW_KEYS: &[&str] =
    &["name", "run-name", "on", "permissions", "concurrency", "env", "jobs"];
const JOB_KEYS: &[&str] = &["name", "runs-on", "timeout-minutes", "steps"];
const STEP_KEYS: &[&str] = &[
    "name",
    "id",
    "if",
    "uses",
    "with",
    "run",
    "env",
    "shell",
    "timeout-minutes",
    "continue-on-error",
];

/// A machine with a checkout, on which one job runs.
pub struct Runner {
    workflow: Value,
    dir: TempDir,
    /// What the dispatch gave.
    pub inputs: Value,
    /// The repository's secrets.
    pub secrets: Value,
    /// The machine's own environment.
    pub env: BTreeMap<String, String>,
    /// Whether the cache has the program.
    pub cached: bool,
    /// Ends the run.
    pub cancel: CancellationToken,
    log: String,
}

/// What became of a run.
#[derive(Debug)]
pub struct Finished {
    /// `success`, `failure` or `cancelled`.
    pub conclusion: String,
    /// The outcome of each step, by its name.
    pub outcomes: BTreeMap<String, String>,
    /// All that was printed.
    pub log: String,
}

#[derive(Default)]
struct Steps(Map<String, Value>);

/// What a step stands in.
struct Context<'a> {
    contexts: Value,
    status: &'a str,
    env: BTreeMap<String, String>,
}

/// Reads a YAML file of the repository.
pub fn read_yaml(path: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    serde_saphyr::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

impl Runner {
    /// A fresh machine with this repository checked out, and a run of a workflow to come.
    pub fn new(workflow: &str, inputs: Value, secrets: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for made in ["workspace", "temp", "bin"] {
            std::fs::create_dir(dir.path().join(made)).unwrap();
        }
        for linked in [".github", "ansible"] {
            std::os::unix::fs::symlink(
                root.join(linked),
                dir.path().join("workspace").join(linked),
            )
            .unwrap();
        }
        let path = std::env::var("PATH").unwrap();
        let env = [
            ("PATH", format!("{}:{path}", dir.path().join("bin").display())),
            ("HOME", dir.path().display().to_string()),
            ("RUNNER_TEMP", dir.path().join("temp").display().to_string()),
            ("GITHUB_WORKSPACE", dir.path().join("workspace").display().to_string()),
            ("RUNNER_TRACKING_ID", format!("github_{}", milepost::app::Clock.id())),
            ("CI", "true".to_owned()),
        ];
        Self {
            workflow: read_yaml(workflow),
            inputs,
            secrets,
            env: env.map(|(name, value)| (name.to_owned(), value)).into(),
            cached: true,
            cancel: CancellationToken::new(),
            log: String::new(),
            dir,
        }
    }

    /// A directory of the machine that is its own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Installs a program.
    pub fn install(&self, name: &str, script: &str) {
        write_program(&self.path("bin").join(name), script);
    }

    /// The run's name, as GitHub shows it.
    pub fn run_name(&self) -> String {
        let contexts = json!({"inputs": self.inputs});
        let scope = Scope { contexts: &contexts, status: "success" };
        scope.text(self.workflow["run-name"].as_str().unwrap())
    }

    /// Runs the only job to its end.
    pub async fn run(mut self, run_id: u64) -> Finished {
        only(&self.workflow, WORKFLOW_KEYS);
        let jobs = self.workflow["jobs"].as_object().unwrap();
        assert_eq!(jobs.len(), 1, "the runner runs one job");
        let job = jobs.values().next().unwrap().clone();
        only(&job, JOB_KEYS);
        self.env.insert("GITHUB_RUN_ID".to_owned(), run_id.to_string());
        let mut contexts = json!({
            "inputs": self.typed_inputs(),
            "secrets": self.secrets,
            "vars": {},
            "runner": {"os": "Linux", "arch": "X64", "temp": self.path("temp")},
            "github": {"run_id": run_id.to_string()},
            "job": {"status": "success"},
            "steps": {},
        });
        let workflow_env = text_map(&self.workflow["env"], &contexts, "success");
        let steps = job["steps"].as_array().unwrap().clone();
        let mut status = "success";
        let mut outcomes = BTreeMap::new();
        let mut done = Steps::default();
        done.declare(&steps);
        for (number, step) in steps.iter().enumerate() {
            if self.cancel.is_cancelled() {
                status = "cancelled";
            }
            contexts["steps"] = Value::Object(done.0.clone());
            contexts["job"]["status"] = status.into();
            let context = Context { contexts: contexts.clone(), status, env: workflow_env.clone() };
            let (outcome, outputs) = self.step(step, &context, &format!("{number}")).await;
            if status == "success" && matches!(outcome, "failure" | "cancelled") {
                status = outcome;
            }
            done.finish(step, outcome, &outputs);
            let name = step["name"].as_str().unwrap_or_default();
            outcomes.insert(name.to_owned(), outcome.to_owned());
        }
        self.end_orphans();
        Finished { conclusion: status.to_owned(), outcomes, log: std::mem::take(&mut self.log) }
    }

    /// Inputs are strings in a dispatch, and typed in the workflow.
    fn typed_inputs(&self) -> Value {
        let declared = self.workflow["on"]["workflow_dispatch"]["inputs"].as_object().unwrap();
        let typed = declared.iter().map(|(name, input)| {
            let given = self.inputs[name].as_str().unwrap_or_else(|| panic!("no input {name}"));
            let value = match input["type"].as_str().unwrap() {
                "number" => given.parse::<i64>().unwrap().into(),
                "string" | "choice" => given.into(),
                other => panic!("an input of type {other} is not known here"),
            };
            (name.clone(), value)
        });
        Value::Object(typed.collect())
    }

    async fn step(
        &mut self,
        step: &Value,
        context: &Context<'_>,
        number: &str,
    ) -> (&'static str, Map<String, Value>) {
        only(step, STEP_KEYS);
        let scope = Scope { contexts: &context.contexts, status: context.status };
        if !scope.condition(step["if"].as_str()) {
            return ("skipped", Map::new());
        }
        let name = step["name"].as_str().unwrap_or("?");
        writeln!(self.log, "--- {name}").unwrap();
        let mut env = context.env.clone();
        env.extend(text_map(&step["env"], &context.contexts, context.status));
        let with = text_map(&step["with"], &context.contexts, context.status);
        let (outcome, outputs) = match (step["uses"].as_str(), step["run"].as_str()) {
            (None, Some(script)) => {
                let script = scope.text(script);
                self.script(&script, step["shell"].as_str(), &env, number).await
            }
            (Some(action), None) if action.starts_with("./") => {
                Box::pin(self.composite(&action[2..], with, &env, number)).await
            }
            (Some(action), None) => self.action(action, &with),
            _ => panic!("a step either runs or uses: {step}"),
        };
        writeln!(self.log, "--- {name}: {outcome}").unwrap();
        if outcome == "failure" && step["continue-on-error"] == true {
            return ("success", outputs);
        }
        (outcome, outputs)
    }

    fn action(
        &self,
        action: &str,
        with: &BTreeMap<String, String>,
    ) -> (&'static str, Map<String, Value>) {
        let (name, commit) = action.split_once('@').expect("an action is pinned");
        let pinned = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(pinned, "{action} is not pinned to a commit");
        let mut outputs = Map::new();
        match name {
            CHECKOUT => assert_eq!(with["persist-credentials"], "false"),
            CACHE_RESTORE => {
                outputs.insert("cache-primary-key".to_owned(), with["key"].clone().into());
                if self.cached {
                    let milepost = self.path("workspace").join(&with["path"]);
                    std::fs::create_dir_all(milepost.parent().unwrap()).unwrap();
                    std::fs::copy(self.path("built"), milepost).unwrap();
                    outputs.insert("cache-hit".to_owned(), "true".into());
                }
            }
            CACHE_SAVE => {
                assert!(self.path("workspace").join(&with["path"]).exists(), "nothing to keep");
                assert!(!with["key"].is_empty());
            }
            other => panic!("the action {other} is not known here"),
        }
        ("success", outputs)
    }

    async fn composite(
        &mut self,
        path: &str,
        with: BTreeMap<String, String>,
        env: &BTreeMap<String, String>,
        number: &str,
    ) -> (&'static str, Map<String, Value>) {
        let action = read_yaml(&format!("{path}/action.yml"));
        only(&action, &["name", "description", "inputs", "outputs", "runs"]);
        assert_eq!(action["runs"]["using"], "composite");
        let declared = action["inputs"].as_object().unwrap();
        let stray = with.keys().find(|name| !declared.contains_key(*name));
        assert_eq!(stray, None, "{path} has no such input");
        let inputs = declared.iter().map(|(name, input)| {
            let given = with.get(name).map(|value| Value::from(value.clone()));
            let value = given.unwrap_or_else(|| {
                assert_ne!(input["required"], true, "{path}: {name} is missing");
                input["default"].clone()
            });
            (name.clone(), value)
        });
        let mut contexts = json!({
            "inputs": Value::Object(inputs.collect()),
            "github": {"action_path": self.path("workspace").join(path)},
            "steps": {},
        });
        let steps = action["runs"]["steps"].as_array().unwrap().clone();
        let mut done = Steps::default();
        done.declare(&steps);
        let mut status = "success";
        for (index, step) in steps.iter().enumerate() {
            contexts["steps"] = Value::Object(done.0.clone());
            let inner = Context { contexts: contexts.clone(), status, env: env.clone() };
            let number = format!("{number}-{index}");
            let (outcome, outputs) = Box::pin(self.step(step, &inner, &number)).await;
            if status == "success" && matches!(outcome, "failure" | "cancelled") {
                status = outcome;
            }
            done.finish(step, outcome, &outputs);
        }
        contexts["steps"] = Value::Object(done.0);
        let scope = Scope { contexts: &contexts, status };
        let outputs = action["outputs"].as_object().into_iter().flatten();
        let outputs = outputs.map(|(name, output)| {
            (name.clone(), scope.text(output["value"].as_str().unwrap()).into())
        });
        (status, outputs.collect())
    }

    async fn script(
        &mut self,
        script: &str,
        shell: Option<&str>,
        env: &BTreeMap<String, String>,
        number: &str,
    ) -> (&'static str, Map<String, Value>) {
        let file = self.path("temp").join(format!("{number}.sh"));
        let output = self.path("temp").join(format!("{number}.output"));
        let said = self.path("temp").join(format!("{number}.log"));
        std::fs::write(&file, script).unwrap();
        std::fs::write(&output, "").unwrap();
        // As the runner calls it where the step names no shell, and where it names bash.
        let flags: &[&str] = match shell {
            None => &["-e"],
            Some("bash") => &["--noprofile", "--norc", "-e", "-o", "pipefail"],
            Some(other) => panic!("the shell {other} is not known here"),
        };
        let log = std::fs::File::create(&said).unwrap();
        let mut child = Command::new("bash")
            .args(flags)
            .arg(&file)
            .current_dir(self.path("workspace"))
            .env_clear()
            .envs(&self.env)
            .envs(env)
            .env("GITHUB_OUTPUT", &output)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        // Once a run is cancelled, what still runs is clean-up, and is left to end.
        let late = self.cancel.is_cancelled();
        let outcome = tokio::select! {
            status = child.wait() => if status.unwrap().success() { "success" } else { "failure" },
            () = self.cancel.cancelled(), if !late => {
                interrupt(&mut child).await;
                "cancelled"
            }
        };
        self.log.push_str(&String::from_utf8_lossy(&std::fs::read(&said).unwrap()));
        (outcome, read_outputs(&std::fs::read_to_string(&output).unwrap()))
    }

    /// What steps left running, as the runner finds it: by a mark in the environment.
    fn end_orphans(&self) {
        let mark = format!("RUNNER_TRACKING_ID={}", self.env["RUNNER_TRACKING_ID"]);
        for process in std::fs::read_dir("/proc").unwrap() {
            let process = process.unwrap();
            let Ok(pid) = process.file_name().to_string_lossy().parse() else { continue };
            let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
            if environment.split(|byte| *byte == 0).any(|it| it == mark.as_bytes()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.end_orphans();
    }
}

impl Steps {
    /// A step that has not run yet has neither outcome nor outputs, but its name is known.
    fn declare(&mut self, steps: &[Value]) {
        for id in steps.iter().filter_map(|step| step["id"].as_str()) {
            let nothing = json!({"outcome": null, "conclusion": null, "outputs": {}});
            assert!(self.0.insert(id.to_owned(), nothing).is_none(), "two steps are called {id}");
        }
    }

    fn finish(&mut self, step: &Value, outcome: &str, outputs: &Map<String, Value>) {
        if let Some(id) = step["id"].as_str() {
            let state = json!({"outcome": outcome, "conclusion": outcome, "outputs": outputs});
            self.0.insert(id.to_owned(), state);
        }
    }
}

/// Ends a step as GitHub does: asks twice, then makes an end of it and of what it started.
async fn interrupt(child: &mut Child) {
    let pid = Pid::from_raw(child.id().unwrap().cast_signed());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let _ = kill(pid, signal);
        if tokio::time::timeout(GRACE, child.wait()).await.is_ok() {
            break;
        }
    }
    let _ = killpg(pid, Signal::SIGKILL);
    child.wait().await.unwrap();
}

/// Writes a program that can be run.
pub fn write_program(path: &Path, script: &str) {
    std::fs::write(path, script).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn only(value: &Value, known: &[&str]) {
    for key in value.as_object().unwrap().keys() {
        assert!(known.contains(&key.as_str()), "{key} is not known here");
    }
}

fn text_map(value: &Value, contexts: &Value, status: &str) -> BTreeMap<String, String> {
    let scope = Scope { contexts, status };
    let entries = value.as_object().into_iter().flatten();
    entries.map(|(name, value)| (name.clone(), scope.text(&words(value)))).collect()
}

fn read_outputs(text: &str) -> Map<String, Value> {
    let pair = |line: &str| {
        let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("an output: {line}"));
        (name.to_owned(), value.into())
    };
    text.lines().map(pair).collect()
}
