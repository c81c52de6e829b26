//! `milepost callback`: signs one callback and sends it, as a workflow would.

use anyhow::Context as _;
use serde_json::{Map, Value};

use super::client::{self, Server};
use crate::app::Clock;
use crate::intake::github::Secret;
use crate::work::dispatch::SECRET_VARIABLE;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job
    job_id: String,
    /// `heartbeat`, `started`, `step`, `running` or `failed`
    kind: String,
    /// The step reached, for `step`
    #[arg(long)]
    step: Option<String>,
    /// The attempt it speaks for
    #[arg(long)]
    attempt: Option<u32>,
    /// Any further field, as name=value
    #[arg(long = "field", value_name = "NAME=VALUE")]
    fields: Vec<String>,
    /// The secret; found in data/dev.json when not given
    #[arg(long, env = SECRET_VARIABLE, hide_env_values = true)]
    secret: Option<String>,
    /// Sign as X-Signature instead of Standard Webhooks
    #[arg(long)]
    x_signature: bool,
    #[command(flatten)]
    server: Server,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let secret = args.secret.clone().or_else(|| args.server.callback_secret());
    let secret = secret
        .with_context(|| format!("no secret: set {SECRET_VARIABLE}, or run `milepost dev` here"))?;
    let secret = Secret::new(&secret).map_err(anyhow::Error::msg)?;
    let body = body(&args)?.to_string();
    let url = format!("{}/api/webhooks/github", args.server.url()?);
    let request = client::post(url)?.header("content-type", "application/json");
    let request = if args.x_signature {
        request.header("x-signature", secret.sign(body.as_bytes()))
    } else {
        let (id, at) = (Clock.id().to_string(), Clock.now().as_second());
        let signature = format!("v1,{}", secret.sign_standard(&id, at, body.as_bytes()));
        request
            .header("webhook-id", id)
            .header("webhook-timestamp", at)
            .header("webhook-signature", signature)
    };
    let response = request.body(body).send().await?;
    let status = response.status();
    let printed = say!("{status} {}", response.text().await?);
    anyhow::ensure!(status.is_success(), "the callback was not taken");
    Ok(printed?)
}

fn body(args: &Args) -> anyhow::Result<Value> {
    let mut body = Map::new();
    body.insert("job_id".into(), args.job_id.clone().into());
    match args.kind.as_str() {
        "heartbeat" => body.insert("type".into(), "heartbeat".into()),
        "started" | "step" => body.insert("status".into(), "provisioning".into()),
        "running" | "failed" => body.insert("status".into(), args.kind.clone().into()),
        other => anyhow::bail!("{other} is none of heartbeat, started, step, running, failed"),
    };
    anyhow::ensure!(args.kind != "step" || args.step.is_some(), "which step? Give --step");
    if let Some(step) = &args.step {
        body.insert("step".into(), step.clone().into());
    }
    if let Some(attempt) = args.attempt {
        body.insert("attempt".into(), attempt.into());
    }
    for field in &args.fields {
        let (name, value) = field.split_once('=').context("a field is NAME=VALUE")?;
        body.insert(name.to_owned(), value.into());
    }
    Ok(body.into())
}
