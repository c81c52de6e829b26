//! Claims, leases and fencing, by workers that are real processes or stand-ins for them.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use milepost::app::App;
use milepost::config::Config;
use milepost::domain::job::JobRefusal;
use milepost::domain::{JobAnswer, JobCommand, Report};
use milepost::execute::{self, ExecuteError, command_deadline};
use milepost::log::{Decision, Expected, QueueRow};
use milepost::work::lease::Lease;
use milepost::work::{self, Kind};
use milepost_schemas::event::JobQueued;
use milepost_schemas::{AgentId, InstanceId, JobId, Metadata, Position};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::harness::{Client, MASTER_KEY, Options, Server, database, sql, text, wait_until};

/// Jobs that two processes race for.
const JOBS: usize = 10_000;

/// Commands under way at once in one process.
const AT_ONCE: usize = 64;

/// Where a racing process finds its database.
const DATABASE: &str = "MILEPOST_TEST_RACE";

/// A worker's process, as far as it concerns the log.
pub async fn worker(database_url: &str) -> Arc<App> {
    let config = Config::from_env(|name| match name {
        "DATABASE_URL" => Some(database_url.to_owned()),
        "MILEPOST_PUBLIC_URL" => Some("http://127.0.0.1:1".to_owned()),
        "MILEPOST_CALLBACK_SECRETS" => Some("of no importance".to_owned()),
        "MILEPOST_MASTER_KEY" => Some(MASTER_KEY.to_owned()),
        "MILEPOST_LEASE" => Some("0.5".to_owned()),
        "MILEPOST_RETRY_DELAYS" => Some("0.1".to_owned()),
        // It finds jobs of agents; nothing is dispatched, for its loop is not started.
        "MILEPOST_DISPATCHER" => Some("github".to_owned()),
        _ => None,
    });
    App::open(config.unwrap(), CancellationToken::new()).await.unwrap()
}

fn metadata(job: JobId) -> Metadata {
    let actor = "system:worker".to_owned();
    Metadata { actor, correlation_id: job.0, causation_id: None, callback: None }
}

/// Claims a job; the claim's position.
async fn claim(app: &App, job: JobId) -> Result<Position, ExecuteError> {
    let locked_by = std::process::id().to_string();
    let command = JobCommand::Claim { dispatcher: "test", locked_by };
    let (queue_version, _) = execute::read_queue(&app.log).await?;
    let claimed = execute::to_job_in_queue(app, job, command, metadata(job), queue_version).await;
    claimed.map(|outcome| outcome.position)
}

async fn report(
    app: &App,
    job: JobId,
    claim: Position,
    report: Report,
) -> Result<(), ExecuteError> {
    let command = JobCommand::Report { claim, report };
    execute::to_job(app, job, command, metadata(job)).await.map(|_| ())
}

fn held() -> Report {
    Report::Held { workflow_run_id: None }
}

fn broken() -> Report {
    let (message, failed_step) = ("it broke".to_owned(), None);
    Report::Failed { code: "BROKEN", message, failed_step, retryable: true }
}

fn is_fenced(outcome: &Result<(), ExecuteError>) -> bool {
    matches!(outcome, Err(ExecuteError::Job(JobRefusal::Fenced(_))))
}

async fn start() -> (Server, Client, JobId) {
    let env =
        vec![("MILEPOST_LEASE", "0.5".to_owned()), ("MILEPOST_RETRY_DELAYS", "0.1".to_owned())];
    let server = Server::with(Options { env, ..Options::default() }).await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    (server, client, job.parse().unwrap())
}

