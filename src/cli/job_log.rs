//! `milepost jobs log`: what a job's runs have printed, and with `--follow` what they print.

use std::io::{BufWriter, IsTerminal as _, Write};

use milepost_schemas::{JobId, Position};
use serde::Deserialize;
use tokio_stream::StreamExt as _;

use super::client::Server;
use crate::intake::plain;

/// Rows asked for at once.
const PAGE: usize = 1_000;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job
    job_id: JobId,
    /// Go on until the job has ended
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Deserialize)]
struct Page {
    lines: Vec<Row>,
    total: u64,
    epoch: i64,
    position: Position,
}

#[derive(Deserialize)]
struct Message {
    lines: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    line: u64,
    text: String,
}

#[derive(Deserialize)]
struct Job {
    finished_at: Option<String>,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let client = args.server.client()?;
    let mut printer = Printer::new();
    let page = loop {
        let path = format!("/api/jobs/{}/log?after={}&limit={PAGE}", args.job_id, printer.last);
        let page: Page = client.get(&path).await?;
        printer.print(&page.lines)?;
        if printer.last >= page.total {
            break page;
        }
    };
    if !args.follow {
        return Ok(());
    }
    let Page { epoch, position, .. } = page;
    let job = args.job_id;
    let path = format!("/api/stream?job={job}&log={job}&since={epoch}-{position}");
    let mut messages = std::pin::pin!(client.stream(path));
    let mut ended = false;
    while let Some(message) = messages.next().await {
        let message = message?;
        match message.event.as_str() {
            "log" => printer.print(&serde_json::from_str::<Message>(&message.data)?.lines)?,
            "job" => ended = serde_json::from_str::<Job>(&message.data)?.finished_at.is_some(),
            // All that was printed before it has come.
            "bookmark" if ended => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}

/// Prints each row once; with colours where somebody looks.
struct Printer {
    out: BufWriter<std::io::Stdout>,
    colours: bool,
    last: u64,
}

impl Printer {
    fn new() -> Self {
        let out = std::io::stdout();
        Self { colours: out.is_terminal(), out: BufWriter::new(out), last: 0 }
    }

    fn print(&mut self, rows: &[Row]) -> std::io::Result<()> {
        for row in rows.iter().filter(|row| row.line > self.last) {
            if self.colours {
                writeln!(self.out, "{}\u{1b}[0m", row.text)?;
            } else {
                writeln!(self.out, "{}", plain(&row.text))?;
            }
        }
        self.last = rows.last().map_or(self.last, |row| row.line.max(self.last));
        self.out.flush()
    }
}
