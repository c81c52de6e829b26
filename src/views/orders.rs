//! What is ordered of a view, carried out beside its runner: new rows, the former ones, a
//! comparison with the log.
//!
//! Orders and their ends are events of the projection's own stream, so whoever runs the views next
//! goes on with what the one before has left: a generation that was not finished is dropped and
//! filled anew, and one that took over already says by which order.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use milepost_projections::upkeep::{Order, OrderKind, upkeep_stream};
use milepost_projections::{Projection, Upkeep};
use milepost_schemas::event::{OrderOutcome, ProjectionOrderEnded, Switch};
use milepost_schemas::{Metadata, Position};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_postgres::Client;

use super::compare::compare;
use super::fill::{Filling, Poison, ROWS_IN_MEMORY_MAX, UNHURRIED, fill};
use super::generation::{Difference, Generation, Phase, Progress};
use super::runner::View;
use crate::app::App;
use crate::domain::UpkeepCommand;
use crate::domain::upkeep::UpkeepRefusal;
use crate::execute::{ExecuteError, read_upkeep, to_projection};
use crate::log::DatabaseError;

/// Who says what came of an order.
const ACTOR: &str = "system:views";

/// How often progress is kept where every process sees it.
const REPORT: Duration = Duration::from_millis(250);

/// New rows take over once they are so many events behind, or fewer: what is left is folded while
/// nothing can be appended.
const SWITCH_EVENTS_MAX: u64 = 500;

/// How often it is looked for rows that nobody reads any more; and again where some could not be
/// dropped.
const DISCARD: Duration = Duration::from_hours(1);
const DISCARD_AGAIN: Duration = Duration::from_secs(10);

/// How often the head is taken for a switch before the order fails: each time the rest was more
/// than is folded under it.
const SWITCHES_MAX: usize = 100;

/// Seconds a comparison waits for the rows that are read to be as far as the new ones.
const CATCH_UPS_MAX: usize = 60;

/// And how many of these they may stand still: then they do not follow the log at all.
const STANDSTILLS_MAX: usize = 5;

/// Connections a rebuild reads over unless told otherwise, and threads it folds on.
const PARALLEL: usize = 2;

/// Drops what the process before has left, and sees to it that there are rows to read.
///
/// # Errors
/// [`DatabaseError`] when the rows cannot be filled.
pub async fn begin<P: Projection>(app: &App) -> Result<(), DatabaseError> {
    discard::<P>(app).await;
    let (client, _) = app.log.database().dedicated().await?;
    if Generation::active::<P>(&client).await?.is_some() {
        return Ok(());
    }
    let mut work = Work::<P>::begin(app, client).await?;
    let mut view = work.fill(app).await?;
    work.switch(app, &mut view, "filling", None).await?;
    Ok(())
}

/// The events a view passes over.
///
/// # Errors
/// [`DatabaseError`] when the log cannot be read.
pub async fn skipped<P: Projection>(app: &App) -> Result<HashSet<Position>, DatabaseError> {
    let upkeep = upkeep::<P>(app).await?;
    Ok(upkeep.skipped.iter().map(|skipped| skipped.position).collect())
}

async fn upkeep<P: Projection>(app: &App) -> Result<Upkeep, DatabaseError> {
    match read_upkeep(&app.log, P::NAME).await {
        Ok((_, upkeep)) => Ok(upkeep),
        Err(ExecuteError::Database(error)) => Err(error),
        Err(error) => Err(DatabaseError::Unexpected(error.to_string())),
    }
}

/// Carries out one order after the other; for as long as this process runs the view.
pub async fn carry_out<P: Projection>(app: &App, still: &Mutex<()>) {
    loop {
        if let Err(error) = carry_out_next::<P>(app, still).await {
            super::runner::pause::<P>("orders to a view are not carried out", &error).await;
        }
    }
}

