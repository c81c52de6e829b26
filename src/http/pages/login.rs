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
}

impl LoginPage {
    /// The form; `next` is where to go after it, and must have been checked to be ours.
    pub fn new(frame: Frame, error: Option<String>, next: String) -> Self {
        Self { frame, error, next }
    }
}
