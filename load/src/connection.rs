//! A connection that is kept: made, proven, watched, and made again when it breaks.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    sync::{oneshot, watch},
    time::{sleep, timeout},
};

use crate::{
    Operation,
    backoff::Backoff,
    client::{self, Client, Connected},
    events::Events,
    failure::{Failure, Kind, closed},
    messages::{Event, EventType, WatchResponse},
    payload::Key,
    site::{Run, Site, lock},
};

/// One of the run's connections.
pub struct Connection {
    number: usize,
    state: watch::Sender<State>,
    events: Mutex<Events<Waiter>>,
}

/// Who waits for an event.
pub type Waiter = oneshot::Sender<Result<Arrival, Failure>>;

/// An event came.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// When, since the run's start.
    pub at: Duration,
    /// Its revision.
    pub revision: i64,
}

/// Whether requests can be made.
enum State {
    /// Not yet: an attempt is under way.
    Connecting,
    Up(Client),
    /// The last attempt failed, and the next one waits.
    Down(Failure),
}

/// What a request does while there is no connection. Either way it waits for an attempt that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It fails with the attempt, as gRPC's clients do unless they are told to wait (`wait_for_ready`).
    FailFast,
    /// It waits for the next attempt too.
    Wait,
}

/// A connection that was proven good by an answer.
pub struct Established {
    connected: Connected,
    events: Option<client::Events>,
}

impl Connection {
    /// The connection of this number, which is not made yet.
    pub fn new(number: usize) -> Self {
        Self { number, state: watch::Sender::new(State::Connecting), events: Mutex::default() }
    }

    /// The key that it watches.
    pub fn watched(&self) -> Key {
        Key::Watched(self.number)
    }

