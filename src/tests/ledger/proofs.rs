//! Proofs, as implementations that know nothing of ours take them: `ct-merkle` and the crates
//! `tlog_tiles` and `signed_note` in Rust, Sigstore's client and pymerkle in Python.

use std::path::PathBuf;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ct_merkle::{ConsistencyProof, InclusionProof, RootHash};
use milepost::ledger::Hash;
use milepost::ledger::hash::HASH_BYTES;
use milepost::ledger::proof::{extends, includes};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::io::AsyncWriteExt as _;

use super::{checkpoint, key, record, sealed};
use crate::harness::{Client, Server};

fn hash(value: &Value) -> Hash {
    value.as_str().unwrap().parse().unwrap()
}

fn hashes(proof: &Value) -> Vec<Hash> {
    proof["hashes"].as_array().unwrap().iter().map(hash).collect()
}

fn digests(hashes: &[Hash]) -> Vec<sha2::digest::Output<Sha256>> {
    hashes.iter().map(|hash| hash.0.into()).collect()
}

fn root(value: &Value, size: u64) -> RootHash<Sha256> {
    RootHash::new(hash(value).0.into(), size)
}

async fn inclusion(client: &Client, position: u64, size: u64) -> Value {
    client.read(&format!("/api/proofs/inclusion?position={position}&size={size}")).await
}

