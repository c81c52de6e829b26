//! The log of a run in a real browser: as long as it may be, it stays smooth, and every line of
//! it has an address.

use milepost::app::Clock;
use serde_json::{Value, json};

use super::{Browser, is_live, logged_in};
use crate::harness::{Client, Server};

/// Lines of a long log; its heading is a row too.
const LINES: usize = 100_000;

/// Rows that may stand in the page at once: those in sight, and a margin.
const ROWS_MAX: i64 = 120;

/// What scripts here may call.
const HELPERS: &str = "
    const view = document.querySelector('.log-view');
    const rows = () => [...document.querySelectorAll('.log-row')];
    const row = (line) => document.getElementById(`L${line}`);
    const says = (line) => row(line)?.querySelector('.log-text').textContent;
    const inSight = (line) => {
        const [it, all] = [row(line), view].map((element) => element?.getBoundingClientRect());
        return it && it.top >= all.top - 1 && it.bottom <= all.bottom + 1;
    };
    const onScreen = (line) => {
        const it = row(line)?.getBoundingClientRect();
        const head = document.querySelector('.top').getBoundingClientRect();
        return inSight(line) && it.top >= head.bottom && it.bottom <= innerHeight;
    };
    const follows = () => document.querySelector('[data-slot=log-follow]').ariaPressed === 'true';
";

async fn run(browser: &Browser, script: &str) -> Value {
    browser.run(&format!("{HELPERS}{script}")).await
}

async fn wait_for(browser: &Browser, what: &str, script: &str) {
    browser.wait_for(what, &format!("{HELPERS}return Boolean({script})")).await;
}

