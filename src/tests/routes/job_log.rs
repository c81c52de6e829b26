//! `/api/jobs/{id}/log`: what runs print comes in order, once, and is there for whoever comes late.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Client, Messages, Server, text};

/// Rows of the log that most tests here make: a heading and the lines.
const LINES: usize = 30;

fn log(job: &str, attempt: u32, from: usize, lines: &[String]) -> Value {
    json!({"job_id": job, "attempt": attempt, "type": "log", "from": from, "lines": lines})
}

fn lines(range: std::ops::RangeInclusive<usize>) -> Vec<String> {
    range.map(|number| format!("line {number}")).collect()
}

/// Posts lines that are taken; where they stand.
async fn print(client: &Client, job: &str, from: usize, lines: &[String]) -> u64 {
    let (status, answer) = client.callback(&log(job, 1, from, lines)).await;
    assert_eq!((status.as_u16(), &answer["applied"]), (200, &json!(true)), "{answer}");
    answer["position"].as_u64().unwrap()
}

async fn page(client: &Client, job: &str, query: &str) -> Value {
    client.read(&format!("/api/jobs/{job}/log?{query}")).await
}

/// The rows of an answer or a message, each its number and its text.
fn rows(page: &Value) -> Vec<(u64, String)> {
    let rows = page["lines"].as_array().unwrap();
    rows.iter().map(|row| (row["line"].as_u64().unwrap(), text(row, "text"))).collect()
}

fn texts(page: &Value) -> Vec<String> {
    rows(page).into_iter().map(|(_, text)| text).collect()
}

async fn whole(client: &Client, job: &str) -> String {
    let path = format!("/api/jobs/{job}/log.txt");
    let request = client.request(Method::GET, &path).bearer_auth(&client.token);
    client.send(request).await.text().to_owned()
}

