//! One attempt of a job: its five steps, its error at the step where it happened, and what
//! happens next.

use askama::Template;
use jiff::Timestamp;
use milepost_projections::JobStatus;
use milepost_projections::answers::{
    AttemptAnswer, CompensationAnswer, InstanceAnswer, JobAnswer, TaskAnswer,
};
use milepost_projections::steps::Progress;

use super::Usual;
use super::format::{Clock, Moment, between};
use super::steps::{self, StepView};
use super::words::{word, word_of};

/// One attempt, ready to be written.
#[derive(Clone, Debug, Template)]
#[template(path = "parts/attempt.html")]
pub struct AttemptView {
    /// Its number; 0 for the steps of an agent that has no job.
    pub number: u32,
    /// Its status: a key of the `attempt` words.
    pub status: &'static str,
    /// That status in a word.
    pub word: &'static str,
    /// Shown unfolded: the attempt under way, to come, or last.
    pub current: bool,
    /// The failed step and its code, for the folded line.
    pub brief: String,
    /// Who runs it.
    pub dispatcher: String,
    /// What to call its run.
    pub run: String,
    /// Where a person can look at it.
    pub run_url: Option<String>,
    /// When it was first heard of.
    pub started: Moment,
    /// How long it has taken.
    pub clock: Clock,
    /// The last step the workflow posted.
    pub current_step: String,
    /// The task its tool is at, or was at last.
    pub task: TaskView,
    /// What becomes of what it made.
    pub undo: UndoView,
    /// Why it waits.
    pub waiting: String,
    /// Until when it waits.
    pub waiting_clock: Clock,
    /// The five steps.
    pub steps: Vec<StepView>,
    /// What failed.
    pub failure: Failure,
}

/// The task an attempt's tool is at, or was at last.
#[derive(Clone, Debug, Default)]
pub struct TaskView {
    /// `TASK [docker : add the repository]`; nothing before the first.
    pub text: String,
    /// The play it belongs to.
    pub play: String,
    /// Whether it is under way, in words.
    pub word: &'static str,
    /// For how long it has been.
    pub clock: Clock,
}

/// What becomes of what an attempt made, once it serves no more.
#[derive(Clone, Debug, Default)]
pub struct UndoView {
    /// `waiting`, `failed` or `completed`; nothing where there is nothing to undo.
    pub status: &'static str,
    /// `server 42 removed ✓`.
    pub text: String,
    /// What stands before the clock.
    pub word: &'static str,
    /// Until the next try.
    pub clock: Clock,
}

/// The error of an attempt.
#[derive(Clone, Debug, Default, Template)]
#[template(path = "parts/failure.html")]
pub struct Failure {
    /// Whether there is one; otherwise this is the space for it.
    pub present: bool,
    /// A stable code.
    pub code: String,
    /// The phase that failed.
    pub phase: String,
    /// The tool's last words.
    pub message: String,
    /// Whether words before those were cut off.
    pub truncated: bool,
    /// A server that may be left over.
    pub server: String,
    /// What happens next.
    pub next: &'static str,
    /// When.
    pub next_clock: Clock,
}

impl AttemptView {
    /// The attempts of a job, the newest first.
    pub fn all(job: &JobAnswer, usual: &Usual, now: Timestamp) -> Vec<Self> {
        let last = job.timeline.len().saturating_sub(1);
        let mut views: Vec<_> = job
            .timeline
            .iter()
            .enumerate()
            .map(|(index, attempt)| {
                let mut view = Self::of(attempt, index == last, usual, now);
                if index == last {
                    view.waiting = job.waiting_because.clone().unwrap_or_default();
                    view.waiting_clock = job
                        .run_after
                        .filter(|_| job.waiting_because.is_some())
                        .map(|at| Clock::down(at, now))
                        .unwrap_or_default();
                    view.failure.truncated = job.error_truncated;
                }
                view
            })
            .collect();
        views.reverse();
        views
    }

    /// The steps of an agent, where its job is not at hand.
    pub fn of_agent(answer: &InstanceAnswer, usual: &Usual, now: Timestamp) -> Self {
        let mut view = Self::blank();
        view.current = true;
        view.steps = steps::views(&answer.steps, usual, now);
        if let Some(instance) = &answer.instance {
            view.number = instance.attempt;
            view.current_step = instance.current_step.clone().unwrap_or_default();
            let under_way = instance.job_status == JobStatus::Running;
            view.task = TaskView::of(instance.task.as_ref(), under_way, now);
        }
        view
    }

    /// The markup scripts copy for an attempt that has not been rendered.
    pub fn blank_with(usual: &Usual, now: Timestamp) -> Self {
        let mut view = Self::blank();
        view.steps = steps::views(&Progress::none(), usual, now);
        view
    }

    fn blank() -> Self {
        Self {
            number: 0,
            status: "queued",
            word: "",
            current: false,
            brief: String::new(),
            dispatcher: String::new(),
            run: String::new(),
            run_url: None,
            started: Moment::default(),
            clock: Clock::default(),
            current_step: String::new(),
            task: TaskView::default(),
            undo: UndoView::default(),
            waiting: String::new(),
            waiting_clock: Clock::default(),
            steps: Vec::new(),
            failure: Failure::default(),
        }
    }

