//! The pages people read.
//!
//! A page is a struct, its template, and a constructor from plain data; no handler, no clock and
//! no I/O. Each page is whole without scripts. With them, the custom elements of `assets/` follow
//! the stream and fill the same markup: what changes has a `data-slot`, words come from the table
//! of [`words`], and what can appear later is rendered once into a `<template>`.

pub mod account;
mod account_handlers;
pub mod agent;
pub mod ansi;
pub mod assets;
pub mod attempt;
pub mod diff;
pub mod event;
pub mod event_row;
pub mod events;
pub mod format;
mod handlers;
pub mod integrity;
pub mod job;
pub mod log;
pub mod login;
pub mod node;
pub mod nodes;
pub mod overview;
pub mod problem;
pub mod projections;
#[cfg(test)]
pub mod samples;
pub mod standing;
pub mod steps;
pub mod words;

use jiff::Timestamp;
use milepost_projections::steps::COUNT;
use milepost_projections::usual::UsualDuration;
use milepost_schemas::Right;

use format::Moment;

pub use account::{AccountPage, AccountsPage};
pub use agent::AgentPage;
pub use diff::DiffPage;
pub use event::EventPage;
pub use event_row::{EventList, EventRow, Place};
pub use events::EventsPage;
pub use handlers::{Trouble, not_allowed, not_found, routes};
pub use integrity::IntegrityPage;
pub use job::JobPage;
pub use log::LogView;
pub use login::LoginPage;
pub use node::NodePage;
pub use nodes::NodesPage;
pub use overview::OverviewPage;
pub use problem::ProblemPage;
pub use projections::ProjectionsPage;

/// What is usual for each step.
pub type Usual = [Option<UsualDuration>; COUNT];

/// Nothing is known to be usual: for jobs of nodes.
const NO_USUAL: Usual = [None; COUNT];

/// The regions the form of a new agent offers.
pub use crate::domain::agent::REGIONS;

/// What every page has around it.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The page's title.
    pub title: String,
    /// The e-mail address of who is signed in.
    pub account: Option<String>,
    /// What they may do; the rest is not on the page, and the server refuses it.
    pub rights: Vec<Right>,
    /// Who people are, for a page that follows events.
    pub people: Vec<(String, String)>,
    /// The log's epoch.
    pub epoch: i64,
    /// The position of the log the page was rendered at.
    pub position: u64,
    /// The time it was rendered at.
    pub now: Timestamp,
    /// Whether attempts are only played.
    pub rehearsal: bool,
    /// Whether this server undoes what attempts leave behind.
    pub undoes: bool,
    /// Where it was looked from, when the page shows what was and not what is.
    pub past: Option<PastFrame>,
}

/// What a page of the past says of itself.
#[derive(Clone, Debug)]
pub struct PastFrame {
    /// Where the log ended when the page was made.
    pub head: u64,
    /// What the page is about, as `/diff` takes it: `&agent=…`; nothing where it is about all.
    pub scope: String,
}

impl Frame {
    /// Whether whoever reads the page may change jobs, agents, nodes and the queue.
    fn operates(&self) -> bool {
        self.past.is_none() && self.rights.contains(&Right::Operate)
    }

    /// Whether they may read events.
    fn reads_events(&self) -> bool {
        self.rights.contains(&Right::Events)
    }

    /// Who did something, as the page's scripts say it too.
    fn who(&self, actor: String) -> String {
        let known = self.people.iter().find(|(known, _)| *known == actor);
        known.map_or(actor, |(_, name)| name.clone())
    }

    /// Whether they may see who may do what.
    fn audits(&self) -> bool {
        self.rights.contains(&Right::Audit)
    }

    /// Whether they may change who may do what.
    fn administers(&self) -> bool {
        self.past.is_none() && self.rights.contains(&Right::Administer)
    }

    fn now_ms(&self) -> i64 {
        self.now.as_millisecond()
    }

    fn time(&self) -> String {
        format::time(self.now, self.now)
    }

    fn position_text(&self) -> String {
        format::number(self.position)
    }

    /// What a link to another page carries along: nothing, or the place in the log.
    fn query(&self) -> String {
        self.past.as_ref().map(|_| format!("?at={}", self.position)).unwrap_or_default()
    }

    /// The time of a page of the past, with its day.
    fn moment(&self) -> Moment {
        Moment { text: format::full(self.now), ..Moment::of(self.now, self.now) }
    }

    /// The newest position that can be gone back to.
    fn newest(&self) -> u64 {
        self.past.as_ref().map_or(self.position, |past| past.head)
    }
}

/// What the forms at the head of an agent or a job act on.
#[derive(Clone, Debug)]
struct Actions {
    /// The address of the agent or the node.
    subject: String,
    job: String,
    again: bool,
    priority: i16,
}

/// One line of a list of facts; empty until the fact is known.
#[derive(Clone, Debug)]
struct Fact {
    key: &'static str,
    label: &'static str,
    value: String,
}

