//! Every route, as a client sees it; files mirror the URLs.

mod webhooks_github;
