//! Live flows follow the routes to their clients: where a route changes, or its router's MAC, their records are written anew.
//! An idle client is reached the new way at once, without having said a word.

use lb_core::{reconcile::Change, ways::Lookup};
use tracing::info;

use super::DataPlane;

impl DataPlane {
    /// Brings the records of live flows in line with `client_routes`; how many were not. Flows whose client has no router
    /// stay as they are: they follow their clients' own packets.
    pub(super) fn follow_client_routes(&mut self) -> usize {
        if self.actual.client_routes.is_empty() {
            return 0;
        }
        let lookup = Lookup::new(&self.actual.client_routes);
        let mut moved = 0;
        for table in self.tables.values() {
            for port in table.ports().filter(|&port| table.claim(port).is_live()) {
                let Some(record) = table.flow(port) else { continue };
                // The agent knows of no routers behind VLAN tags.
                if record.outer_tag != 0 {
                    continue;
                }
                if let Some(route) = lookup.router(record.client) {
                    moved += usize::from(table.reroute(port, &record, route));
                }
            }
        }
        if moved > 0 {
            info!(flows = moved, "flows follow a new way to their clients");
        }
        moved
    }
}

/// Whether a plan changes the way to clients.
pub(super) fn concern(plan: &[Change]) -> bool {
    plan.iter().any(|change| matches!(change, Change::ClientRoute(..)))
}