/// Carries out an order, or waits for one.
///
/// # Errors
/// [`DatabaseError`] when the log cannot be read, or what came of an order cannot be said.
async fn carry_out_next<P: Projection>(app: &App, still: &Mutex<()>) -> Result<(), DatabaseError> {
    let mut news = app.log.feed().watch_orders();
    if let Some(order) = upkeep::<P>(app).await?.order {
        let (switch, told) = watch::channel(order.switch);
        let ended = tokio::select! {
            ended = attempt::<P>(app, &order, told, still) => Some(ended),
            result = watch_order::<P>(app, &mut news, &order, &switch) => { result?; None }
        };
        discard::<P>(app).await;
        return match ended {
            Some(ended) => say::<P>(app, &order, ended).await,
            None => Ok(()),
        };
    }
    let rest = if discard::<P>(app).await { DISCARD } else { DISCARD_AGAIN };
    drop(tokio::time::timeout(rest, news.changed()).await);
    Ok(())
}

/// Returns once an order is taken back; meanwhile it hands on that its rows may take over.
async fn watch_order<P: Projection>(
    app: &App,
    news: &mut watch::Receiver<Position>,
    order: &Order,
    switch: &watch::Sender<Switch>,
) -> Result<(), DatabaseError> {
    loop {
        drop(news.changed().await);
        match upkeep::<P>(app).await?.order {
            Some(now) if now.position == order.position => {
                switch.send_replace(now.switch);
            }
            Some(_) | None => return Ok(()),
        }
    }
}

/// What an order has come to.
struct End {
    outcome: OrderOutcome,
    generation: Option<i32>,
    position: Option<Position>,
    difference: Option<Difference>,
    error: Option<String>,
}

impl End {
    fn switched(generation: &Generation) -> Self {
        Self {
            outcome: OrderOutcome::Switched,
            generation: Some(generation.number),
            position: Some(generation.position),
            difference: None,
            error: None,
        }
    }

    fn failed(error: String) -> Self {
        let outcome = OrderOutcome::Failed;
        Self { outcome, generation: None, position: None, difference: None, error: Some(error) }
    }
}

async fn say<P: Projection>(
    app: &App,
    order: &Order,
    ended: Result<End, DatabaseError>,
) -> Result<(), DatabaseError> {
    let end = ended.unwrap_or_else(|error| {
        tracing::warn!(
            view = P::NAME,
            error = &error as &dyn std::error::Error,
            "an order to a view failed"
        );
        End::failed(in_words(&error))
    });
    let ended = ProjectionOrderEnded {
        projection: P::NAME.to_owned(),
        outcome: end.outcome,
        generation: end.generation.map(i32::cast_unsigned),
        position: end.position,
        rows: end.difference.as_ref().map(|it| it.rows_new),
        differing: end.difference.as_ref().map(|it| it.differing),
        first_difference: end.difference.as_ref().and_then(|it| it.first.first().copied()),
        error: end.error,
    };
    let metadata = Metadata {
        actor: ACTOR.to_owned(),
        correlation_id: upkeep_stream(P::NAME).0,
        causation_id: Some(format!("event:{}", order.position)),
        callback: None,
    };
    let command = UpkeepCommand::End { order: order.position, ended };
    match to_projection(app, P::NAME, command, metadata).await {
        // It was taken back in this very moment.
        Ok(_) | Err(ExecuteError::Upkeep(UpkeepRefusal::Nothing)) => Ok(()),
        Err(ExecuteError::Database(error)) => Err(error),
        Err(error) => Err(DatabaseError::Unexpected(error.to_string())),
    }
}

