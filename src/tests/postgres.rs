//! The private Postgres: it starts, it stops, and it outlives what happens to it and to its parent.

use std::fs::{self, Permissions};
use std::future::pending;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use milepost::postgres::{BIN_VARIABLE, Embedded, EmbeddedError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, NoTls};

/// Ample for a start on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test]
async fn starts_answers_and_leaves_nothing_running() {
    let dir = data_dir();
    let postgres = Embedded::start(dir.path()).await.unwrap();

    let client = connect(postgres.database_url()).await.unwrap();
    for (setting, expected) in [
        ("listen_addresses", ""),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("data_checksums", "on"),
        ("server_encoding", "UTF8"),
        ("lc_messages", "C"),
        ("max_connections", "200"),
        ("jit", "off"),
    ] {
        let row = client.query_one(&format!("SHOW {setting}"), &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), expected, "{setting}");
    }
    let pid = postmaster(dir.path());
    assert_eq!(process_group(pid), pid, "Ctrl-C in the terminal must not reach Postgres");
    let socket = fs::metadata(dir.path().join("postgres/socket")).unwrap();
    assert_eq!(socket.mode() & 0o777, 0o700);

    postgres.stop().await.unwrap();
    assert!(!is_alive(pid));
    assert!(!dir.path().join("postgres/cluster/postmaster.pid").exists());
    assert_eq!(fs::read_dir(dir.path().join("postgres/socket")).unwrap().count(), 0);
}

