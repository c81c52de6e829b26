//! Samples of the pages about the log itself, and of pages at a place in it.

use askama::Template as _;
use jiff::SignedDuration;
use milepost_schemas::{CallbackEvidence, Metadata, Position, SignatureForm};
use serde_json::json;
use uuid::Uuid;

use super::super::diff::ChangedView;
use super::super::event::Link;
use super::super::events::{Filters, Reach};
use super::super::integrity::CheckpointView;
use super::super::{
    AgentPage, DiffPage, EventPage, EventsPage, Frame, IntegrityPage, LogView, PastFrame,
};
use super::{MARKUP_ERROR, Story, frame, now, stories, usual, viewer};
use crate::http::api::diff::Between;
use crate::views::diff::{Changed, Field};

/// The frame of a page that shows what was.
fn past(title: &str) -> Frame {
    let past = PastFrame { head: 20_000, scope: String::new() };
    Frame { past: Some(past), ..frame(title) }
}

impl Story {
    /// Its page at a place in the log.
    pub fn past_page(&self) -> AgentPage {
        self.past_page_within(past(&self.answer().agent.name))
    }

    fn past_page_within(&self, frame: Frame) -> AgentPage {
        let (answer, job) = (self.answer(), self.job_answer());
        let log = job.as_ref().map(|job| self.log(job)).unwrap_or_default();
        let log = LogView { at: Some(18_240), ..log };
        let events = super::super::EventList { and_at: "&at=18240".into(), ..self.events() };
        AgentPage::new(frame, &answer, job.as_ref(), &usual(), log, events)
    }
}

/// Every page about the log, by name.
pub fn ledger_pages() -> Vec<(String, String)> {
    let rows: Vec<_> = stories().iter().flat_map(|(_, story)| story.rows.clone()).collect();
    let reach = Reach { older: Some(17_000), is_live: true, ..Reach::default() };
    let live = EventsPage::new(frame("Events"), Filters::default(), rows.clone(), reach);
    let searched =
        Filters { text: "<vm>".into(), kinds: vec!["JobFailed".into()], ..Filters::default() };
    let stopped = Reach { older: Some(9_000), looked_to: Some(9_000), ..Reach::default() };
    let searched = EventsPage::new(past("Events"), searched, Vec::new(), stopped);
    let pages = [
        ("events", live.render()),
        ("events-searched", searched.render()),
        ("event", event().render()),
        ("diff", diff(frame("Differences"), true).render()),
        ("diff-empty", diff(frame("Differences"), false).render()),
        ("integrity", integrity(true).render()),
        ("integrity-empty", integrity(false).render()),
    ];
    pages.into_iter().map(|(name, page)| (name.to_owned(), page.unwrap())).collect()
}

fn event() -> EventPage {
    let (_, story) = stories().remove(0);
    let row = story.rows.last().unwrap().clone();
    let metadata = Metadata {
        actor: "workflow:5f1d2c3b".into(),
        correlation_id: Uuid::nil(),
        causation_id: None,
        callback: Some(CallbackEvidence {
            delivery_id: Some("run-4411".into()),
            signature_form: SignatureForm::StandardWebhooks,
            key_id: "5f1d2c3b".into(),
            attempt: Some(1),
            signature: "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=".into(),
            signed_at: Some(1_785_326_671),
            body: Some("{\"error\":\"it's <script>alert('&')</script>\"}".into()),
            body_sha256: None,
        }),
    };
    let links = vec![Link { words: "Its job then".into(), href: "/jobs/1?at=2".into() }];
    EventPage::new(frame("Event"), row, &metadata, vec![ChangedView::new(changed(), 18_240)], links)
}

fn changed() -> Changed {
    let field = |field: &str, old, new| Field { field: field.into(), old, new };
    Changed {
        kind: "agent",
        id: Uuid::nil(),
        name: "mari-prod-7".into(),
        is_new: false,
        fields: vec![
            field("instance.error", json!(null), json!(MARKUP_ERROR)),
            field("instance.status", json!("provisioning"), json!("failed")),
            field("steps.configuring.status", json!("active"), json!("error")),
        ],
    }
}

/// A difference, and an agent as it was, as a viewer sees them.
pub fn pages_of_viewer() -> [String; 2] {
    let (_, story) = stories().remove(0);
    let past = Frame { rights: viewer("Past").rights, ..past("Past") };
    [
        diff(viewer("Differences"), true).render().unwrap(),
        story.past_page_within(past).render().unwrap(),
    ]
}

fn diff(frame: Frame, found: bool) -> DiffPage {
    use crate::http::api::diff::{DiffAnswer, Side};
    let side = |position, ago| Side {
        position: Position(position),
        recorded_at: now() - SignedDuration::from_secs(ago),
    };
    let (old, new) = (side(18_000, 300), side(18_240, 0));
    let things = vec![changed()];
    let answer = DiffAnswer::new(1_785_000_000, (old, new), Position(18_200), things);
    let asked = Between::default();
    DiffPage::new(frame, &asked, None, found.then_some(answer))
}

fn integrity(sealed: bool) -> IntegrityPage {
    let note = "milepost.example.org/log/1785000000\n18234\n\
        n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=\n\n\
        — milepost.example.org/log/1785000000 Az3grlgtzPIC\n";
    let key = "milepost.example.org/log/1785000000+033de0ae+Ac4zctda0e5eza+Hvu".to_owned();
    let sealed_at = now() - SignedDuration::from_secs(1);
    let checkpoint = CheckpointView::new(note.to_owned(), key, sealed_at, now());
    let checkpoint = checkpoint.filter(|_| sealed);
    IntegrityPage::new(frame("Integrity"), checkpoint, Some(18_000))
}