    /// The events that it waits for.
    pub fn events(&self) -> std::sync::MutexGuard<'_, Events<Waiter>> {
        lock(&self.events)
    }

    /// Who makes requests on it, once there is one.
    ///
    /// # Errors
    ///
    /// Why the last attempt failed, for those that fail fast.
    pub async fn client(&self, patience: Patience) -> Result<Client, Failure> {
        if let Some(found) = self.state.borrow().client(patience) {
            return found;
        }
        let mut state = self.state.subscribe();
        loop {
            if let Some(found) = state.borrow_and_update().client(patience) {
                return found;
            }
            // The sender is this connection's own.
            let _ = state.changed().await;
        }
    }

    /// Makes it: connects, proves by a linearizable read that etcd answers, and begins its watch if the run has any.
    ///
    /// # Errors
    ///
    /// Why not, or that it took longer than requests may.
    pub async fn establish(&self, site: &Site) -> Result<Established, Failure> {
        let limit = site.plan.timeout;
        let late = |_| Failure::new(Kind::Timeout, format!("no connection and answer within {limit:?}"));
        timeout(limit, self.try_to(site)).await.map_err(late)?
    }

    async fn try_to(&self, site: &Site) -> Result<Established, Failure> {
        let connected = site.connect(self.number).await?;
        let client = &connected.client;
        let key = Key::Shared(0);
        let before = site.truth().before(key);
        let answer = client.get(site.payload.key(key)).await?;
        site.truth().read(before, answer.header).map_err(Failure::wrong)?;

        let mut events = None;
        if site.plan.mix.has(Operation::Watch) {
            let from = self.events().resume_at();
            let mut stream = client.watch(site.payload.key(self.watched()), from).await?;
            let first = stream.next().await?.ok_or_else(closed)?;
            if !first.created || first.canceled {
                return Err(canceled(&first));
            }
            self.events().created(first.header.map_or(0, |header| header.revision));
            events = Some(stream);
        }
        Ok(Established { connected, events })
    }

    /// From now on requests can be made on this one.
    pub fn open(&self, established: &Established) {
        self.state.send_replace(State::Up(established.connected.client.clone()));
    }

    /// Keeps it until the task is aborted: counts its breaks, and makes it again at once, or after a short while if it did
    /// not last.
    pub async fn keep(self: Arc<Self>, run: Arc<Run>, established: Established) {
        let mut backoff = Backoff::new(run.site.plan.seed ^ self.number as u64);
        let mut established = Some(established);
        let mut broken_since = None;
        loop {
            let began = Instant::now();
            let made = match established.take() {
                Some(made) => Ok(made),
                None => self.establish(&run.site).await,
            };
            match made {
                Ok(made) => {
                    if let Some(since) = broken_since.take() {
                        run.recorder().outage(since, run.now());
                    }
                    self.open(&made);
                    let failure = self.follow(&run, made).await;
                    let now = run.now();
                    run.recorder().broken(now, &failure);
                    broken_since = Some(now);
                    self.state.send_replace(State::Connecting);
                    sleep(backoff.after(began.elapsed())).await;
                }
                Err(failure) => {
                    let now = run.now();
                    run.recorder().not_connected(now, &failure);
                    if let Some(since) = broken_since {
                        // Here too, so that an outage that does not end within the run is counted.
                        run.recorder().outage(since, now);
                    }
                    self.state.send_replace(State::Down(failure));
                    sleep(backoff.after(Duration::ZERO)).await;
                    self.state.send_replace(State::Connecting);
                }
            }
        }
    }

    /// Takes its events, until it breaks: why.
    async fn follow(&self, run: &Run, mut made: Established) -> Failure {
        let failure = match &mut made.events {
            None => made.connected.ended().await,
            Some(events) => tokio::select! {
                failure = made.connected.ended() => failure,
                failure = self.take_events(run, events) => failure,
            },
        };
        made.connected.close(failure.clone());
        failure
    }

    async fn take_events(&self, run: &Run, events: &mut client::Events) -> Failure {
        loop {
            match events.next().await {
                Ok(Some(response)) if response.canceled => return self.canceled(&response),
                Ok(Some(response)) => {
                    let at = run.now();
                    for event in &response.events {
                        if let Err(text) = self.take(run, event, at) {
                            run.recorder().wrong(&text);
                        }
                    }
                }
                Ok(None) => return closed(),
                Err(failure) => return failure,
            }
        }
    }

    fn take(&self, run: &Run, event: &Event, at: Duration) -> Result<(), String> {
        let kv = event.kv.as_ref().ok_or("an event without a key")?;
        if event.kind != i32::from(EventType::Put) {
            return Err(format!("an event that is no put, of {}", kv.key.escape_ascii()));
        }
        let (revision, put) = run.site.truth().event(self.watched(), kv)?;
        let seen = self.events().event(put, revision)?;
        if let Some(waiter) = seen.arrived {
            // Its request may have timed out meanwhile.
            let _ = waiter.send(Ok(Arrival { at, revision }));
        }
        for waiter in seen.lost {
            let _ = waiter.send(Err(lost(revision)));
        }
        Ok(())
    }

    fn canceled(&self, response: &WatchResponse) -> Failure {
        let failure = canceled(response);
        if response.compact_revision > 0 {
            for waiter in self.events().compacted(response.compact_revision) {
                let _ = waiter.send(Err(failure.clone()));
            }
        }
        failure
    }
}

impl State {
    /// What a request gets; nothing if it is to wait.
    fn client(&self, patience: Patience) -> Option<Result<Client, Failure>> {
        match self {
            // That it broke is known a little earlier than that a new one is being made.
            Self::Up(client) if client.is_broken() => None,
            Self::Up(client) => Some(Ok(client.clone())),
            Self::Down(failure) if patience == Patience::FailFast => Some(Err(failure.clone())),
            Self::Down(_) | Self::Connecting => None,
        }
    }
}

/// An event was overtaken.
pub fn lost(revision: i64) -> Failure {
    Failure::wrong(format!("an event did not come before the later one of revision {revision}"))
}

fn canceled(response: &WatchResponse) -> Failure {
    let reason = match (response.compact_revision, response.cancel_reason.as_str()) {
        (0, "") => "no reason given".to_owned(),
        (0, reason) => reason.to_owned(),
        (revision, _) => format!("revisions before {revision} are compacted"),
    };
    Failure::new(Kind::Grpc(tonic::Code::Cancelled), format!("etcd ended the watch: {reason}"))
}
