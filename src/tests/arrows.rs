//! The arrows between modules go one way, as the code map says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which modules each module may use. `app` holds them all together, so the parts that act on it
/// may name it; nothing names `cli`.
const ALLOWED: &[(&str, &[&str])] = &[
    ("accounts", &["domain", "log"]),
    ("clients", &["intake"]),
    ("config", &["clients", "domain", "intake", "log"]),
    ("domain", &[]),
    ("execute", &["app", "domain", "log"]),
    ("intake", &[]),
    ("ledger", &["app", "intake", "log"]),
    ("log", &["metrics"]),
    ("metrics", &[]),
    ("migrate", &["log"]),
    ("postgres", &[]),
    ("push", &["accounts", "app", "execute", "log", "views"]),
    ("telemetry", &[]),
    ("views", &["app", "domain", "execute", "log", "metrics"]),
    ("work", &["app", "clients", "config", "domain", "execute", "intake", "log", "views"]),
    (
        "http",
        &[
            "accounts", "app", "config", "domain", "execute", "intake", "ledger", "log", "metrics",
            "push", "views", "work",
        ],
    ),
];

#[test]
fn modules_use_only_what_lies_below_them() {
    let allowed: BTreeMap<_, BTreeSet<_>> =
        ALLOWED.iter().map(|(name, uses)| (*name, uses.iter().copied().collect())).collect();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = BTreeSet::new();
    for file in rust_files(&src) {
        let relative = file.strip_prefix(&src).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let Some(allowed) = allowed.get(module) else { continue };
        seen.insert(module.to_owned());
        for used in uses(&fs::read_to_string(&file).unwrap()) {
            let fine = used == module || allowed.contains(used.as_str());
            assert!(fine, "{} uses {used}", relative.display());
        }
    }
    assert_eq!(seen.len(), ALLOWED.len(), "a module of the table is gone");
}

#[test]
fn folds_and_schemas_do_no_io() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in
        [rust_files(&root.join("schemas/src")), rust_files(&root.join("projections/src"))].concat()
    {
        if file.ends_with("golden.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        // What tests read is of no concern.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for forbidden in ["std::fs", "std::net", "std::time", "tokio", "async "] {
            assert!(!text.contains(forbidden), "{} has {forbidden}", file.display());
        }
    }
}

/// The modules of this crate that a file names.
fn uses(text: &str) -> BTreeSet<String> {
    text.split("crate::")
        .skip(1)
        .flat_map(|rest| {
            let list = rest.strip_prefix('{').map(|rest| rest.split('}').next().unwrap_or(""));
            let names = list.map_or_else(|| vec![rest], |list| list.split(',').collect());
            names.into_iter().map(first_name).collect::<Vec<_>>()
        })
        .filter(|name| !name.is_empty() && name.chars().next().is_some_and(char::is_lowercase))
        .collect()
}

fn first_name(text: &str) -> String {
    text.trim().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("tests") {
                files.extend(rust_files(&path));
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
