//! What may be ordered of a view: new rows, the former ones, a comparison with the log.

use milepost_projections::Upkeep;
use milepost_projections::upkeep::{OrderKind, SKIPPED_MAX};
use milepost_schemas::event::{
    ProjectionEventSkipped, ProjectionOrderCancelled, ProjectionOrderEnded,
    ProjectionRebuildRequested, ProjectionRollbackRequested, ProjectionSwitchRequested,
    ProjectionVerifyRequested, Switch,
};
use milepost_schemas::{Event, Position};

use super::job::said;

/// An order to a view.
#[derive(Clone, Debug)]
pub enum UpkeepCommand {
    /// Fill new rows from the log.
    Rebuild {
        /// When they take over.
        switch: Switch,
        /// Why.
        reason: Option<String>,
    },
    /// Let the former rows take over again.
    RollBack {
        /// Why.
        reason: Option<String>,
    },
    /// Compare the rows with what the log says.
    Verify,
    /// Let the new rows take over, whatever differs.
    Switch,
    /// Take the order back.
    Cancel {
        /// Why.
        reason: Option<String>,
    },
    /// Pass over an event, and fold anew what comes after it in its stream.
    Skip {
        /// The event.
        position: Position,
        /// Why.
        reason: String,
    },
    /// Say what came of an order.
    End {
        /// Where the order stands.
        order: Position,
        /// What came of it.
        ended: ProjectionOrderEnded,
    },
}

/// Why an order to a view is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpkeepRefusal {
    /// No such view.
    #[error("there is no such projection")]
    Unknown,
    /// One order at a time.
    #[error("the projection has a {} order already", .0.as_str())]
    Busy(OrderKind),
    /// There is nothing to take back or to hasten.
    #[error("nothing of the kind is under way")]
    Nothing,
    /// Nobody would know why.
    #[error("say why the event is skipped")]
    Reason,
    /// Not that many.
    #[error("the projection skips {SKIPPED_MAX} events already")]
    SkipsTooMany,
    /// Only what a view stopped at may be passed over, or tried again.
    #[error("the projection has not stopped at this event")]
    NotPoison,
    /// There are none.
    #[error("the projection has no former rows")]
    NoFormer,
    /// It would stop there again.
    #[error("this version cannot read the event either")]
    StillUnreadable,
}

