//! What went wrong, in words.

use askama::Template;

use super::Frame;

/// The page of a refusal or a fault.
#[derive(Clone, Debug, Template)]
#[template(path = "problem.html")]
pub struct ProblemPage {
    frame: Frame,
    status: u16,
    words: String,
}

impl ProblemPage {
    /// The page for that status, under its frame's title.
    pub fn new(frame: Frame, status: u16, words: String) -> Self {
        Self { frame, status, words }
    }
}
