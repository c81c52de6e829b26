//! A superuser disables the triggers and changes what is recorded: the audit names the position.

use jiff::SignedDuration;
use milepost::app::Clock;
use milepost::ledger::hash::{Hash, concatenated};
use milepost::ledger::key::{SigningKey, signed};
use milepost::ledger::note::Note;
use milepost::ledger::tree::{Tile, Tree};
use milepost::ledger::verify::{self, Problem, Report, Trust, UNSEALED_MAX};
use milepost::ledger::{Checkpoint, Leaf};
use milepost::log::{CHUNK_EVENTS_MAX, Database};
use tokio_postgres::Client;

use super::{CONNECTIONS, audit, audit_at, audit_with, key_file, log, record, sealed};
use crate::harness::{Server, database, sql};

/// Tamperings that are tried.
const TAMPERINGS: u64 = 1_000;

/// Where the random choices begin; whoever finds a failure finds it again.
const SEED: u64 = 0x6d69_6c65_706f_7374;

/// Random numbers that come again (`SplitMix64`).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.roll(choices.len() as u64) as usize]
    }
}

/// A tampering: what is done, and the position that an audit must name.
#[derive(Debug)]
struct Tampering {
    sql: String,
    position: u64,
}

/// A log with its triggers disabled, and a copy of everything to undo with.
async fn opened(server: &Server) -> Client {
    let client = sql(&server.database_url()).await;
    let copy = "ALTER TABLE event DISABLE TRIGGER ALL; \
         ALTER TABLE event_000000 DISABLE TRIGGER ALL; \
         ALTER TABLE tree_tile DISABLE TRIGGER ALL; \
         CREATE TABLE event_copy AS TABLE event; \
         CREATE TABLE tile_copy AS TABLE tree_tile; \
         CREATE TABLE head_copy AS TABLE log_head; \
         CREATE TABLE checkpoint_copy AS TABLE checkpoint;";
    client.batch_execute(copy).await.unwrap();
    client
}

/// Makes everything as it was.
const UNDO: &str = "BEGIN; \
     DELETE FROM event AS e WHERE NOT EXISTS \
         (SELECT FROM event_copy AS c WHERE c.position = e.position AND c IS NOT DISTINCT FROM e); \
     INSERT INTO event SELECT * FROM event_copy ON CONFLICT DO NOTHING; \
     DELETE FROM tree_tile; INSERT INTO tree_tile SELECT * FROM tile_copy; \
     DELETE FROM log_head; INSERT INTO log_head SELECT * FROM head_copy; \
     DELETE FROM checkpoint; INSERT INTO checkpoint SELECT * FROM checkpoint_copy; \
     COMMIT";

/// A change of one event.
fn change(dice: &mut Dice, size: u64) -> Tampering {
    let position = 1 + dice.roll(size);
    let byte = dice.roll(10);
    let set = dice.one_of(&[
        "body = set_byte(body, $, get_byte(body, $) # 1)",
        "header = set_byte(header, $, get_byte(header, $) # 64)",
        "body = body || '\\x20'::bytea",
        "header = ''",
        "body = substring(body FOR octet_length(body) - 1)",
        // What is taken from one is given to the other.
        "header = header || substring(body FOR 1), body = substring(body FROM 2)",
        "stream_id = gen_random_uuid()",
        "version = version + 1000",
        "version = -1",
        "type = type + 1",
        "schema_version = schema_version + 1",
        "recorded_at = recorded_at + interval '1 microsecond'",
        "recorded_at = recorded_at - interval '1 day'",
        "recorded_at = 'infinity'",
    ]);
    let set = set.replace('$', &byte.to_string());
    Tampering { sql: format!("UPDATE event SET {set} WHERE position = {position}"), position }
}

fn delete(dice: &mut Dice, size: u64) -> Tampering {
    let first = 1 + dice.roll(size);
    let sql = match dice.roll(4) {
        0 => format!("DELETE FROM event WHERE position >= {first}"),
        // And the log's size with it.
        1 => format!(
            "DELETE FROM event WHERE position >= {first}; UPDATE log_head SET size = {first} - 1"
        ),
        // What comes behind moves up.
        2 => format!(
            "DELETE FROM event WHERE position = {first}; \
             UPDATE event SET position = position + 1000000 WHERE position > {first}; \
             UPDATE event SET position = position - 1000001 WHERE position > 1000000; \
             UPDATE log_head SET size = size - 1"
        ),
        _ => format!("DELETE FROM event WHERE position = {first}"),
    };
    Tampering { sql, position: first }
}

