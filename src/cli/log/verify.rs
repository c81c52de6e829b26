//! `milepost log verify`: proves that nobody has changed the log, or says where somebody did.
//!
//! Exit codes: 0 it is as it was signed; 1 it cannot be said; 3 something is wrong.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::json;

use super::{CONNECTIONS, Place};
use crate::app::Clock;
use crate::intake::github::Secret;
use crate::ledger::verify::{BegunEpoch, Report, Trust};
use crate::ledger::{VerifierKey, bundle, verify};

/// The exit code where something is wrong.
const FOUND: u8 = 3;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// An export in this directory, with no database and no server
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// A public key that is trusted, as `<name>+<id>+<base64>`, or a file with one on a line; that
    /// of the key file here when not given
    #[arg(long)]
    key: Vec<String>,
    /// A file with a signed checkpoint that was kept from elsewhere: the log must still be that one,
    /// as it must be the one that the key file's machine has signed last
    #[arg(long)]
    checkpoint: Vec<PathBuf>,
    /// Secrets of callbacks, separated by commas, to check their signatures again
    #[arg(long, env = "MILEPOST_CALLBACK_SECRETS", hide_env_values = true)]
    callback_secrets: Option<String>,
    /// Where the oldest events are, where they are archived; without it they are not read, only
    /// what was sealed of them
    #[arg(long)]
    archive: Option<PathBuf>,
    /// Connections to read over
    #[arg(long, default_value_t = CONNECTIONS)]
    connections: usize,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let trust = trust(&args)?;
    let pinned = !trust.keys.is_empty();
    let report = if let Some(directory) = args.bundle.clone() {
        tokio::task::spawn_blocking(move || bundle::verify(&directory, trust)).await??
    } else {
        let database = args.place.database()?;
        verify::database(&database, trust, args.connections, Clock.now()).await?
    };
    let seconds = begun.elapsed().as_secs_f64();
    let printed = if args.json {
        say!("{:#}", as_json(&report, pinned, seconds))
    } else {
        print(&report, pinned, seconds)
    };
    if !report.is_clean() {
        return Ok(ExitCode::from(FOUND));
    }
    printed?;
    Ok(ExitCode::SUCCESS)
}

fn trust(args: &Args) -> anyhow::Result<Trust> {
    let mut keys = Vec::new();
    for given in &args.key {
        keys.extend(read_keys(given)?);
    }
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let mut notes = args.checkpoint.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    if args.key.is_empty() && args.bundle.is_none() {
        // Who may read the private keys may trust their public halves, and what they signed last.
        let file = args.place.key_file();
        keys.extend(file.read()?.iter().map(|key| key.verifier("")));
        notes.extend(file.last_note()?);
    }
    let secrets = args.callback_secrets.as_deref().unwrap_or_default();
    let secrets = secrets.split(',').map(str::trim).filter(|secret| !secret.is_empty());
    let secrets = secrets.map(Secret::new).collect::<Result<_, _>>().map_err(anyhow::Error::msg)?;
    Ok(Trust { keys, notes, secrets, archive: args.archive.clone() })
}

/// A key as it stands, or those in a file.
fn read_keys(given: &str) -> anyhow::Result<Vec<VerifierKey>> {
    if let Ok(key) = given.parse() {
        return Ok(vec![key]);
    }
    let text = std::fs::read_to_string(Path::new(given))
        .with_context(|| format!("{given} is neither a verifier key nor a file"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(str::parse).collect::<Result<_, _>>()?)
}

fn print(report: &Report, pinned: bool, seconds: f64) -> io::Result<()> {
    for finding in &report.findings {
        say!("WRONG  {finding}")?;
    }
    if report.found > report.findings.len() as u64 {
        say!("       and {} more", report.found - report.findings.len() as u64)?;
    }
    let Report { events, sealed, checkpoints, tiles, streams, .. } = report;
    say!(
        "{events} events of {streams} streams read in {seconds:.1} s, {checkpoints} checkpoints and \
         {tiles} tiles compared"
    )?;
    if let Some(root) = report.root {
        say!("{sealed} of them are sealed, under the root {root}")?;
    }
    for BegunEpoch { position, event } in &report.epochs {
        let signed =
            event.signed_size.map_or("nobody knew how many".to_owned(), |it| it.to_string());
        say!(
            "Epoch {} was begun at position {position}, after epoch {} with {} events, of which {signed} \
             had been signed, by {:?}: {:?}. Only whoever runs the log can say whether that was meant",
            event.epoch,
            event.former_epoch,
            event.size,
            event.begun_by,
            event.reason,
        )?;
    }
    if report.archived > 0 {
        say!(
            "{} events are archived in {} and were not read: of them only hashes were checked. Give \
             --archive to read them too",
            report.archived,
            report.archives.join(", "),
        )?;
    }
    if report.callbacks + report.callbacks_unchecked > 0 {
        say!(
            "{} signatures of callbacks hold, {} could not be checked: their body was kept as a hash, \
             or their secret is not here",
            report.callbacks,
            report.callbacks_unchecked
        )?;
    }
    if !pinned {
        say!(
            "The keys were taken from the log itself: who rewrote all of it could have signed it. \
             Give --key, or --checkpoint, from elsewhere."
        )?;
    }
    match report.first() {
        None => say!("Nothing is wrong."),
        Some(first) => say!("\nFirst: {first}"),
    }
}

fn as_json(report: &Report, pinned: bool, seconds: f64) -> serde_json::Value {
    let findings = report.findings.iter().map(|finding| {
        json!({
            "position": (finding.position > 0).then_some(finding.position),
            "problem": finding.problem.to_string(),
        })
    });
    let epochs = report.epochs.iter().map(|BegunEpoch { position, event }| {
        json!({
            "position": position,
            "former_epoch": event.former_epoch,
            "epoch": event.epoch,
            "size": event.size,
            "signed_size": event.signed_size,
            "begun_by": event.begun_by,
            "reason": event.reason,
        })
    });
    json!({
        "verified": report.is_clean(),
        "keys_pinned": pinned,
        "events": report.events,
        "archived_unread": report.archived,
        "archives": report.archives,
        "streams": report.streams,
        "sealed": report.sealed,
        "root": report.root.map(|root| root.to_string()),
        "checkpoints": report.checkpoints,
        "tiles": report.tiles,
        "callbacks": report.callbacks,
        "callbacks_unchecked": report.callbacks_unchecked,
        "epochs": epochs.collect::<Vec<_>>(),
        "last_recorded_at": report.last_recorded_at,
        "found": report.found,
        "findings": findings.collect::<Vec<_>>(),
        "seconds": seconds,
    })
}
