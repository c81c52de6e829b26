//! The log-in form.

use askama::Template;

use super::Frame;

/// `GET /login`, and the answer to a `POST` that was refused.
#[derive(Clone, Debug, Template)]
#[template(path = "login.html")]
pub struct LoginPage {
    frame: Frame,
    error: Option<String>,
    next: String,
    /// A link that logs in once, for whoever presses the button.
    once: Option<String>,
}

impl LoginPage {
    /// The form; `next` is where to go after it, and must have been checked to be ours.
    pub fn new(frame: Frame, error: Option<String>, next: String) -> Self {
        Self { frame, error, next, once: None }
    }

    /// The button for a link that another site has opened.
    pub fn by_hand(frame: Frame, once: String, next: String) -> Self {
        Self { frame, error: None, next, once: Some(once) }
    }
}