fn insert(dice: &mut Dice, size: u64) -> Tampering {
    let columns = "type, schema_version, recorded_at, header, body FROM event";
    let copy = |position: &str, from: u64| {
        format!(
            "INSERT INTO event SELECT {position}, gen_random_uuid(), 1, {columns} \
             WHERE position = {from}"
        )
    };
    let from = 1 + dice.roll(size);
    match dice.roll(4) {
        // No event, but the log says that there is.
        3 => {
            let head = size + 1 + dice.roll(1 << 50);
            let sql = format!("UPDATE log_head SET size = {head}");
            Tampering { sql, position: size + 1 }
        }
        0 => Tampering { sql: copy(&(size + 1).to_string(), from), position: size + 1 },
        1 => {
            let position = size + 2 + dice.roll(1_000);
            Tampering { sql: copy(&position.to_string(), from), position }
        }
        // In between: what comes behind makes room, and the log's size grows. Behind the last event it
        // would be an append like any other, which whoever may write to the log can do.
        _ => {
            let from = 1 + dice.roll(size - 1);
            let sql = format!(
                "UPDATE event SET position = position + 1000000 WHERE position > {from}; \
                 UPDATE event SET position = position - 999999 WHERE position > 1000000; {}; \
                 UPDATE log_head SET size = size + 1",
                copy(&(from + 1).to_string(), from),
            );
            Tampering { sql, position: from + 1 }
        }
    }
}

fn swap(dice: &mut Dice, size: u64) -> Tampering {
    let first = 1 + dice.roll(size - 1);
    let second = first + 1 + dice.roll(size - first);
    let sql = format!(
        "UPDATE event SET position = 1000000 WHERE position = {first}; \
         UPDATE event SET position = {first} WHERE position = {second}; \
         UPDATE event SET position = {second} WHERE position = 1000000"
    );
    Tampering { sql, position: first }
}

