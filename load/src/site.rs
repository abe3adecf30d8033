//! What all connections of a run share, from before it is measured.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use rustls::ClientConfig;

use crate::{
    Endpoint, Plan,
    client::{Connected, connect},
    failure::Failure,
    payload::Payload,
    recorder::Recorder,
    tls,
    truth::Truth,
};

/// The plan, and what is known of the cluster.
pub struct Site {
    pub plan: Plan,
    pub tls: Option<Arc<ClientConfig>>,
    pub payload: Payload,
    truth: Mutex<Truth>,
}

impl Site {
    /// A run of its own, whose keys no other has.
    ///
    /// # Errors
    ///
    /// A file of TLS that cannot be used.
    pub fn new(plan: &Plan) -> Result<Self> {
        let tls = plan.tls.as_ref().map(tls::config).transpose()?;
        let payload = Payload::new(run_number(), plan.key_size, plan.value_size);
        let truth = Mutex::new(Truth::new(payload, plan.keys));
        Ok(Self { plan: plan.clone(), tls, payload, truth })
    }

    /// The endpoint of the connection of this number.
    pub fn endpoint(&self, number: usize) -> &Endpoint {
        &self.plan.endpoints[number % self.plan.endpoints.len()]
    }

    /// Connects to that.
    ///
    /// # Errors
    ///
    /// Why there is no connection.
    pub async fn connect(&self, number: usize) -> Result<Connected, Failure> {
        let server_name = self.plan.tls.as_ref().and_then(|files| files.server_name.as_deref());
        let tls = self.tls.as_ref().map(|config| (config, server_name));
        connect(self.endpoint(number), tls).await
    }

    /// What is known of the cluster.
    pub fn truth(&self) -> MutexGuard<'_, Truth> {
        lock(&self.truth)
    }
}

/// A run that is under way.
pub struct Run {
    pub site: Arc<Site>,
    start: Instant,
    recorder: Mutex<Recorder>,
}

impl Run {
    /// It begins now, with its warm-up.
    ///
    /// # Errors
    ///
    /// If there is no room for the counts.
    pub fn begin(site: Arc<Site>) -> Result<Self> {
        let window = site.plan.warmup..site.plan.warmup + site.plan.duration;
        let recorder = Mutex::new(Recorder::new(window)?);
        Ok(Self { site, start: Instant::now(), recorder })
    }

    /// Time since its begin.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// When this time since its begin is.
    pub fn instant(&self, at: Duration) -> Instant {
        self.start + at
    }

    /// The end of what is measured.
    pub fn end(&self) -> Duration {
        self.site.plan.warmup + self.site.plan.duration
    }

    /// The counts.
    pub fn recorder(&self) -> MutexGuard<'_, Recorder> {
        lock(&self.recorder)
    }
}

/// A lock whose holders do not wait and leave nothing half done, so that a panic of one does not matter to the next.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Not the seed's: runs of the same seed have keys of their own.
fn run_number() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let bits = now.as_nanos() as u64 ^ u64::from(std::process::id()) << 32;
    crate::random::Random::new(bits).bits() as u32
}
