//! What the kernel knows of the network: interfaces, their addresses, neighbours and routes, followed over netlink.
//!
//! The agent keeps a [`Mirror`] of what it needs and is told when it changes; routes are not mirrored but asked for,
//! since only the kernel knows its rules. [`hops::Hops`] turns both into the next hops that the data plane sends by.

mod arp;
pub mod groups;
pub mod hops;
mod mirror;
mod nd;
pub mod node_link;
pub(crate) mod offloads;
mod routes;
pub mod table;
pub mod vip;

use std::io;

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup};

pub use mirror::{InterfaceAddress, Link, Mirror, Neighbour, Touched};
pub use routes::{Route, RouteError};

/// A conversation with the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be opened.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[from] io::Error),
    /// A request was refused.
    #[error("the kernel refused to list {what} over netlink: {source}")]
    List {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        source: rtnetlink::Error,
    },
}

/// The connection to the kernel, and the mirror it feeds.
pub struct Network {
    handle: Handle,
    messages: Messages,
    mirror: Mirror,
}

type Messages = futures_util::stream::BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>;

impl Network {
    /// Connects, subscribes and lists everything once.
    ///
    /// # Errors
    /// No netlink socket, or a list that the kernel refuses.
    pub async fn open() -> Result<Self, Error> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])?;
        tokio::spawn(connection);
        let messages = messages.map(|(message, _)| message).boxed();
        let mut network = Self { handle, messages, mirror: Mirror::default() };
        network.refresh().await?;
        Ok(network)
    }

    /// The mirror as of the last change.
    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// The connection for requests.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits until something changed and has taken in all that is known by then. Cancel-safe.
    ///
    /// Should the kernel have dropped messages, everything counts as changed, and [`Network::refresh`] is due.
    pub async fn changed(&mut self) -> Touched {
        loop {
            let Some(message) = self.messages.next().await else {
                // The connection's task has ended; what the periodic refresh cannot repair, the watchdog does.
                return std::future::pending().await;
            };
            let mut touched = self.take(message);
            while let Some(Some(message)) = futures_util::FutureExt::now_or_never(self.messages.next()) {
                touched |= self.take(message);
            }
            if touched.any() {
                return touched;
            }
        }
    }

    /// Lists everything anew, in case a message was lost.
    ///
    /// # Errors
    /// A list that the kernel refuses; the mirror stays as it was.
    pub async fn refresh(&mut self) -> Result<(), Error> {
        let mut fresh = Mirror::default();
        let list = |what| move |source| Error::List { what, source };
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(list("interfaces"))? {
            fresh.apply(&RouteNetlinkMessage::NewLink(link));
        }
        let mut addresses = self.handle.address().get().execute();
        while let Some(address) = addresses.try_next().await.map_err(list("addresses"))? {
            fresh.apply(&RouteNetlinkMessage::NewAddress(address));
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut neighbours = self.handle.neighbours().get().set_address_family(family).execute();
            while let Some(neighbour) = neighbours.try_next().await.map_err(list("neighbours"))? {
                fresh.apply(&RouteNetlinkMessage::NewNeighbour(neighbour));
            }
        }
        self.mirror = fresh;
        Ok(())
    }

    fn take(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) -> Touched {
        match message.payload {
            NetlinkPayload::InnerMessage(message) => self.mirror.apply(&message),
            NetlinkPayload::Overrun(_) => Touched::LOST,
            _ => Touched::default(),
        }
    }
}