#[tokio::test]
async fn psql_takes_the_same_url() {
    let dir = data_dir();
    let postgres = Embedded::start(dir.path()).await.unwrap();

    let psql = bin_dir(postmaster(dir.path())).join("psql");
    let output = Command::new(psql)
        .args([postgres.database_url(), "-XAtc", "SELECT current_database()"])
        .env("PGPORT", "1")
        .output()
        .await
        .unwrap();
    assert_eq!(text(&output.stdout).trim(), "milepost", "{}", text(&output.stderr));

    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn data_survives_a_restart() {
    let dir = data_dir();
    let postgres = Embedded::start(dir.path()).await.unwrap();
    remember(postgres.database_url()).await;
    postgres.stop().await.unwrap();

    let postgres = Embedded::start(dir.path()).await.unwrap();
    assert_remembered(postgres.database_url()).await;
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_parent_is_succeeded_without_a_restart() {
    let dir = data_dir();
    let mut parent = again("be_a_parent", dir.path()).kill_on_drop(true).spawn().unwrap();
    let ready = dir.path().join("ready");
    wait_until("the parent has started Postgres", async || ready.exists()).await;
    let pid = postmaster(dir.path());

    let refusal = Embedded::start(dir.path()).await.unwrap_err();
    assert!(matches!(refusal, EmbeddedError::InUse { .. }), "{refusal}");
    assert!(refusal.to_string().contains(&parent.id().unwrap().to_string()), "{refusal}");

    parent.kill().await.unwrap();
    let postgres = Embedded::start(dir.path()).await.unwrap();
    assert_eq!(postmaster(dir.path()), pid);
    assert_eq!(fs::read_to_string(ready).unwrap(), postgres.database_url());
    assert_remembered(postgres.database_url()).await;

    kill(pid, Signal::SIGKILL).unwrap();
    wait_until_answers(postgres.database_url()).await;
    assert_remembered(postgres.database_url()).await;

    let pid = postmaster(dir.path());
    postgres.stop().await.unwrap();
    assert!(!is_alive(pid));
}

#[tokio::test]
#[ignore = "the process that a_killed_parent_is_succeeded_without_a_restart kills"]
async fn be_a_parent() {
    let Some(dir) = given_data_dir() else { return };
    let postgres = Embedded::start(&dir).await.unwrap();
    remember(postgres.database_url()).await;
    fs::write(dir.join("ready.partial"), postgres.database_url()).unwrap();
    fs::rename(dir.join("ready.partial"), dir.join("ready")).unwrap();
    pending::<()>().await;
}

#[tokio::test]
async fn a_dropped_handle_lets_the_next_start_take_over() {
    let dir = data_dir();
    drop(Embedded::start(dir.path()).await.unwrap());
    let pid = postmaster(dir.path());

    let postgres = Embedded::start(dir.path()).await.unwrap();
    assert_eq!(postmaster(dir.path()), pid);
    postgres.stop().await.unwrap();
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_second_parent_is_refused() {
    let dir = data_dir();
    let postgres = Embedded::start(dir.path()).await.unwrap();

    let refusal = Embedded::start(dir.path()).await.unwrap_err();
    assert!(matches!(refusal, EmbeddedError::InUse { .. }), "{refusal}");

    postgres.stop().await.unwrap();
    Embedded::start(dir.path()).await.unwrap().stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_postmaster_is_replaced() {
    let dir = data_dir();
    let postgres = Embedded::start(dir.path()).await.unwrap();
    remember(postgres.database_url()).await;

    for _ in 0..2 {
        let pid = postmaster(dir.path());
        let busy = connect(postgres.database_url()).await.unwrap();
        let query = "SELECT count(*) FROM generate_series(1, 10000000)";
        // Goes on without its postmaster, and holds on to the shared memory meanwhile.
        let orphan = tokio::spawn(async move { busy.batch_execute(query).await });
        wait_until("a backend is busy", async || is_running(query, postgres.database_url()).await)
            .await;
        kill(pid, Signal::SIGKILL).unwrap();
        wait_until("another postmaster runs", async || {
            find_postmaster(dir.path()).is_some_and(|found| found != pid && is_alive(found))
        })
        .await;
        wait_until_answers(postgres.database_url()).await;
        assert_remembered(postgres.database_url()).await;
        let _ = orphan.await.unwrap();
    }

    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn an_immediate_stop_is_healed() {
    let dir = data_dir();
    let postgres = Embedded::start(dir.path()).await.unwrap();
    remember(postgres.database_url()).await;

    let pid = postmaster(dir.path());
    let stopped = pg_ctl(dir.path(), &["stop", "-m", "immediate"]).await;
    assert!(stopped.success(), "{stopped}");
    wait_until_answers(postgres.database_url()).await;
    assert_ne!(postmaster(dir.path()), pid);
    assert_remembered(postgres.database_url()).await;

    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn an_operators_restart_is_taken_over() {
    let dir = data_dir();
    let postgres = Embedded::start(dir.path()).await.unwrap();
    remember(postgres.database_url()).await;

    for mode in ["immediate", "fast"] {
        let restarted = pg_ctl(dir.path(), &["restart", "-m", mode]).await;
        assert!(restarted.success(), "{mode}: {restarted}");
        wait_until_answers(postgres.database_url()).await;
        assert_remembered(postgres.database_url()).await;
    }

    let pid = postmaster(dir.path());
    postgres.stop().await.unwrap();
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_pid_file_that_names_somebody_else_is_stale() {
    let dir = data_dir();
    Embedded::start(dir.path()).await.unwrap().stop().await.unwrap();
    let pid_file = dir.path().join("postgres/cluster/postmaster.pid");
    let cluster = pid_file.parent().unwrap();
    fs::write(&pid_file, format!("{}\n{}\n1\n5432\n", Pid::parent(), cluster.display())).unwrap();
    let owner = fs::metadata(cluster).unwrap();
    std::os::unix::fs::chown(&pid_file, Some(owner.uid()), Some(owner.gid())).unwrap();

    let postgres = Embedded::start(dir.path()).await.unwrap();
    wait_until_answers(postgres.database_url()).await;
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn a_start_that_was_killed_half_way_is_begun_anew() {
    let dir = data_dir();
    let partial = dir.path().join("postgres/cluster.partial-1/base");
    fs::create_dir_all(&partial).unwrap();

    let postgres = Embedded::start(dir.path()).await.unwrap();
    assert!(!partial.exists());
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn any_path_will_do() {
    let dir = data_dir();
    let odd = dir.path().join("a, 'b' \"c\" @d:e/f%20é\\");
    let long = dir.path().join("long".repeat(30)).join("longer".repeat(30));
    for path in [odd, long] {
        let postgres = Embedded::start(&path).await.unwrap();
        remember(postgres.database_url()).await;
        let socket_dir = fs::read_to_string(path.join("postgres/cluster/postmaster.pid"))
            .unwrap()
            .lines()
            .nth(4)
            .map(PathBuf::from)
            .unwrap();
        assert_eq!(fs::metadata(&socket_dir).unwrap().mode() & 0o777, 0o700);

        // The name is the same each time, and it is found by a successor.
        let url = postgres.database_url().to_owned();
        drop(postgres);
        let postgres = Embedded::start(&path).await.unwrap();
        assert_eq!(postgres.database_url(), url);
        postgres.stop().await.unwrap();
        let beside = socket_dir.starts_with(path.canonicalize().unwrap());
        assert_eq!(socket_dir.exists(), beside, "{}", socket_dir.display());
    }
}

#[tokio::test]
async fn another_major_is_refused() {
    let dir = data_dir();
    Embedded::start(dir.path()).await.unwrap().stop().await.unwrap();
    fs::write(dir.path().join("postgres/cluster/PG_VERSION"), "99\n").unwrap();

    let refusal = Embedded::start(dir.path()).await.unwrap_err();
    assert!(matches!(refusal, EmbeddedError::WrongMajor { major: 99, .. }), "{refusal}");
    assert!(refusal.to_string().contains("apt-get install -y postgresql-99"), "{refusal}");
}

#[tokio::test]
async fn without_binaries_it_says_what_to_install() {
    let dir = data_dir();
    let output = again("be_without_binaries", dir.path())
        .env(BIN_VARIABLE, dir.path())
        .stdout(Stdio::piped())
        .output()
        .await
        .unwrap();
    let said = text(&output.stdout);
    assert!(said.contains("apt-get install -y postgresql`"), "{said}");
    assert!(said.contains("any major from 15"), "{said}");
}

#[tokio::test]
#[ignore = "the process that without_binaries_it_says_what_to_install listens to"]
async fn be_without_binaries() {
    let Some(dir) = given_data_dir() else { return };
    println!("{}", Embedded::start(&dir).await.unwrap_err());
}

#[tokio::test]
async fn a_failed_start_quotes_the_log() {
    let dir = data_dir();
    Embedded::start(dir.path()).await.unwrap().stop().await.unwrap();
    let auto = dir.path().join("postgres/cluster/postgresql.auto.conf");
    fs::write(&auto, "max_wal_senders = nonsense\n").unwrap();

    let failure = Embedded::start(dir.path()).await.unwrap_err();
    assert!(failure.to_string().contains("max_wal_senders"), "{failure}");
    assert!(find_postmaster(dir.path()).is_none());

    fs::write(&auto, "").unwrap();
    Embedded::start(dir.path()).await.unwrap().stop().await.unwrap();
}

#[tokio::test]
async fn root_keeps_the_cluster_where_its_owner_can_enter() {
    if !geteuid().is_root() {
        return;
    }
    let dir = data_dir();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
    let link = dir.path().join("postgres");

    let postgres = Embedded::start(dir.path()).await.unwrap();
    let elsewhere = Elsewhere(fs::read_link(&link).unwrap());
    assert!(elsewhere.0.starts_with("/var/lib/milepost"), "{}", elsewhere.0.display());
    remember(postgres.database_url()).await;
    postgres.stop().await.unwrap();

    let postgres = Embedded::start(dir.path()).await.unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), elsewhere.0);
    assert_remembered(postgres.database_url()).await;
    postgres.stop().await.unwrap();

    fs::remove_file(&link).unwrap();
    fs::create_dir(&link).unwrap();
    let refusal = Embedded::start(dir.path()).await.unwrap_err();
    assert!(matches!(refusal, EmbeddedError::Unreachable { .. }), "{refusal}");
}

#[tokio::test]
async fn root_starts_it_whatever_its_umask_takes_from_others() {
    if !geteuid().is_root() {
        return;
    }
    for mode in [0o755, 0o700] {
        let dir = data_dir();
        fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        let parent = again("be_a_parent_for_a_moment", dir.path());
        let output = Command::new("sh")
            .args(["-c", "umask 077; exec \"$0\" \"$@\""])
            .arg(parent.as_std().get_program())
            .args(parent.as_std().get_args())
            .env("MILEPOST_TEST_DATA_DIR", dir.path())
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let home = dir.path().join("postgres");
        let _elsewhere = fs::read_link(&home).ok().map(Elsewhere);
        assert!(output.status.success(), "{mode:o}: {}", text(&output.stdout));
        assert_eq!(fs::metadata(&home).unwrap().mode() & 0o777, 0o755);
        let private = fs::metadata(home.join("cluster")).unwrap();
        assert_eq!(private.mode() & 0o777, 0o700);
    }
}

#[tokio::test]
#[ignore = "the process that root_starts_it_whatever_its_umask_takes_from_others gives an umask"]
async fn be_a_parent_for_a_moment() {
    let Some(dir) = given_data_dir() else { return };
    Embedded::start(&dir).await.unwrap().stop().await.unwrap();
}

/// A cluster outside of the test's own directory.
struct Elsewhere(PathBuf);

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        // Goes too if nobody else has a cluster there.
        let _ = fs::remove_dir(self.0.parent().unwrap());
    }
}

/// A directory that others may pass, as root's data directories usually are.
fn data_dir() -> TempDir {
    tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap()
}

/// This test binary once more, running the one (ignored) test `name` on `dir`.
fn again(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", &format!("postgres::{name}"), "--nocapture"])
        .env("MILEPOST_TEST_DATA_DIR", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn given_data_dir() -> Option<PathBuf> {
    std::env::var_os("MILEPOST_TEST_DATA_DIR").map(PathBuf::from)
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn remember(url: &str) {
    let client = connect(url).await.unwrap();
    client
        .batch_execute("CREATE TABLE remembered (n int); INSERT INTO remembered VALUES (7)")
        .await
        .unwrap();
}

async fn assert_remembered(url: &str) {
    let client = connect(url).await.unwrap();
    let row = client.query_one("SELECT n FROM remembered", &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 7);
}

async fn is_running(query: &str, url: &str) -> bool {
    let client = connect(url).await.unwrap();
    let statement = "SELECT FROM pg_stat_activity WHERE query = $1 AND state = 'active'";
    client.query_opt(statement, &[&query]).await.unwrap().is_some()
}

async fn wait_until_answers(url: &str) {
    wait_until("Postgres answers", async || match connect(url).await {
        Ok(client) => client.query_one("SELECT 1", &[]).await.is_ok(),
        Err(_) => false,
    })
    .await;
}

async fn wait_until(state: &str, reached: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached().await {
        assert!(Instant::now() < deadline, "waited for {PATIENCE:?} until {state}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Runs `pg_ctl` as the cluster's owner, from outside: nothing tells Milepost.
async fn pg_ctl(data_dir: &Path, arguments: &[&str]) -> ExitStatus {
    let cluster = data_dir.join("postgres/cluster");
    let owner = fs::metadata(&cluster).unwrap();
    let mut command = Command::new(bin_dir(postmaster(data_dir)).join("pg_ctl"));
    if geteuid().is_root() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    // The postmaster inherits its output, so a pipe would not end with pg_ctl.
    command.arg("-D").arg(&cluster).args(arguments).current_dir("/");
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().await.unwrap()
}

fn postmaster(data_dir: &Path) -> Pid {
    find_postmaster(data_dir).expect("a postmaster has written its pid")
}

fn find_postmaster(data_dir: &Path) -> Option<Pid> {
    let text = fs::read_to_string(data_dir.join("postgres/cluster/postmaster.pid")).ok()?;
    text.lines().next()?.parse().ok().map(Pid::from_raw)
}

fn bin_dir(postmaster: Pid) -> PathBuf {
    let command = fs::read_to_string(format!("/proc/{postmaster}/cmdline")).unwrap();
    let program = command.split('\0').next().unwrap();
    // Its place on PATH may hold links to only some of the programs.
    fs::canonicalize(program).unwrap().parent().unwrap().to_owned()
}

fn process_group(pid: Pid) -> Pid {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    Pid::from_raw(fields.split(' ').nth(2).unwrap().parse().unwrap())
}

/// A zombie is dead: an adopted process waits for whoever is process 1.
fn is_alive(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
