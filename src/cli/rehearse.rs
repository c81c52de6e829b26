//! `milepost rehearse`: plays the provisioning workflow with real signed callbacks over real HTTP,
//! in the workflow's order, with its retries and its gate. It builds nothing.

mod output;

use std::cell::Cell;
use std::os::fd::AsFd as _;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use crate::app::Clock;
use crate::intake::github::Secret;
use crate::work::dispatch::SECRET_VARIABLE;

/// Tries of a callback that must arrive: *started*, *running*, *failed*.
const TRIES: u32 = 6;

/// How long one try may take.
const TRY_TIMEOUT: Duration = Duration::from_secs(10);

/// The environment name of what goes wrong in rehearsals.
const FAULTS_VARIABLE: &str = "MILEPOST_REHEARSAL_FAULTS";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job
    #[arg(long)]
    job: String,
    /// Its agent
    #[arg(long, required_unless_present = "node")]
    agent: Option<String>,
    /// Its node; then no server would be built
    #[arg(long, conflicts_with = "agent")]
    node: Option<String>,
    /// The attempt
    #[arg(long, default_value_t = 1)]
    attempt: u32,
    /// Where the server would be built
    #[arg(long, default_value = "eu-central")]
    region: String,
    /// Where the callbacks go
    #[arg(long)]
    callback_url: String,
    /// The secret they are signed with
    #[arg(long, env = SECRET_VARIABLE, hide_env_values = true)]
    secret: String,
    /// Seconds a step takes on average
    #[arg(long, env = "MILEPOST_REHEARSAL_PACE", default_value_t = 4.0)]
    pace: f64,
    /// Seconds between heartbeats
    #[arg(long, env = "MILEPOST_REHEARSAL_HEARTBEAT", default_value_t = 15.0)]
    heartbeat: f64,
    /// What goes wrong: fail, hang, lose, late, repeat or reorder, at a step, as in
    /// `fail@ansible_complete`; several with commas
    #[arg(long = "fault", env = FAULTS_VARIABLE, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// End when standard input does: the server that has started this is gone then
    #[arg(long, hide = true)]
    until_input_ends: bool,
}

/// Something that goes wrong, and where: `started`, a step, or `running`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    kind: FaultKind,
    at: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FaultKind {
    /// The workflow fails instead of reaching this.
    Fail,
    /// The workflow stops here without a word, and without ending.
    Hang,
    /// This callback is never sent.
    Lose,
    /// This callback is sent after the end.
    Late,
    /// This callback is sent twice.
    Repeat,
    /// This callback changes places with the next.
    Reorder,
}

/// What is wrong with the faults of rehearsals as the environment has them; a server says so at its
/// start, for otherwise each rehearsal would.
///
/// # Errors
/// The variable, the fault, and why it is none.
pub fn check_faults() -> anyhow::Result<()> {
    let Ok(faults) = std::env::var(FAULTS_VARIABLE) else { return Ok(()) };
    for fault in faults.split(',') {
        Fault::from_str(fault)
            .map_err(|why| anyhow::anyhow!("{FAULTS_VARIABLE}: {fault:?}: {why}"))?;
    }
    Ok(())
}

impl FromStr for Fault {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, at) = text.split_once('@').ok_or("a fault is KIND@STEP")?;
        let kind = match kind {
            "fail" => FaultKind::Fail,
            "hang" => FaultKind::Hang,
            "lose" => FaultKind::Lose,
            "late" => FaultKind::Late,
            "repeat" => FaultKind::Repeat,
            "reorder" => FaultKind::Reorder,
            other => return Err(format!("{other} is no fault")),
        };
        let known = SCENES.iter().any(|scene| scene.name == at);
        known.then(|| Self { kind, at: at.to_owned() }).ok_or(format!("{at} is no step"))
    }
}

/// One callback of the workflow, and how long what comes before it takes, in paces.
struct Scene {
    name: &'static str,
    paces: f64,
    phase: &'static str,
}

