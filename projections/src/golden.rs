//! The rows that the golden examples of events lead to, stored for each version of each view in
//! `golden/<view>.v<version>.json`: who changes what a fold makes of old events, and forgets to
//! raise the view's version, would leave rows of both kinds in one table.
//!
//! `MILEPOST_GOLDEN=write cargo test -p milepost-projections` adds what is not stored yet; what is
//! stored never changes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use milepost_schemas::documents::{golden, golden_of_node};
use milepost_schemas::{Event, EventType, Position, StreamId};
use serde_json::Value;
use uuid::Uuid;

use crate::board::Boards;
use crate::compensation::Compensations;
use crate::job::Jobs;
use crate::node::Nodes;
use crate::{Projection, Recorded};

/// What stands before an example in its row: there must be something for it to change.
const BEFORE: [EventType; 6] = [
    EventType::AgentCreated,
    EventType::NodeRegistered,
    EventType::ProvisioningRequested,
    EventType::JobQueued,
    EventType::InstanceRequested,
    EventType::CompensationRequested,
];

struct Example {
    name: String,
    position: Position,
    event: Event,
}

fn examples() -> Vec<Example> {
    let mut examples = Vec::new();
    for kind in EventType::ALL {
        for version in 1..=kind.schema_version() {
            let of_agent = golden(kind.name(), version).map(|text| ("", text));
            let of_node = golden_of_node(kind.name(), version).map(|text| (".node", text));
            for (suffix, text) in of_agent.into_iter().chain(of_node) {
                let stored: Value = serde_json::from_str(text).unwrap();
                let body = serde_json::to_vec(&stored["data"]).unwrap();
                examples.push(Example {
                    name: format!("{}.v{version}{suffix}", kind.name()),
                    // Its own for ever, whatever events come in between.
                    position: Position(kind.code() as u64 * 100 + version as u64),
                    event: Event::decode(kind.code(), version, &body).unwrap(),
                });
            }
        }
    }
    examples
}

/// The row each example that belongs to one leads to.
fn rows<P: Projection>() -> BTreeMap<String, Value> {
    let examples = examples();
    let before = |kind: &EventType| {
        let kind = *kind;
        examples.iter().filter(move |it| it.event.event_type() == kind)
    };
    let mut rows = BTreeMap::new();
    for example in &examples {
        let Some(key) = P::key(&example.event) else { continue };
        let mut state = P::State::default();
        for earlier in BEFORE.iter().flat_map(before) {
            if earlier.name != example.name && P::key(&earlier.event) == Some(key) {
                P::apply(&mut state, &recorded(earlier));
            }
        }
        P::apply(&mut state, &recorded(example));
        let row = serde_json::json!({"label": P::label(&state), "state": state});
        rows.insert(example.name.clone(), row);
    }
    rows
}

fn recorded(example: &Example) -> Recorded<'_> {
    Recorded {
        position: example.position,
        stream: StreamId(Uuid::nil()),
        version: 1,
        recorded_at: Timestamp::from_second(1_785_326_400 + example.position.0 as i64).unwrap(),
        delivery_id: None,
        event: &example.event,
    }
}

fn check<P: Projection>() {
    let name = format!("{}.v{}.json", P::NAME, P::VERSION);
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(&name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|_| "{}".to_owned());
    let mut stored: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    let rows = rows::<P>();
    for (example, row) in &stored {
        assert_eq!(
            rows.get(example),
            Some(row),
            "{name}: {example} leads to another row: raise the version of {}",
            P::NAME
        );
    }
    let missing: Vec<_> =
        rows.keys().filter(|example| !stored.contains_key(*example)).cloned().collect();
    if std::env::var_os("MILEPOST_GOLDEN").is_some_and(|word| word == "write") {
        stored.extend(rows);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, serde_json::to_string_pretty(&stored).unwrap() + "\n").unwrap();
    } else {
        assert!(
            missing.is_empty(),
            "{name} does not hold {missing:?}: see projections/src/golden.rs"
        );
    }
}

#[test]
fn the_rows_of_golden_examples_are_those_of_the_version() {
    check::<Boards>();
    check::<Jobs>();
    check::<Nodes>();
    check::<Compensations>();
}

#[test]
fn every_type_that_a_view_does_not_pass_over_has_an_example_in_a_row_of_it() {
    fn check<P: Projection>() {
        // Whose row it belongs to, that event says itself; its example is of an agent.
        let of_any = |kind: &&EventType| **kind != EventType::PersonalDataErased;
        let folded = EventType::ALL.iter().filter(|kind| P::folds(kind.code()));
        for kind in folded.filter(of_any) {
            let found = examples()
                .iter()
                .any(|it| it.event.event_type() == *kind && P::key(&it.event).is_some());
            assert!(found, "{} decodes {} in vain", P::NAME, kind.name());
        }
    }
    check::<Boards>();
    check::<Jobs>();
    check::<Nodes>();
    check::<Compensations>();
}