fn tile(dice: &mut Dice, size: u64) -> Tampering {
    let (full, rest) = (size / 256, size % 256);
    assert!(full > 0 && rest > 0, "{size}");
    // A hash of level 1 stands for 256 events.
    let (level, index, entry, position) = if dice.roll(3) == 0 {
        let entry = dice.roll(full);
        (1, 0, entry, entry * 256 + 1)
    } else {
        let leaf = dice.roll(size);
        (0, leaf / 256, leaf % 256, leaf + 1)
    };
    let at = format!("WHERE level = {level} AND tile_index = {index}");
    let byte = entry * 32 + dice.roll(32);
    let first = if level == 0 { index * 256 + 1 } else { 1 };
    let update = |set: String| format!("UPDATE tree_tile SET {set} {at}");
    match dice.roll(6) {
        0 => Tampering { sql: format!("DELETE FROM tree_tile {at}"), position: first },
        1 if entry > 0 => {
            let bytes = entry * 32;
            Tampering { sql: update(format!("hashes = substring(hashes FOR {bytes})")), position }
        }
        2 => {
            let at = format!("WHERE level = 0 AND tile_index = {full}");
            let set = "hashes = hashes || sha256('more')";
            Tampering { sql: format!("UPDATE tree_tile SET {set} {at}"), position: size + 1 }
        }
        3 => {
            let index = full + 1 + dice.roll(10);
            let sql = format!("INSERT INTO tree_tile VALUES ({level}, {index}, sha256('more'))");
            Tampering { sql, position: size + 1 }
        }
        _ => {
            let bit = 1 << dice.roll(8);
            let set =
                format!("hashes = set_byte(hashes, {byte}, get_byte(hashes, {byte}) # {bit})");
            Tampering { sql: update(set), position }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_random_tamperings_are_found_where_they_are() {
    let mut server = Server::start().await;
    record(&server.client(), 590).await;
    let (size, _) = sealed(&server.client()).await;
    server.stop().await;
    let untouched = audit(&server).await;
    assert!(untouched.is_clean(), "{:?}", untouched.findings);
    assert_eq!((untouched.events, untouched.sealed), (size, size));
    let owner = opened(&server).await;
    let mut dice = Dice(SEED);
    for number in 0..TAMPERINGS {
        let kind = dice.one_of(&[change, change, delete, insert, swap, tile, tile]);
        let tampering = kind(&mut dice, size);
        owner.batch_execute(&tampering.sql).await.unwrap();
        let report = audit(&server).await;
        let first = report.first();
        assert!(first.is_some(), "{number} was missed: {tampering:?}");
        let found = first.map(|finding| finding.position);
        assert_eq!(found, Some(tampering.position), "{number}: {tampering:?}: {first:?}");
        owner.batch_execute(UNDO).await.unwrap();
    }
    let undone = audit(&server).await;
    assert!(undone.is_clean(), "{:?}", undone.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_finding_says_whether_the_event_or_the_tile_was_changed() {
    let mut server = Server::start().await;
    record(&server.client(), 300).await;
    sealed(&server.client()).await;
    server.stop().await;
    let owner = opened(&server).await;
    owner.batch_execute("UPDATE event SET body = '{}' WHERE position = 7").await.unwrap();
    let report = audit(&server).await;
    let first = report.first().unwrap();
    assert!(matches!(first.problem, Problem::Changed { .. }), "{first}");
    assert_eq!((first.position, report.found), (7, 1), "{:?}", report.findings);
    owner.batch_execute(UNDO).await.unwrap();

    let flip = "UPDATE tree_tile SET hashes = set_byte(hashes, 192, get_byte(hashes, 192) # 1) \
         WHERE level = 0 AND tile_index = 0";
    owner.batch_execute(flip).await.unwrap();
    let report = audit(&server).await;
    let first = report.first().unwrap();
    assert!(matches!(first.problem, Problem::Tile { entry: 6, .. }), "{first}");
    assert_eq!((first.position, report.found), (7, 1), "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_was_altered_or_put_in_place_is_found() {
    let mut server = Server::start().await;
    record(&server.client(), 20).await;
    sealed(&server.client()).await;
    server.stop().await;
    let owner = opened(&server).await;
    for change in [
        "UPDATE checkpoint SET note = replace(note, 'log/', 'lug/')",
        "UPDATE checkpoint SET root = sha256('root')",
        "UPDATE checkpoint SET size = size - 1 WHERE size = (SELECT max(size) FROM checkpoint)",
        "DELETE FROM checkpoint",
        "UPDATE log_head SET epoch = epoch + 1",
    ] {
        owner.batch_execute(change).await.unwrap();
        let report = audit(&server).await;
        assert!(!report.is_clean(), "{change}");
        owner.batch_execute(UNDO).await.unwrap();
    }
    assert!(audit(&server).await.is_clean());
}

/// What somebody does who has read how all of this works: an event is changed, and the tree over it
/// built anew.
async fn rewrite(owner: &Client) -> Tree {
    owner.batch_execute("UPDATE event SET body = '{}' WHERE position = 7").await.unwrap();
    let rows = owner
        .query(
            "SELECT stream_id, version, type, schema_version, recorded_at, header, body \
             FROM event ORDER BY position",
            &[],
        )
        .await
        .unwrap();
    let (mut tree, mut tiles) = (Tree::default(), Vec::<Tile>::new());
    for row in &rows {
        let leaf = Leaf {
            stream: row.get(0),
            version: row.get::<_, i32>(1) as u32,
            code: row.get(2),
            schema_version: row.get(3),
            recorded_at_us: row.get::<_, jiff::Timestamp>(4).as_microsecond(),
            header: row.get(5),
            body: row.get(6),
        };
        tree.push(leaf.hash(), |tile| tiles.push(tile));
    }
    tiles.extend(tree.open_tiles());
    for tile in tiles {
        owner
            .execute(
                "UPDATE tree_tile SET hashes = $1 WHERE level = $2 AND tile_index = $3",
                &[&concatenated(&tile.hashes), &i16::from(tile.id.level), &(tile.id.index as i64)],
            )
            .await
            .unwrap();
    }
    tree
}

#[tokio::test(flavor = "multi_thread")]
async fn who_rewrites_the_tree_as_well_cannot_sign_it() {
    let mut server = Server::start().await;
    record(&server.client(), 300).await;
    let (size, note) = sealed(&server.client()).await;
    server.stop().await;
    let owner = opened(&server).await;
    let tree = rewrite(&owner).await;
    assert_eq!(tree.size(), size);
    let report = audit(&server).await;
    let root = report.findings.iter().find(|it| matches!(it.problem, Problem::Root { .. }));
    let root = root.unwrap_or_else(|| panic!("{:?}", report.findings));
    // The changed event lies between the last root that holds and the first that does not.
    let Problem::Root { size: covered, .. } = root.problem else { panic!() };
    assert!((root.position..=covered).contains(&7), "{root}");

    // A key of their own, listed in the place of ours.
    let forger = SigningKey::generate().unwrap();
    let before = Note::parse(&note).unwrap().checkpoint().unwrap();
    let forged = Checkpoint { root: tree.root(), ..before.clone() };
    let text = signed(&forged, &[&forger]);
    owner.batch_execute("DELETE FROM checkpoint").await.unwrap();
    owner
        .execute(
            "INSERT INTO checkpoint VALUES ($1, $2, $3, $4, now(), true)",
            &[&before.epoch().unwrap(), &(size as i64), &forged.root.0.to_vec(), &text],
        )
        .await
        .unwrap();
    let listed = forger.verifier(&before.origin).to_string();
    owner.execute("UPDATE sealing_key SET verifier_key = $1", &[&listed]).await.unwrap();
    let found = audit(&server).await;
    assert!(found.findings.iter().any(|it| matches!(it.problem, Problem::Key { .. })));

    // Without any word from elsewhere it cannot be told; with a note that was kept it can.
    assert!(audit_with(&server, Trust::default()).await.is_clean());
    let kept = Trust {
        notes: vec![note],
        keys: key_file(server.dir())
            .read()
            .unwrap()
            .iter()
            .map(|key| key.verifier(&before.origin))
            .collect(),
        ..Trust::default()
    };
    let found = audit_with(&server, kept).await;
    assert!(found.findings.iter().any(|it| matches!(it.problem, Problem::Root { .. })));
    assert_ne!(forged.root, Hash::empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_cut_off_with_its_checkpoints_is_found_by_one_that_was_kept() {
    let mut server = Server::start().await;
    let client = server.client();
    client.job("mari").await;
    sealed(&client).await;
    record(&client, 100).await;
    let (size, note) = sealed(&client).await;
    server.stop().await;
    let owner = opened(&server).await;
    // The first checkpoint was kept; all that came after it goes.
    owner
        .batch_execute(
            "DELETE FROM checkpoint WHERE NOT kept; \
             DELETE FROM event WHERE position > (SELECT max(size) FROM checkpoint); \
             UPDATE tree_tile SET hashes = \
                 substring(hashes FOR 32 * (SELECT max(size) FROM checkpoint)::integer); \
             UPDATE log_head SET size = (SELECT max(size) FROM checkpoint)",
        )
        .await
        .unwrap();
    let report = audit(&server).await;
    assert!(report.is_clean(), "{:?}", report.findings);
    assert!(report.sealed < size);
    let keys = key_file(server.dir()).read().unwrap();
    let keys = keys.iter().map(|key| key.verifier("")).collect();
    let trust = Trust { keys, notes: vec![note], ..Trust::default() };
    let report = audit_with(&server, trust).await;
    let first = report.first().unwrap();
    assert_eq!(first.problem, Problem::Behind { signed: size });
    assert_eq!(first.position, report.sealed + 1);
}

/// Takes away that a position is there once.
const NO_LONGER_UNIQUE: &str = "ALTER TABLE event DISABLE TRIGGER ALL; \
     ALTER TABLE event_000000 DISABLE TRIGGER ALL; \
     ALTER TABLE event DROP CONSTRAINT event_pkey; CREATE INDEX ON event (position)";

/// A second event at a position.
pub(super) fn double(position: u64) -> String {
    format!(
        "INSERT INTO event SELECT position, gen_random_uuid(), 1, type, schema_version, \
         recorded_at, header, 'forged' FROM event WHERE position = {position}"
    )
}

pub(super) const NO_DOUBLES: &str = "DELETE FROM event WHERE body = 'forged'";

#[tokio::test(flavor = "multi_thread")]
async fn a_doubled_position_is_named_at_the_end_of_a_chunk_and_in_the_middle() {
    const EVENTS: u64 = CHUNK_EVENTS_MAX as u64 + 1_000;
    let url = database().await;
    let owner = sql(&url).await;
    let fill = format!(
        "INSERT INTO event SELECT n, gen_random_uuid(), 1, 16, 1, \
         '2026-01-01Z'::timestamptz + n * interval '1 microsecond', '{{}}', '{{}}' \
         FROM generate_series(1, {EVENTS}) AS n; UPDATE log_head SET size = {EVENTS}"
    );
    owner.batch_execute(&fill).await.unwrap();
    owner.batch_execute(NO_LONGER_UNIQUE).await.unwrap();
    let database = Database::new(&url).unwrap();
    let audit = async || {
        let now = Clock.now();
        verify::database(&database, Trust::default(), CONNECTIONS, now).await.unwrap()
    };
    for position in [CHUNK_EVENTS_MAX as u64, CHUNK_EVENTS_MAX as u64 + 1, 700, 1, EVENTS] {
        owner.batch_execute(&double(position)).await.unwrap();
        let report = audit().await;
        let first = report.first().unwrap();
        assert_eq!((first.position, &first.problem), (position, &Problem::Twice));
        // Nothing behind it has moved; and nothing of this log was ever signed.
        assert_eq!(report.found, 2, "{:?}", report.findings);
        owner.batch_execute(NO_DOUBLES).await.unwrap();
    }
    assert_eq!(audit().await.events, EVENTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doubled_position_of_a_sealed_log_is_named() {
    let mut server = Server::start().await;
    record(&server.client(), 300).await;
    let (size, _) = sealed(&server.client()).await;
    server.stop().await;
    let owner = sql(&server.database_url()).await;
    owner.batch_execute(NO_LONGER_UNIQUE).await.unwrap();
    for position in [1, 256, size] {
        owner.batch_execute(&double(position)).await.unwrap();
        let report = audit(&server).await;
        let first = report.first().unwrap();
        assert_eq!((first.position, &first.problem), (position, &Problem::Twice));
        // The tree has what was sealed in its place: every root is as it was.
        let of_stream = |it: &verify::Finding| matches!(it.problem, Problem::Version { .. });
        let others = report.findings[1..].iter().filter(|it| !of_stream(it)).count();
        assert_eq!(others, 0, "{:?}", report.findings);
        owner.batch_execute(NO_DOUBLES).await.unwrap();
    }
    assert!(audit(&server).await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_deletes_checkpoints_rewrites_nothing_unnoticed() {
    let mut server = Server::start().await;
    let client = server.client();
    client.job("mari").await;
    sealed(&client).await;
    record(&client, 100).await;
    let (size, _) = sealed(&client).await;
    server.stop().await;
    let owner = opened(&server).await;
    let first = owner.query_one("SELECT min(size) FROM checkpoint", &[]).await.unwrap();
    let early = first.get::<_, i64>(0) as u64;
    let cut = format!(
        "DELETE FROM checkpoint WHERE size > {early}; \
         UPDATE tree_tile SET hashes = substring(hashes FOR 32 * {early}); \
         UPDATE event SET body = body || ' ' WHERE position > {early}"
    );
    owner.batch_execute(&cut).await.unwrap();
    assert_eq!(owner.query("SELECT FROM checkpoint", &[]).await.unwrap().len(), 1);
    // The machine that seals knows what it has signed.
    let (code, words) = log(&server, &["verify"]).await;
    assert_eq!(code, Some(3), "{words}");
    assert!(words.contains(&format!("from here to {size} was changed")), "{words}");
    // Whoever has only its keys knows that events do not wait for so long.
    let keys = key_file(server.dir()).read().unwrap();
    let keys: Vec<_> = keys.iter().map(|key| key.verifier("")).collect();
    let recorded_at: jiff::Timestamp = owner
        .query_one("SELECT recorded_at FROM event WHERE position = $1", &[&(early as i64 + 1)])
        .await
        .unwrap()
        .get(0);
    let audit_when_waited = async |waited: SignedDuration| -> Report {
        let trust = Trust { keys: keys.clone(), ..Trust::default() };
        audit_at(&server, trust, recorded_at.checked_add(waited).unwrap()).await
    };
    let report = audit_when_waited(UNSEALED_MAX).await;
    assert!(report.is_clean(), "{:?}", report.findings);
    let report = audit_when_waited(UNSEALED_MAX + SignedDuration::from_micros(1)).await;
    let first = report.first().unwrap();
    let expected = Problem::UnsealedFrom { head: size, recorded_at };
    assert_eq!((first.position, &first.problem), (early + 1, &expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_cannot_be_read_are_no_reason_to_trust_the_log() {
    let mut server = Server::start().await;
    record(&server.client(), 5).await;
    sealed(&server.client()).await;
    server.stop().await;
    assert_eq!(log(&server, &["verify"]).await.0, Some(0));
    std::fs::write(key_file(server.dir()).path(), "no key").unwrap();
    let (code, words) = log(&server, &["verify"]).await;
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("holds no Ed25519 keys"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_beyond_all_events_is_one_finding_whatever_checkpoint_says_so() {
    let mut server = Server::start().await;
    record(&server.client(), 300).await;
    let (size, _) = sealed(&server.client()).await;
    server.stop().await;
    let owner = opened(&server).await;
    let claim = "UPDATE log_head SET size = 1::bigint << 60; INSERT INTO checkpoint \
         SELECT epoch, 1::bigint << 60, root, note, sealed_at, true FROM checkpoint LIMIT 1";
    owner.batch_execute(claim).await.unwrap();
    let report = audit(&server).await;
    let missing = report.findings.iter().find(|it| it.position == size + 1).unwrap();
    assert_eq!(missing.problem, Problem::MissingUpTo { last: 1 << 60 }, "{:?}", report.findings);
    assert_eq!(report.events, size);
}
