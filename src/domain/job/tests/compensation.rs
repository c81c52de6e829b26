//! When what an attempt made is to be undone, and how often that is tried.

use milepost_schemas::event::{CompensationStepTaken, Resource, UndoOutcome};

use super::*;
use crate::domain::job::compensation::{
    CLEAN_UP, FINDINGS_MAX, Finding, RETRY_FIRST, RETRY_MAX, RETRY_SLOW, RUN_LASTS_MAX,
    TRIES_QUICK, due,
};

const FIRST: Attempt = Attempt::FIRST;

/// Every attempt that may have made a server and has ended without success is to be undone; the
/// one that succeeded, and one that goes on, never.
pub(super) fn asked_for(job: &Job) -> Result<(), TestCaseError> {
    for attempt in &job.attempts {
        let succeeded =
            job.status == JobStatus::Succeeded && attempt.number == job.attempt().number;
        let begun = attempt.started_at.is_some();
        let over = attempt.ended_at.is_some() && !succeeded;
        let undoing = attempt.compensation.is_some();
        prop_assert!(undoing || !(begun && over), "{attempt:?} is forgotten");
        prop_assert!(!undoing || over, "{attempt:?} is undone and not over");
    }
    Ok(())
}

/// What a decision asks to be undone: of which attempt, and which server it knows.
fn asked(decision: &JobDecision) -> Vec<(u32, Option<&str>)> {
    let asked = decision.events.iter().filter_map(|event| match event {
        Event::CompensationRequested(it) => Some((it.attempt.0, it.server_id.as_deref())),
        _ => None,
    });
    asked.collect()
}

fn finding(outcome: UndoOutcome) -> Finding {
    let (id, detail) = (Some("42".to_owned()), Some("words".to_owned()));
    Finding { resource: Resource::Server, id, outcome, detail }
}

fn tried(try_number: u32, outcomes: &[UndoOutcome]) -> JobCommand {
    let findings = outcomes.iter().map(|outcome| finding(*outcome)).collect();
    JobCommand::RecordCompensation { attempt: FIRST, try_number, named: usize::MAX, findings }
}

fn steps(decision: &JobDecision) -> Vec<&CompensationStepTaken> {
    let steps = decision.events.iter().filter_map(|event| match event {
        Event::CompensationStepTaken(it) => Some(it),
        _ => None,
    });
    steps.collect()
}

fn is_due(job: &Story) -> bool {
    due(job.job(), FIRST, job.now).is_some()
}

#[test]
fn a_failure_asks_to_undo_its_attempt_in_the_same_decision() {
    let mut job = running();
    let decision = job.hears(json!({"status": "failed", "server_id": "42"}));
    assert_eq!(asked(&decision), [(1, Some("42"))]);
    let mut job = running();
    job.wait_minutes(15);
    assert_eq!(asked(&job.orders(JobCommand::Tick)), [(1, None)]);
    let mut job = dispatching();
    assert_eq!(asked(&job.reports(Report::DispatchLost)), [(1, None)]);
}

#[test]
fn a_cancel_asks_to_undo_an_attempt_that_has_begun_and_no_other() {
    assert_eq!(asked(&running().orders(cancel())), [(1, None)]);
    assert_eq!(asked(&queued().orders(cancel())), []);
    // The failed attempt was asked for; the next one has not begun.
    assert_eq!(asked(&retrying().orders(cancel())), []);
    let mut refused = dispatching();
    refused.reports(dispatch_failed());
    assert_eq!(asked(&refused.orders(cancel())), []);
}

#[test]
fn a_rehearsal_and_a_nodes_job_have_nothing_to_undo() {
    let mut rehearsed = queued();
    rehearsed.orders(JobCommand::Claim { dispatcher: "rehearsal", locked_by: "worker".into() });
    assert_eq!(asked(&rehearsed.hears(json!({"status": "failed", "server_id": "42"}))), []);
    let mut node = of_node(PROVISION_NODE);
    assert_eq!(asked(&node.hears(json!({"status": "failed", "server_id": "42"}))), []);
}

#[test]
fn the_server_of_a_late_running_is_undone_and_that_of_the_one_that_succeeded_never() {
    let mut job = cancelled();
    let late = json!({"status": "running", "server_id": "42", "attempt": 1});
    assert_eq!(asked(&job.hears(late.clone())), [(1, Some("42"))]);
    let mut again = late.clone();
    again["delivery_id"] = json!("another");
    assert_eq!(asked(&job.hears(again)), [], "it is known");

    let mut job = running_again();
    job.hears(json!({"status": "running", "attempt": 2, "server_id": "43"}));
    assert_eq!(asked(&job.hears(late)), [(1, Some("42"))], "of the attempt before");
    let repeated =
        json!({"status": "running", "attempt": 2, "server_id": "43", "delivery_id": "d"});
    assert_eq!(asked(&job.hears(repeated)), []);
    assert_eq!(job.job().attempt().compensation, None);
}

