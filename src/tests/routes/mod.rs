//! Every route, as a client sees it; files mirror the URLs.

mod documents;
mod webhooks_github;