    fn of(attempt: &AttemptAnswer, current: bool, usual: &Usual, now: Timestamp) -> Self {
        let steps = steps::views(&attempt.steps, usual, now);
        let failed_at = steps.iter().find(|step| step.is_error()).map(|step| step.label);
        let clock = match (attempt.started_at, attempt.finished_at) {
            (Some(from), Some(to)) => Clock::fixed(between(from, to), Some(from)),
            (Some(from), None) => Clock::up(from, now),
            (None, _) => Clock::default(),
        };
        Self {
            number: attempt.attempt,
            status: attempt.status,
            word: word_of("attempt", attempt.status),
            current,
            brief: [failed_at, attempt.error_code.as_deref()]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(" · "),
            dispatcher: attempt.dispatcher.clone().unwrap_or_default(),
            run: attempt.workflow_run_id.clone().unwrap_or_default(),
            run_url: attempt.run_url.clone().filter(|url| is_web(url)),
            started: attempt.started_at.map(|at| Moment::of(at, now)).unwrap_or_default(),
            clock,
            current_step: attempt.current_step.clone().unwrap_or_default(),
            task: TaskView::of(attempt.task.as_ref(), attempt.status == "running", now),
            undo: attempt
                .compensation
                .as_ref()
                .map(|undoing| UndoView::of(undoing, now))
                .unwrap_or_default(),
            waiting: String::new(),
            waiting_clock: Clock::default(),
            steps,
            failure: Failure::of(attempt, current, now),
        }
    }

    /// Whether any step is the one that failed.
    pub fn has_error(&self) -> bool {
        self.steps.iter().any(StepView::is_error)
    }
}

impl TaskView {
    fn of(task: Option<&TaskAnswer>, under_way: bool, now: Timestamp) -> Self {
        let Some(task) = task else { return Self { word: word("task.now"), ..Self::default() } };
        Self {
            text: format!("TASK [{}]", task.task),
            play: task.play.clone().unwrap_or_default(),
            word: word(if under_way { "task.now" } else { "task.last" }),
            clock: if under_way { Clock::up(task.started_at, now) } else { Clock::default() },
        }
    }
}

impl UndoView {
    fn of(undoing: &CompensationAnswer, now: Timestamp) -> Self {
        let things: Vec<String> = undoing
            .resources
            .iter()
            .map(|thing| {
                let said = word_of("undo", thing.outcome);
                let id = thing.id.as_deref().map(|id| format!(" {id}")).unwrap_or_default();
                let why = thing.detail.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
                format!("{}{id} {said}{why}", thing.resource)
            })
            .collect();
        let text = if things.is_empty() {
            word_of("undo-all", undoing.status).to_owned()
        } else {
            things.join("; ")
        };
        let clock = undoing.next_try_at.map(|at| Clock::down(at, now));
        Self {
            status: undoing.status,
            text,
            word: clock.as_ref().map(|_| word_of("undo-next", undoing.status)).unwrap_or_default(),
            clock: clock.unwrap_or_default(),
        }
    }
}

impl Failure {
    fn of(attempt: &AttemptAnswer, current: bool, now: Timestamp) -> Self {
        let Some(code) = &attempt.error_code else { return Self::default() };
        let (next, next_clock) = match attempt.retry_at {
            _ if !current => (word("next.followed"), Clock::default()),
            Some(at) => (word("next.retry"), Clock::down(at, now)),
            None if attempt.status == "cancelled" => (word("next.cancelled"), Clock::default()),
            None => (word("next.none"), Clock::default()),
        };
        Self {
            present: true,
            code: code.clone(),
            phase: attempt.failed_step.clone().unwrap_or_default(),
            message: attempt.error_message.clone().unwrap_or_default(),
            truncated: false,
            // What becomes of it stands below, once it is to be undone.
            server: attempt
                .server_id
                .clone()
                .filter(|_| attempt.compensation.is_none())
                .unwrap_or_default(),
            next,
            next_clock,
        }
    }
}

/// Only such addresses become links; `javascript:` and the like stay words.
fn is_web(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

#[cfg(test)]
mod tests {
    use milepost_projections::answers::UndoAnswer;

    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_756_461_600, 0);

    fn thing(outcome: &'static str, detail: Option<&str>) -> UndoAnswer {
        let (id, detail) = (Some("42".to_owned()), detail.map(str::to_owned));
        UndoAnswer { resource: "server", id, outcome, detail }
    }

    fn line(status: &'static str, waits: bool, resources: Vec<UndoAnswer>) -> (String, String) {
        let next_try_at = waits.then(|| NOW + jiff::SignedDuration::from_secs(30));
        let undoing =
            CompensationAnswer { status, tries: 1, next_try_at, completed_at: None, resources };
        let view = UndoView::of(&undoing, NOW);
        assert_eq!(view.status, status);
        (view.text, view.word.to_owned())
    }

    #[test]
    fn what_becomes_of_what_an_attempt_made_is_said_in_a_line() {
        let said = |text: &str, word: &str| (text.to_owned(), word.to_owned());
        assert_eq!(line("waiting", true, Vec::new()), said("what it made is to be removed", "in"));
        let locked = thing("failed", Some("it is locked"));
        let failed = line("failed", true, vec![locked, thing("removed", None)]);
        let words = "server 42 could not be removed: it is locked; server 42 removed ✓";
        assert_eq!(failed, said(words, "next try in"));
        let waits = "looked at again when its run ends, or in";
        let nothing = "nothing was left so far, and its run goes on";
        assert_eq!(line("awaits_run", true, Vec::new()), said(nothing, waits));
        let kept = line("completed", false, vec![thing("kept", Some("it is another's"))]);
        assert_eq!(kept, said("server 42 was kept: it is another's", ""));
        assert_eq!(line("completed", false, Vec::new()), said("nothing was left ✓", ""));
    }
}
