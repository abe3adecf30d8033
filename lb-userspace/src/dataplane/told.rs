//! What the data plane tells: its ring buffers, the names behind the numbers in them, and what it measures.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::maps::{FlowEvent, Handshakes, Signal, name};

use super::{DataPlane, Error, address_of, rings::Ring};

/// Between two batches of events: a flow log may be late by so much.
const EVENT_PAUSE: Duration = Duration::from_millis(5);

/// Where a backend's number belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendPlace {
    /// VIP and port of its service.
    pub service: SocketAddr,
    /// The backend.
    pub backend: SocketAddr,
    /// The source address toward it.
    pub source: IpAddr,
}

impl DataPlane {
    /// The ring buffers, once.
    ///
    /// # Errors
    ///
    /// [`Error::MapCall`]; also if they were taken before.
    pub fn take_rings(&mut self) -> Result<(Ring<Signal>, Ring<FlowEvent>), Error> {
        let taken = || std::io::Error::other("it is read already");
        let (signals, events) = (self.maps.signals.take(), self.maps.events.take());
        let signals = signals.ok_or_else(taken).and_then(|ring| Ring::new(ring, Duration::ZERO));
        let events = events.ok_or_else(taken).and_then(|ring| Ring::new(ring, EVENT_PAUSE));
        Ok((
            signals.map_err(Error::call("read", name::SIGNALS))?,
            events.map_err(Error::call("read", name::EVENTS))?,
        ))
    }

    /// What a backend's number stands for.
    pub fn place_of(&self, number: u16) -> Option<BackendPlace> {
        let backend = self.actual.backends.get(&number)?;
        let service = self.actual.services.get(&backend.service)?;
        Some(BackendPlace {
            service: SocketAddr::new(service.vip.to_ip(), service.port.get()),
            backend: address_of(backend),
            source: backend.source.to_ip(),
        })
    }

    /// SYNs that a backend left unanswered for a minute, since this process began.
    pub fn unanswered(&self, number: u16) -> u64 {
        self.sweeper.unanswered.get(&number).copied().unwrap_or_default()
    }

    /// How long a backend took to answer SYNs, all CPUs together.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn handshakes(&self, number: u16) -> Result<Handshakes, Error> {
        let times = self.maps.handshakes.get(&u32::from(number), 0);
        let values = times.map_err(Error::map(name::HANDSHAKES))?;
        let mut sum = Handshakes::default();
        values.iter().for_each(|times| sum.add(times));
        Ok(sum)
    }
}
