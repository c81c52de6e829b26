//! Who may what: the one matrix. Routes say what right they take (`http::ROUTES`, `http::PAGES`);
//! here it says which role has it.

use milepost_schemas::{Right, Role};

/// The rights of a role. An operator does not audit: who changes things is not who checks them.
/// Whoever sees events sees what workflows sent, as it was sent; a viewer does not.
pub fn rights(role: Role) -> &'static [Right] {
    match role {
        Role::Viewer => &[Right::See],
        Role::Operator => &[Right::See, Right::Events, Right::Operate],
        Role::Auditor => &[Right::See, Right::Events, Right::Audit],
        Role::Admin => Right::ALL,
    }
}

/// To what a token is narrowed that only reads.
pub const READING: [Right; 3] = [Right::See, Right::Events, Right::Audit];

/// Whether a role, narrowed to some rights where there are any, has a right.
pub fn may(role: Role, scopes: &[Right], right: Right) -> bool {
    rights(role).contains(&right) && (scopes.is_empty() || scopes.contains(&right))
}

/// The roles that have a right, in words: `operator or admin`.
pub fn roles_with(right: Right) -> String {
    let having = Role::ALL.iter().filter(|role| rights(**role).contains(&right));
    having.map(|role| role.as_str()).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_is_this() {
        let line = |role: &Role| {
            let has = |right: &Right| if may(*role, &[], *right) { "x" } else { "-" };
            (role.as_str(), Right::ALL.iter().map(has).collect::<String>())
        };
        let table: Vec<_> = Role::ALL.iter().map(line).collect();
        // see, events, audit, operate, administer
        let expected = [("viewer", "x----"), ("operator", "xx-x-"), ("auditor", "xxx--")];
        assert_eq!(table[..3], expected.map(|(role, has)| (role, has.to_owned())));
        assert_eq!(table[3], ("admin", "xxxxx".to_owned()));
    }

    #[test]
    fn a_scope_narrows_and_never_widens() {
        let scopes = [Right::See, Right::Administer];
        assert!(may(Role::Operator, &scopes, Right::See));
        assert!(!may(Role::Operator, &scopes, Right::Operate));
        assert!(!may(Role::Operator, &scopes, Right::Administer));
    }

    #[test]
    fn a_refusal_can_say_who_may() {
        assert_eq!(roles_with(Right::Operate), "operator or admin");
        assert_eq!(roles_with(Right::Audit), "auditor or admin");
        assert_eq!(roles_with(Right::Administer), "admin");
    }
}
