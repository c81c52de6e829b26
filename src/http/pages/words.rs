//! Every word that changes on a page without a reload, by key. The page carries this table along,
//! so that scripts say what the server says.

/// The table: keys are `<what>.<which>`.
pub const WORDS: &[(&str, &str)] = &[
    // The state of an agent or a job.
    ("state.new", "New"),
    ("state.queued", "Queued"),
    ("state.waiting", "Waiting"),
    ("state.dispatching", "Starting"),
    ("state.running", "Provisioning"),
    ("state.overdue", "Overdue"),
    ("state.silent", "Silent"),
    ("state.retry_scheduled", "Retrying"),
    ("state.succeeded", "Running"),
    ("state.failed", "Failed"),
    ("state.cancelled", "Cancelled"),
    ("state.stopping", "Stopping"),
    ("state.stopped", "Stopped"),
    ("state.destroyed", "Destroyed"),
    // The state of a node's job, where another word is better.
    ("node.running", "Under way"),
    ("node.succeeded", "Done"),
    // Where a node stands.
    ("node-status.active", "Active"),
    ("node-status.provisioning", "Provisioning"),
    ("node-status.unreachable", "Unreachable"),
    ("node-status.decommissioned", "Decommissioned"),
    // What stands before the clock of a state.
    ("clock.new", "for"),
    ("clock.queued", "for"),
    ("clock.waiting", "for"),
    ("clock.dispatching", "for"),
    ("clock.running", "for"),
    ("clock.overdue", "for"),
    ("clock.silent", "for"),
    ("clock.retry_scheduled", "in"),
    ("clock.succeeded", "for"),
    // What stands after it.
    ("after.failed", "ago"),
    ("after.cancelled", "ago"),
    // The status of a step.
    ("step.pending", "not reached"),
    ("step.active", "under way"),
    ("step.completed", "done"),
    ("step.error", "failed here"),
    // The status of an attempt.
    ("attempt.queued", "waiting"),
    ("attempt.dispatching", "starting"),
    ("attempt.running", "under way"),
    ("attempt.succeeded", "succeeded"),
    ("attempt.failed", "failed"),
    ("attempt.cancelled", "cancelled"),
    // What stands before a task.
    ("task.now", "now"),
    ("task.last", "last task"),
    // What became of a thing that a failed attempt made.
    ("undo.waiting", "is to be removed"),
    ("undo.removed", "removed ✓"),
    ("undo.already_gone", "was gone already ✓"),
    ("undo.kept", "was kept"),
    ("undo.failed", "could not be removed"),
    // Where no such thing is known.
    ("undo-all.waiting", "what it made is to be removed"),
    ("undo-all.awaits_run", "nothing was left so far, and its run goes on"),
    ("undo-all.failed", "what it made could not be removed"),
    ("undo-all.completed", "nothing was left ✓"),
    // What stands before the clock of the next try.
    ("undo-next.waiting", "in"),
    ("undo-next.awaits_run", "looked at again when its run ends, or in"),
    ("undo-next.failed", "next try in"),
    // What happens after a failure.
    ("next.retry", "The next attempt begins in"),
    ("next.followed", "Another attempt followed."),
    ("next.none", "No attempt is left: nothing more happens until somebody retries."),
    ("next.cancelled", "Somebody ended this job: nothing more happens until somebody retries."),
];

/// The word for a key; nothing for one the table does not have.
pub fn word(key: &str) -> &'static str {
    WORDS.iter().find(|(known, _)| *known == key).map_or("", |(_, word)| word)
}

/// The word for `<what>.<which>`.
pub fn word_of(what: &str, which: &str) -> &'static str {
    word(&format!("{what}.{which}"))
}