#[test]
fn a_late_word_of_an_unknown_server_opens_what_was_completed() {
    let mut job = cancelled();
    job.wait_minutes(2);
    job.orders(tried(1, &[UndoOutcome::Removed]));
    assert!(!is_due(&job));
    let known = json!({"status": "running", "server_id": "42"});
    assert_eq!(asked(&job.hears(known)), [], "it was removed");
    let news = json!({"status": "failed", "server_id": "43"});
    assert_eq!(asked(&job.hears(news)), [(1, Some("43"))]);
    job.wait_minutes(2);
    assert!(is_due(&job));
    job.orders(tried(1, &[UndoOutcome::AlreadyGone]));
    assert!(!is_due(&job));
}

#[test]
fn it_is_due_after_the_grace_or_when_the_run_has_ended() {
    let mut job = cancelled();
    job.wait(CLEAN_UP - SignedDuration::from_secs(1));
    assert!(!is_due(&job));
    let mut ended = job.clone();
    ended.orders(observed(seen(1, "7", 1, Some("cancelled"))));
    assert!(is_due(&ended));
    job.wait(SignedDuration::from_secs(1));
    assert!(is_due(&job));
}

#[test]
fn a_server_that_is_named_during_a_try_is_for_the_next_one() {
    let without = |found: &[UndoOutcome]| {
        let JobCommand::RecordCompensation { attempt, try_number, findings, .. } = tried(1, found)
        else {
            unreachable!("it is one")
        };
        JobCommand::RecordCompensation { attempt, try_number, named: 0, findings }
    };
    for (found, next) in [(&[][..], 1), (&[UndoOutcome::Removed], 2)] {
        let mut job = cancelled();
        job.wait_minutes(2);
        job.hears(json!({"status": "failed", "server_id": "43"}));
        let decision = job.orders(without(found));
        assert!(!names(&decision).contains(&"CompensationCompleted"));
        assert!(is_due(&job), "43 was not asked for");
        job.orders(tried(next, &[UndoOutcome::Removed]));
        assert!(!is_due(&job));
    }
}

#[test]
fn a_try_without_a_failure_completes_it_even_with_nothing_found() {
    for outcomes in [&[][..], &[UndoOutcome::Kept], &[UndoOutcome::Removed; 3]] {
        let mut job = cancelled();
        job.wait_minutes(2);
        let decision = job.orders(tried(1, outcomes));
        assert_eq!(names(&decision).last(), Some(&"CompensationCompleted"));
        assert_eq!(steps(&decision).len(), outcomes.len());
        assert!(!is_due(&job));
    }
}

#[test]
fn it_is_tried_again_ever_later_and_then_slowly_without_end() {
    let mut job = cancelled();
    job.wait_minutes(2);
    let mut pauses = Vec::new();
    for try_number in 1..=TRIES_QUICK + 2 {
        assert!(is_due(&job));
        let decision = job.orders(tried(try_number, &[UndoOutcome::Failed]));
        assert_eq!(names(&decision), ["CompensationStepTaken"]);
        let pause = steps(&decision)[0].next_try_at.unwrap().duration_since(job.now);
        assert!(!is_due(&job));
        job.wait(pause);
        pauses.push(pause);
    }
    assert_eq!(pauses[..2], [RETRY_FIRST, RETRY_FIRST * 2]);
    assert!(pauses.is_sorted());
    assert_eq!(pauses[TRIES_QUICK as usize - 2], RETRY_MAX);
    assert_eq!(pauses[TRIES_QUICK as usize - 1..], [RETRY_SLOW; 3]);
}

#[test]
fn of_two_workers_that_try_at_once_one_records_it() {
    let mut job = cancelled();
    job.wait_minutes(2);
    job.orders(tried(1, &[UndoOutcome::Failed]));
    assert_eq!(job.orders(tried(1, &[UndoOutcome::Removed])).answer, JobAnswer::Nothing);
    job.orders(tried(2, &[UndoOutcome::Removed]));
    assert_eq!(job.orders(tried(2, &[])).answer, JobAnswer::Nothing, "it is completed");
    assert_eq!(running().orders(tried(1, &[])).answer, JobAnswer::Nothing, "nobody asked");
}

#[test]
fn what_a_try_says_is_bounded_and_what_failed_is_among_it() {
    let mut job = cancelled();
    job.wait_minutes(2);
    let mut outcomes = vec![UndoOutcome::Removed; FINDINGS_MAX];
    outcomes.push(UndoOutcome::Failed);
    let decision = job.orders(tried(1, &outcomes));
    assert_eq!(steps(&decision).len(), FINDINGS_MAX);
    assert_eq!(steps(&decision)[0].outcome, UndoOutcome::Failed);
}

/// A job that was cancelled, and whose run nobody has seen end.
fn cancelled_with_a_run() -> Story {
    let mut job = dispatching();
    job.reports(dispatched("7"));
    job.hears(json!({"status": "provisioning"}));
    job.orders(cancel());
    job.wait_minutes(2);
    job
}

