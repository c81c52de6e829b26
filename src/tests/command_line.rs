//! What commands do besides their work: what `dev` goes by, and how commands end.

use std::os::fd::OwnedFd;
use std::process::{Output, Stdio};

use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use crate::harness::{MILEPOST, Options, Server, data_dir, database, wait_until};

/// A command beside a server's data directory.
fn command(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(MILEPOST);
    command.args(arguments).arg("--data-dir").arg(server.dir()).stdin(Stdio::null());
    command.env_remove("MILEPOST_URL").env_remove("MILEPOST_TOKEN").kill_on_drop(true);
    command
}

/// Its exit code, and what it printed and complained.
fn ended(output: Output) -> (Option<i32>, String) {
    let words = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(words).unwrap())
}

async fn run(server: &Server, arguments: &[&str]) -> (Option<i32>, String) {
    ended(command(server, arguments).output().await.unwrap())
}

/// A server with these settings in its environment.
async fn with(env: &[(&'static str, &str)]) -> Server {
    let env = env.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Server::with(Options { env, ..Options::default() }).await
}

/// Rows are filled soon after a start.
async fn wait_for_lists(server: &Server) {
    let client = server.client();
    let list = || async { (client.get("/api/jobs").await.0 == 200).then_some(()) };
    wait_until("jobs are listed", list).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_dev_is_refused_and_the_first_is_still_found() {
    let server = Server::start().await;
    let ready_file = server.dir().join("dev.json");
    let ready = std::fs::read(&ready_file).unwrap();
    for database_url in [Some(server.database_url()), None] {
        let mut second = command(&server, &["dev", "--listen", "127.0.0.1:0"]);
        second.env_remove("DATABASE_URL").envs(database_url.map(|url| ("DATABASE_URL", url)));
        let (code, said) = ended(second.output().await.unwrap());
        assert_eq!(code, Some(1), "{said}");
        let pid = format!("another Milepost (process {})", server.pid());
        assert!(said.contains(&pid), "{said}");
        assert_eq!(std::fs::read(&ready_file).unwrap(), ready);
    }
    wait_for_lists(&server).await;
    let (code, said) = run(&server, &["jobs", "list"]).await;
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_keeps_out_of_the_log_what_it_is_told_to() {
    let server = with(&[("MILEPOST_REDACT", "hunter2-hunter2, hunter3-hunter3")]).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let step = json!({
        "job_id": job, "status": "provisioning", "step": "vm_created",
        "metadata": {"password": "hunter2-hunter2", "token": "hunter3-hunter3"},
    });
    assert_eq!(client.callback(&step).await.0, 200);
    let events = json!(client.events().await).to_string();
    assert!(events.contains("vm_created") && events.contains("[redacted]"), "{events}");
    assert!(!events.contains("hunter"), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_takes_the_callback_secrets_and_forms_it_is_told_to() {
    let server = with(&[
        ("MILEPOST_CALLBACK_SECRETS", "of the staging workflow, of the other"),
        ("MILEPOST_ACCEPT_X_SIGNATURE", "false"),
    ])
    .await;
    let (_, job) = server.client().job("mari").await;
    let heartbeat = async |more: &[&str], secret: &str| {
        let mut command = command(&server, &[&["callback", &job, "heartbeat"], more].concat());
        ended(command.env("MILEPOST_CALLBACK_SECRET", secret).output().await.unwrap())
    };
    for secret in ["of the staging workflow", "of the other", &server.ready("callback_secret")] {
        let (code, said) = heartbeat(&[], secret).await;
        assert_eq!(code, Some(0), "{said}");
    }
    for (more, secret) in [(&["--x-signature"][..], "of the other"), (&[], "of nobody")] {
        let (code, said) = heartbeat(more, secret).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.starts_with("401"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_seals_with_the_key_it_is_told_to() {
    let dir = data_dir();
    let key = dir.path().join("elsewhere.pem");
    let server = with(&[("MILEPOST_SEAL_KEY_FILE", key.to_str().unwrap())]).await;
    server.client().agent("mari").await;
    wait_until("there is a key", || async { key.exists().then_some(()) }).await;
    assert!(!server.dir().join("seal-key.pem").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_listens_where_the_environment_says_and_names_the_setting_when_it_cannot() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = data_dir();
    let mut dev = Command::new(MILEPOST);
    dev.arg("dev").arg("--data-dir").arg(dir.path()).stdin(Stdio::null()).kill_on_drop(true);
    dev.env("MILEPOST_LISTEN", &address).env("DATABASE_URL", database().await);
    let (code, said) = ended(dev.output().await.unwrap());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&address) && said.contains("MILEPOST_LISTEN"), "{said}");
    assert!(said.contains("dev --listen"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_neither_a_job_nor_an_agent_is_not_watched() {
    let server = Server::start().await;
    for nobody in ["01890000-0000-7000-8000-000000000000", "mari"] {
        let (code, said) = run(&server, &["watch", nobody]).await;
        assert_eq!(code, Some(1), "{said}");
        let expected = format!("there is neither a job nor an agent {nobody}");
        assert!(said.contains(&expected), "{said}");
    }
    let (code, said) = run(&server, &["watch", "mari", "--token", "mp_of_nobody"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("401"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_enough_is_no_error() {
    let server = Server::start().await;
    let (agent, _) = server.client().job("mari").await;
    let beginning = server.client().beginning().await;
    wait_for_lists(&server).await;
    for arguments in [
        &["log", "replay", "--events"][..],
        &["log", "replay"],
        &["log", "tail", "--since", &beginning],
        &["jobs", "list"],
        &["watch", &agent],
    ] {
        let mut command = command(&server, arguments);
        // Nobody ever reads: the first line finds that out.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(OwnedFd::from(writer)).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        drop(command);
        let (code, said) = ended(child.wait_with_output().await.unwrap());
        assert_eq!((code, &*said), (Some(0), ""), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_asked_for_at_a_terminal_and_not_shown_there() {
    let database_url = database().await;
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut create = Command::new(MILEPOST)
        .args(["user", "create", "ada@example.com", "--role", "admin"])
        .env("DATABASE_URL", database_url)
        .stdin(terminal.slave.try_clone().unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut prompt = [0; "Password: ".len()];
    create.stderr.as_mut().unwrap().read_exact(&mut prompt).await.unwrap();
    assert_eq!(&prompt, b"Password: ");
    nix::unistd::write(&terminal.master, b"correct horse battery\n").unwrap();
    let (code, said) = ended(create.wait_with_output().await.unwrap());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("ada@example.com may log in as admin"), "{said}");
    // What is shown again, as typed from now on, and what was shown before.
    nix::unistd::write(&terminal.master, b"seen\n").unwrap();
    let mut shown = String::new();
    while !shown.contains("seen") {
        let mut bytes = [0; 256];
        let length = nix::unistd::read(&terminal.master, &mut bytes).unwrap();
        shown.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
    }
    assert!(shown.starts_with("\r\nseen"), "{shown:?}");
}
