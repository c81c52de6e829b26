//! What each route takes: looked up in the tables of `http`, for every request but webhooks.

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::http::Method;
use milepost_schemas::Right;

use super::{PAGES, PARAMETERS, ROUTES};

/// What a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: nobody is asked who they are. Such a route proves its callers in another way, or
    /// tells nothing.
    Nobody,
    /// That somebody is logged in, or has a token, whatever their role: their own affairs.
    Somebody,
    /// A right; `domain::access` says which role has it.
    Right(Right),
    /// Nothing that could be said: the route takes other methods.
    OtherMethod,
}

/// The rows of a table: a path, and what each of its methods takes.
pub type Table = [(&'static str, &'static [(&'static str, Needs)])];

static ROWS: LazyLock<HashMap<&str, &[(&str, Needs)]>> =
    LazyLock::new(|| ROUTES.iter().chain(PAGES).copied().collect());

/// What a request takes, and the right that one of its parameters takes as well; `None` for a route
/// that no table has.
pub fn needs(route: &str, method: &Method, query: &str) -> Option<(Needs, Option<Right>)> {
    let row = ROWS.get(route)?;
    // Who may get something may ask about it.
    let method = if *method == Method::HEAD { "get" } else { &method.as_str().to_lowercase() };
    let found = row.iter().find(|(known, _)| *known == method);
    let needs = found.map_or(Needs::OtherMethod, |(_, needs)| *needs);
    let asks = |parameter: &str| {
        form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == parameter)
    };
    let further = PARAMETERS.iter().find(|(path, parameter, _)| *path == route && asks(parameter));
    Some((needs, further.map(|(.., right)| *right)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_takes_what_its_row_says() {
        let of = |method: Method, path| needs(path, &method, "").map(|(needs, _)| needs);
        assert_eq!(of(Method::GET, "/api/jobs"), Some(Needs::Right(Right::See)));
        assert_eq!(of(Method::HEAD, "/api/jobs"), Some(Needs::Right(Right::See)));
        assert_eq!(of(Method::POST, "/api/jobs/{id}/cancel"), Some(Needs::Right(Right::Operate)));
        assert_eq!(of(Method::DELETE, "/api/jobs"), Some(Needs::OtherMethod));
        assert_eq!(of(Method::GET, "/nowhere"), None);
    }

    #[test]
    fn a_parameter_may_take_another_right_as_well() {
        let of = |query| needs("/api/stream", &Method::GET, query);
        let see = Needs::Right(Right::See);
        assert_eq!(of("agent=all"), Some((see, None)));
        assert_eq!(of("agent=all&events=all"), Some((see, Some(Right::Events))));
        assert_eq!(of("%65vents=all"), Some((see, Some(Right::Events))));
    }

    #[test]
    fn no_route_stands_in_two_rows() {
        assert_eq!(ROWS.len(), ROUTES.len() + PAGES.len());
    }
}
