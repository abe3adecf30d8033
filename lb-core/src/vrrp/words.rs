//! The words of the machine: what it is, why, and what it wants done.

use std::{net::IpAddr, time::Duration};

use super::Version;

/// What a node is in its pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It owns the VIPs.
    Active,
    /// Another one does, or nobody yet.
    Backup,
    /// It cannot serve: no interface, or nothing attached to it.
    Fault,
    /// It has given up, for the agent ends.
    Stopped,
}

/// Why a role changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nobody advertised for a whole down interval.
    NobodyHeard,
    /// The active node gave up.
    PeerGaveUp,
    /// This node's agent was restarted within its lease.
    Resumed,
    /// A stronger node advertises.
    Stronger { source: IpAddr, priority: u8 },
    /// The lease ran out: this node slept, or could not send.
    LeaseOver,
    /// The operator's `failover`.
    Failover,
    /// The peer asked for the VIPs.
    AskedFor,
    /// Nothing was heard of this node's own agent for [`super::AGENT_PATIENCE`].
    AgentHangs,
    /// See [`Role::Fault`].
    Fault,
    /// The fault is over.
    Recovered,
    /// The agent ends.
    Stop,
}

/// Whether a backup takes over from a weaker node that is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preemption {
    /// Not at all.
    Never,
    /// By not heeding its advertisements any more: what any VRRP peer understands.
    Silently,
    /// By asking for it: a peer of our own kind, so that flows are in sync before.
    ByAsking,
}

/// What the driver has to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ends the lease.
    DropLease,
    /// Advertises for every family, to the group or every peer; [`Machine::sent`] follows, unless the priority is
    /// [`super::packet::STOPPED`].
    Advertise { priority: u8, interval: Duration },
    /// Writes the lease.
    Grant { granted_at: Duration, deadline: Duration },
    /// Tells all hosts where the VIPs are.
    Announce,
    /// Asks the peer for the VIPs.
    AskForVips,
    /// Tells operators.
    Became { role: Role, why: Why },
}

/// What a machine needs to know of the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub version: Version,
    /// Our pace, and what we announce.
    pub interval: Duration,
    /// 1 to 254.
    pub priority: u8,
    /// `preempt`.
    pub preempt: bool,
    /// `preempt_delay`: counted from the start, and from the end of a fault.
    pub preempt_delay: Duration,
    /// Our own addresses, of IPv4 and of IPv6: of two nodes of one priority the higher address wins.
    pub sources: [Option<IpAddr>; 2],
}