impl Fact {
    fn new(key: &'static str, label: &'static str, value: String) -> Self {
        Self { key, label, value }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use askama::Template;
    use serde_json::json;

    use super::*;

    fn all() -> Vec<(String, String)> {
        let mut pages = vec![
            ("overview".into(), OverviewPage::sample(false).render().unwrap()),
            ("overview-empty".into(), OverviewPage::sample(true).render().unwrap()),
            ("overview-paused".into(), OverviewPage::paused().render().unwrap()),
            ("nodes".into(), NodesPage::sample(false).render().unwrap()),
            ("nodes-empty".into(), NodesPage::sample(true).render().unwrap()),
            ("projections".into(), ProjectionsPage::sample(false).render().unwrap()),
            ("projections-trouble".into(), ProjectionsPage::sample(true).render().unwrap()),
            ("account".into(), AccountPage::sample().render().unwrap()),
            ("accounts".into(), AccountsPage::sample(true).render().unwrap()),
            ("accounts-auditor".into(), AccountsPage::sample(false).render().unwrap()),
            ("overview-viewer".into(), OverviewPage::of_viewer().render().unwrap()),
            ("agent-viewer".into(), samples::agent_of_viewer().render().unwrap()),
            ("login".into(), LoginPage::sample(false).render().unwrap()),
            ("login-refused".into(), LoginPage::sample(true).render().unwrap()),
        ];
        for status in [400, 403, 404, 409, 429, 500, 503] {
            let page = ProblemPage::sample(status).render().unwrap();
            pages.push((format!("problem-{status}"), page));
        }
        for (name, node) in samples::nodes() {
            let page = NodePage::new(
                samples::frame(name),
                &node,
                LogView::default(),
                EventList::default(),
            );
            pages.push((format!("node-{name}"), page.render().unwrap()));
            if let Some(job) = &node.job {
                let (frame, host) = (samples::frame(name), node.hostname.clone());
                let page = JobPage::new(
                    frame,
                    host,
                    job,
                    &samples::usual(),
                    LogView::default(),
                    EventList::default(),
                );
                pages.push((format!("node-job-{name}"), page.render().unwrap()));
            }
        }
        pages.extend(samples::ledger_pages());
        for (name, story) in samples::stories() {
            pages.push((format!("agent-{name}"), story.agent_page().render().unwrap()));
            pages.push((format!("agent-past-{name}"), story.past_page().render().unwrap()));
            if let Some(page) = story.job_page() {
                pages.push((format!("job-{name}"), page.render().unwrap()));
            }
        }
        pages
    }

    #[test]
    fn a_page_offers_nobody_what_they_may_not_do() {
        let (overview, agent) = (OverviewPage::of_viewer(), samples::agent_of_viewer());
        let (projections, [diff, past]) =
            (ProjectionsPage::of_viewer(), samples::pages_of_viewer());
        assert!(ProjectionsPage::sample(true).render().unwrap().contains("Skip the event"));
        let rendered = [overview.render(), agent.render(), projections.render()];
        for page in rendered.map(Result::unwrap).into_iter().chain([diff, past]) {
            let sends = page.matches("method=\"post\"").count();
            assert_eq!(sends, 1, "more can be sent than to log out");
            let follows = page.contains("data-live") && !page.contains("<mp-projections");
            assert!(!follows, "a viewer follows no events");
            assert!(!page.contains("href=\"/accounts\""));
            assert!(!page.contains("href=\"/events"), "a viewer reads no events");
        }
        let auditor = AccountsPage::sample(false).render().unwrap();
        assert_eq!(auditor.matches("<form").count(), 2);
        assert!(!auditor.contains("192.0.2.7"), "where people are");
        assert!(AccountsPage::sample(true).render().unwrap().matches("<form").count() > 10);
    }

    /// The steps of a page: `data-step` and `data-status` of each element that has either.
    fn steps(page: &str) -> Vec<(String, String)> {
        let value = |tag: &str, name: &str| {
            let start = tag.find(&format!("{name}=\""))? + name.len() + 2;
            Some(tag[start..].split('"').next()?.to_owned())
        };
        page.split('<')
            .filter(|tag| tag.contains("data-step=") || tag.contains("data-status="))
            .map(|tag| (value(tag, "data-step").unwrap(), value(tag, "data-status").unwrap()))
            .collect()
    }

    /// Where `MILEPOST_SAMPLES` names a folder, every sample is written there to be looked at.
    fn write(pages: &[(String, String)]) {
        let Some(folder) = std::env::var_os("MILEPOST_SAMPLES") else { return };
        let write = |path: &Path, bytes: &[u8]| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        let folder = Path::new(&folder);
        for (name, page) in pages {
            write(&folder.join(format!("{name}.html")), page.as_bytes());
        }
        for (name, story) in samples::stories() {
            let answers = json!({
                "instance": story.answer(),
                "job": story.job_answer(),
            });
            write(&folder.join(format!("{name}.json")), answers.to_string().as_bytes());
        }
        for name in assets::names() {
            let url = assets::url(name);
            let asset = assets::get(url.strip_prefix("/assets/").unwrap()).unwrap();
            write(&folder.join(&url[1..]), asset.bytes);
        }
    }

    #[test]
    fn every_page_renders_in_every_state() {
        let pages = all();
        write(&pages);
        for (name, page) in &pages {
            assert!(page.starts_with("<!doctype html>"), "{name}");
            assert!(!page.contains("<script>"), "{name}: a script in the markup");
            assert!(!page.contains("alert('"), "{name}: an error was not escaped");
            assert!(!page.contains(" style="), "{name}: a style attribute");
            assert!(!page.contains("javascript:"), "{name}");
            let steps = steps(page);
            assert_eq!(steps.len() % 5, 0, "{name}");
            for (step, status) in steps {
                assert!(milepost_projections::steps::IDS.contains(&step.as_str()), "{name}");
                let statuses = ["pending", "active", "completed", "error"];
                assert!(statuses.contains(&status.as_str()), "{name}");
            }
        }
    }

    #[test]
    fn a_page_of_the_past_says_so_stands_still_and_has_no_forms() {
        for (name, story) in samples::stories() {
            let page = story.past_page().render().unwrap();
            assert!(page.contains("As it was at <a href=\"/events/18240\">#18,240</a>"), "{name}");
            assert!(!page.contains("<mp-stream"), "{name}: it would follow the log");
            assert!(!page.contains("data-live"), "{name}: events would come in");
            let forms = page.matches("method=\"post\"").count();
            assert_eq!(forms, 1, "{name}: more can be sent than to log out");
            for (_, address) in links(&page).filter(|(_, it)| {
                it.starts_with("/agents") || it.starts_with("/jobs") || it.starts_with("/nodes")
            }) {
                assert!(address.contains("?at="), "{name}: {address} leads to the present");
            }
        }
    }

    #[test]
    fn no_page_of_the_ledger_has_markup_of_an_event() {
        for (name, page) in samples::ledger_pages() {
            assert!(!page.contains("<script>alert"), "{name}");
        }
    }

    /// The links of a page: their tags and addresses.
    fn links(page: &str) -> impl Iterator<Item = (&str, &str)> {
        page.split("<a ").skip(1).filter_map(|tag| {
            let (_, after) = tag.split_once("href=\"")?;
            Some((tag, after.split('"').next()?))
        })
    }

    #[test]
    fn every_story_stands_in_one_group_of_the_overview() {
        let page = OverviewPage::sample(false).render().unwrap();
        for (name, story) in samples::stories() {
            let row = format!("id=\"agent-{}\"", story.answer().agent.id);
            assert_eq!(page.matches(&row).count(), 1, "{name}");
        }
    }

    #[test]
    fn a_page_shows_the_steps_of_its_agent() {
        let stories = samples::stories();
        let (_, story) = stories.iter().find(|(name, _)| *name == "second-attempt").unwrap();
        let page = story.agent_page().render().unwrap();
        let words: Vec<_> = steps(&page)[..5].iter().map(|(_, status)| status.clone()).collect();
        assert_eq!(words, ["completed", "completed", "completed", "active", "pending"]);
        assert!(page.contains("attempt 2 of 4"));
        assert!(page.contains("role=\"progressbar\" aria-label=\"Configuring Agent\""));
        assert!(page.contains("usually 0:55, 95\u{a0}% under 1:35"));
    }

    #[test]
    fn a_page_shows_the_task_under_way_and_the_end_of_the_log() {
        let stories = samples::stories();
        let (_, story) = stories.iter().find(|(name, _)| *name == "second-attempt").unwrap();
        for page in
            [story.agent_page().render().unwrap(), story.job_page().unwrap().render().unwrap()]
        {
            let (_, task) = page.split_once("data-slot=\"task-word\">").unwrap();
            assert!(task.starts_with("now<"), "{task}");
            let text = ">TASK [docker : add the repository]</code>";
            assert!(page.contains(text));
            assert!(page.contains("<span class=\"f3\">changed: [203.0.113.7]</span>"));
            assert!(page.contains("40 lines were lost"));
            assert!(page.contains("<a href=\"#attempt-2\">Attempt 2</a>"));
            assert!(page.contains("1,209 lines") && page.contains("id=\"L1209\""));
            assert!(page.contains("/log.txt\" download>"));
        }
    }

    #[test]
    fn every_state_has_its_words() {
        for (_, _, states) in standing::GROUPS {
            for state in states {
                assert_ne!(words::word_of("state", state), "", "{state}");
            }
        }
        for status in ["active", "provisioning", "unreachable", "decommissioned"] {
            assert_ne!(words::word_of("node-status", status), "", "{status}");
        }
        for status in ["pending", "active", "completed", "error"] {
            assert_ne!(words::word_of("step", status), "", "{status}");
        }
    }
}
