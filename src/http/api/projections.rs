//! `/api/projections`: how the views stand, and what is ordered of them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use milepost_projections::upkeep::upkeep_stream;
use milepost_schemas::Position;
use milepost_schemas::event::Switch;
use serde::{Deserialize, Serialize};

use super::{Id, ProjectionName, json};
use crate::app::App;
use crate::domain::UpkeepCommand;
use crate::domain::upkeep::UpkeepRefusal;
use crate::execute::{self, ExecuteError};
use crate::http::auth::Actor;
use crate::http::problem::Problem;
use crate::views::{self, ProjectionStatus};

/// `GET /api/projections`.
#[derive(Debug, Serialize)]
pub struct ProjectionList {
    projections: Vec<ProjectionStatus>,
}

/// The answer to an order: it is in the log, and is carried out by whoever runs the views.
#[derive(Debug, Serialize)]
pub struct Ordered {
    position: Position,
}

/// The body of an order; each kind reads what it knows.
#[derive(Debug, Default, Deserialize)]
pub struct OrderBody {
    reason: Option<String>,
    switch: Option<Switch>,
    position: Option<u64>,
}

/// An order as pages and programs give it.
#[derive(Clone, Debug)]
pub enum Asked {
    /// Fill new rows; `Switch` says when they take over.
    Rebuild(Switch, Option<String>),
    /// Let the new rows take over, whatever differs.
    Switch,
    /// Take the order back.
    Cancel(Option<String>),
    /// Let the former rows take over again.
    RollBack(Option<String>),
    /// Compare the rows with what the log says.
    Verify,
    /// Try an event again that the view has stopped at.
    Retry(Position),
    /// Pass over an event that the view has stopped at.
    Skip(Position, String),
}

/// `GET /api/projections`.
///
/// # Errors
/// 503 when the database cannot be asked.
pub async fn list(State(app): State<Arc<App>>, _: Actor) -> Result<Json<ProjectionList>, Problem> {
    Ok(Json(ProjectionList { projections: views::statuses(&app, None).await? }))
}

/// `GET /api/projections/{name}`.
///
/// # Errors
/// 404 when there is none; 503 when the database cannot be asked.
pub async fn show(
    State(app): State<Arc<App>>,
    _: Actor,
    Id(ProjectionName(name)): Id<ProjectionName>,
) -> Result<Json<ProjectionStatus>, Problem> {
    let status = views::statuses(&app, Some(&name)).await?.pop();
    status.map(Json).ok_or_else(|| Problem::not_found("projection"))
}

/// Gives an order to a view.
///
/// # Errors
/// 404 when there is none, 409 when it is not in a state for it, 400 without a reason for a skip.
pub async fn give(app: &App, actor: &Actor, name: &str, asked: Asked) -> Result<Position, Problem> {
    let Some((name, _)) = views::PROJECTIONS.iter().find(|(known, _)| *known == name) else {
        return Err(ExecuteError::Upkeep(UpkeepRefusal::Unknown).into());
    };
    let masked = |reason: String| app.redactor.mask(&reason).into_owned();
    let command = match asked {
        Asked::Rebuild(switch, reason) => {
            UpkeepCommand::Rebuild { switch, reason: reason.map(masked) }
        }
        Asked::Switch => UpkeepCommand::Switch,
        Asked::Cancel(reason) => UpkeepCommand::Cancel { reason: reason.map(masked) },
        Asked::RollBack(reason) => {
            if !views::may_roll_back(app, name).await? {
                return Err(ExecuteError::Upkeep(UpkeepRefusal::NoFormer).into());
            }
            UpkeepCommand::RollBack { reason: reason.map(masked) }
        }
        Asked::Verify => UpkeepCommand::Verify,
        Asked::Retry(position) => match views::may_try_again(app, name, position).await? {
            Some(true) => {
                let reason = Some(format!("event {position} is tried again"));
                UpkeepCommand::Rebuild { switch: Switch::Always, reason }
            }
            Some(false) => {
                return Err(ExecuteError::Upkeep(UpkeepRefusal::StillUnreadable).into());
            }
            None => return Err(ExecuteError::Upkeep(UpkeepRefusal::NotPoison).into()),
        },
        Asked::Skip(position, reason) => {
            if views::may_try_again(app, name, position).await?.is_none() {
                return Err(ExecuteError::Upkeep(UpkeepRefusal::NotPoison).into());
            }
            UpkeepCommand::Skip { position, reason: masked(reason) }
        }
    };
    let metadata = actor.metadata(app, upkeep_stream(name).0);
    Ok(execute::to_projection(app, name, command, metadata).await?)
}

