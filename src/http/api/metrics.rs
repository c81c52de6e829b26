//! Numbers: for the dashboard, and for Prometheus.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use milepost_projections::NodeStatus;
use milepost_projections::board::Boards;
use milepost_projections::job::{JobStatus, Jobs};
use milepost_projections::node::Nodes;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::http::auth::Actor;
use crate::http::problem::Problem;

/// `GET /api/metrics`: how many there are of everything.
///
/// # Errors
/// 503 when a view cannot be read.
pub async fn counts(State(app): State<Arc<App>>, _: Actor) -> Result<Json<Value>, Problem> {
    let (epoch, head) = app.log.head().await?;
    let jobs = app.views.counts::<Jobs>(head).await?;
    let agents = app.views.counts::<Boards>(head).await?;
    let nodes = app.views.counts::<Nodes>(head).await?;
    let active = NodeStatus::Active.as_str();
    let of =
        |label: &str| jobs.iter().find(|(name, _)| name == label).map_or(0, |(_, count)| *count);
    let mut answer = Map::new();
    for status in JobStatus::ALL {
        answer.insert(format!("jobs_{}", status.as_str()), of(status.as_str()).into());
    }
    let nodes = nodes.iter().find(|(name, _)| name == active).map_or(0, |(_, count)| *count);
    answer.insert("nodes_active".into(), nodes.into());
    answer.insert("sites_total".into(), json!(0));
    answer.insert("agents_total".into(), agents.iter().map(|(_, count)| count).sum::<i64>().into());
    let instances: Map<String, Value> =
        agents.into_iter().map(|(label, count)| (label, count.into())).collect();
    answer.insert("agents_by_instance_status".into(), instances.into());
    answer.insert("streams_open".into(), app.metrics.subscribers.get().into());
    answer.insert("epoch".into(), epoch.into());
    answer.insert("position".into(), head.0.into());
    Ok(Json(Value::Object(answer)))
}

/// `GET /metrics`: for Prometheus, with a token.
pub async fn prometheus(State(app): State<Arc<App>>, _: Actor) -> impl IntoResponse {
    app.metrics.log_position.set(app.log.feed().head().0 as f64);
    let text = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, text)], app.metrics.encode())
}
