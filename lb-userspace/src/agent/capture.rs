//! Captures: begun, extended and ended for whoever reads them. One at a time.

use lb_common::capture::Endpoint;
use tracing::{info, warn};

use super::state::Agent;
use crate::{
    api::{
        capture::{CaptureAnswer, CaptureFilter, CaptureRequest, LEASE_MS},
        command::DrainRequest,
    },
    dataplane::{Wanted, monotonic_ns},
};

/// The capture under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capture {
    id: u64,
    /// ns of `CLOCK_MONOTONIC`.
    until: u64,
}

impl Agent {
    pub(super) fn capture(&mut self, request: CaptureRequest) -> Result<CaptureAnswer, String> {
        self.expire_capture();
        let until = monotonic_ns() + LEASE_MS * 1_000_000;
        let id = match request {
            CaptureRequest::Begin(filter) => {
                if self.capture.is_some() {
                    return Err(
                        "packets are captured already, by another `etcd-lb capture`: one at a time".into()
                    );
                }
                if !self.serving {
                    return Err(
                        "the data plane is not attached yet: try again once `etcd-lb status` is ready".into(),
                    );
                }
                let wanted = self.wanted(&filter)?;
                self.plane.begin_capture(&wanted, until).map_err(|error| error.to_string())?;
                info!(client = ?filter.client, backend = ?filter.backend, "packets are captured");
                // Of no other agent, and of no other capture of this one.
                monotonic_ns()
            }
            CaptureRequest::Extend { id } => {
                self.own(id)?;
                self.plane.extend_capture(until).map_err(|error| error.to_string())?;
                id
            }
            CaptureRequest::End { id } => {
                self.own(id)?;
                self.end_capture();
                return Ok(self.capture_answer(id));
            }
        };
        self.capture = Some(Capture { id, until });
        Ok(self.capture_answer(id))
    }

    /// Ends a capture that nobody reads any more.
    pub(super) fn expire_capture(&mut self) {
        if self.capture.is_some_and(|capture| capture.until < monotonic_ns()) {
            warn!("the capture ends: its reader says nothing any more");
            self.end_capture();
        }
    }

    /// Ends the capture, if there is one.
    pub(super) fn end_capture(&mut self) {
        if self.capture.take().is_none() {
            return;
        }
        match self.plane.end_capture() {
            Ok(()) => info!("packets are no longer captured"),
            Err(error) => warn!(%error, "the program that captures stays in place, and captures nothing"),
        }
    }

    fn own(&self, id: u64) -> Result<(), String> {
        let is_it = self.capture.is_some_and(|capture| capture.id == id);
        if is_it { Ok(()) } else { Err("the agent has ended this capture, or was started anew".into()) }
    }

    fn capture_answer(&self, id: u64) -> CaptureAnswer {
        let name = |(ifindex, _)| {
            self.network.mirror().link(ifindex).map_or_else(|| format!("{ifindex}"), |link| link.name.clone())
        };
        CaptureAnswer {
            id,
            pin_dir: self.config.api.pin_dir.clone(),
            interfaces: self.plane.attached().into_iter().map(name).collect(),
        }
    }

    fn wanted(&self, filter: &CaptureFilter) -> Result<Wanted, String> {
        let client = filter.client.map_or(Endpoint::ANY, |address| {
            Endpoint::new(address.to_canonical().into(), filter.client_port.unwrap_or(0))
        });
        let backend = match &filter.backend {
            None => Endpoint::ANY,
            Some(backend) => self.backend_end(backend)?,
        };
        Ok(Wanted { client, backend, snap: filter.snap, passed: filter.passed })
    }

    fn backend_end(&self, backend: &str) -> Result<Endpoint, String> {
        let request = DrainRequest { backend: backend.into(), service: None };
        let mut addresses: Vec<_> =
            self.find_backends(&request)?.into_iter().map(|(key, ..)| key.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        match addresses[..] {
            [address] => Ok(Endpoint::new(address.ip().into(), address.port())),
            _ => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                let addresses = addresses.join(" or ");
                Err(format!(
                    "{backend} is the name of several backends: name one by its address, {addresses}"
                ))
            }
        }
    }
}
