//! What the nodes tell each other.
//!
//! A message is its kind (one octet), the length of what follows (two octets), and fields of fixed sizes, all big-endian;
//! addresses are 16 octets, IPv4 as IPv4-mapped. Kinds that are not known are passed over, so that a later release can add
//! some within version 1.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Services of a node at most that are told of; the data plane has room for fewer.
const MAX_SERVICES: usize = 512;

/// A port table, by what it is for: numbers are each node's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// VIP and port.
    pub service: SocketAddr,
    pub backend: SocketAddr,
    /// The source address toward the backend.
    pub source: IpAddr,
}

/// What must be the same on both nodes for a service's flows to mean the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    pub address: SocketAddr,
    /// `mode = "dsr"`.
    pub is_dsr: bool,
    /// See [`super::seed_check`].
    pub seed_check: [u8; 8],
}

/// An established flow in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowState {
    pub client: SocketAddr,
    pub nat_port: u16,
    /// Flags of the claim: which FINs were seen.
    pub flags: u16,
    /// The client's last ACK and the end of its last segment, as far as known.
    pub by_client: (u32, u32),
    /// The same of the backend.
    pub by_backend: (u32, u32),
    /// End of the client's SYN or FIN.
    pub client_edge: u32,
    /// Since when it is established, ms ago.
    pub age_ms: u64,
}

/// A node's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRole {
    Active,
    Backup,
    /// Without VRRP, or not able to serve.
    Other,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The first one, both ways.
    Hello {
        role: NodeRole,
        services: Vec<Service>,
    },
    /// What a number stands for in the messages that follow.
    Table {
        table: u16,
        place: Place,
    },
    /// A slot has this flow.
    Flow {
        table: u16,
        flow: FlowState,
    },
    /// A slot has no established flow.
    Free {
        table: u16,
        nat_port: u16,
    },
    /// All flows of the sender, as they were when the stream began, have been sent.
    SnapshotEnd {
        flows: u32,
    },
    /// To be answered, once everything before has been dealt with.
    Ping(u64),
    Pong(u64),
    Role(NodeRole),
    /// The sender, the stronger node, wants the VIPs.
    AskForVips,
    /// The sender announces a longer interval (ms), for it will be gone for a moment.
    Interval(u32),
    /// The sender reckons with that.
    IntervalConfirmed(u32),
    /// The sender, active, has advertised just now, or (priority 0) given up; for a node that VRRP's packets do not reach.
    Advertisement {
        source: IpAddr,
        priority: u8,
        interval_ms: u32,
    },
    /// The sender has this table since just now: all of its flows are news to it.
    Want(Place),
}

/// Octets that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of kind {0} is malformed")]
pub struct Malformed(pub u8);