/// A job with a log of [`LINES`] lines in uneven pieces.
async fn printed(client: &Client) -> String {
    let (_, job) = client.job("mari").await;
    let mut from = 1;
    for count in (1..).take_while(|count| count * (count + 1) / 2 <= LINES) {
        print(client, &job, from, &lines(from..=from + count - 1)).await;
        from += count;
    }
    print(client, &job, from, &lines(from..=LINES)).await;
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_has_printed_nothing_has_an_empty_log() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let page = page(&client, &job, "").await;
    assert_eq!(
        (&page["lines"], &page["total"], &page["position"]),
        (&json!([]), &json!(0), &json!(0))
    );
    assert_eq!(whole(&client, &job).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_range_of_rows_is_found_whatever_the_pieces_they_came_in() {
    let server = Server::start().await;
    let client = server.client();
    let job = printed(&client).await;
    let all = rows(&page(&client, &job, "after=0&limit=1000").await);
    assert_eq!(all.len(), LINES + 1);
    assert_eq!(all[0], (1, "Attempt 1".to_owned()));
    assert_eq!(all[LINES], (LINES as u64 + 1, format!("line {LINES}")));
    let total = all.len();
    for at in 0..=total + 1 {
        for limit in [0, 1, 7, 1_000] {
            let after = rows(&page(&client, &job, &format!("after={at}&limit={limit}")).await);
            let (from, to) = (at.min(total), (at + limit).min(total));
            assert_eq!(after, all[from..to], "after {at}, {limit}");
            let before = rows(&page(&client, &job, &format!("before={at}&limit={limit}")).await);
            let to = at.saturating_sub(1).min(total);
            assert_eq!(before, all[to.saturating_sub(limit)..to], "before {at}, {limit}");
        }
    }
    let newest = page(&client, &job, "limit=5").await;
    assert_eq!(rows(&newest), all[total - 5..]);
    assert_eq!(newest["total"], total);
    let text: String = all.iter().flat_map(|(_, text)| [text.as_str(), "\n"]).collect();
    assert_eq!(whole(&client, &job).await, text);
    let row = &page(&client, &job, "after=1&limit=1").await["lines"][0];
    assert_eq!(
        (&row["kind"], &row["attempt"], &row["number"]),
        (&json!("output"), &json!(1), &json!(1))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_adds_nothing_and_gets_the_first_answer() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let first = print(&client, &job, 1, &lines(1..=3)).await;
    let mut later = Vec::new();
    for from in 4..60 {
        later.push(print(&client, &job, from, &lines(from..=from)).await);
    }
    let events = client.events().await.len();
    assert_eq!(print(&client, &job, 1, &lines(1..=3)).await, first);
    assert_eq!(print(&client, &job, 2, &lines(2..=3)).await, first);
    assert_eq!(print(&client, &job, 30, &lines(30..=30)).await, later[26]);
    assert_eq!(client.events().await.len(), events);
    // What overlaps is cut.
    print(&client, &job, 58, &lines(58..=61)).await;
    let expected: Vec<String> =
        std::iter::once("Attempt 1".to_owned()).chain(lines(1..=61)).collect();
    assert_eq!(texts(&page(&client, &job, "after=0").await), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_said_and_so_is_whose_lines_they_are() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    client.callback(&json!({"job_id": job, "status": "provisioning"})).await;
    print(&client, &job, 1, &lines(1..=2)).await;
    print(&client, &job, 7, &lines(7..=7)).await;
    client.callback(&json!({"job_id": job, "status": "running"})).await;
    // The end of a run may say most, and comes last.
    print(&client, &job, 8, &lines(8..=8)).await;
    let page = page(&client, &job, "").await;
    let expected = ["Attempt 1", "line 1", "line 2", "4 lines were lost", "line 7", "line 8"];
    assert_eq!(texts(&page), expected);
    let kinds: Vec<_> = page["lines"].as_array().unwrap().iter().map(|row| &row["kind"]).collect();
    assert_eq!(kinds, ["attempt", "output", "output", "lost", "output", "output"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_an_attempt_that_never_began_or_of_no_job_are_kept_as_not_applied() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let (status, answer) = client.callback(&log(&job, 2, 1, &lines(1..=1))).await;
    assert_eq!((status.as_u16(), &answer["reason"]), (200, &json!("attempt_not_begun")));
    let (_, again) = client.callback(&log(&job, 2, 2, &lines(2..=2))).await;
    assert_eq!(again, answer, "one of them is enough");
    let unknown = "0198f3b2-6a4e-7b22-9d14-2e7c5a9f3b02";
    let (status, answer) = client.callback(&log(unknown, 1, 1, &lines(1..=1))).await;
    assert_eq!((status.as_u16(), &answer["reason"]), (200, &json!("unknown_job")));
    assert_eq!(page(&client, &job, "").await["total"], 0);
    assert_eq!(client.get(&format!("/api/jobs/{unknown}/log")).await.0, 404);
    assert_eq!(client.get(&format!("/api/jobs/{unknown}/log.txt")).await.0, 404);
    assert_eq!(client.get(&format!("/api/jobs/{unknown}/log/stream")).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_makes_no_sense_is_refused() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    for query in ["after=1&before=2", "after=x", "before=-1", "limit=x"] {
        assert_eq!(client.get(&format!("/api/jobs/{job}/log?{query}")).await.0, 400, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_masked_colours_stay_and_nothing_else_that_moves_a_terminal() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let secret = server.ready("callback_secret");
    let said = [
        format!("key={secret};"),
        format!("\u{1b}[31m{}\u{1b}[1m{}\u{1b}[0m", &secret[..8], &secret[8..]),
        "\u{1b}[32mok\u{1b}[0m\u{1b}[2J\u{1b}]0;title\u{7}\0".to_owned(),
        "x".repeat(5_000),
    ];
    print(&client, &job, 1, &said).await;
    let page = page(&client, &job, "").await;
    let texts = texts(&page);
    assert_eq!(texts[1..4], ["key=[redacted];", "[redacted]", "\u{1b}[32mok\u{1b}[0m"]);
    assert!(texts[4].ends_with("\u{1b}[0m … 904 bytes were cut off"), "{}", texts[4]);
    assert!(whole(&client, &job).await.contains("[redacted]\nok\nxxx"));
    let events = serde_json::to_string(&client.events().await).unwrap();
    assert!(!events.contains(&secret[8..]), "a secret is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_at_once_lose_nothing_and_double_nothing() {
    let server = Server::start().await;
    let client = server.client();
    let other = Server::beside(&server).await;
    let (_, job) = client.job("mari").await;
    // Two nodes, each told everything: by a sender that repeats itself elsewhere.
    let send = async |client: Client| {
        for from in (1..=100).step_by(2) {
            let (status, _) = client.callback(&log(&job, 1, from, &lines(from..=from + 2))).await;
            assert_eq!(status, 200);
        }
    };
    tokio::join!(send(client.clone()), send(other.client()));
    let expected: Vec<String> =
        std::iter::once("Attempt 1".to_owned()).chain(lines(1..=101)).collect();
    assert_eq!(texts(&page(&client, &job, "after=0").await), expected);
}

/// Reads messages until the last row is this one; all rows that came.
async fn until(stream: &mut Messages, last: u64) -> Vec<(u64, String)> {
    let mut all = Vec::new();
    while all.last().is_none_or(|(line, _)| *line < last) {
        let message = stream.next_named("log").await.json();
        all.extend(rows(&message));
        assert_eq!(message["total"], all.last().unwrap().0);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_late_reads_the_page_and_goes_on_by_the_stream() {
    let server = Server::start().await;
    let client = server.client();
    let job = printed(&client).await;
    let page = page(&client, &job, "limit=3").await;
    let since = format!("{}-{}", page["epoch"], page["position"]);
    print(&client, &job, LINES + 1, &lines(LINES + 1..=LINES + 2)).await;
    for path in [
        format!("/api/jobs/{job}/log/stream?since={since}"),
        format!("/api/stream?job={job}&log={job}&events={job}&since={since}"),
        format!("/api/stream?log={job}&events=all&since={since}"),
    ] {
        let mut stream = client.stream(&path, None).await;
        let rest = until(&mut stream, LINES as u64 + 3).await;
        assert_eq!(rest[0].0, page["total"].as_u64().unwrap() + 1, "{path}");
        assert_eq!(rest.len(), 2);
    }
    // From the beginning it has all there is, and each message leads on from itself.
    let all = rows(&self::page(&client, &job, "after=0").await);
    let beginning = client.beginning().await;
    let path = format!("/api/jobs/{job}/log/stream");
    let mut stream = client.stream(&path, Some(&beginning)).await;
    let mut seen = Vec::new();
    while seen.len() < all.len() {
        let message = stream.next_named("log").await;
        seen.extend(rows(&message.json()));
        stream = client.stream(&path, Some(&message.id)).await;
    }
    assert_eq!(seen, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_come_as_they_are_printed_on_every_node_and_nobody_elses() {
    let server = Server::start().await;
    let client = server.client();
    let other = Server::beside(&server).await;
    let (_, job) = client.job("mari").await;
    let (_, strange) = client.job("liis").await;
    let path = format!("/api/jobs/{job}/log/stream");
    let mut here = client.stream(&path, None).await;
    let mut there = other.client().stream(&path, None).await;
    for stream in [&mut here, &mut there] {
        assert_eq!(stream.next().await.unwrap().event, "bookmark");
    }
    for from in 1..=40 {
        print(&client, &strange, from, &lines(from..=from)).await;
        print(&client, &job, from, &lines(from..=from)).await;
    }
    let expected: Vec<String> =
        std::iter::once("Attempt 1".to_owned()).chain(lines(1..=40)).collect();
    for stream in [&mut here, &mut there] {
        let rows = until(stream, 41).await;
        assert_eq!(rows.into_iter().map(|(_, text)| text).collect::<Vec<_>>(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_job_nor_its_agent_grows_by_what_is_printed() {
    let server = Server::start().await;
    let client = server.client();
    let (agent, job) = client.job("mari").await;
    let paths = [format!("/api/jobs/{job}"), format!("/api/agents/{agent}/instance")];
    let before = [client.read(&paths[0]).await, client.read(&paths[1]).await];
    for from in (1..=1_000).step_by(500) {
        print(&client, &job, from, &lines(from..=from + 499)).await;
    }
    assert_eq!([client.read(&paths[0]).await, client.read(&paths[1]).await], before);
    let of_job = format!("/api/events?stream={job}");
    assert_eq!(client.read(&of_job).await["events"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_lines_are_read_by_the_page() {
    let mut server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    let count = 100_000;
    for from in (1..=count).step_by(500) {
        print(&client, &job, from, &lines(from..=from + 499)).await;
    }
    // Postgres counts what a connection has read when that ends; views that are up to date read
    // nothing when they begin again.
    client.read("/api/agents").await;
    client.read("/api/jobs").await;
    server.stop().await;
    let before = read_events(&server).await;
    server.restart().await;
    for at in [0, 499, 500, 50_123, 99_800, 100_001] {
        let page = page(&client, &job, &format!("after={at}&limit=200")).await;
        let expected: Vec<String> =
            lines(at.max(1)..=(at + 199).min(count)).into_iter().take(200).collect();
        let texts = texts(&page);
        assert_eq!(
            texts[usize::from(at == 0)..],
            expected[..expected.len().min(texts.len())],
            "{at}"
        );
        assert_eq!(page["total"], count + 1);
    }
    server.stop().await;
    // The job's own, the last one, bisection, and those that hold the rows: not the 200 there are.
    let read = read_events(&server).await - before;
    assert!((6..6 * 50).contains(&read), "{read} events were read for six pages");
    server.restart().await;
    let text = whole(&client, &job).await;
    assert_eq!(text.lines().count(), count + 1);
    assert_eq!(text.lines().last(), Some("line 100000"));
    let beginning = client.beginning().await;
    let mut stream = client.stream(&format!("/api/jobs/{job}/log/stream"), Some(&beginning)).await;
    let all = until(&mut stream, count as u64 + 1).await;
    assert!(all.iter().zip(1..).all(|((line, _), expected)| *line == expected));
}

/// Rows of the log's tables that Postgres has handed out by an index, in this database.
async fn read_events(server: &Server) -> i64 {
    let client = crate::harness::sql(&server.database_url()).await;
    let row = client
        .query_one(
            "SELECT coalesce(sum(idx_tup_fetch), 0)::bigint FROM pg_stat_user_tables \
             WHERE relname LIKE 'event%'",
            &[],
        )
        .await
        .unwrap();
    row.get(0)
}
