//! `milepost vm`, as a workflow's steps run it.

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use tokio::process::Command;

use super::{AGENT, JOB, OUTPUTS, all_secrets, identity, secrets_in};
use crate::doubles::hetzner::refusal;
use crate::doubles::{Clouds, Fault, Reply};
use crate::harness::MILEPOST;

const DONE: i32 = 0;
const FINAL: i32 = 1;
const USAGE: i32 = 2;
const TEMPFAIL: i32 = 75;

/// What a step runs: nothing of the outside but the doubles.
async fn vm(clouds: &Clouds, arguments: &[&str]) -> Output {
    let mut command = Command::new(MILEPOST);
    command.arg("vm").args(arguments).env_clear().envs(clouds.env()).env("MILEPOST_POLL", "0.01");
    command.output().await.unwrap()
}

async fn create(clouds: &Clouds, more: &[&str]) -> Output {
    let (job, agent) = (JOB.to_string(), AGENT.to_string());
    let region = if more.contains(&"--region") { vec![] } else { vec!["--region", "us-east"] };
    let which = ["create", "--job", &job, "--agent", &agent, "--attempt", "1"];
    vm(clouds, &[&which[..], &region, more].concat()).await
}

/// Checks that it ended so and showed no secret; what it printed and what it complained.
fn ended(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (printed, complained) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{printed}{complained}");
    for shown in [&printed, &complained] {
        assert!(secrets_in(shown).is_empty(), "{shown}");
    }
    (printed, complained)
}

fn read(path: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    let pairs = text.lines().map(|line| line.split_once('=').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[tokio::test]
async fn outputs_are_added_to_the_file_in_the_order_they_become_known() {
    let clouds = Clouds::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "earlier=1\n").unwrap();
    let output = create(&clouds, &["--output", file.path().to_str().unwrap()]).await;
    let (printed, _) = ended(&output, DONE);
    let outputs = read(file.path());
    let names: Vec<_> = outputs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [&["earlier"], &OUTPUTS[..]].concat());
    assert_eq!(outputs[1].1, identity(1).name());
    assert_eq!(outputs[3].1, "42");
    assert_eq!(printed.lines().count(), OUTPUTS.len());
    assert_eq!(clouds.hetzner.state().made[0]["location"], "ash");
}

#[tokio::test]
async fn a_server_that_never_joins_is_left_with_its_outputs_and_can_be_destroyed() {
    let clouds = Clouds::start().await;
    clouds.tailscale.state().nobody_joins = true;
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let output = create(&clouds, &["--output", path, "--enrol-timeout", "0"]).await;
    let (_, complained) = ended(&output, TEMPFAIL);
    assert!(complained.contains("has not joined the tailnet"), "{complained}");
    let outputs = read(file.path());
    let names: Vec<_> = outputs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, OUTPUTS[..4]);
    let destroy = ["destroy", "--server-id", &outputs[2].1, "--tailscale-device", ""];
    let (printed, _) = ended(&vm(&clouds, &destroy).await, DONE);
    assert!(printed.contains("server 42 is gone"), "{printed}");
    assert!(clouds.leftovers().is_empty());
}

#[tokio::test]
async fn exit_codes_say_whether_to_try_again_and_nothing_says_a_secret() {
    let secrets = all_secrets();
    for (reply, code, said) in [
        (refusal(403, "resource_limit_exceeded", &secrets), FINAL, "resource_limit_exceeded (403)"),
        (refusal(401, "unauthorized", &secrets), FINAL, "unauthorized (401)"),
        (
            refusal(429, "rate_limit_exceeded", &secrets).header("retry-after", 3_600),
            TEMPFAIL,
            "rate_limit_exceeded (429)",
        ),
    ] {
        let clouds = Clouds::start().await;
        clouds.hetzner.fail_each("POST /servers", Fault::Refuse(reply));
        let (_, complained) = ended(&create(&clouds, &[]).await, code);
        assert!(complained.contains(said), "{complained}");
        assert!(clouds.hetzner.state().servers.is_empty());
    }
}

#[tokio::test]
async fn a_pause_and_its_reason_are_told_without_secrets() {
    let clouds = Clouds::start().await;
    let busy = Fault::Refuse(refusal(409, "conflict", &all_secrets()));
    clouds.hetzner.fail_next("GET /servers", busy);
    let (_, complained) = ended(&create(&clouds, &[]).await, DONE);
    assert!(complained.contains("trying again"), "{complained}");
}

#[tokio::test]
async fn a_dry_run_sends_nothing_and_shows_every_request_and_no_secret() {
    let clouds = Clouds::start().await;
    let output = create(&clouds, &["--dry-run", "--ssh-key", "a,b", "--firewall", "7"]).await;
    let (printed, _) = ended(&output, DONE);
    assert!(clouds.hetzner.asked().is_empty() && clouds.tailscale.asked().is_empty());
    // What is sent in earnest stands there in the same order.
    let (plan, user_data) = printed.split_once("\n# User-data, ").unwrap();
    let (hetzner, tailscale) = (clouds.hetzner.url(), clouds.tailscale.url());
    let requests: Vec<_> = plan
        .lines()
        .filter(|line| line.starts_with("GET ") || line.starts_with("POST "))
        .map(|line| line.split("   #").next().unwrap().to_owned())
        .collect();
    assert_eq!(
        requests,
        [
            format!("GET {hetzner}/servers?name={}", identity(1).name()),
            format!("POST {tailscale}/api/v2/oauth/token"),
            format!("POST {tailscale}/api/v2/tailnet/-/keys"),
            format!("POST {hetzner}/servers"),
            format!("GET {hetzner}/actions/ID"),
            format!("GET {tailscale}/api/v2/tailnet/-/devices"),
        ]
    );
    assert!(
        plan.contains("client_secret=[secret]") && plan.contains("\"user_data\": \"[secret]\"")
    );
    assert!(plan.contains("\"location\": \"ash\"") && !plan.contains("datacenter"), "{plan}");
    assert!(user_data.contains("\n#cloud-config\n") && user_data.contains("tskey-auth-masked"));
}