async fn status(client: &Client, job: JobId) -> String {
    text(&client.read(&format!("/api/jobs/{job}")).await, "status")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_the_middle_loses_its_lease_and_its_late_writes_are_refused() {
    let (server, client, job) = start().await;
    let killed = worker(&server.database_url()).await;
    let first = claim(&killed, job).await.unwrap();
    report(&killed, job, first, held()).await.unwrap();
    // It renews nothing any more: the sweeper of another process finds that.
    let lost = wait_until("the attempt is lost", || async {
        let failed = client.read("/api/events?type=JobFailed").await;
        failed["events"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(lost["data"]["error_code"], "WORKER_LOST");
    assert_eq!(lost["data"]["retry"]["attempt"], 2);
    assert!(is_fenced(&report(&killed, job, first, Report::Succeeded).await));
    // Another worker takes the next attempt; the first one comes back and is refused again.
    wait_until("the next attempt waits", || async {
        (status(&client, job).await == "queued").then_some(())
    })
    .await;
    let other = worker(&server.database_url()).await;
    let second = claim(&other, job).await.unwrap();
    assert!(second > first);
    report(&other, job, second, held()).await.unwrap();
    let step = Report::Step { step: "ansible_complete".into(), metadata: None };
    for late in [step, Report::RunEnded { how: "late".into() }, Report::Succeeded] {
        assert!(is_fenced(&report(&killed, job, first, late).await));
    }
    let lease = |claim| Lease::new(&other, job, claim, Duration::ZERO);
    assert!(!lease(first).renew(&killed).await.unwrap(), "nor does its lease come back");
    assert!(lease(second).renew(&other).await.unwrap());
    report(&other, job, second, Report::Succeeded).await.unwrap();
    assert_eq!(status(&client, job).await, "succeeded");
    assert!(!lease(second).renew(&other).await.unwrap(), "it is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_renewed_holds_without_an_event() {
    let (server, client, job) = start().await;
    let app = worker(&server.database_url()).await;
    let claimed = claim(&app, job).await.unwrap();
    report(&app, job, claimed, held()).await.unwrap();
    let head = client.read("/api/events?limit=0").await["head"].clone();
    let lease = app.config.limits.lease;
    let until = app.clock.now() + lease + lease;
    let kept = Lease::new(&app, job, claimed, Duration::ZERO);
    tokio::select! {
        () = kept.keep(&app) => panic!("the lease was lost"),
        () = wait_until("two leases have passed", || async {
            (app.clock.now() > until).then_some(())
        }) => {}
    }
    assert_eq!(status(&client, job).await, "running");
    assert_eq!(client.read("/api/events?limit=0").await["head"], head);
    // Cancelled by somebody, it is lost: whoever runs the attempt is told to stop.
    client.post(&format!("/api/jobs/{job}/cancel"), &json!({})).await;
    kept.keep(&app).await;
    assert!(is_fenced(&report(&app, job, claimed, Report::Succeeded).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_not_renewed_beyond_the_attempts_time() {
    let (server, client, job) = start().await;
    let app = worker(&server.database_url()).await;
    let claimed = claim(&app, job).await.unwrap();
    report(&app, job, claimed, held()).await.unwrap();
    let mut over = Lease::new(&app, job, claimed, Duration::ZERO);
    over.ends_at = app.clock.now();
    assert!(!over.renew(&app).await.unwrap());
    wait_until("the attempt is lost", || async {
        (status(&client, job).await != "running").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_claimed_once_a_pause_is_in_the_log() {
    let (server, client, job) = start().await;
    let app = worker(&server.database_url()).await;
    let (read_at, queue) = execute::read_queue(&app.log).await.unwrap();
    assert_eq!(queue.paused, None);
    client.post("/api/queue/pause", &json!({"reason": "an outage"})).await;
    // A worker that had looked before the pause comes too late.
    let command = JobCommand::Claim { dispatcher: "test", locked_by: "late".into() };
    let late = execute::to_job_in_queue(&app, job, command, metadata(job), read_at).await;
    assert!(matches!(late, Err(ExecuteError::Moved)), "{late:?}");
    assert_eq!(status(&client, job).await, "queued");
}

/// Two workers on one log, and a job that waits there.
async fn two_workers() -> ([Arc<App>; 2], JobId) {
    let url = database().await;
    let workers = [worker(&url).await, worker(&url).await];
    let decision = queued(&workers[0]);
    let job = decision.queue.as_ref().unwrap().job_id;
    workers[0].log.append(decision, command_deadline()).await.unwrap();
    (workers, job)
}

/// Looks at a job as the sweeper does; whether that changed anything.
async fn tick(app: &App, job: JobId) -> bool {
    let outcome = execute::to_job(app, job, JobCommand::Tick, metadata(job)).await.unwrap();
    outcome.answer == JobAnswer::Applied
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_lapses_on_a_node_that_remembers_the_job_as_it_waited() {
    let ([one, other], job) = two_workers().await;
    assert!(!tick(&one, job).await, "it waits");
    // The other node is killed right after; only this one is left to find that.
    claim(&other, job).await.unwrap();
    wait_until("the claim lapses", || async { tick(&one, job).await.then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_remembers_the_first_attempt_can_claim_the_next() {
    let ([one, other], job) = two_workers().await;
    let first = claim(&one, job).await.unwrap();
    report(&one, job, first, held()).await.unwrap();
    report(&other, job, first, broken()).await.unwrap();
    wait_until("the retry is due", || async { tick(&other, job).await.then_some(()) }).await;
    let second = claim(&one, job).await.unwrap();
    assert!(second > first);
    // And what is refused is refused for what the log says.
    assert!(is_fenced(&report(&other, job, first, Report::Succeeded).await));
}

/// A row that the sweeper of a node finds due.
async fn found_due(app: &App) -> work::Due {
    wait_until("a row is due", || async { work::due(app, app.clock.now()).await.unwrap().pop() })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_another_node_has_queued_meanwhile_is_not_put_off() {
    let ([one, other], job) = two_workers().await;
    let first = claim(&one, job).await.unwrap();
    report(&one, job, first, held()).await.unwrap();
    report(&one, job, first, broken()).await.unwrap();
    let row = found_due(&one).await;
    assert!(tick(&other, job).await, "it is due");
    work::look(&one, &row, one.clock.now()).await.unwrap();
    let waiting = work::claimable(&one, Kind::Agent, AT_ONCE).await.unwrap();
    assert_eq!(waiting, [job]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_outlives_a_look_at_the_row_of_the_one_before() {
    let ([one, other], job) = two_workers().await;
    let first = claim(&one, job).await.unwrap();
    report(&one, job, first, held()).await.unwrap();
    let row = found_due(&one).await;
    // Between finding the row and looking at its job another node is two steps ahead.
    report(&other, job, first, broken()).await.unwrap();
    wait_until("the retry is due", || async { tick(&other, job).await.then_some(()) }).await;
    let second = claim(&other, job).await.unwrap();
    report(&other, job, second, held()).await.unwrap();
    work::look(&one, &row, one.clock.now()).await.unwrap();
    report(&other, job, second, Report::Succeeded).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_under_a_lease_is_given_time_to_end_before_it_is_over() {
    let ([app, _], job) = two_workers().await;
    let lease = app.config.limits.lease.unsigned_abs();
    let begun = Instant::now();
    let held = Lease::new(&app, job, Position(1), Duration::from_millis(100));
    let until = *held.until().borrow();
    let over = *held.without_spare().until().borrow();
    assert_eq!(over - until, Duration::from_millis(100));
    assert!(over >= begun + lease && over <= Instant::now() + lease);
    // What takes too long leaves time to renew the lease all the same.
    let long = Lease::new(&app, job, Position(1), lease);
    assert!(*long.until().borrow() >= begun + lease / 2);
}

/// A queued job, each for an agent of its own.
pub fn queued(app: &App) -> Decision {
    let job_id = JobId(app.clock.id());
    let agent_id = Some(AgentId(app.clock.id()));
    let event = JobQueued {
        job_id,
        job_type: "provision_agent".into(),
        agent_id,
        node_id: None,
        instance_id: Some(InstanceId(app.clock.id())),
        region: Some("eu-central".into()),
        max_attempts: 4,
        retry_of: None,
        reason: None,
    };
    let row = QueueRow {
        job_id,
        job_type: event.job_type.clone(),
        agent_id,
        node_id: None,
        state: "queued",
        due_at: app.clock.now(),
        priority: 0,
        claim_ordinal: None,
    };
    Decision {
        events: vec![(job_id.stream(), event.into())],
        expected: vec![(job_id.stream(), Expected::Version(0))],
        metadata: metadata(job_id).into(),
        queue: Some(row),
    }
}

/// Two processes claim the same jobs from one queue, through the door every claim goes through.
/// What a claim is followed by is not part of it: a worker dispatches what it has claimed.
#[tokio::test(flavor = "multi_thread")]
async fn of_ten_thousand_jobs_two_processes_claim_each_once() {
    let url = database().await;
    let app = worker(&url).await;
    let mut appends = JoinSet::new();
    for _ in 0..JOBS {
        let (log, decision) = (app.log.clone(), queued(&app));
        if appends.len() >= 1_024 {
            appends.join_next().await.unwrap().unwrap();
        }
        appends.spawn(async move {
            log.append(decision, command_deadline()).await.map(|_| ()).unwrap();
        });
    }
    appends.join_all().await;
    let racer = || {
        tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "leases::a_process_that_claims_whatever_it_finds", "--ignored"])
            .args(["--nocapture", "--test-threads=1"])
            .env(DATABASE, &url)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
    };
    let (left, right) = tokio::join!(racer(), racer());
    let claimed = [left.unwrap(), right.unwrap()].map(|racer| {
        let said = String::from_utf8(racer.stdout).unwrap();
        assert!(racer.status.success(), "{said}{}", String::from_utf8_lossy(&racer.stderr));
        let count = said.split("claimed ").nth(1).unwrap().split_whitespace().next().unwrap();
        count.parse::<usize>().unwrap()
    });
    assert_eq!(claimed.iter().sum::<usize>(), JOBS, "{claimed:?}");
    assert!(claimed.iter().all(|count| *count > 0), "it was no race: {claimed:?}");
    let owner = sql(&url).await;
    let counts = "SELECT count(*), count(DISTINCT stream_id), \
                  (SELECT count(*) FROM queue WHERE state = 'dispatching' AND claim IS NOT NULL) \
                  FROM event WHERE type = 11";
    let row = owner.query_one(counts, &[]).await.unwrap();
    let counts: [i64; 3] = [row.get(0), row.get(1), row.get(2)];
    assert_eq!(counts, [JOBS as i64; 3]);
    // The queue's row has the position of its claim: the token by which a lease is renewed.
    let wrong = "SELECT count(*) FROM queue AS q LEFT JOIN event AS e ON e.position = q.claim \
                 WHERE e.type IS DISTINCT FROM 11 OR e.stream_id <> q.job_id";
    assert_eq!(owner.query_one(wrong, &[]).await.unwrap().get::<_, i64>(0), 0);
}

/// One of the two: run by the test above, in a process of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is a part of another test"]
async fn a_process_that_claims_whatever_it_finds() {
    let app = worker(&std::env::var(DATABASE).unwrap()).await;
    let mut count = 0;
    loop {
        let jobs = work::claimable(&app, Kind::Agent, AT_ONCE).await.unwrap();
        if jobs.is_empty() {
            break;
        }
        let mut claims = JoinSet::new();
        for job in jobs {
            let app = Arc::clone(&app);
            claims.spawn(async move { claim(&app, job).await });
        }
        for outcome in claims.join_all().await {
            match outcome {
                Ok(_) => count += 1,
                Err(ExecuteError::Job(JobRefusal::Status(_))) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    println!("claimed {count} jobs");
}
