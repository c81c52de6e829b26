//! Callers that do not give up, and what the log must hold for each answer they got.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::{Client, sql, wait_until};

/// Callers at once.
const CALLERS: usize = 32;

/// Jobs they speak of.
pub const JOBS: usize = 8;

/// How long a caller waits for an answer, as workflows do.
const TRY_TIMEOUT: Duration = Duration::from_secs(12);

/// A callback that was answered 200.
pub struct Answered {
    delivery_id: String,
    position: u64,
}

/// What the callers have seen so far.
#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    unavailable: AtomicU64,
    unanswered: AtomicU64,
}

/// Callers at work.
pub struct Load {
    stop: CancellationToken,
    counts: Arc<Counts>,
    callers: JoinSet<Vec<Answered>>,
    /// An agent and its job; the callers speak of more.
    pub agents: Vec<(String, String)>,
}

impl Load {
    /// Sets callers to work on new jobs, each caller on all nodes in turn; each callback carries
    /// so many bytes of metadata.
    pub async fn start(nodes: &[Client], metadata_bytes: usize) -> Self {
        let mut agents = Vec::new();
        for number in 0..JOBS {
            let (agent, job) = nodes[0].job(&format!("agent-{number}")).await;
            // The first word of a run: from now on heartbeats count.
            let body = json!({"job_id": job, "status": "provisioning"});
            assert_eq!(nodes[0].deliver(body).await.0, StatusCode::OK);
            agents.push((agent, job));
        }
        let mut load = Self {
            stop: CancellationToken::new(),
            counts: Arc::default(),
            callers: JoinSet::new(),
            agents,
        };
        let words = "x".repeat(metadata_bytes);
        for number in 0..CALLERS {
            let caller = Caller {
                number,
                nodes: nodes.to_vec(),
                job: load.agents[number % JOBS].1.clone(),
                words: words.clone(),
                counts: Arc::clone(&load.counts),
            };
            let stop = load.stop.clone();
            load.callers.spawn(caller.work(stop));
        }
        load
    }

    /// Callbacks answered 200 so far.
    pub fn answered(&self) -> u64 {
        self.counts.answered.load(Ordering::Relaxed)
    }

    /// Tries that were answered 503, and tries that were not answered.
    pub fn refused(&self) -> (u64, u64) {
        let Counts { unavailable, unanswered, .. } = &*self.counts;
        (unavailable.load(Ordering::Relaxed), unanswered.load(Ordering::Relaxed))
    }

    /// Waits until so many more callbacks are answered.
    pub async fn more(&self, count: u64) {
        let enough = self.answered() + count;
        wait_until("callbacks are answered", || async {
            (self.answered() >= enough).then_some(())
        })
        .await;
    }

    /// Lets each caller see its last callback through; all that was answered.
    pub async fn stop(self) -> Vec<Answered> {
        self.stop.cancel();
        self.callers.join_all().await.into_iter().flatten().collect()
    }
}

struct Caller {
    number: usize,
    nodes: Vec<Client>,
    job: String,
    words: String,
    counts: Arc<Counts>,
}

impl Caller {
    async fn work(self, stop: CancellationToken) -> Vec<Answered> {
        let mut answered = Vec::new();
        while !stop.is_cancelled() {
            let turn = answered.len();
            let delivery_id = format!("caller-{}-{turn}", self.number);
            let body = self.body(turn, &delivery_id).to_string();
            let tries = AtomicU64::new(0);
            let position = wait_until("a callback is answered", || async {
                let tries = tries.fetch_add(1, Ordering::Relaxed) as usize;
                self.try_once(&self.nodes[(turn + tries) % self.nodes.len()], &body).await
            })
            .await;
            self.counts.answered.fetch_add(1, Ordering::Relaxed);
            answered.push(Answered { delivery_id, position });
        }
        answered
    }

    fn body(&self, turn: usize, delivery_id: &str) -> Value {
        if turn % 4 == 3 {
            let words = &self.words;
            return json!({"job_id": self.job, "type": "heartbeat", "delivery_id": delivery_id, "words": words});
        }
        json!({
            "job_id": self.job,
            "status": "provisioning",
            "step": format!("part-{turn}"),
            "metadata": {"words": self.words},
            "delivery_id": delivery_id,
        })
    }

    /// One try: the position it was answered with. 503 and silence are no answer.
    async fn try_once(&self, node: &Client, body: &str) -> Option<u64> {
        let request = node.signed(body.to_owned()).timeout(TRY_TIMEOUT);
        let Ok(response) = request.send().await else {
            self.counts.unanswered.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            assert!(response.headers().contains_key("retry-after"));
            self.counts.unavailable.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        assert_eq!(response.status(), StatusCode::OK);
        let Ok(answer) = response.json::<Value>().await else {
            self.counts.unanswered.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        assert_eq!(answer["applied"], true, "{answer}");
        Some(answer["position"].as_u64().unwrap())
    }
}

/// Checks the whole log: positions are 1..n, versions have no gap, and every answered callback
/// stands there once, at the position its answer gave. Returns n.
pub async fn check_log(database_url: &str, answered: &[Answered]) -> u64 {
    let rows = sql(database_url)
        .await
        .query(
            "SELECT position, stream_id, version, \
             convert_from(header, 'UTF8')::json ->> 'delivery_id' FROM event ORDER BY position",
            &[],
        )
        .await
        .unwrap();
    let mut versions: HashMap<uuid::Uuid, i32> = HashMap::new();
    let mut deliveries: HashMap<String, u64> = HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        let position = row.get::<_, i64>(0) as u64;
        assert_eq!(position, index as u64 + 1, "positions have no gap");
        let version = versions.entry(row.get(1)).or_default();
        *version += 1;
        assert_eq!(row.get::<_, i32>(2), *version, "versions have no gap, at {position}");
        if let Some(id) = row.get::<_, Option<String>>(3) {
            assert_eq!(deliveries.insert(id.clone(), position), None, "{id} is there twice");
        }
    }
    for Answered { delivery_id, position } in answered {
        assert_eq!(deliveries.get(delivery_id), Some(position), "{delivery_id}");
    }
    let callers = deliveries.keys().filter(|id| id.starts_with("caller-")).count();
    assert_eq!(callers, answered.len(), "each callback was answered in the end");
    rows.len() as u64
}