async fn print(client: &Client, job: &str, from: usize, count: usize) {
    let lines: Vec<String> = (from..from + count)
        .map(|number| format!("\u{1b}[3{}mline {number}\u{1b}[0m of the run", number % 8))
        .collect();
    let body = json!({"job_id": job, "attempt": 1, "type": "log", "from": from, "lines": lines});
    let (status, answer) = client.callback(&body).await;
    assert_eq!((status.as_u16(), &answer["applied"]), (200, &json!(true)), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_a_hundred_thousand_lines_stays_smooth() {
    let server = Server::start().await;
    let client = server.client();
    let browser = logged_in(&server).await;
    let (_, job) = client.job("mari").await;
    for from in (1..=LINES).step_by(500) {
        print(&client, &job, from, 500).await;
    }
    let page = format!("{}/jobs/{job}", server.url());
    browser.open(&page).await;
    is_live(&browser).await;
    wait_for(
        &browser,
        "the end of the log",
        "inSight(100001) && says(100001) === 'line 100000 of the run'",
    )
    .await;
    wait_for(&browser, "the page follows", "follows()").await;

    // To the beginning, and through all of it: what stands in the page stays little.
    run(&browser, "view.scrollTop = 0").await;
    wait_for(&browser, "the first line", "says(2) === 'line 1 of the run'").await;
    wait_for(&browser, "the page follows no more", "!follows()").await;
    let scrolled = run(
        &browser,
        "return (async () => {
            const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
            const frames = [];
            let most = 0;
            let before = await frame();
            for (let step = 1; step <= 120; step += 1) {
                view.scrollTop = (view.scrollHeight * step) / 121;
                const now = await frame();
                frames.push(now - before);
                before = now;
                most = Math.max(most, rows().length);
            }
            frames.sort((a, b) => a - b);
            return { most, median: frames[60], worst: frames.at(-1), nodes: view.querySelectorAll('*').length };
        })()",
    )
    .await;
    println!("scrolling over 100,000 lines, in ms a frame: {scrolled}");
    assert!(scrolled["most"].as_i64().unwrap() <= ROWS_MAX, "{scrolled}");
    assert!(scrolled["nodes"].as_i64().unwrap() <= ROWS_MAX * 5, "{scrolled}");
    assert!(scrolled["median"].as_f64().unwrap() < 50.0, "{scrolled}");
    let filled = "rows().every((it) => it.dataset.kind)";
    wait_for(&browser, "every row in the page is there", filled).await;

    // A reader who is elsewhere stays there while the log grows.
    run(&browser, "view.scrollTop = 400_000").await;
    wait_for(&browser, "the middle", "inSight(20002) && says(20002) === 'line 20001 of the run'")
        .await;
    print(&client, &job, LINES + 1, 3).await;
    let counted = "document.querySelector('[data-slot=log-count]').textContent === '100,004 lines'";
    wait_for(&browser, "the new lines are counted", counted).await;
    assert_eq!(run(&browser, "return view.scrollTop").await, 400_000);
    run(&browser, "document.querySelector('[data-slot=log-follow]').click()").await;
    wait_for(&browser, "the new end", "inSight(100004)").await;
    print(&client, &job, LINES + 4, 1).await;
    wait_for(
        &browser,
        "it follows",
        "inSight(100005) && says(100005) === 'line 100004 of the run'",
    )
    .await;

    // Every line has an address; a line's number leads to it.
    browser.open("about:blank").await;
    browser.open(&format!("{page}#L50000")).await;
    wait_for(
        &browser,
        "the line of the address",
        "onScreen(50000) && row(50000).ariaCurrent === 'true'",
    )
    .await;
    wait_for(&browser, "what it says", "says(50000) === 'line 49999 of the run'").await;
    run(&browser, "row(50003).querySelector('a').click()").await;
    wait_for(
        &browser,
        "the other line",
        "row(50003).ariaCurrent === 'true' && location.hash === '#L50003'",
    )
    .await;
    assert_eq!(run(&browser, "return follows()").await, false);
    run(&browser, "location.hash = '#L77'").await;
    wait_for(&browser, "the line of the new address", "onScreen(77) && says(77)").await;

    // By keys: from the lines to their numbers, from one to the next, and back.
    let key = |key: &str| {
        format!(
            "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', bubbles: true, cancelable: true}}))"
        )
    };
    run(&browser, &format!("view.focus(); {}; {}", key("Enter"), key("ArrowDown"))).await;
    wait_for(&browser, "a number has the focus", "document.activeElement.matches('.log-number')")
        .await;
    run(&browser, &key("Escape")).await;
    wait_for(&browser, "the lines have the focus", "document.activeElement === view").await;
    assert_eq!(browser.console().await, [""; 0]);

    let cookie = format!("session_token={}", browser.cookie("session_token").await);
    let request = reqwest::Client::new().get(&page).header("cookie", cookie);
    let html = request.send().await.unwrap().text().await.unwrap();
    assert!(html.contains("id=\"L100005\"") && html.contains("id=\"L99806\""), "without scripts");
    assert!(!html.contains("id=\"L99805\"") && html.contains("/log.txt\" download>"));
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_task_and_the_first_lines_are_there_at_once() {
    let server = Server::start().await;
    let client = server.client();
    let browser = logged_in(&server).await;
    let (agent, job) = client.job("mari").await;
    for path in [format!("agents/{agent}"), format!("jobs/{job}")] {
        browser.open(&format!("{}/{path}", server.url())).await;
        is_live(&browser).await;
        browser
            .run(
                "window.seen = {};
                const note = () => {
                    const line = document.querySelector('.attempt .task:not([hidden]) code');
                    if (line) window.seen[line.textContent] ??= Date.now();
                };
                new MutationObserver(() => requestAnimationFrame(note)).observe(
                    document.querySelector('main'),
                    {subtree: true, childList: true, attributes: true, characterData: true},
                );",
            )
            .await;
        let base = if path.starts_with("jobs") { 10 } else { 0 };
        for number in [1, 2, 3] {
            let number = base + number;
            let task = format!("docker : step {number}");
            let body = json!({"job_id": job, "attempt": 1, "type": "task", "number": number, "task": task});
            let (_, answer) = client.callback(&body).await;
            let answered = Clock.now().as_millisecond();
            assert_eq!(answer["applied"], true, "{answer}");
            let shown = format!("return window.seen['TASK [{task}]'] ?? null");
            let shown = browser.wait_for("the task under way", &shown).await.as_i64().unwrap();
            println!("answer to a drawn task: {} ms", shown - answered);
            assert!(shown - answered < 1_000);
        }
        let word = "return document.querySelector('[data-slot=task-word]').textContent === 'now'";
        browser.wait_for("it runs now", word).await;
        print(&client, &job, base + 1, 2).await;
        wait_for(&browser, "the lines", "rows().some((it) => it.textContent.includes('line'))")
            .await;
        let line = format!("rows().some((it) => it.textContent.includes('line {} '))", base + 2);
        wait_for(&browser, "the last line", &line).await;
    }
    // An address leads to a line that the server has rendered as well.
    browser.open("about:blank").await;
    browser.open(&format!("{}/jobs/{job}#L4", server.url())).await;
    wait_for(&browser, "the line of the address", "onScreen(4) && row(4).ariaCurrent === 'true'")
        .await;
    let text = browser.run("return document.querySelector('.log').textContent").await;
    assert!(text.as_str().unwrap().contains("8 lines were lost"), "{text}");
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_do_not_come_are_asked_for_less_and_less_and_refused_ones_no_more() {
    let server = Server::start().await;
    let client = server.client();
    let browser = logged_in(&server).await;
    let (_, job) = client.job("mari").await;
    for from in [1, 501, 1001] {
        print(&client, &job, from, 500).await;
    }
    browser.open(&format!("{}/jobs/{job}", server.url())).await;
    is_live(&browser).await;
    wait_for(&browser, "the end of the log", "says(1501) === 'line 1500 of the run'").await;
    wait_for(&browser, "all in sight has come", "rows().every((it) => it.dataset.kind)").await;
    // Waits of a second and more are noted, and over at once.
    let refuse = "
        [window.status_of_answers, window.asked, window.waits] = [503, 0, []];
        const [ask, wait] = [window.fetch, window.setTimeout];
        window.fetch = (path, ...more) => {
            if (!String(path).includes('/log?')) return ask(path, ...more);
            window.asked += 1;
            const problem = JSON.stringify({detail: 'they were archived'});
            return Promise.resolve(new Response(problem, {status: window.status_of_answers}));
        };
        window.setTimeout = (work, ms) => {
            if (ms >= 1000) window.waits.push(ms);
            return wait(work, ms < 1000 ? ms : 0);
        };
        view.scrollTop = 0;";
    run(&browser, refuse).await;
    wait_for(&browser, "they were asked for again", "window.waits.length >= 7").await;
    let waits = run(&browser, "return window.waits.slice(0, 7)").await;
    assert_eq!(waits, json!([1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]));
    let said = "document.querySelector('[data-slot=log-refused]').textContent";
    assert_eq!(run(&browser, &format!("return {said}")).await, "");

    run(&browser, "window.status_of_answers = 410").await;
    let refused = format!("{said} === 'Lines that are not here do not come: they were archived'");
    wait_for(&browser, "it says why they do not come", &refused).await;
    let asked = run(&browser, "return [window.asked, window.waits.length]").await;
    run(&browser, "view.scrollTop = 700 * 20").await;
    wait_for(&browser, "other lines are in sight", "row(705) !== null").await;
    print(&client, &job, 1501, 1).await;
    let counted = "document.querySelector('[data-slot=log-count]').textContent === '1,502 lines'";
    wait_for(&browser, "the stream goes on", counted).await;
    assert_eq!(run(&browser, "return [window.asked, window.waits.length]").await, asked);
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}