/// Decides what an order to the view `projection` does; `by` is who gives it.
///
/// # Errors
/// [`UpkeepRefusal`]: nothing happens then.
pub fn decide(
    upkeep: &Upkeep,
    projection: &str,
    by: &str,
    command: UpkeepCommand,
) -> Result<Vec<Event>, UpkeepRefusal> {
    let (projection, by) = (projection.to_owned(), by.to_owned());
    let said = |reason: Option<String>| reason.and_then(|reason| said(&reason));
    let under_way = upkeep.order.as_ref().map(|order| order.kind);
    match (command, under_way) {
        (
            UpkeepCommand::Rebuild { .. }
            | UpkeepCommand::RollBack { .. }
            | UpkeepCommand::Verify
            | UpkeepCommand::Skip { .. },
            Some(kind),
        ) => Err(UpkeepRefusal::Busy(kind)),
        (UpkeepCommand::Rebuild { switch, reason }, None) => {
            let reason = said(reason);
            Ok(vec![
                ProjectionRebuildRequested { projection, requested_by: by, switch, reason }.into(),
            ])
        }
        (UpkeepCommand::RollBack { reason }, None) => {
            let reason = said(reason);
            Ok(vec![ProjectionRollbackRequested { projection, requested_by: by, reason }.into()])
        }
        (UpkeepCommand::Verify, None) => {
            Ok(vec![ProjectionVerifyRequested { projection, requested_by: by }.into()])
        }
        (UpkeepCommand::Skip { position, reason }, None) => {
            let reason = said(Some(reason)).ok_or(UpkeepRefusal::Reason)?;
            if upkeep.skipped.len() >= SKIPPED_MAX {
                return Err(UpkeepRefusal::SkipsTooMany);
            }
            let why = Some(format!("event {position} is skipped: {reason}"));
            let (name, skipped_by) = (projection.clone(), by.clone());
            let switch = Switch::Always;
            Ok(vec![
                ProjectionEventSkipped { projection: name, position, skipped_by, reason }.into(),
                ProjectionRebuildRequested { projection, requested_by: by, switch, reason: why }
                    .into(),
            ])
        }
        (UpkeepCommand::Switch, Some(OrderKind::Rebuild)) => {
            Ok(vec![ProjectionSwitchRequested { projection, requested_by: by }.into()])
        }
        (UpkeepCommand::Cancel { reason }, Some(_)) => {
            let reason = said(reason);
            Ok(vec![ProjectionOrderCancelled { projection, cancelled_by: by, reason }.into()])
        }
        (UpkeepCommand::End { order, ended }, Some(_)) if upkeep.orders(order) => {
            Ok(vec![ended.into()])
        }
        (UpkeepCommand::Switch | UpkeepCommand::Cancel { .. } | UpkeepCommand::End { .. }, _) => {
            Err(UpkeepRefusal::Nothing)
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use milepost_projections::Recorded;
    use milepost_projections::upkeep::upkeep_stream;
    use milepost_schemas::event::OrderOutcome;

    use super::*;

    /// The upkeep after some orders to it, each of which is taken.
    fn given(commands: Vec<UpkeepCommand>) -> Upkeep {
        let (mut upkeep, mut position) = (Upkeep::default(), Position::START);
        for command in commands {
            for event in decide(&upkeep, "board", "token:ci", command).unwrap() {
                position = position.next();
                upkeep.apply(&Recorded {
                    position,
                    stream: upkeep_stream("board"),
                    version: position.0 as u32,
                    recorded_at: Timestamp::UNIX_EPOCH,
                    delivery_id: None,
                    event: &event,
                });
            }
        }
        upkeep
    }

    fn rebuild() -> UpkeepCommand {
        UpkeepCommand::Rebuild { switch: Switch::WhenEqual, reason: None }
    }

    fn end(order: u64) -> UpkeepCommand {
        let ended = ProjectionOrderEnded {
            projection: "board".into(),
            outcome: OrderOutcome::Switched,
            generation: Some(2),
            position: None,
            rows: None,
            differing: None,
            first_difference: None,
            error: None,
        };
        UpkeepCommand::End { order: Position(order), ended }
    }

    fn refused(upkeep: &Upkeep, command: UpkeepCommand) -> UpkeepRefusal {
        decide(upkeep, "board", "token:ci", command).unwrap_err()
    }

    #[test]
    fn one_order_at_a_time() {
        let upkeep = given(vec![rebuild()]);
        for command in [rebuild(), UpkeepCommand::Verify, UpkeepCommand::RollBack { reason: None }]
        {
            assert_eq!(refused(&upkeep, command), UpkeepRefusal::Busy(OrderKind::Rebuild));
        }
        let upkeep = given(vec![rebuild(), end(1), UpkeepCommand::Verify]);
        assert_eq!(upkeep.order.unwrap().kind, OrderKind::Verify);
        assert_eq!(upkeep.ended.unwrap().outcome, Some(OrderOutcome::Switched));
    }

    #[test]
    fn only_the_order_that_is_under_way_ends() {
        let upkeep = given(vec![rebuild(), UpkeepCommand::Cancel { reason: None }, rebuild()]);
        assert_eq!(refused(&upkeep, end(1)), UpkeepRefusal::Nothing);
        assert!(decide(&upkeep, "board", "system", end(3)).is_ok());
        assert_eq!(refused(&Upkeep::default(), end(0)), UpkeepRefusal::Nothing);
    }

    #[test]
    fn a_skip_has_a_reason_and_folds_anew() {
        let skip =
            |reason: &str| UpkeepCommand::Skip { position: Position(7), reason: reason.into() };
        assert_eq!(refused(&Upkeep::default(), skip(" ")), UpkeepRefusal::Reason);
        let upkeep = given(vec![skip("a test of ours")]);
        assert_eq!(upkeep.skipped[0].position, Position(7));
        assert_eq!(upkeep.order.unwrap().switch, Switch::Always);
    }

    #[test]
    fn a_switch_hastens_a_rebuild_and_nothing_else() {
        assert_eq!(refused(&Upkeep::default(), UpkeepCommand::Switch), UpkeepRefusal::Nothing);
        let verifying = given(vec![UpkeepCommand::Verify]);
        assert_eq!(refused(&verifying, UpkeepCommand::Switch), UpkeepRefusal::Nothing);
        let upkeep = given(vec![rebuild(), UpkeepCommand::Switch]);
        assert_eq!(upkeep.order.unwrap().switch, Switch::Always);
    }
}
