//! What went wrong, in words.

use askama::Template;

use super::Frame;

/// The page of a refusal or a fault.
#[derive(Clone, Debug, Template)]
#[template(path = "problem.html")]
pub struct ProblemPage {
    frame: Frame,
    status: u16,
    heading: String,
    words: String,
}

impl ProblemPage {
    /// The page for that status, with words of its own where the handler has better ones.
    pub fn new(frame: Frame, status: u16, words: Option<String>) -> Self {
        let (heading, usual_words) = match status {
            403 => (
                "Not allowed",
                "Your account may not do this, or the page was open for too long. Go back, \
                 reload it and try again.",
            ),
            404 => (
                "Nothing here",
                "No agent, job or page has this address. It may be mistyped, or belong to \
                 another Milepost.",
            ),
            409 | 422 => ("Not done", "The state of things does not allow this now."),
            429 => ("Too many tries", "Wait a minute, then try again."),
            503 => (
                "Not now",
                "The log cannot be reached for the moment. Nothing was lost; try again shortly.",
            ),
            400..500 => ("Not understood", "The request could not be read."),
            _ => ("Our mistake", "Something failed in Milepost itself. It has been written down."),
        };
        Self {
            frame,
            status,
            heading: heading.into(),
            words: words.unwrap_or_else(|| usual_words.into()),
        }
    }
}