/// An error with those behind it: who reads it has no other log.
fn in_words(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// Drops rows that nobody reads. Where that fails it is tried again later: it holds up nothing.
async fn discard<P: Projection>(app: &App) -> bool {
    let discarded = async {
        let (client, _) = app.log.database().dedicated().await?;
        Generation::discard::<P>(&client).await
    };
    let discarded = discarded.await;
    if let Err(error) = &discarded {
        let error: &dyn std::error::Error = error;
        tracing::warn!(view = P::NAME, error, "rows that nobody reads are not dropped yet");
    }
    discarded.is_ok()
}

async fn attempt<P: Projection>(
    app: &App,
    order: &Order,
    switch: watch::Receiver<Switch>,
    still: &Mutex<()>,
) -> Result<End, DatabaseError> {
    let (client, _) = app.log.database().dedicated().await?;
    if let Some(done) = done_by::<P>(&client, order).await? {
        return Ok(End::switched(&done));
    }
    match order.kind {
        OrderKind::Rebuild => rebuild::<P>(app, client, order, switch, still).await,
        OrderKind::Rollback => roll_back::<P>(app, client, order).await,
        OrderKind::Verify => verify::<P>(app, client, still).await,
    }
}

/// The generation that took over by this order, where the process before could not say so.
async fn done_by<P: Projection>(
    client: &Client,
    order: &Order,
) -> Result<Option<Generation>, DatabaseError> {
    let row = client
        .query_opt(
            "SELECT generation, position FROM view_generation \
             WHERE projection = $1 AND version = $2 AND order_position = $3",
            &[&P::NAME, &P::VERSION, &(order.position.0 as i64)],
        )
        .await?;
    Ok(row.map(|row| Generation {
        projection: P::NAME,
        number: row.get(0),
        position: Position(row.get::<_, i64>(1) as u64),
    }))
}

async fn rebuild<P: Projection>(
    app: &App,
    client: Client,
    order: &Order,
    mut switch: watch::Receiver<Switch>,
    still: &Mutex<()>,
) -> Result<End, DatabaseError> {
    let mut work = Work::<P>::begin(app, client).await?;
    let mut view = work.fill(app).await?;
    let difference = work.compare(app, &mut view, still).await?;
    let equal = difference.as_ref().is_some_and(|it| it.differing == 0);
    if !equal && *switch.borrow() == Switch::WhenEqual {
        work.progress.phase = Phase::Waiting;
        work.report(&view).await?;
        keep_up(app, &mut view, &mut switch).await?;
    }
    work.switch(app, &mut view, "filling", Some(order.position)).await?;
    Ok(End { difference, ..End::switched(&view.generation) })
}

/// Keeps rows up to the log until they may take over, so that they can at once. Whether they may
/// is looked for between rounds only: of one that is broken off, rows in memory would stay folded.
async fn keep_up<P: Projection>(
    app: &App,
    view: &mut View<P>,
    switch: &mut watch::Receiver<Switch>,
) -> Result<(), DatabaseError> {
    let mut head = app.log.feed().watch();
    while *switch.borrow_and_update() == Switch::WhenEqual {
        let upto = *head.borrow_and_update();
        view.advance(app, upto, "filling").await?;
        tokio::select! {
            _ = head.changed() => {}
            _ = switch.changed() => {}
        }
    }
    Ok(())
}

async fn roll_back<P: Projection>(
    app: &App,
    client: Client,
    order: &Order,
) -> Result<End, DatabaseError> {
    let Some(former) = Generation::former::<P>(&client).await? else {
        return Ok(End::failed(UpkeepRefusal::NoFormer.to_string()));
    };
    let mut work = Work::<P>::on(app, client, former.clone());
    let (client, _) = app.log.database().dedicated().await?;
    let mut view = View::<P>::open(app, client, former).await?;
    work.progress.phase = Phase::CatchingUp;
    work.switch(app, &mut view, "former", Some(order.position)).await?;
    Ok(End::switched(&view.generation))
}

async fn verify<P: Projection>(
    app: &App,
    client: Client,
    still: &Mutex<()>,
) -> Result<End, DatabaseError> {
    let active = Generation::active::<P>(&client).await?;
    let mut work = Work::<P>::begin(app, client).await?;
    let mut view = work.fill(app).await?;
    let Some(difference) = work.compare(app, &mut view, still).await? else {
        return Ok(End::failed("The rows that are read do not follow the log".to_owned()));
    };
    let outcome = match difference.differing {
        0 => OrderOutcome::Equal,
        _ => OrderOutcome::Different,
    };
    Ok(End {
        outcome,
        generation: active.map(|active| active.number),
        position: Some(difference.position),
        difference: Some(difference),
        error: None,
    })
}

/// One generation at work.
struct Work<P: Projection> {
    client: Client,
    generation: Generation,
    begun: Instant,
    progress: Progress,
    of: std::marker::PhantomData<P>,
}

impl<P: Projection> Work<P> {
    /// A new generation to be filled.
    async fn begin(app: &App, mut client: Client) -> Result<Self, DatabaseError> {
        client.batch_execute(UNHURRIED).await?;
        let generation = Generation::create::<P>(&mut client).await?;
        Ok(Self::on(app, client, generation))
    }

    fn on(app: &App, client: Client, generation: Generation) -> Self {
        let progress = Progress {
            phase: Phase::Folding,
            events: 0,
            target: app.log.feed().head().0,
            elapsed_ms: 0,
            events_per_second: 0.0,
            remaining_ms: None,
            folded_ms: None,
            written_ms: None,
            difference: None,
        };
        let of = std::marker::PhantomData;
        Self { client, generation, begun: Instant::now(), progress, of }
    }

    /// Fills the generation up to where the log was when this began, and brings it close to where
    /// the log is.
    async fn fill(&mut self, app: &App) -> Result<View<P>, DatabaseError> {
        let upto = Position(self.progress.target);
        let folded = Arc::new(AtomicU64::new(0));
        let filling = Filling {
            generation: self.generation.clone(),
            upto,
            parallel: PARALLEL,
            skipped: skipped::<P>(app).await?,
            rows_max: ROWS_IN_MEMORY_MAX,
            folded: Arc::clone(&folded),
        };
        let read = Arc::new(AtomicU64::new(0));
        let (begun, when) = (self.begun, Arc::clone(&read));
        let written = move || when.store(millis(begun), Ordering::Relaxed);
        let poison = {
            let mut filling = std::pin::pin!(fill::<P>(app.log.database(), &filling, written));
            loop {
                tokio::select! {
                    poison = &mut filling => break poison?,
                    () = tokio::time::sleep(REPORT) => {
                        self.count(folded.load(Ordering::Relaxed), read.load(Ordering::Relaxed));
                        self.generation.report(&self.client, &self.progress).await?;
                    }
                }
            }
        };
        self.count(upto.0, read.load(Ordering::Relaxed));
        self.generation.analyze(&self.client).await?;
        self.check_in(upto, &poison).await?;
        self.progress.written_ms = Some(millis(self.begun));
        self.progress.phase = Phase::CatchingUp;
        self.generation.report(&self.client, &self.progress).await?;
        let (client, _) = app.log.database().dedicated().await?;
        let mut view = View::open(app, client, self.generation.clone()).await?;
        self.catch_up(app, &mut view, "filling").await?;
        Ok(view)
    }

    fn count(&mut self, events: u64, read_ms: u64) {
        let progress = &mut self.progress;
        progress.events = events;
        progress.elapsed_ms = millis(self.begun);
        if read_ms == 0 {
            let seconds = self.begun.elapsed().as_secs_f64();
            progress.events_per_second = events as f64 / seconds.max(0.001);
            let left = progress.target.saturating_sub(events) as f64;
            progress.remaining_ms =
                (events > 0).then(|| (left / progress.events_per_second * 1_000.0) as u64);
        } else {
            progress.phase = Phase::Writing;
            progress.events_per_second = events as f64 * 1_000.0 / read_ms as f64;
            progress.folded_ms = Some(read_ms);
            progress.remaining_ms = None;
        }
    }

    /// Commits the checkpoint of what was filled, with what it stopped at.
    async fn check_in(&mut self, upto: Position, poison: &[Poison]) -> Result<(), DatabaseError> {
        let tx = self.client.transaction().await?;
        for poison in poison {
            tx.execute(
                "INSERT INTO view_poison (projection, generation, position, stream_id, error) \
                 VALUES ($1, $2, $3, $4, $5)",
                &[
                    &P::NAME,
                    &self.generation.number,
                    &(poison.position.0 as i64),
                    &poison.stream.0,
                    &poison.error,
                ],
            )
            .await?;
        }
        tx.execute(
            "UPDATE view_generation SET position = $3, updated_at = now() \
             WHERE projection = $1 AND generation = $2",
            &[&P::NAME, &self.generation.number, &(upto.0 as i64)],
        )
        .await?;
        tx.commit().await?;
        self.generation.position = upto;
        Ok(())
    }

    async fn report(&mut self, view: &View<P>) -> Result<(), DatabaseError> {
        self.progress.events = view.position().0;
        self.progress.elapsed_ms = millis(self.begun);
        self.generation.report(&self.client, &self.progress).await
    }

    /// Folds what was appended meanwhile, until little is left.
    async fn catch_up(
        &mut self,
        app: &App,
        view: &mut View<P>,
        state: &str,
    ) -> Result<(), DatabaseError> {
        let mut reported = Instant::now();
        loop {
            let head = app.log.feed().head();
            if head.0.saturating_sub(view.position().0) <= SWITCH_EVENTS_MAX {
                return Ok(());
            }
            let next =
                Position(head.0.min(view.position().0 + super::runner::ROUND_EVENTS_MAX as u64));
            view.advance(app, next, state).await?;
            if reported.elapsed() >= REPORT {
                reported = Instant::now();
                self.report(view).await?;
            }
        }
    }

    /// Compares the rows with those that are read while these stand still: the new ones are brought
    /// to the very position that they hold for. `None` where those that are read do not get there.
    ///
    /// Lists are as old as this lasts. A snapshot would spare them that; but for as long as one is
    /// open, nothing that any commit leaves behind in the row of the log's head can be pruned.
    async fn compare(
        &mut self,
        app: &App,
        view: &mut View<P>,
        still: &Mutex<()>,
    ) -> Result<Option<Difference>, DatabaseError> {
        self.progress.phase = Phase::Comparing;
        self.report(view).await?;
        if !Self::is_passed(app, view.position()).await? {
            return Ok(None);
        }
        let _still = still.lock().await;
        let Some(active) = Generation::active::<P>(&self.client).await? else { return Ok(None) };
        view.advance(app, active.position, "filling").await?;
        let old = (&self.client, &active);
        let difference = compare(old, (&view.client, &view.generation), active.position).await?;
        if Generation::active::<P>(&self.client).await?.as_ref() != Some(&active) {
            return Err(view.taken());
        }
        self.progress.difference = Some(difference.clone());
        self.report(view).await?;
        Ok(Some(difference))
    }

    /// Waits until the rows that are read are at a position or past it, for they rest on a busy
    /// log; false where they do not get there.
    async fn is_passed(app: &App, position: Position) -> Result<bool, DatabaseError> {
        let (mut last, mut standstills) = (None, 0);
        for _ in 0..CATCH_UPS_MAX {
            let active = app.views.catch_up(P::NAME, P::VERSION, position).await?;
            let reached = active.map(|active| active.position);
            if reached >= Some(position) {
                return Ok(true);
            }
            standstills = if reached == last { standstills + 1 } else { 0 };
            if standstills >= STANDSTILLS_MAX {
                return Ok(false);
            }
            last = reached;
        }
        Ok(false)
    }

    /// Lets the generation take over.
    async fn switch(
        &mut self,
        app: &App,
        view: &mut View<P>,
        from: &str,
        order: Option<Position>,
    ) -> Result<(), DatabaseError> {
        self.progress.phase = Phase::Switching;
        for _ in 0..SWITCHES_MAX {
            self.catch_up(app, view, from).await?;
            self.report(view).await?;
            if let Some(held_us) = view.switch(from, order).await? {
                let (generation, position) = (view.generation.number, view.position().0);
                tracing::info!(view = P::NAME, generation, position, held_us, "new rows are read");
                return Ok(());
            }
        }
        Err(DatabaseError::Unexpected(format!("{} does not catch up with the log", P::NAME)))
    }
}

fn millis(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}