async fn consistency(client: &Client, from: u64, to: u64) -> Value {
    client.read(&format!("/api/proofs/consistency?from={from}&to={to}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ct_merkle_takes_every_proof_and_refuses_what_is_altered() {
    let server = Server::start().await;
    let client = server.client();
    record(&client, 290).await;
    let (size, _) = sealed(&client).await;
    for position in (1..=size).step_by(7).chain([1, 255, 256, 257, size]) {
        for size in [size, position, position.next_power_of_two().min(size)] {
            let proof = inclusion(&client, position, size).await;
            let (leaf, path) =
                (STANDARD.decode(proof["leaf"].as_str().unwrap()).unwrap(), hashes(&proof));
            let (index, root) = (position - 1, root(&proof["root_hash"], size));
            let theirs = |path: &[Hash], index: u64, leaf: &[u8]| {
                let proof = InclusionProof::<Sha256>::from_digests(&digests(path));
                root.verify_inclusion(&leaf.to_vec(), index, &proof).is_ok()
            };
            assert!(theirs(&path, index, &leaf), "{position} of {size}");
            let ours = |path: &[Hash], index: u64, leaf: &[u8]| {
                includes(index, size, Hash::of_leaf(leaf), hash(&proof["root_hash"]), path)
            };
            assert!(ours(&path, index, &leaf));
            assert_eq!(Hash::of_leaf(&leaf), hash(&proof["leaf_hash"]));
            // Whatever they refuse, so do we.
            let mut longer = path.clone();
            longer.push(Hash::empty());
            let mut altered = path.clone();
            altered.first_mut().unwrap_or(&mut longer[0]).0[3] ^= 4;
            let mut swapped = path.clone();
            swapped.reverse();
            for (path, index, leaf) in [
                (&longer, index, &leaf[..]),
                (&path, index, &leaf[1..]),
                (&path, index.wrapping_add(1), &leaf[..]),
                (&altered, index, &leaf[..]),
                (&swapped, index, &leaf[..]),
                (&path[..path.len().saturating_sub(1)].to_vec(), index, &leaf[..]),
            ] {
                let (theirs, ours) = (theirs(path, index, leaf), ours(path, index, leaf));
                assert_eq!(theirs, ours, "{position} of {size}: {path:?}");
            }
        }
    }
    for from in (1..size).step_by(11).chain([1, 2, 128, 255, 256, 257, size - 1]) {
        let proof = consistency(&client, from, size).await;
        let path = hashes(&proof);
        let (old, new) = (root(&proof["from_root"], from), root(&proof["to_root"], size));
        let theirs = |path: &[Hash]| {
            let proof = ConsistencyProof::<Sha256>::from_digests(&digests(path));
            new.verify_consistency(&old, &proof).is_ok()
        };
        let (old_root, new_root) = (hash(&proof["from_root"]), hash(&proof["to_root"]));
        let ours = |path: &[Hash]| extends(from, size, old_root, new_root, path);
        assert!(theirs(&path) && ours(&path), "{from}");
        for place in 0..path.len() {
            let mut altered = path.clone();
            altered[place].0[0] ^= 1;
            assert!(!theirs(&altered) && !ours(&altered), "{from}: hash {place}");
            assert!(!ours(&path[..place]), "{from}: {place} hashes");
        }
    }
}

/// Tiles as they come over HTTP, for a reader that has never seen our tables.
struct Fetched {
    tiles: Vec<(tlog_tiles::Tile, Vec<u8>)>,
}

impl tlog_tiles::TileReader for Fetched {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, wanted: &[tlog_tiles::Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::Error> {
        let find = |tile: &tlog_tiles::Tile| {
            let found = self.tiles.iter().find(|(it, _)| it == tile);
            found.unwrap_or_else(|| panic!("{} was not fetched", tile.path())).1.clone()
        };
        Ok(wanted.iter().map(find).collect())
    }

    fn save_tiles(&self, _: &[tlog_tiles::Tile], _: &[Vec<u8>]) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_c2sp_take_our_tiles_and_checkpoints() {
    use signed_note::{Note, StandardVerifier, Verifier, VerifierList};
    let server = Server::start().await;
    let client = server.client();
    record(&client, 600).await;
    let (size, text) = sealed(&client).await;
    // The note, by its public key.
    let verifier_key = key(&client).await.to_string();
    let verifier = StandardVerifier::new(&verifier_key).unwrap();
    let name = verifier.name().to_owned();
    let note = Note::from_bytes(text.as_bytes()).unwrap();
    let verifiers = VerifierList::new(vec![Box::new(verifier)]);
    let (verified, _) = note.verify(&verifiers).unwrap();
    assert_eq!(verified.len(), 1);
    let theirs = tlog_tiles::Checkpoint::from_bytes(note.text()).unwrap();
    assert_eq!((theirs.size(), theirs.origin()), (size, &*name));
    let altered = text.replace(&format!("\n{size}\n"), &format!("\n{}\n", size - 1));
    let altered = Note::from_bytes(altered.as_bytes()).unwrap();
    assert!(altered.verify(&verifiers).is_err());
    // Every tile, by the paths that the specification gives.
    let mut tiles = Vec::new();
    for tile in tlog_tiles::Tile::new_tiles(8, 0, size) {
        let path = tile.path();
        let path = path.strip_prefix("tile/8/").or_else(|| path.strip_prefix("tile/")).unwrap();
        let request = client.request(Method::GET, &format!("/log/tile/{path}"));
        let answer = client.send(request).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.body.len(), tile.width() as usize * HASH_BYTES, "{path}");
        // Of whichever epoch it is: a restore puts others in their place.
        let kept = if tile.width() == 256 { "public, max-age=300" } else { "no-cache" };
        assert_eq!(answer.header("cache-control"), kept, "{path}");
        tiles.push((tile, answer.body));
    }
    let fetched = Fetched { tiles };
    let reader = tlog_tiles::TileHashReader::new(size, *theirs.hash(), &fetched);
    assert_eq!(tlog_tiles::tree_hash(size, &reader).unwrap(), *theirs.hash());
    for index in (0..size).step_by(31) {
        let proof = inclusion(&client, index + 1, size).await;
        let path: Vec<_> = hashes(&proof).iter().map(|hash| tlog_tiles::Hash(hash.0)).collect();
        let own = tlog_tiles::prove_record(size, index, &reader).unwrap();
        assert_eq!(own, path, "{index}");
        let leaf = tlog_tiles::Hash(hash(&proof["leaf_hash"]).0);
        tlog_tiles::check_record(&path, size, *theirs.hash(), index, leaf).unwrap();
        let from = index + 1;
        let proof = consistency(&client, from, size).await;
        let path: Vec<_> = hashes(&proof).iter().map(|hash| tlog_tiles::Hash(hash.0)).collect();
        let old = tlog_tiles::Hash(hash(&proof["from_root"]).0);
        tlog_tiles::check_tree(&path, size, *theirs.hash(), from, old).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_the_leaves_behind_their_lengths() {
    let server = Server::start().await;
    let client = server.client();
    record(&client, 260).await;
    let (size, _) = sealed(&client).await;
    let rest = size - 256;
    for (path, first, width) in [("000".to_owned(), 1, 256), (format!("001.p/{rest}"), 257, rest)] {
        let request = client.request(Method::GET, &format!("/log/tile/entries/{path}"));
        let answer = client.send(request.bearer_auth(&client.token)).await;
        assert_eq!(answer.status, 200, "{path}");
        let (mut bytes, mut position) = (&answer.body[..], first);
        while let Some((length, behind)) = bytes.split_first_chunk::<2>() {
            let (leaf, behind) = behind.split_at(usize::from(u16::from_be_bytes(*length)));
            let proof = inclusion(&client, position, size).await;
            assert_eq!(STANDARD.encode(leaf), proof["leaf"], "{position}");
            (bytes, position) = (behind, position + 1);
        }
        assert_eq!(position, first + width, "{path}");
        // The events are not for everybody.
        let open = client.request(Method::GET, &format!("/log/tile/entries/{path}"));
        assert_eq!(client.send(open).await.status, 401);
    }
    for missing in ["001", "002", "0", "x000/000", "000.p/256"] {
        let request = client.request(Method::GET, &format!("/log/tile/entries/{missing}"));
        let answer = client.send(request.bearer_auth(&client.token)).await;
        assert_eq!(answer.status, 404, "{missing}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigstore_and_pymerkle_take_our_proofs_and_refuse_altered_ones() {
    let server = Server::start().await;
    let client = server.client();
    record(&client, 100).await;
    let (size, note) = sealed(&client).await;
    let mut inclusions = Vec::new();
    for position in 1..=size {
        inclusions.push(inclusion(&client, position, size).await);
    }
    let mut consistencies = Vec::new();
    for from in 1..=size {
        consistencies.push(consistency(&client, from, size).await);
    }
    let told = json!({
        "key": key(&client).await.to_string(),
        "checkpoint": note,
        "inclusions": inclusions,
        "consistencies": consistencies,
    });
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/tests/ledger/independent.py");
    let mut python = tokio::process::Command::new(python())
        .arg("-B")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = python.stdin.take().unwrap();
    input.write_all(told.to_string().as_bytes()).await.unwrap();
    drop(input);
    let output = python.wait_with_output().await.unwrap();
    assert!(output.status.success(), "what it says stands above");
    let counted: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(counted["accepted"], 2 * size);
    assert!(counted["refused"].as_u64().unwrap() >= 9 * size, "{counted}");
}

/// The Python that `.ci/python-tools` has installed.
fn python() -> PathBuf {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".ci/python-tools");
    let output = std::process::Command::new(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()).join("python")
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_of_what_is_not_sealed_are_refused() {
    let server = Server::start().await;
    let client = server.client();
    assert_eq!(checkpoint(&client).await, None);
    let (status, problem) = client.get("/api/proofs/inclusion?position=1").await;
    assert_eq!((status.as_u16(), &problem["sealed"]), (422, &json!(0)));
    client.job("mari").await;
    let (size, _) = sealed(&client).await;
    for (path, expected) in [
        (format!("inclusion?position=1&size={}", size + 1), 422),
        (format!("inclusion?position={size}&size={}", size - 1), 422),
        (format!("inclusion?position={}", size + 1), 422),
        ("inclusion?position=0".to_owned(), 404),
        ("inclusion".to_owned(), 400),
        ("inclusion?position=x".to_owned(), 400),
        (format!("consistency?from=1&to={}", size + 1), 422),
        (format!("consistency?from={size}&to=1"), 422),
        ("consistency".to_owned(), 400),
        ("consistency?from=0".to_owned(), 200),
        (format!("consistency?from={size}"), 200),
    ] {
        let (status, answer) = client.get(&format!("/api/proofs/{path}")).await;
        assert_eq!(status, expected, "{path}: {answer}");
    }
    for path in ["/log/tile/0/001", "/log/tile/1/000", "/log/tile/8/000", "/log/tile/0/000"] {
        let answer = client.send(client.request(Method::GET, path)).await;
        assert_eq!(answer.status, 404, "{path}");
    }
    let path = format!("/log/tile/0/000.p/{size}");
    let answer = client.send(client.request(Method::GET, &path)).await;
    assert_eq!((answer.status.as_u16(), answer.body.len() as u64), (200, size * 32));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_is_answered_with_a_receipt_when_it_asks_for_one() {
    let server = Server::start().await;
    let client = server.client();
    let body = json!({"job_id": "nobody's", "type": "heartbeat"}).to_string();
    let plain = client.send(client.signed(body.clone())).await.into_json().1;
    assert!(plain.get("receipt").is_none(), "{plain}");
    sealed(&client).await;
    let asked = client.signed(body).header("prefer", "receipt");
    let (status, answer) = client.send(asked).await.into_json();
    assert_eq!(status, 200, "{answer}");
    let receipt = &answer["receipt"];
    assert_eq!(receipt["position"], answer["position"]);
    let note = receipt["checkpoint"].as_str().unwrap();
    let keys = [key(&client).await];
    assert_eq!(milepost::ledger::note::open(note, &keys).unwrap().size, 1);
    let (size, _) = sealed(&client).await;
    let proof = inclusion(&client, answer["position"].as_u64().unwrap(), size).await;
    assert_eq!(proof["leaf_hash"], receipt["leaf_hash"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workflow_s_action_prints_the_receipt() {
    let server = Server::start().await;
    let client = server.client();
    let (_, job) = client.job("mari").await;
    sealed(&client).await;
    let script =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".github/actions/callback/callback.sh");
    for (says, printed) in [("started", true), ("heartbeat", false), ("step", true)] {
        let output = tokio::process::Command::new("bash")
            .arg(&script)
            .arg(says)
            .env("MILEPOST_CALLBACK_URL", format!("{}/api/webhooks/github", client.url))
            .env("MILEPOST_CALLBACK_SECRET", server.ready("callback_secret"))
            .env("MILEPOST_JOB_ID", &job)
            .env("MILEPOST_ATTEMPT", "1")
            .env("STEP", "vm_created")
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let words = String::from_utf8(output.stdout).unwrap();
        assert_eq!(words.contains("receipt: position "), printed, "{says}: {words}");
        assert_eq!(words.contains("receipt: \u{2014} "), printed, "{says}: {words}");
    }
}
