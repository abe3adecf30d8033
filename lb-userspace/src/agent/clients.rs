//! The ways to clients behind routers: kept as the kernel's main routing table has them.

use std::time::{Duration, Instant};

use lb_core::ways::{self, Ways};
use tracing::{info, warn};

use super::{attach, state::Agent};
use crate::netlink::table;

/// A table that was too long is looked at again after so long: to list it takes a second or so.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The routes by which clients are reached.
#[derive(Debug, Default)]
pub(super) struct ClientWays {
    pub(super) ways: Ways,
    /// There were more than the data plane takes: when that was seen.
    too_many: Option<Instant>,
}

impl Agent {
    /// Lists the routes to clients anew, and sees to it that the routers' MACs are known.
    pub(super) async fn list_client_ways(&mut self) {
        if self.clients.too_many.is_some_and(|seen| seen.elapsed() < LOOK_AGAIN) {
            return;
        }
        let before = self.clients.too_many.take();
        match table::list(self.network.handle()).await {
            Ok(Ok(ways)) => {
                if before.is_some() {
                    info!(routes = ways.len(), "packets to clients go by the kernel's routes again");
                }
                self.clients.ways = ways;
            }
            Ok(Err(reason)) => {
                if before.is_none() {
                    warn!(
                        %reason,
                        "the kernel's routes are not followed toward clients: packets go back the way that the clients' \
                         own come by"
                    );
                }
                self.clients = ClientWays { ways: Ways::new(), too_many: Some(Instant::now()) };
            }
            Err(error) => warn!(%error, "the routes to clients could not be listed"),
        }
        let ours = attach::named(&self.config, self.network.mirror());
        let mut routers = ways::routers(&self.clients.ways);
        routers.retain(|(ifindex, _)| ours.iter().any(|interface| interface.ifindex == *ifindex));
        self.hops.follow_routers(routers);
    }
}