#[tokio::test]
async fn a_dry_run_needs_no_credentials() {
    let (job, agent) = (JOB.to_string(), AGENT.to_string());
    let arguments = ["create", "--job", &job, "--agent", &agent, "--attempt", "1"];
    let mut command = Command::new(MILEPOST);
    command.arg("vm").args(arguments).args(["--region", "eu-west", "--dry-run"]).env_clear();
    let (printed, _) = ended(&command.output().await.unwrap(), DONE);
    assert!(printed.contains("POST https://api.hetzner.cloud/v1/servers"), "{printed}");
    assert!(printed.contains("POST https://api.tailscale.com/api/v2/oauth/token"), "{printed}");
}

#[tokio::test]
async fn what_is_missing_is_listed_at_once() {
    let job = JOB.to_string();
    let mut command = Command::new(MILEPOST);
    command.args(["vm", "destroy", "--job", &job, "--attempt", "1"]).env_clear();
    let (_, complained) = ended(&command.output().await.unwrap(), FINAL);
    for name in ["HCLOUD_TOKEN", "TAILSCALE_OAUTH_CLIENT_ID", "TAILSCALE_OAUTH_CLIENT_SECRET"] {
        assert!(complained.contains(name), "{complained}");
    }
}

#[tokio::test]
async fn hostile_values_do_nothing() {
    let clouds = Clouds::start().await;
    let directory = tempfile::tempdir().unwrap();
    let mark = directory.path().join("pwn");
    let hostile = format!(r#"'"; touch {}; '"#, mark.display());
    let (job, agent) = (JOB.to_string(), AGENT.to_string());
    for (job, agent, attempt, more) in [
        (&hostile, &agent, "1", vec![]),
        (&job, &hostile, "1", vec![]),
        (&job, &agent, &*hostile, vec![]),
        (&job, &agent, "0", vec![]),
        (&job, &agent, "1", vec!["--tag", &hostile]),
        (&job, &agent, "1", vec!["--firewall", &hostile]),
    ] {
        let which = ["create", "--job", job, "--agent", agent, "--attempt", attempt];
        let arguments = [&which[..], &["--region", "eu-west"], &more].concat();
        ended(&vm(&clouds, &arguments).await, USAGE);
    }
    let (_, complained) = ended(&create(&clouds, &["--region", &hostile]).await, FINAL);
    assert!(complained.contains("there are eu-central, eu-north, eu-west, us-east, us-west"));
    assert!(clouds.hetzner.asked().is_empty() && clouds.tailscale.asked().is_empty());
    // What is text for Hetzner stays text.
    let taken = ["--server-type", &hostile, "--image", &hostile, "--ssh-key", &hostile];
    ended(&create(&clouds, &taken).await, DONE);
    let made = clouds.hetzner.state().made[0].clone();
    assert_eq!(made["image"], hostile);
    assert!(!made["user_data"].as_str().unwrap().contains("pwn"));
    assert!(!mark.exists());
}

#[tokio::test]
async fn destroying_twice_is_done_and_one_must_say_what() {
    let clouds = Clouds::start().await;
    ended(&create(&clouds, &[]).await, DONE);
    let job = JOB.to_string();
    let destroy = ["destroy", "--job", &job, "--attempt", "1"];
    let (printed, _) = ended(&vm(&clouds, &destroy).await, DONE);
    assert_eq!(printed, "server 42 is gone\ndevice n2CNTRL is gone\nkey k1CNTRL is gone\n");
    let (printed, _) = ended(&vm(&clouds, &destroy).await, DONE);
    assert_eq!(printed, "there was no server\n");
    assert!(clouds.leftovers().is_empty());
    for wrong in
        [vec!["destroy"], vec!["destroy", "--job", &job], vec!["destroy", "--attempt", "1"]]
    {
        ended(&vm(&clouds, &wrong).await, USAGE);
    }
}

#[tokio::test]
async fn servers_are_listed_as_a_table_and_as_json() {
    let clouds = Clouds::start().await;
    ended(&create(&clouds, &[]).await, DONE);
    clouds.hetzner.state().add("web-1", &json!({}));
    let (table, _) = ended(&vm(&clouds, &["list"]).await, DONE);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("ID"), "{table}");
    assert!(lines[1].starts_with("42 ") && lines[1].contains(&identity(1).name()), "{table}");
    let (list, _) = ended(&vm(&clouds, &["list", "--json"]).await, DONE);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["servers"][0]["id"], 42);
    assert_eq!(list["servers"][0]["labels"]["milepost-job"], JOB.to_string());
    assert_eq!(list["servers"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_tailscale_that_is_out_of_order_leaves_no_server() {
    let clouds = Clouds::start().await;
    let out = Reply::new(403, json!({"message": "the OAuth client lacks the scope auth_keys"}));
    clouds.tailscale.fail_each("POST /api/v2/tailnet/{tailnet}/keys", Fault::Refuse(out));
    let (_, complained) = ended(&create(&clouds, &[]).await, FINAL);
    assert!(complained.contains("lacks the scope auth_keys"), "{complained}");
    assert_eq!(clouds.hetzner.count("POST /servers"), 0);
}
