//! The whole log by binary COPY: in order and whole, however many read it; gaps are named.

use futures_util::StreamExt as _;
use milepost::log::{
    CHUNK_BYTES_MAX, Chunk, Database, DatabaseError, Parts, RANGE_EVENTS, Row, scan,
};
use milepost_schemas::{EventType, Position};

use crate::harness::{database, sql, wait_until};

/// A log of `count` events, the header of each its position, the body `body` repeated.
async fn log_of(count: u64, body: &str) -> (String, Database) {
    let url = database().await;
    sql(&url)
        .await
        .batch_execute(&format!(
            "INSERT INTO event SELECT n, gen_random_uuid(), 1, 16, 1, \
             '2026-01-01Z'::timestamptz + n * interval '1 microsecond', n::text::bytea, {body} \
             FROM generate_series(1, {count}) AS n"
        ))
        .await
        .unwrap();
    let database = Database::new(&url).unwrap();
    (url, database)
}

async fn rows(
    database: &Database,
    after: u64,
    upto: u64,
    connections: usize,
) -> Result<Vec<Row>, DatabaseError> {
    let mut scan = std::pin::pin!(scan(
        database,
        Position(after),
        Position(upto),
        connections,
        Parts::All,
        |it| it.rows
    ));
    let mut rows = Vec::new();
    while let Some(some) = scan.next().await {
        rows.extend(some?);
    }
    Ok(rows)
}

#[tokio::test]
async fn a_log_is_read_whole_and_in_order() {
    let count = 2 * RANGE_EVENTS + 100;
    let (_, database) = log_of(count, "'{}'").await;
    for (after, upto, connections) in [(0, count, 1), (0, count, 3), (17, count - 5, 2)] {
        let rows = rows(&database, after, upto, connections).await.unwrap();
        let positions: Vec<u64> = rows.iter().map(|row| row.position.0).collect();
        assert!(positions.iter().copied().eq(after + 1..=upto), "{after}..{upto}");
        assert!(rows.iter().all(|row| row.header() == row.position.to_string().as_bytes()));
        let last = rows.last().unwrap();
        assert_eq!((last.body(), last.version, last.code), (&b"{}"[..], 1, 16));
        let at = "2026-01-01T00:00:00Z".parse::<jiff::Timestamp>().unwrap().as_microsecond();
        assert_eq!(last.recorded_at.as_microsecond(), at + upto as i64);
    }
    assert!(rows(&database, count, count, 2).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_fold_is_brought_every_event_and_no_more_of_it_than_it_looks_at() {
    let (_, database) = log_of(10, "CASE n % 2 WHEN 0 THEN '{}'::bytea ELSE '' END").await;
    for (passed_over, body) in [(EventType::HeartbeatRecorded, ""), (EventType::JobQueued, "{}")] {
        let passed_over: &'static [EventType] = Box::leak(Box::new([passed_over]));
        let parts = Parts::BodiesBut(passed_over);
        let all = (Position::START, Position(10));
        let mut scan = std::pin::pin!(scan(&database, all.0, all.1, 1, parts, |it| it.rows));
        let rows = scan.next().await.unwrap().unwrap();
        let positions: Vec<u64> = rows.iter().map(|row| row.position.0).collect();
        assert_eq!(positions, (1..=10).collect::<Vec<_>>());
        assert!(rows.iter().all(|row| row.header().is_empty()));
        assert_eq!(rows[1].body(), body.as_bytes(), "{passed_over:?}");
    }
}

#[tokio::test]
async fn a_missing_event_is_named_wherever_it_is() {
    let count = 2 * RANGE_EVENTS;
    let (url, database) = log_of(count, "''").await;
    for missing in [count, RANGE_EVENTS + 1, RANGE_EVENTS, 700, 1] {
        sql(&url)
            .await
            .batch_execute(&format!(
                "ALTER TABLE event DISABLE TRIGGER ALL; ALTER TABLE event_000000 DISABLE TRIGGER ALL; \
                 DELETE FROM event WHERE position = {missing}"
            ))
            .await
            .unwrap();
        let error = rows(&database, 0, count, 2).await.unwrap_err();
        assert!(
            matches!(error, DatabaseError::Missing(position) if position.0 == missing),
            "{missing}: {error}"
        );
    }
    // Past the end of the log, too.
    let error = rows(&database, count - 9, count + 9, 2).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Missing(position) if position.0 == count), "{error}");
}

#[tokio::test]
async fn large_events_come_in_small_chunks() {
    let (_, database) = log_of(1_000, "convert_to(repeat('x', 60000), 'UTF8')").await;
    let work = |chunk: Chunk| (chunk.rows.len(), chunk.bytes());
    let mut scan =
        std::pin::pin!(scan(&database, Position::START, Position(1_000), 2, Parts::All, work));
    let mut count = 0;
    while let Some(chunk) = scan.next().await {
        let (events, bytes) = chunk.unwrap();
        assert!(bytes < CHUNK_BYTES_MAX + 65_536, "{bytes}");
        count += events;
    }
    assert_eq!(count, 1_000);
}

#[tokio::test]
async fn a_dropped_scan_leaves_no_connection() {
    let (url, database) = log_of(4 * RANGE_EVENTS, "'{}'").await;
    let upto = Position(4 * RANGE_EVENTS);
    let mut scan =
        Box::pin(scan(&database, Position::START, upto, 2, Parts::All, |chunk| chunk.rows.len()));
    assert!(scan.next().await.unwrap().unwrap() > 0);
    drop(scan);
    let client = sql(&url).await;
    wait_until("the readers are gone", || async {
        let row = client
            .query_one(
                "SELECT count(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND application_name = 'milepost'",
                &[],
            )
            .await
            .unwrap();
        (row.get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}
