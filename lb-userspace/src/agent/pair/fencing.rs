//! The lease is over and this node has not given the VIPs up: it is fenced.

use tracing::{info, warn};

use super::{Pair, Role};
use crate::agent::state::Agent;

impl Pair {
    /// Whether it is active by its word, and the data plane claims nothing.
    pub(in crate::agent) fn is_fenced(&self) -> bool {
        self.role == Role::Active && !self.owns_vips()
    }
}

impl Agent {
    /// Tells of the beginning and the end of a fencing: nobody else does while the thread that keeps the lease hangs.
    pub(in crate::agent) fn note_fencing(&mut self) {
        let Some(pair) = &mut self.pair else { return };
        let is_fenced = pair.is_fenced();
        if std::mem::replace(&mut pair.was_fenced, is_fenced) == is_fenced {
            return;
        }
        if is_fenced {
            warn!("fenced: the lease is over, and the VIPs are not claimed");
            self.events.note("role", "", "fenced: the lease is over, and the VIPs are not claimed");
        } else {
            info!("no longer fenced");
            self.events.note("role", "", "no longer fenced");
        }
    }
}
