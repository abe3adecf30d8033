//! VRRP on the wire: a thread of its own around [`lb_core::vrrp::Machine`].
//!
//! | file | what |
//! | --- | --- |
//! | `thread.rs` | the loop: lease, sockets, timer, commands |
//! | `sockets.rs` | receiving and sending frames past queues and netfilter |
//! | `realtime.rs` | the thread's priority, the process's memory |
//! | `figures.rs` | what is counted |
//!
//! The thread shares nothing with the agent's loop but channels and counters: it advertises on time whatever the agent is
//! busy with, and it writes neither logs nor files, which may block. Should the process hang, the lease runs out by itself.

mod figures;
pub mod realtime;
mod sockets;
mod thread;

use std::{
    io,
    net::IpAddr,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use lb_common::addr::Mac;
use lb_core::vrrp::{Advertisement, Family, Preemption, Reject, Role, Settings, VirtualRouter, Why, packet};
use tokio::sync::{mpsc::UnboundedReceiver, watch};

pub use self::figures::{Figures, LATENESS_BOUNDS};
use self::{
    sockets::{Sockets, Waker},
    thread::{Told, Turn},
};
use crate::dataplane::LeaseMap;

/// What a node needs to take part.
#[derive(Debug)]
pub struct Setup {
    pub settings: Settings,
    /// One for each family.
    pub routers: Vec<VirtualRouter>,
    /// Where it is advertised.
    pub ifindex: u32,
    /// Its MAC.
    pub mac: Mac,
    /// Nodes of our own kind, whose list of addresses may differ; more are learned over flow sync.
    pub known: Vec<IpAddr>,
    pub lease: LeaseMap,
    /// `takeover_grace`; 0 where flows are not synced.
    pub grace: Duration,
}

/// What the agent tells the thread.
#[derive(Debug)]
pub enum Order {
    /// After tracking, 1 to 254.
    Priority(u8),
    /// The node cannot serve, or can again.
    Fault(bool),
    Preemption(Preemption),
    /// Frames that tell all hosts where the VIPs are, each with its interface.
    Announcements(Vec<(u32, Vec<u8>)>),
    /// Whither a unicast peer's frames go.
    PeerMac(IpAddr, Mac),
    /// The peer is to be active: the operator wants it, or (true) the peer asked for it.
    FailOver(bool),
    /// A node of our own kind has told over flow sync that it has advertised.
    Heard(Advertisement),
    /// Another node may have had the VIPs meanwhile.
    Announce,
    AnnounceInterval(Duration),
    ConfirmInterval(Duration),
    /// The agent's loop turns.
    AgentLives,
    /// Ends and gives nothing up: the agent is back before the lease is over.
    Leave,
    /// Gives up and ends.
    Stop,
}

/// What the thread tells the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Became {
        role: Role,
        why: Why,
    },
    /// The first advertisement of its kind that was not heeded, and again once a minute.
    Rejected(Reject),
    /// A node of our own kind advertises another list of addresses; as often.
    OtherList(IpAddr),
    /// The peer's checksum is without a pseudo-header and ours is with one, or the other way round; once.
    OtherChecksum(IpAddr),
    /// An advertisement did not go out; once until one does.
    NotSent {
        to: IpAddr,
        reason: String,
    },
    /// Unicast peers of which no MAC is known are not advertised to; once.
    NoMac(IpAddr),
    /// The active node is weaker, and the VIPs are to be asked for.
    AskForVips,
    /// What the system does not allow a heartbeat to have.
    NotRealtime(&'static str, String),
}

/// The thread. It ends with this, and gives up before.
#[derive(Debug)]
pub struct Vrrp {
    orders: mpsc::Sender<Order>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
    pub figures: Arc<Figures>,
    /// The last advertisement as active that went out.
    pub beat: watch::Receiver<Option<Beat>>,
}

/// An advertisement that went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    pub priority: u8,
    pub interval: Duration,
}

impl Vrrp {
    /// Begins to take part; as active, if a lease is held that an earlier agent left.
    ///
    /// # Errors
    /// No sockets: the interface is gone, or CAP_NET_RAW is missing.
    pub fn start(setup: Setup) -> io::Result<(Self, UnboundedReceiver<News>)> {
        let families: Vec<Family> = setup.routers.iter().map(VirtualRouter::family).collect();
        let is_multicast = setup.routers.iter().any(|router| router.peers.is_empty());
        let sockets = Sockets::open(setup.ifindex, &families, is_multicast)?;
        let waker = Arc::new(Waker::new()?);
        let figures = Arc::new(Figures::default());
        let (orders, inbox) = mpsc::channel();
        // Roles, and the first of each kind of trouble: it cannot grow without bound, whoever sends what.
        let (news, outbox) = tokio::sync::mpsc::unbounded_channel();
        let (beats, beat) = watch::channel(None);
        let told = Told { news, beats };
        let turn = Turn::new(setup, sockets, Arc::clone(&waker), inbox, told, Arc::clone(&figures));
        let thread = std::thread::Builder::new().name("vrrp".into()).spawn(move || turn.run())?;
        Ok((Self { orders, waker, thread: Some(thread), figures, beat }, outbox))
    }

    /// Tells the thread, which acts at once.
    pub fn tell(&self, order: Order) {
        // One that has ended needs no orders.
        let _ = self.orders.send(order);
        self.waker.wake();
    }
}

/// Listens for a while to what others advertise on an interface, and says what of it this node would not heed, each once.
///
/// # Errors
/// As [`Vrrp::start`].
pub async fn overhear(
    ifindex: u32,
    routers: Vec<VirtualRouter>,
    known: Vec<IpAddr>,
    time: Duration,
) -> io::Result<Vec<Reject>> {
    let families: Vec<Family> = routers.iter().map(VirtualRouter::family).collect();
    let is_multicast = routers.iter().any(|router| router.peers.is_empty());
    let sockets = Sockets::open(ifindex, &families, is_multicast)?;
    let (mut found, until) = (Vec::new(), tokio::time::Instant::now() + time);
    let mut frame = [0; sockets::MAX_FRAME];
    while tokio::time::Instant::now() < until {
        while let Some(length) = sockets.receive(&mut frame) {
            let Some(datagram) = packet::in_frame(&frame[..length]) else { continue };
            let family = Family::of(datagram.source);
            let Some(router) = routers.iter().find(|router| router.family() == family) else { continue };
            let is_known = known.contains(&datagram.source);
            if let Err(reject) = packet::read(router, &datagram, is_known)
                && !found.contains(&reject)
            {
                found.push(reject);
            }
        }
        tokio::time::sleep(OVERHEAR_PACE).await;
    }
    Ok(found)
}

/// Between two looks at what came: nobody waits for it but a person.
const OVERHEAR_PACE: Duration = Duration::from_millis(50);

impl Drop for Vrrp {
    fn drop(&mut self) {
        self.tell(Order::Stop);
        if let Some(thread) = self.thread.take() {
            // It ends within a turn; a panic in it has been told.
            let _ = thread.join();
        }
    }
}
