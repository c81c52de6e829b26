//! What a browser checks by itself: proofs against trees that are computed here, a checkpoint, and
//! what it remembers of the last one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use milepost::ledger::key::SigningKey;
use milepost::ledger::{Checkpoint, Hash as TreeHash, KeyFile};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Browser, logged_in};
use crate::harness::{Client, Server, wait_until};

/// Leaves of the largest tree: every shape up to two levels beyond a whole one.
const LEAVES: usize = 21;

type Hash = [u8; 32];

fn node(left: Hash, right: Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// The largest power of two below a number of leaves.
fn split(leaves: usize) -> usize {
    leaves.next_power_of_two() / 2
}

/// RFC 6962, 2.1.
fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            node(root(left), root(right))
        }
    }
}

/// RFC 6962, 2.1.1.
fn path(index: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() < 2 {
        return Vec::new();
    }
    let middle = split(leaves.len());
    let (left, right) = leaves.split_at(middle);
    let (mut path, sibling) = if index < middle {
        (path(index, left), root(right))
    } else {
        (path(index - middle, right), root(left))
    };
    path.push(sibling);
    path
}

/// RFC 6962, 2.1.2.
fn subproof(first: usize, leaves: &[Hash], is_whole: bool) -> Vec<Hash> {
    if first == leaves.len() {
        return if is_whole { Vec::new() } else { vec![root(leaves)] };
    }
    let middle = split(leaves.len());
    let (left, right) = leaves.split_at(middle);
    let (mut proof, sibling) = if first <= middle {
        (subproof(first, left, is_whole), root(right))
    } else {
        (subproof(first - middle, right, false), root(left))
    };
    proof.push(sibling);
    proof
}

fn hexes(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(hex::encode).collect()
}

/// Runs a script in which `merkle` is the module of the page.
async fn with_merkle(browser: &Browser, script: &str) -> Value {
    let script = format!(
        "return (async () => {{
            const app = document.querySelector('script[type=module]').src;
            const merkle = await import(app.replace('app.js', 'merkle.js'));
            {script}
        }})()"
    );
    browser.run(&script).await
}

async fn sealed(client: &Client, size: u64) {
    wait_until("the log is sealed", || async {
        let asked = client.request(reqwest::Method::GET, "/log/checkpoint");
        let note = client.send(asked).await;
        let sealed = note.text().lines().nth(1)?.parse::<u64>().ok()?;
        (note.status == 200 && sealed >= size).then_some(())
    })
    .await;
}

async fn checks(browser: &Browser, server: &Server) -> Vec<(String, String)> {
    browser.open(&format!("{}/integrity", server.url())).await;
    let script = "return document.querySelector('mp-integrity').dataset.done !== undefined";
    browser.wait_for("everything was checked", script).await;
    results(browser, "[data-slot=checks]").await
}

async fn results(browser: &Browser, place: &str) -> Vec<(String, String)> {
    let script = format!(
        "return [...document.querySelectorAll('{place} [data-check]')]
            .map((line) => [line.dataset.check, line.textContent])"
    );
    serde_json::from_value(browser.run(&script).await).unwrap()
}

/// Fills a form's field, sends it, and waits for what came of it.
async fn check(browser: &Browser, form: &str, fields: &Value) -> Vec<(String, String)> {
    browser
        .run(&format!(
            "const form = document.querySelector('[data-form={form}]');
             for (const [name, value] of Object.entries({fields})) form.elements[name].value = value;
             form.querySelector('[data-slot]').replaceChildren();
             form.requestSubmit();"
        ))
        .await;
    let place = format!("[data-slot={form}]");
    let script =
        format!("return !!document.querySelector('{place} [data-check]:not([data-check=wait])')");
    browser.wait_for("the form was answered", &script).await;
    results(browser, &place).await
}