const SCENES: &[Scene] = &[
    Scene { name: "started", paces: 0.4, phase: "provision" },
    Scene { name: "vm_created", paces: 1.5, phase: "provision" },
    Scene { name: "network_configured", paces: 0.5, phase: "provision" },
    Scene { name: "ansible_started", paces: 1.2, phase: "configure" },
    Scene { name: "ansible_complete", paces: 2.0, phase: "configure" },
    Scene { name: "running", paces: 0.6, phase: "configure" },
];

pub async fn run(args: Args) -> anyhow::Result<()> {
    let secret = Secret::new(&args.secret).map_err(anyhow::Error::msg)?;
    let http = reqwest::Client::new();
    let workflow = Workflow { http, secret, args, tasks: Cell::new(0), lines: Cell::new(0) };
    let heartbeats = async {
        loop {
            tokio::time::sleep(Duration::from_secs_f64(workflow.args.heartbeat)).await;
            workflow.try_once(&json!({"type": "heartbeat"})).await.ok();
        }
    };
    tokio::select! {
        ended = workflow.play() => ended,
        () = heartbeats => Ok(()),
        ended = input_ended(), if workflow.args.until_input_ends => ended,
    }
}

/// Returns when whoever holds the other end of the pipe is gone, however that came about.
async fn input_ended() -> anyhow::Result<()> {
    let input = std::io::stdin().as_fd().try_clone_to_owned()?;
    let mut input = pipe::Receiver::from_owned_fd(input).context("standard input is no pipe")?;
    // Nothing is ever written: whatever comes is the end.
    let _nothing = input.read(&mut [0]).await?;
    anyhow::bail!("the server that has started this is gone")
}

struct Workflow {
    http: reqwest::Client,
    secret: Secret,
    args: Args,
    /// Tasks that have begun.
    tasks: Cell<u64>,
    /// Lines that were printed.
    lines: Cell<u64>,
}

impl Workflow {
    async fn play(&self) -> anyhow::Result<()> {
        let mut late = Vec::new();
        let mut reordered = None;
        for scene in SCENES {
            self.work(scene).await;
            if self.has(FaultKind::Hang, scene.name) {
                std::future::pending::<()>().await;
            }
            if self.has(FaultKind::Fail, scene.name) {
                return self.fail(scene).await;
            }
            if self.has(FaultKind::Lose, scene.name) {
                continue;
            }
            if self.has(FaultKind::Late, scene.name) {
                late.push(scene);
                continue;
            }
            if self.has(FaultKind::Reorder, scene.name) {
                reordered = Some(scene);
                continue;
            }
            for scene in std::iter::once(scene).chain(reordered.take()) {
                self.tell(scene).await?;
                if self.has(FaultKind::Repeat, scene.name) {
                    self.tell(scene).await?;
                }
            }
        }
        for scene in late.into_iter().chain(reordered) {
            self.pause(0.5).await;
            self.tell(scene).await?;
        }
        Ok(())
    }

    /// Does what leads to a scene: tasks begin and lines are printed, each told as it happens.
    async fn work(&self, scene: &Scene) {
        let acts = output::before(scene.name);
        let paces = scene.paces / (acts.len() + 1) as f64;
        self.pause(paces).await;
        for act in acts {
            if let Some(task) = act.task {
                let number = self.tasks.get() + 1;
                self.tasks.set(number);
                let play = output::PLAY;
                let body = json!({"type": "task", "number": number, "play": play, "task": task});
                self.try_once(&body).await.ok();
            }
            self.print(act.lines).await;
            self.pause(paces).await;
        }
    }

    /// Best effort, as everything that only tells how it goes.
    async fn print(&self, lines: &[&str]) {
        let from = self.lines.get() + 1;
        self.lines.set(self.lines.get() + lines.len() as u64);
        let body = json!({"type": "log", "from": from, "lines": lines});
        self.try_once(&body).await.ok();
    }