fn undo(reason: CompensationReason, server_id: Option<&str>) -> JobCommand {
    JobCommand::Undo { attempt: FIRST, server_id: server_id.map(Into::into), reason }
}

#[test]
fn it_is_not_completed_while_the_run_may_make_more_and_is_due_when_that_ends() {
    let mut job = cancelled_with_a_run();
    let decision = job.orders(tried(1, &[UndoOutcome::Removed]));
    assert_eq!(names(&decision), ["CompensationStepTaken", "CompensationPutOff"]);
    assert!(!is_due(&job));
    let mut later = job.clone();
    later.wait(RETRY_FIRST);
    assert!(is_due(&later), "it is looked at while it goes on, too");
    assert_eq!(names(&later.orders(tried(2, &[]))), ["CompensationPutOff"]);
    job.orders(observed(seen(1, "7", 1, Some("cancelled"))));
    assert!(is_due(&job));
    let decision = job.orders(tried(2, &[UndoOutcome::Removed]));
    assert_eq!(names(&decision).last(), Some(&"CompensationCompleted"));
    assert!(!is_due(&job));
}

#[test]
fn what_cannot_be_undone_after_the_run_is_tried_again_at_its_pace() {
    let mut job = cancelled_with_a_run();
    job.orders(tried(1, &[]));
    job.orders(observed(seen(1, "7", 1, Some("cancelled"))));
    job.orders(tried(2, &[UndoOutcome::Failed]));
    assert!(!is_due(&job), "not again and again");
    job.wait(RETRY_FIRST * 2);
    assert!(is_due(&job));
}

#[test]
fn a_run_that_is_never_seen_to_end_is_waited_for_no_longer_than_it_can_last() {
    let mut job = cancelled_with_a_run();
    job.wait(RUN_LASTS_MAX);
    assert_eq!(names(&job.orders(tried(1, &[]))), ["CompensationCompleted"]);
}

#[test]
fn a_run_that_is_seen_at_work_after_all_was_undone_opens_it_again() {
    let mut job = cancelled_with_a_run();
    job.orders(observed(seen(1, "7", 1, Some("failure"))));
    job.orders(tried(1, &[]));
    assert!(job.job().attempt().compensation.as_ref().is_some_and(|it| !it.is_open()));
    // Somebody runs it again.
    let decision = job.orders(observed(seen(1, "7", 2, None)));
    assert_eq!(asked(&decision), [(1, None)]);
    job.wait_minutes(2);
    assert_eq!(names(&job.orders(tried(1, &[]))), ["CompensationPutOff"]);
    // One that nobody knew of, of an attempt that was given up.
    let mut job = dispatching();
    job.reports(Report::DispatchLost);
    job.wait_minutes(2);
    job.orders(tried(1, &[]));
    assert_eq!(asked(&job.orders(observed(seen(1, "7", 1, None)))), [(1, None)]);
}

#[test]
fn a_thing_that_turns_up_opens_what_was_completed_and_no_attempt_that_goes_on() {
    let found = CompensationReason::ThingFound;
    let mut job = cancelled();
    job.wait_minutes(2);
    job.orders(tried(1, &[UndoOutcome::Removed]));
    // The same server is news where it was thought to be gone; a device has no server's id.
    for server_id in [Some("42"), None] {
        let mut job = job.clone();
        assert_eq!(asked(&job.orders(undo(found, server_id))), [(1, server_id)]);
        assert_eq!(job.orders(undo(found, server_id)), JobDecision::nothing(), "it is open");
        job.wait_minutes(2);
        assert!(is_due(&job));
    }
    for mut job in [running(), succeeded(), queued()] {
        assert_eq!(job.orders(undo(found, Some("42"))), JobDecision::nothing());
    }
}

#[test]
fn of_an_attempt_that_succeeded_only_a_replaced_instance_is_undone() {
    let replaced = CompensationReason::InstanceReplaced;
    let mut job = succeeded();
    assert_eq!(asked(&job.orders(undo(replaced, Some("42")))), [(1, Some("42"))]);
    job.wait_minutes(2);
    assert!(is_due(&job));
    job.orders(tried(1, &[UndoOutcome::Removed]));
    assert_eq!(job.status(), JobStatus::Succeeded);
    assert_eq!(running().orders(undo(replaced, None)), JobDecision::nothing());
}

#[test]
fn an_attempt_that_somebody_began_by_hand_is_undone_like_any_other() {
    let mut job = queued();
    job.hears(json!({"status": "provisioning", "workflow_run_id": "7"}));
    assert_eq!(job.job().attempt().dispatcher, None);
    let decision = job.hears(json!({"status": "failed", "server_id": "42"}));
    assert_eq!(asked(&decision), [(1, Some("42"))]);
    job.wait_minutes(2);
    // Nobody can be asked for its run.
    let decision = job.orders(tried(1, &[UndoOutcome::Removed]));
    assert_eq!(names(&decision).last(), Some(&"CompensationCompleted"));
}
