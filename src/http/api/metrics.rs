//! Numbers: for the dashboard, and for Prometheus.

use std::error::Error;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use milepost_projections::NodeStatus;
use milepost_projections::board::{Boards, InstanceStatus};
use milepost_projections::job::{JobStatus, Jobs};
use milepost_projections::node::Nodes;
use milepost_schemas::Position;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::http::at::{At, Past};
use crate::http::auth::Actor;
use crate::http::problem::Problem;
use crate::metrics::ViewLabels;
use crate::views::past::{self, Counts};
use crate::views::{self, Lag};

/// `GET /api/metrics?at=`: how many there are of everything, or were.
///
/// # Errors
/// 400 for a place in the log that is none; 404 for one that is still to come; 422 where there
/// was too much to count; 503 when a view cannot be read.
pub async fn counts(State(app): State<Arc<App>>, _: Actor, at: At) -> Result<Json<Value>, Problem> {
    let (epoch, head) = app.log.head().await?;
    let (position, counts) = match at.0 {
        Some(past) => (past.position, counts_at(&app, past).await?),
        None => (head, Arc::new(counts_now(&app, head).await?)),
    };
    let mut answer = Map::new();
    for status in JobStatus::ALL {
        let count = counts.jobs.get(&status).copied().unwrap_or_default();
        answer.insert(format!("jobs_{}", status.as_str()), count.into());
    }
    answer.insert("nodes_active".into(), counts.nodes_active.into());
    answer.insert("sites_total".into(), json!(0));
    answer.insert("agents_total".into(), counts.agents.values().sum::<i64>().into());
    let instances: Map<String, Value> =
        counts.agents.iter().map(|(label, count)| ((*label).to_owned(), (*count).into())).collect();
    answer.insert("agents_by_instance_status".into(), instances.into());
    if at.0.is_none() {
        // Of this process, and in no log.
        answer.insert("streams_open".into(), app.metrics.subscribers.get().into());
    }
    answer.insert("epoch".into(), epoch.into());
    answer.insert("position".into(), position.0.into());
    Ok(Json(Value::Object(answer)))
}

async fn counts_now(app: &App, head: Position) -> Result<Counts, Problem> {
    let jobs = app.views.counts::<Jobs>(head).await?;
    let agents = app.views.counts::<Boards>(head).await?;
    let nodes = app.views.counts::<Nodes>(head).await?;
    let of = |rows: &[(String, i64)], label: &str| {
        rows.iter().find(|(name, _)| name == label).map(|(_, count)| *count)
    };
    let statuses = JobStatus::ALL.into_iter();
    let labels = InstanceStatus::ALL.into_iter().map(InstanceStatus::as_str).chain(["new"]);
    Ok(Counts {
        jobs: statuses.filter_map(|it| Some((it, of(&jobs, it.as_str())?))).collect(),
        agents: labels.filter_map(|it| Some((it, of(&agents, it)?))).collect(),
        nodes_active: of(&nodes, NodeStatus::Active.as_str()).unwrap_or_default(),
    })
}

/// How many there were of everything.
///
/// # Errors
/// 422 where that was too much to count.
pub async fn counts_at(app: &App, past: Past) -> Result<Arc<Counts>, Problem> {
    let counts = past::counts_at(&app.log, &app.views.kept, past.position).await?;
    counts.ok_or_else(|| {
        let detail = format!("There were more than {} things to count", past::COUNTED_MAX);
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", "Too much to count", detail)
    })
}

/// `GET /metrics`: for Prometheus, with a token.
pub async fn prometheus(State(app): State<Arc<App>>, _: Actor) -> impl IntoResponse {
    app.metrics.log_position.set(app.log.feed().head().0 as f64);
    match views::lags(&app).await {
        Ok(lags) => lags.into_iter().for_each(|lag| tell(&app, lag)),
        // What is not of the database is told all the same: that is when it is needed.
        Err(error) => {
            tracing::warn!(error = &error as &dyn Error, "cannot ask how the views stand");
        }
    }
    let text = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, text)], app.metrics.encode())
}

fn tell(app: &App, lag: Lag) {
    let labels = ViewLabels { view: lag.view };
    app.metrics.view_lag_events.get_or_create(&labels).set(lag.events as i64);
    app.metrics.view_poisoned_streams.get_or_create(&labels).set(lag.poisoned);
}
