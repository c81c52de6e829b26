//! A server's first start: what cloud-init is given is YAML, and its script does first things
//! first. The script runs in bash, with stand-ins for the programs of a server.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::{AGENT, JOB, Setting, identity};
use crate::harness::MILEPOST;

/// A stand-in: writes down what it was called with. What it does besides is its argument.
const STAND_IN: &str = "#!/bin/sh\necho \"${0##*/} $*\" >> \"$CALLS\"\n";

/// The user-data as a reader of YAML sees it.
async fn parsed(user_data: &str) -> Value {
    let program = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)";
    let mut python = Command::new("python3")
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = python.stdin.take().unwrap();
    stdin.write_all(user_data.as_bytes()).await.unwrap();
    drop(stdin);
    let output = python.wait_with_output().await.unwrap();
    assert!(output.status.success(), "is python3-yaml installed?");
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn dry_run() -> String {
    let (job, agent) = (JOB.to_string(), AGENT.to_string());
    let which = ["--job", &job, "--agent", &agent, "--attempt", "1", "--region", "eu-west"];
    let mut command = Command::new(MILEPOST);
    let output = command.args(["vm", "create", "--dry-run"]).args(which).env_clear().output();
    let printed = String::from_utf8(output.await.unwrap().stdout).unwrap();
    let (_, user_data) = printed.split_once(" bytes:\n\n").unwrap();
    user_data.to_owned()
}

/// Runs the script on a machine whose `timedatectl` and `tailscale` do so; its calls in order,
/// whether it ended well, and whether the key is still there.
async fn run(timedatectl: &str, tailscale: &str) -> (Vec<String>, bool, bool) {
    let machine = tempfile::tempdir().unwrap();
    let path = |name: &str| machine.path().join(name);
    let more = [("timedatectl", timedatectl), ("tailscale", tailscale), ("hostname", "echo mp-x")];
    for name in ["curl", "apt-get", "systemctl", "sleep", "timedatectl", "tailscale", "hostname"] {
        let does = more.iter().find(|(other, _)| *other == name).map_or("", |(_, does)| does);
        write_program(&path(name), &format!("{STAND_IN}{does}\n"));
    }
    let files = parsed(&dry_run().await).await["write_files"].take();
    let key_file = path("tailscale-key");
    std::fs::write(&key_file, files[0]["content"].as_str().unwrap()).unwrap();
    let script = files[1]["content"].as_str().unwrap();
    let given = files[0]["path"].as_str().unwrap();
    write_program(&path("enrol"), &script.replace(given, key_file.to_str().unwrap()));
    let status = Command::new("bash")
        .arg(path("enrol"))
        .env("PATH", format!("{}:/usr/bin:/bin", machine.path().display()))
        .env("CALLS", path("calls"))
        .env("LOOKS", path("looks"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await
        .unwrap();
    let calls = std::fs::read_to_string(path("calls")).unwrap();
    let calls =
        calls.replace(key_file.to_str().unwrap(), "KEY").lines().map(str::to_owned).collect();
    (calls, status.success(), key_file.exists())
}

fn write_program(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A clock that is right at the third look.
const THIRD_LOOK: &str = r#"case $1 in show)
    echo >> "$LOOKS"; [ "$(wc -l < "$LOOKS")" -ge 3 ] && echo yes || echo no ;;
esac"#;

#[tokio::test]
async fn the_user_data_is_yaml_and_says_what_it_should() {
    let setting = Setting::new().await;
    setting.created(1).await;
    let body = setting.clouds.hetzner.state().made[0].clone();
    let key = setting.clouds.tailscale.state().made[0].clone();
    let config = parsed(body["user_data"].as_str().unwrap()).await;
    assert_eq!(config["hostname"], identity(1).name());
    assert_eq!(config["ntp"]["enabled"], true);
    assert!(config["ntp"]["servers"].as_array().unwrap().len() >= 3);
    let files = config["write_files"].as_array().unwrap();
    assert_eq!(files[0]["content"], key);
    assert_eq!(files[0]["permissions"], "0600");
    assert!(files[0]["path"].as_str().unwrap().starts_with("/run/"), "in memory only");
    assert_eq!(config["runcmd"], serde_json::json!([[files[1]["path"]]]));
    let request = serde_json::to_string(&body).unwrap();
    assert_eq!(request.matches(&key).count(), 1, "the key is in the user-data only");
}

#[tokio::test]
async fn tailscale_is_installed_and_joined_once_the_clock_is_right() {
    let (calls, is_well, key_is_there) = run(THIRD_LOOK, "").await;
    assert!(is_well && !key_is_there, "{calls:#?}");
    let programs: Vec<_> = calls.iter().map(|call| call.split(' ').next().unwrap()).collect();
    let mut expected = vec!["timedatectl", "timedatectl", "sleep", "timedatectl", "sleep"];
    expected.extend(["timedatectl", "curl", "curl", "apt-get", "apt-get", "systemctl"]);
    expected.extend(["hostname", "tailscale", "hostname"]);
    assert_eq!(programs, expected);
    assert_eq!(calls[12], "tailscale up --auth-key=file:KEY --hostname=mp-x --timeout=120s");
}

#[tokio::test]
async fn a_clock_that_is_never_right_keeps_it_out_in_bounded_time() {
    let (calls, is_well, key_is_there) = run("", "").await;
    assert!(!is_well && !key_is_there);
    let waits = calls.iter().filter(|call| call.starts_with("sleep ")).count();
    assert_eq!(waits as u32, milepost::work::servers::CLOCK_WAIT_SECONDS);
    let installs = ["curl", "apt-get", "tailscale"];
    assert!(!calls.iter().any(|call| installs.iter().any(|name| call.starts_with(name))));
}

#[tokio::test]
async fn the_key_goes_even_when_joining_fails() {
    let (calls, is_well, key_is_there) = run(THIRD_LOOK, "exit 1").await;
    assert!(!is_well && !key_is_there, "{calls:#?}");
}
