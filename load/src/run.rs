//! A run from its first connection to its report.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinSet, yield_now},
    time::{sleep_until, timeout},
};

use crate::{
    Arrivals, Pace, Plan, Report,
    connection::{Connection, Established, Patience},
    failure::{Failure, Kind},
    limits::{self, CpuTime},
    payload::Key,
    random::Random,
    request::Request,
    schedule::Schedule,
    site::{Run, Site},
    timer::Timer,
};

/// Connections that are made at once: fewer than a listener's queue holds, 128 in older kernels.
const CONNECTING: usize = 64;
/// Puts under way while the keys are made.
const FILLING: usize = 64;
/// Requests sent without a look at what else there is to do, when many are due.
const BURST: usize = 64;
/// What a request may take beyond its timeout until it is counted.
const GRACE: Duration = Duration::from_secs(5);

/// Does a run, and blocks until it is over. It has a runtime of its own, whose threads begin in the caller's network
/// namespace; so it must not be called within one.
///
/// # Errors
///
/// If the plan cannot be done: a setting out of its range, a connection that cannot be made at the start, keys that cannot
/// be written. What fails later is part of the report.
pub fn run(plan: &Plan) -> Result<Report> {
    run_with(plan, || {})
}

/// The same, and calls `measuring` when the warm-up is over: the instant that the report's times are since, for whoever means
/// to disturb the run. It should return at once, since requests may wait for it.
///
/// # Errors
///
/// As [`run`].
pub fn run_with(plan: &Plan, measuring: impl FnOnce()) -> Result<Report> {
    plan.check()?;
    limits::allow(plan.connections)?;
    let mut builder = match plan.threads {
        // The caller's thread does it all.
        1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    let runtime = builder.enable_all().build().context("making a runtime")?;
    let report = runtime.block_on(execute(plan, measuring));
    // What is left are connections that nobody needs.
    runtime.shutdown_background();
    report
}

async fn execute(plan: &Plan, measuring: impl FnOnce()) -> Result<Report> {
    let site = Arc::new(Site::new(plan)?);
    let connections: Vec<_> = (0..plan.connections).map(|number| Arc::new(Connection::new(number))).collect();
    let established = connect(&site, &connections).await?;
    for (connection, established) in connections.iter().zip(&established) {
        connection.open(established);
    }
    fill(&site, &connections).await?;

    let run = Arc::new(Run::begin(site)?);
    let mut keepers = JoinSet::new();
    for (connection, established) in connections.iter().zip(established) {
        keepers.spawn(connection.clone().keep(run.clone(), established));
    }
    let (due, cpu) = match plan.pace {
        Pace::Open { rate, arrivals } => open(&run, &connections, (rate, arrivals), measuring).await?,
        Pace::Closed { in_flight } => closed(&run, &connections, in_flight, measuring).await?,
    };
    // First, since what is removed is an event too.
    keepers.shutdown().await;
    let keys_removed = remove_keys(&run.site).await;
    Report::new(plan, &run.recorder(), due, cpu, keys_removed)
}

/// Makes all connections; the first that cannot be made ends it.
async fn connect(site: &Arc<Site>, connections: &[Arc<Connection>]) -> Result<Vec<Established>> {
    let attempts = connections.iter().enumerate().map(|(number, connection)| async move {
        connection.establish(site).await.map_err(|failure| {
            let endpoint = site.endpoint(number);
            let may_be_tls =
                !endpoint.is_tls() && matches!(failure.kind, Kind::Closed | Kind::Reset | Kind::Protocol);
            let hint = if may_be_tls { "; is it a TLS port? then write https://" } else { "" };
            anyhow!("cannot use {endpoint}: {failure} ({}){hint}", failure.kind.name())
        })
    });
    stream::iter(attempts).buffered(CONNECTING).try_collect().await
}

/// Writes every key once, so that no get finds none.
async fn fill(site: &Arc<Site>, connections: &[Arc<Connection>]) -> Result<()> {
    let puts = (0..site.plan.keys).map(|number| async move {
        let key = Key::Shared(number);
        let (put, before) = {
            let mut truth = site.truth();
            (truth.begin_put(), truth.before(key))
        };
        let write = async {
            let client = connections[number % connections.len()].client(Patience::FailFast).await?;
            client.put(site.payload.key(key), site.payload.value(key, put)).await
        };
        let answer = timeout(site.plan.timeout, write).await.context("no answer in time")??;
        site.truth().put_answered(key, put, before, answer.header).map_err(Failure::wrong)?;
        Ok::<_, anyhow::Error>(())
    });
    let all = stream::iter(puts).buffer_unordered(FILLING).try_collect::<()>().await;
    all.context("cannot write the keys of the run")
}

/// Makes requests when they are due: how many were within what is measured, and the CPU time that it took.
async fn open(
    run: &Arc<Run>,
    connections: &[Arc<Connection>],
    pace: (f64, Arrivals),
    measuring: impl FnOnce(),
) -> Result<(u64, CpuTime)> {
    let limit = run.site.plan.backlog;
    let room = Arc::new(Semaphore::new(limit));
    let pacer = tokio::spawn(keep_pace(run.clone(), connections.to_vec(), pace, room.clone()));
    let cpu = measured(run, measuring).await?;
    let due = pacer.await.context("the pacer failed")??;
    let all = u32::try_from(limit).context("the backlog's limit")?;
    // All of it is free again when the last request is counted.
    let _ = timeout(run.site.plan.timeout + GRACE, room.acquire_many(all)).await;
    Ok((due, cpu))
}

async fn keep_pace(
    run: Arc<Run>,
    connections: Vec<Arc<Connection>>,
    (rate, arrivals): (f64, Arrivals),
    room: Arc<Semaphore>,
) -> Result<u64> {
    let plan = &run.site.plan;
    let (timer, mut random) = (Timer::new()?, Random::new(plan.seed));
    let mut schedule = Schedule::new(rate, arrivals, random.bits());
    let (mut made, mut measured) = (0_usize, 0);
    loop {
        let due = schedule.next_at();
        if due >= run.end() {
            return Ok(measured);
        }
        while schedule.take_due(run.now()).is_none() {
            timer.sleep(due.saturating_sub(run.now())).await?;
        }
        let request = Request {
            operation: plan.mix.choose(&mut random),
            key: random.below(plan.keys as u64) as usize,
            due,
            patience: Patience::FailFast,
        };
        measured += u64::from(due >= plan.warmup);
        match room.clone().try_acquire_owned() {
            Ok(permit) => send(&run, &connections[made % connections.len()], request, permit),
            Err(_) => {
                let text = format!("{} requests were under way", plan.backlog);
                let failure = Failure::new(Kind::Backlog, text);
                run.recorder().failed(request.operation, due, &failure);
            }
        }
        run.recorder().backlog(plan.backlog - room.available_permits());
        made += 1;
        if made.is_multiple_of(BURST) {
            yield_now().await;
        }
    }
}

fn send(run: &Arc<Run>, connection: &Arc<Connection>, request: Request, permit: OwnedSemaphorePermit) {
    let (run, connection) = (run.clone(), connection.clone());
    tokio::spawn(async move {
        request.make(&run, &connection).await;
        drop(permit);
    });
}

/// Makes requests one after the other: how many within what is measured, and the CPU time that it took.
async fn closed(
    run: &Arc<Run>,
    connections: &[Arc<Connection>],
    in_flight: usize,
    measuring: impl FnOnce(),
) -> Result<(u64, CpuTime)> {
    let mut loops = JoinSet::new();
    let mut random = Random::new(run.site.plan.seed);
    for connection in connections {
        for _ in 0..in_flight {
            loops.spawn(one_by_one(run.clone(), connection.clone(), Random::new(random.bits())));
        }
    }
    let cpu = measured(run, measuring).await?;
    let mut made = 0;
    while let Some(count) = loops.join_next().await {
        made += count.context("a loop failed")?;
    }
    Ok((made, cpu))
}

async fn one_by_one(run: Arc<Run>, connection: Arc<Connection>, mut random: Random) -> u64 {
    let plan = &run.site.plan;
    let mut measured = 0;
    loop {
        let due = run.now();
        if due >= run.end() {
            return measured;
        }
        let request = Request {
            operation: plan.mix.choose(&mut random),
            key: random.below(plan.keys as u64) as usize,
            due,
            patience: Patience::Wait,
        };
        measured += u64::from(due >= plan.warmup);
        request.make(&run, &connection).await;
    }
}

/// Waits for the end of what is measured: the CPU time of it.
async fn measured(run: &Run, measuring: impl FnOnce()) -> Result<CpuTime> {
    sleep_until(run.instant(run.site.plan.warmup).into()).await;
    measuring();
    let begin = CpuTime::now()?;
    sleep_until(run.instant(run.end()).into()).await;
    Ok(CpuTime::now()?.since(begin))
}

/// Removes the run's keys, by whichever endpoint answers first: whether that could be done.
async fn remove_keys(site: &Site) -> bool {
    for number in 0..site.plan.endpoints.len() {
        let remove = async {
            let connected = site.connect(number).await?;
            connected.client.delete(site.payload.prefix(), site.payload.prefix_end()).await
        };
        if timeout(site.plan.timeout, remove).await.is_ok_and(|answer| answer.is_ok()) {
            return true;
        }
    }
    false
}