impl Message {
    /// Appends the message's octets.
    pub fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([self.kind(), 0, 0]);
        match self {
            Self::Hello { role, services } => {
                out.push(number(*role));
                for service in services.iter().take(MAX_SERVICES) {
                    socket(out, service.address);
                    out.push(service.is_dsr.into());
                    out.extend(service.seed_check);
                }
            }
            Self::Table { table, place } => {
                out.extend(table.to_be_bytes());
                write_place(out, place);
            }
            Self::Want(place) => write_place(out, place),
            Self::Flow { table, flow } => {
                out.extend(table.to_be_bytes());
                socket(out, flow.client);
                out.extend(flow.nat_port.to_be_bytes());
                out.extend(flow.flags.to_be_bytes());
                let numbers = [
                    flow.by_client.0,
                    flow.by_client.1,
                    flow.by_backend.0,
                    flow.by_backend.1,
                    flow.client_edge,
                ];
                numbers.iter().for_each(|number| out.extend(number.to_be_bytes()));
                out.extend(flow.age_ms.to_be_bytes());
            }
            Self::Free { table, nat_port } => {
                out.extend(table.to_be_bytes());
                out.extend(nat_port.to_be_bytes());
            }
            Self::SnapshotEnd { flows } => out.extend(flows.to_be_bytes()),
            Self::Ping(sequence) | Self::Pong(sequence) => out.extend(sequence.to_be_bytes()),
            Self::Role(role) => out.push(number(*role)),
            Self::AskForVips => {}
            Self::Interval(ms) | Self::IntervalConfirmed(ms) => out.extend(ms.to_be_bytes()),
            Self::Advertisement { source, priority, interval_ms } => {
                address(out, *source);
                out.push(*priority);
                out.extend(interval_ms.to_be_bytes());
            }
        }
        // 512 services of 27 octets at most.
        let length = (out.len() - start - 3) as u16;
        out[start + 1..start + 3].copy_from_slice(&length.to_be_bytes());
    }

    /// The first message in `octets`, which goes past it; `Ok(None)` if it is of a kind that is not known, or there is
    /// nothing left.
    ///
    /// # Errors
    /// It is cut off, or its fields are not what its kind has.
    pub fn read(octets: &mut &[u8]) -> Result<Option<Self>, Malformed> {
        let Some((&kind, rest)) = octets.split_first() else { return Ok(None) };
        let bad = Malformed(kind);
        let (length, rest) = rest.split_first_chunk::<2>().ok_or(bad)?;
        let (body, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into()).ok_or(bad)?;
        *octets = rest;
        let mut fields = Fields(body);
        let message = fields.message(kind).ok_or(bad)?;
        // A later release may say more behind what is known.
        Ok(message)
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => 1,
            Self::Table { .. } => 2,
            Self::Flow { .. } => 3,
            Self::Free { .. } => 4,
            Self::SnapshotEnd { .. } => 5,
            Self::Ping(_) => 6,
            Self::Pong(_) => 7,
            Self::Role(_) => 8,
            Self::AskForVips => 9,
            Self::Interval(_) => 10,
            Self::IntervalConfirmed(_) => 11,
            Self::Advertisement { .. } => 12,
            Self::Want(_) => 13,
        }
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// Inside: `None` for a kind that is not known.
    fn message(&mut self, kind: u8) -> Option<Option<Message>> {
        Some(Some(match kind {
            1 => {
                let role = self.role()?;
                let mut services = Vec::new();
                while !self.0.is_empty() && services.len() < MAX_SERVICES {
                    let (address, is_dsr) = (self.socket()?, self.octet()? != 0);
                    services.push(Service { address, is_dsr, seed_check: self.take()? });
                }
                Message::Hello { role, services }
            }
            2 => {
                let table = self.u16()?;
                Message::Table { table, place: self.place()? }
            }
            3 => {
                let table = self.u16()?;
                let flow = FlowState {
                    client: self.socket()?,
                    nat_port: self.u16()?,
                    flags: self.u16()?,
                    by_client: (self.u32()?, self.u32()?),
                    by_backend: (self.u32()?, self.u32()?),
                    client_edge: self.u32()?,
                    age_ms: self.u64()?,
                };
                Message::Flow { table, flow }
            }
            4 => Message::Free { table: self.u16()?, nat_port: self.u16()? },
            5 => Message::SnapshotEnd { flows: self.u32()? },
            6 => Message::Ping(self.u64()?),
            7 => Message::Pong(self.u64()?),
            8 => Message::Role(self.role()?),
            9 => Message::AskForVips,
            10 => Message::Interval(self.u32()?),
            11 => Message::IntervalConfirmed(self.u32()?),
            12 => Message::Advertisement {
                source: self.address()?,
                priority: self.octet()?,
                interval_ms: self.u32()?,
            },
            13 => Message::Want(self.place()?),
            _ => return Some(None),
        }))
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn octet(&mut self) -> Option<u8> {
        self.take::<1>().map(|[octet]| octet)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn address(&mut self) -> Option<IpAddr> {
        self.take().map(|octets: [u8; 16]| Ipv6Addr::from_octets(octets).to_canonical())
    }

    fn socket(&mut self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.address()?, self.u16()?))
    }

    fn place(&mut self) -> Option<Place> {
        Some(Place { service: self.socket()?, backend: self.socket()?, source: self.address()? })
    }

    fn role(&mut self) -> Option<NodeRole> {
        Some(match self.octet()? {
            1 => NodeRole::Active,
            2 => NodeRole::Backup,
            _ => NodeRole::Other,
        })
    }
}

fn number(role: NodeRole) -> u8 {
    match role {
        NodeRole::Other => 0,
        NodeRole::Active => 1,
        NodeRole::Backup => 2,
    }
}

fn address(out: &mut Vec<u8>, address: IpAddr) {
    out.extend(match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    });
}

fn write_place(out: &mut Vec<u8>, place: &Place) {
    socket(out, place.service);
    socket(out, place.backend);
    address(out, place.source);
}

fn socket(out: &mut Vec<u8>, socket: SocketAddr) {
    address(out, socket.ip());
    out.extend(socket.port().to_be_bytes());
}