    /// Says that a scene has been reached. *started* is the gate: refused, the workflow stops.
    async fn tell(&self, scene: &Scene) -> anyhow::Result<()> {
        let number =
            u32::from_str_radix(&self.args.job[self.args.job.len() - 4..], 16).unwrap_or(7);
        let body = match scene.name {
            "started" => json!({"status": "provisioning", "workflow_run_id": run_id()}),
            "running" => json!({
                "status": "running",
                "server_id": format!("rehearsal-{number}"),
                "server_ip": format!("192.0.2.{}", number % 254 + 1),
                "tailscale_ip": format!("100.64.0.{}", number % 254 + 1),
            }),
            step => json!({
                "status": "provisioning",
                "step": step,
                "metadata": {"rehearsal": true, "region": self.args.region},
            }),
        };
        match scene.name {
            "started" | "running" => {
                let status = self.insist(&body).await?;
                anyhow::ensure!(status != StatusCode::CONFLICT, "the attempt is over: stopping");
            }
            _ => {
                self.try_once(&body).await.ok();
            }
        }
        Ok(())
    }

    async fn fail(&self, scene: &Scene) -> anyhow::Result<()> {
        let step = SCENES.iter().take_while(|other| other.name != scene.name).last();
        let step = step.map(|step| step.name).filter(|name| *name != "started");
        let fatal = format!(
            "fatal: [{}]: FAILED! => {{\"msg\": \"rehearsed failure before {}\"}}",
            self.subject(),
            scene.name
        );
        self.print(&[&format!("\u{1b}[0;31m{fatal}\u{1b}[0m")]).await;
        self.insist(&json!({
            "status": "failed",
            "error": format!("TASK [agent : wait for the agent to answer]\n{fatal}"),
            "failed_step": scene.phase,
            "step": step,
        }))
        .await?;
        Ok(())
    }

    fn subject(&self) -> &str {
        self.args.agent.as_deref().or(self.args.node.as_deref()).unwrap_or_default()
    }

    /// Sends until it is answered: the run's end must not get lost.
    async fn insist(&self, body: &Value) -> anyhow::Result<StatusCode> {
        let mut delay = Duration::from_millis(500);
        for _ in 1..TRIES {
            match self.try_once(body).await {
                Ok(status) if !status.is_server_error() => return Ok(status),
                Ok(_) | Err(_) => tokio::time::sleep(delay).await,
            }
            delay *= 2;
        }
        self.try_once(body).await.context("nobody answered")
    }

    async fn try_once(&self, body: &Value) -> anyhow::Result<StatusCode> {
        let mut body = body.clone();
        body["job_id"] = self.args.job.clone().into();
        body["attempt"] = self.args.attempt.into();
        let body = body.to_string();
        let (id, at) = (Clock.id().to_string(), Clock.now().as_second());
        let signature = format!("v1,{}", self.secret.sign_standard(&id, at, body.as_bytes()));
        let response = self
            .http
            .post(&self.args.callback_url)
            .timeout(TRY_TIMEOUT)
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", at)
            .header("webhook-signature", signature)
            .body(body)
            .send()
            .await?;
        Ok(response.status())
    }

    /// A pause as long as such work takes, give or take a quarter.
    async fn pause(&self, paces: f64) {
        let jitter = 0.75 + (Clock.id().as_u128() % 1_000) as f64 / 2_000.0;
        tokio::time::sleep(Duration::from_secs_f64(self.args.pace * paces * jitter)).await;
    }

    fn has(&self, kind: FaultKind, at: &str) -> bool {
        self.args.faults.iter().any(|fault| fault.kind == kind && fault.at == at)
    }
}

fn run_id() -> String {
    format!("rehearsal-{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_a_kind_at_a_step() {
        let fault = Fault { kind: FaultKind::Fail, at: "ansible_complete".into() };
        assert_eq!("fail@ansible_complete".parse(), Ok(fault));
        for wrong in ["fail", "explode@running", "fail@nowhere"] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }
}