/// A server with the first four events sealed, and a browser that has checked them.
async fn with_a_sealed_job() -> (Server, Client, Browser) {
    let server = Server::start().await;
    let client = server.client();
    client.job("mari").await;
    sealed(&client, 4).await;
    let browser = logged_in(&server).await;
    checks(&browser, &server).await;
    (server, client, browser)
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_of_every_shape_are_taken_and_altered_ones_refused() {
    let server = Server::start().await;
    let browser = logged_in(&server).await;
    let leaves: Vec<Vec<u8>> = (0..LEAVES).map(|index| vec![index as u8; index]).collect();
    let hashes: Vec<Hash> = leaves
        .iter()
        .map(|leaf| Sha256::new().chain_update([0]).chain_update(leaf).finalize().into())
        .collect();
    let (mut inclusions, mut consistencies) = (Vec::new(), Vec::new());
    for size in 1..=LEAVES {
        let tree = &hashes[..size];
        for (index, leaf) in leaves.iter().enumerate().take(size) {
            inclusions.push(json!([
                index,
                size,
                STANDARD.encode(leaf),
                hexes(&path(index, tree)),
                hex::encode(root(tree)),
            ]));
        }
        for first in 1..=size {
            consistencies.push(json!([
                first,
                size,
                hexes(&subproof(first, tree, true)),
                hex::encode(root(&hashes[..first])),
                hex::encode(root(tree)),
            ]));
        }
    }
    let script = format!(
        "const {{fromHex, fromBase64, leafHash, isIncluded, isConsistent}} = merkle;
         const altered = (bytes) => bytes.map((byte, index) => (index ? byte : byte ^ 1));
         const wrong = [];
         for (const [index, size, leaf, path, root] of {inclusions}) {{
             const hash = await leafHash(fromBase64(leaf));
             const hashes = path.map(fromHex);
             const expect = async (name, wanted, ...given) => {{
                 if (await isIncluded(...given) !== wanted) wrong.push(`inclusion ${{index}} of ${{size}}: ${{name}}`);
             }};
             await expect('right', true, index, size, hash, hashes, fromHex(root));
             await expect('leaf', false, index, size, altered(hash), hashes, fromHex(root));
             await expect('root', false, index, size, hash, hashes, altered(fromHex(root)));
             await expect('index', false, index + 1, size, hash, hashes, fromHex(root));
             await expect('longer', false, index, size, hash, [...hashes, hash], fromHex(root));
             if (hashes.length) {{
                 await expect('shorter', false, index, size, hash, hashes.slice(1), fromHex(root));
                 await expect('path', false, index, size, hash, [altered(hashes[0]), ...hashes.slice(1)], fromHex(root));
             }}
         }}
         for (const [from, to, path, older, newer] of {consistencies}) {{
             const hashes = path.map(fromHex);
             const expect = async (name, wanted, ...given) => {{
                 if (await isConsistent(...given) !== wanted) wrong.push(`consistency ${{from}} to ${{to}}: ${{name}}`);
             }};
             await expect('right', true, from, to, hashes, fromHex(older), fromHex(newer));
             await expect('older', false, from, to, hashes, altered(fromHex(older)), fromHex(newer));
             await expect('newer', false, from, to, hashes, fromHex(older), altered(fromHex(newer)));
             await expect('longer', false, from, to, [...hashes, fromHex(older)], fromHex(older), fromHex(newer));
             if (hashes.length) await expect('shorter', false, from, to, hashes.slice(1), fromHex(older), fromHex(newer));
             if (from < to) await expect('backward', false, to, from, hashes, fromHex(newer), fromHex(older));
         }}
         return wrong;",
        inclusions = json!(inclusions),
        consistencies = json!(consistencies),
    );
    let wrong = with_merkle(&browser, &script).await;
    assert_eq!(wrong, json!([]));
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_checks_the_checkpoint_and_compares_it_at_the_next_visit() {
    let server = Server::start().await;
    let client = server.client();
    client.job("mari").await;
    sealed(&client, 4).await;
    let browser = logged_in(&server).await;
    let first = checks(&browser, &server).await;
    assert!(first.iter().all(|(check, _)| check != "wrong"), "{first:?}");
    assert!(first[1].1.contains("has not seen this log before"), "{first:?}");
    // It may have no Ed25519; then it says so.
    let can_verify = "return crypto.subtle.importKey('raw', new Uint8Array(32), {name: 'Ed25519'}, false, ['verify']).then(() => true, () => false)";
    let signed = if browser.run(can_verify).await == true { "ok" } else { "open" };
    assert_eq!(first[0].0, signed, "{first:?}");

    client.job("juno").await;
    sealed(&client, 8).await;
    let second = checks(&browser, &server).await;
    assert_eq!(second[1].0, "ok", "{second:?}");
    assert!(second[1].1.contains("the log has only been added to"), "{second:?}");

    let included = check(&browser, "inclusion", &json!({"position": "2"})).await;
    assert_eq!(included[0].0, "ok", "{included:?}");
    let later = check(&browser, "inclusion", &json!({"position": "999"})).await;
    assert_eq!(later[0].0, "open", "{later:?}");
    let grown = check(&browser, "consistency", &json!({"from": "2", "to": "5"})).await;
    assert_eq!(grown[0].0, "ok", "{grown:?}");
    let note = client.send(client.request(reqwest::Method::GET, "/log/checkpoint")).await;
    let kept = check(&browser, "kept", &json!({"kept": note.text()})).await;
    assert!(kept.iter().all(|(check, _)| *check == signed || check == "ok"), "{kept:?}");
    let lines: Vec<&str> = note.text().lines().collect();
    let forged = note.text().replace(lines[2], &STANDARD.encode([7; 32]));
    let kept = check(&browser, "kept", &json!({"kept": forged})).await;
    assert_eq!(kept.last().unwrap().0, "wrong", "{kept:?}");

    // Whoever changed the log behind its back is found by what this browser has kept.
    browser
        .run(
            "const key = Object.keys(localStorage).find((key) => key.startsWith('milepost.checkpoint '));
             const kept = JSON.parse(localStorage[key]);
             kept.root = btoa('x'.repeat(32));
             localStorage[key] = JSON.stringify(kept);",
        )
        .await;
    for _ in 0..2 {
        let changed = checks(&browser, &server).await;
        assert_eq!(changed[1].0, "wrong", "{changed:?}");
        assert!(changed[1].1.contains("has been changed"), "{changed:?}");
    }
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_compared_with_its_leaf_in_all_but_its_sealed_texts() {
    let (_server, _client, browser) = with_a_sealed_job().await;
    let first = json!({"position": "1"});
    let included = check(&browser, "inclusion", &first).await;
    assert_eq!((&*included[0].0, &*included[1].0), ("ok", "open"), "{included:?}");
    assert!(included[0].1.contains("#1, AgentCreated, is in the log"), "{included:?}");
    assert!(included[1].1.contains("could not be compared"), "{included:?}");
    // What a server would say that shows something else.
    for change in [
        "event.type = 'JobQueued'",
        "event.schema_version += 1",
        "event.version += 1",
        "event.stream = event.stream.replace(/.$/, (digit) => digit === '0' ? '1' : '0')",
        "event.recorded_at = new Date(Date.parse(event.recorded_at) + 1000).toISOString()",
        "event.metadata.actor += '.'",
        "event.data.more = null",
        "event.data = [event.data]",
    ] {
        let lie = format!(
            "window.honest ??= window.fetch;
             window.fetch = async (path, options) => {{
                 const answer = await window.honest(path, options);
                 if (path !== '/api/events/1') return answer;
                 const event = await answer.json();
                 {change};
                 return new Response(JSON.stringify(event));
             }};"
        );
        browser.run(&lie).await;
        let found = check(&browser, "inclusion", &first).await;
        assert_eq!((found.len(), &*found[0].0), (1, "wrong"), "{change}: {found:?}");
    }
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_checkpoint_of_more_events_than_the_log_has_says_that_it_became_shorter() {
    let server = Server::start().await;
    let client = server.client();
    client.job("mari").await;
    sealed(&client, 4).await;
    let browser = logged_in(&server).await;
    let first = checks(&browser, &server).await;
    let can_verify = first[0].0 == "ok";

    // One that is only newer than the page is what the log has by now.
    client.job("juno").await;
    sealed(&client, 8).await;
    let note = client.send(client.request(reqwest::Method::GET, "/log/checkpoint")).await;
    let kept = check(&browser, "kept", &json!({"kept": note.text()})).await;
    assert_eq!(kept.last().unwrap().0, "ok", "{kept:?}");

    let origin = note.text().lines().next().unwrap().to_owned();
    let later = Checkpoint { origin, size: 1_000, root: TreeHash([7; 32]) };
    let keys = KeyFile::new(server.dir().join("seal-key.pem")).read().unwrap();
    let signed = keys.last().unwrap().sign(&later);
    let kept = check(&browser, "kept", &json!({"kept": signed})).await;
    let expected = if can_verify { ["ok", "wrong"] } else { ["open", "open"] };
    assert_eq!([&*kept[0].0, &*kept[1].0], expected, "{kept:?}");
    assert!(kept[1].1.contains("log has become shorter"), "{kept:?}");
    assert!(kept[1].1.contains("it has 1,000 events"), "{kept:?}");
    let forged = SigningKey::generate().unwrap().sign(&later);
    let kept = check(&browser, "kept", &json!({"kept": forged})).await;
    assert_eq!((kept.len(), &*kept[0].0), (1, "wrong"), "{kept:?}");
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_shown_of_a_checkpoint_is_of_one() {
    let (_server, client, browser) = with_a_sealed_job().await;
    let keep = "return fetch('/integrity').then((answer) => answer.text()).then((text) => { window.kept = text; })";
    browser.run(keep).await;
    client.job("juno").await;
    sealed(&client, 8).await;
    // As where its script comes late: the log was sealed again meanwhile.
    let late = "
        const kept = new DOMParser().parseFromString(window.kept, 'text/html');
        document.querySelector('mp-integrity').replaceWith(kept.querySelector('mp-integrity'));";
    browser.run(late).await;
    let done = "return document.querySelector('mp-integrity').dataset.done !== undefined";
    browser.wait_for("everything was checked", done).await;
    let shown = is_of_one(&browser).await;
    // And where a checkpoint that somebody kept is newer than the page.
    let note = client.send(client.request(reqwest::Method::GET, "/log/checkpoint")).await;
    let kept = check(&browser, "kept", &json!({"kept": note.text()})).await;
    assert!(kept.iter().all(|(check, _)| check != "wrong"), "{kept:?}");
    assert!(is_of_one(&browser).await > shown, "the page has the newer one");
    assert_eq!(browser.console().await, [""; 0]);
    browser.quit().await;
}

/// Asserts that what the page shows of the checkpoint, and has checked, is what its note says; its
/// size.
async fn is_of_one(browser: &Browser) -> u64 {
    let shown = "
        return ['note', 'size', 'root', 'origin'].map((name) =>
            document.querySelector(`[data-slot=${name}]`).textContent)";
    let shown: Vec<String> = serde_json::from_value(browser.run(shown).await).unwrap();
    let lines: Vec<&str> = shown[0].lines().collect();
    assert_eq!([lines[1], lines[2], lines[0]], [&*shown[1], &shown[2], &shown[3]]);
    let checks = results(browser, "[data-slot=checks]").await;
    let named = format!("The checkpoint of {} events is signed", lines[1]);
    assert!(checks[0].0 == "open" || checks[0].1.starts_with(&named), "{checks:?}");
    lines[1].parse().unwrap()
}