type Answer = Result<(StatusCode, Json<Ordered>), Problem>;

async fn order(
    app: &App,
    actor: &Actor,
    name: &str,
    request: Request,
    asked: impl FnOnce(OrderBody) -> Result<Asked, Problem>,
) -> Answer {
    let asked = asked(json(request).await?)?;
    let position = give(app, actor, name, asked).await?;
    Ok((StatusCode::ACCEPTED, Json(Ordered { position })))
}

/// `POST /api/projections/{name}/rebuild`: new rows from the log, beside those that are read.
///
/// # Errors
/// 409 while something else is ordered of it.
pub async fn rebuild(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(ProjectionName(name)): Id<ProjectionName>,
    request: Request,
) -> Answer {
    let asked =
        |body: OrderBody| Ok(Asked::Rebuild(body.switch.unwrap_or(Switch::WhenEqual), body.reason));
    order(&app, &actor, &name, request, asked).await
}

/// `POST /api/projections/{name}/switch`: the new rows take over, whatever differs.
///
/// # Errors
/// 409 when there are none.
pub async fn switch(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(ProjectionName(name)): Id<ProjectionName>,
    request: Request,
) -> Answer {
    order(&app, &actor, &name, request, |_| Ok(Asked::Switch)).await
}

/// `POST /api/projections/{name}/cancel`: takes back what is ordered.
///
/// # Errors
/// 409 when nothing is.
pub async fn cancel(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(ProjectionName(name)): Id<ProjectionName>,
    request: Request,
) -> Answer {
    order(&app, &actor, &name, request, |body| Ok(Asked::Cancel(body.reason))).await
}

/// `POST /api/projections/{name}/rollback`: the former rows take over again.
///
/// # Errors
/// 409 when there are none, or while something else is ordered.
pub async fn roll_back(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(ProjectionName(name)): Id<ProjectionName>,
    request: Request,
) -> Answer {
    order(&app, &actor, &name, request, |body| Ok(Asked::RollBack(body.reason))).await
}

/// `POST /api/projections/{name}/verify`: compares the rows with what the log says.
///
/// # Errors
/// 409 while something else is ordered.
pub async fn verify(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(ProjectionName(name)): Id<ProjectionName>,
    request: Request,
) -> Answer {
    order(&app, &actor, &name, request, |_| Ok(Asked::Verify)).await
}

/// `POST /api/projections/{name}/retry`: folds anew with an event that could not be read before.
///
/// # Errors
/// 400 without a position; 409 when the view has not stopped there, or would again.
pub async fn retry(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(ProjectionName(name)): Id<ProjectionName>,
    request: Request,
) -> Answer {
    order(&app, &actor, &name, request, |body| Ok(Asked::Retry(position_of(&body)?))).await
}

/// `POST /api/projections/{name}/skip`: folds anew without an event.
///
/// # Errors
/// 400 without a position or a reason; 409 when the view has not stopped there.
pub async fn skip(
    State(app): State<Arc<App>>,
    actor: Actor,
    Id(ProjectionName(name)): Id<ProjectionName>,
    request: Request,
) -> Answer {
    let asked = |body: OrderBody| {
        let position = position_of(&body)?;
        Ok(Asked::Skip(position, body.reason.unwrap_or_default()))
    };
    order(&app, &actor, &name, request, asked).await
}

fn position_of(body: &OrderBody) -> Result<Position, Problem> {
    let position = body.position.map(Position);
    position.ok_or_else(|| Problem::bad_request("Say the position of the event"))
}
