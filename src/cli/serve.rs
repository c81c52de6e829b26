//! `milepost serve` and `milepost migrate`: production, everything from settings.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::rehearse;
use crate::app::App;
use crate::config::Config;
use crate::log::Database;
use crate::{http, migrate as migrations, push, telemetry};

/// Connections the kernel keeps for us while we accept others.
const BACKLOG: u32 = 4_096;

/// How long an attempt that is ended with its worker may take to say so, beyond the grace that its
/// processes have, or the answer that its dispatch waits for; and what is done behind an answer, to
/// be done.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long the last checkpoint may take: with a database that is gone, there is none.
const LAST_SEAL: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bring the database up to date first; of several servers, one does it
    #[arg(long)]
    migrate: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::start();
    rehearse::check_faults()?;
    let config = Config::from_env(|name| std::env::var(name).ok())?;
    if args.migrate {
        migrations::migrate(&Database::new(&config.database_url)?).await?;
    }
    let listener = listen(&config)?;
    let shutdown = shutdown_on_signal()?;
    let app = App::open(config, shutdown).await.context(
        "the log cannot be opened: is the database there, and migrated (`milepost migrate`)?",
    )?;
    tracing::info!(listen = %app.config.listen, url = app.config.public_url, "serving");
    serve(app, listener).await
}

/// Brings the database named by `DATABASE_URL` up to date.
pub async fn migrate() -> anyhow::Result<()> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
    let applied = migrations::migrate(&Database::new(&url)?).await?;
    say!("{applied} migrations applied")?;
    Ok(())
}

/// Listens where the settings say.
pub fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    raise_file_limit();
    let socket = match config.listen {
        std::net::SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
        std::net::SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(config.listen).with_context(|| {
        let listen = config.listen;
        format!("cannot listen on {listen}: name another by MILEPOST_LISTEN (or `dev --listen`)")
    })?;
    Ok(socket.listen(BACKLOG)?)
}

/// Serves until told to end, then drains; an error where it ends for the log was set back.
pub async fn serve(app: Arc<App>, listener: TcpListener) -> anyhow::Result<()> {
    app.start();
    let router = http::router(Arc::clone(&app));
    push::serve::serve(Arc::clone(&app), listener, router).await?;
    app.behind_answers.close();
    if tokio::time::timeout(LAST_WORDS, app.behind_answers.wait()).await.is_err() {
        tracing::warn!("some log-ins that failed are not in the log");
    }
    // Their processes are being ended, and nothing new is sent; what is not said in time, the lapse
    // of their leases says.
    app.attempts.close();
    let longest = app.config.ansible.grace.max(app.config.github.settings.timeout);
    let ended = tokio::time::timeout(longest + LAST_WORDS, app.attempts.wait());
    if ended.await.is_err() {
        tracing::warn!(attempts = app.attempts.len(), "some attempts have not ended");
    }
    app.drained.cancel();
    app.sealing.close();
    if tokio::time::timeout(LAST_SEAL, app.sealing.wait()).await.is_err() {
        tracing::warn!("the last events are not sealed");
    }
    // Whoever supervises this process starts it again; that one reads the log as it is now.
    anyhow::ensure!(
        !app.log.feed().is_set_back(),
        "the log was set back while this process ran: what it held in memory was of another log. \
         After a restore: milepost log new-epoch --reason …"
    );
    Ok(())
}

/// A token that is cancelled by SIGINT or SIGTERM.
pub fn shutdown_on_signal() -> anyhow::Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("ending");
        token.cancel();
    });
    Ok(shutdown)
}

/// A stream is a file descriptor: take as many as the system gives.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
