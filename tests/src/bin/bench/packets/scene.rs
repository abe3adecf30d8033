//! A loaded program with a service, its members, and flows between them and clients.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use aya::Ebpf;
use etcd_lb_tests::frames::{
    BACKEND_MAC, Program, TcpFrame,
    v6::{TcpFrame6, VIP6},
};
use lb_common::{
    maps::{LOAD_TOTAL, half_open_capacity, program},
    tcp::{ACK, SYN},
};

use super::{Packet, run};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 100);
const PORT: u16 = 2379;
/// Flows of one member: as many NAT ports, the clients' own. The wrapper takes them from a flow's low 15 bits.
const FLOWS_PER_MEMBER: u32 = 32_768;
/// The part of `half_open` that handshakes under way at once may take. One that it pushes out would be answered by a RST, and leave
/// the frame of all that follow cut. Few at once take long: the kernel waits for a grace period of RCU at each test run.
const PART: u32 = 16;
/// The wrapper's.
const FIRST_PORT: u16 = 16_384;
/// Offsets in an untagged frame of (the source address whose last two octets name the flow, source port, destination port).
/// The address is given as if it had four octets.
const OFFSETS: (u32, u32, u32) = (26, 34, 36);
const OFFSETS_V6: (u32, u32, u32) = (34, 54, 56);

/// The networks that addresses are of.
#[derive(Clone, Copy)]
enum Net {
    Clients = 1,
    Members = 2,
    NewClients = 3,
}

/// One family's.
pub struct Scene {
    program: Program,
    v6: bool,
}

impl Scene {
    /// With flows by complete handshakes: 32,768 for each member, each with its client's own port.
    pub fn with_flows(object: &[u8], flows: u32, v6: bool) -> Result<Self> {
        let max_flows = flows.max(4096) * 2;
        let mut scene = Self::new(object, max_flows, v6);
        let each = flows.min(FLOWS_PER_MEMBER);
        let together = each.min(half_open_capacity(max_flows) / PART);
        for member in 0..flows.div_ceil(FLOWS_PER_MEMBER) {
            scene.member(member as u16);
            scene.program.maglev(0, member as u16);
            let (_, source, destination) = scene.offsets();
            for first in (member * FLOWS_PER_MEMBER..)
                .step_by(together as usize)
                .take(each.div_ceil(together) as usize)
            {
                for packet in [
                    scene.of_client(Net::Clients, SYN, (1000, 0), flows, source),
                    scene.of_member(SYN | ACK, (5000, 1001), flows, destination),
                    scene.of_client(Net::Clients, ACK, (1001, 5001), flows, source),
                ] {
                    let packet = packet.in_order_from(first);
                    run(scene.program.ebpf(), program::ENTRY, &packet, together)?;
                }
            }
        }
        let established = scene.program.load_of(LOAD_TOTAL);
        ensure!(established == i64::from(flows), "{established} of {flows} handshakes were completed");
        Ok(scene)
    }

    /// Without flows, its members chosen in turn.
    pub fn for_syns(object: &[u8], max_flows: u32, members: u16, v6: bool) -> Self {
        let mut scene = Self::new(object, max_flows, v6);
        for member in 0..members {
            scene.member(member);
        }
        scene.program.maglev_of(0, |slot| slot as u16 % members);
        scene
    }

    fn new(object: &[u8], max_flows: u32, v6: bool) -> Self {
        let mut program = Program::load_object(object, max_flows);
        if v6 {
            program.service(0, VIP6, PORT, 0);
        } else {
            program.service(0, VIP, PORT, 0);
        }
        Self { program, v6 }
    }

    fn member(&mut self, number: u16) {
        let host = number + 1;
        if self.v6 {
            self.program.backend(number, 0, VIP6, (address_v6(Net::Members, host), PORT));
        } else {
            self.program.backend(number, 0, VIP, (address(Net::Members, host), PORT));
        }
    }

    pub fn is_v6(&self) -> bool {
        self.v6
    }

    pub fn ebpf(&mut self) -> &mut Ebpf {
        self.program.ebpf()
    }

    /// An established flow's packet from its client.
    pub fn forward(&self, flows: u32) -> Packet {
        self.of_client(Net::Clients, ACK, (1001, 5001), flows, self.offsets().1)
    }

    /// One from its member.
    pub fn back(&self, flows: u32) -> Packet {
        self.of_member(ACK, (5001, 1001), flows, self.offsets().2)
    }

    /// A SYN of one of a million clients that have none.
    pub fn syn(&self) -> Packet {
        self.of_client(Net::NewClients, SYN, (7, 0), 1 << 20, self.offsets().1)
    }

    /// A packet to an address that is not the balancer's.
    pub fn not_ours(&self) -> Packet {
        let frame = if self.v6 {
            let to = (address_v6(Net::Members, 999), PORT);
            TcpFrame6::new((address_v6(Net::Clients, 1), FIRST_PORT), to, ACK).payload(10).build()
        } else {
            let to = (Ipv4Addr::new(10, 0, 1, 7), PORT);
            TcpFrame::new((address(Net::Clients, 1), FIRST_PORT), to, ACK).payload(10).build()
        };
        Packet::new(frame, 1, (0, 0))
    }

    fn of_client(&self, net: Net, flags: u8, (seq, ack): (u32, u32), flows: u32, port: u32) -> Packet {
        let frame = if self.v6 {
            let frame = TcpFrame6::new((address_v6(net, 1), FIRST_PORT), (VIP6, PORT), flags);
            frame.numbers(seq, ack).payload(payload(flags)).build()
        } else {
            let mut frame = TcpFrame::new((address(net, 1), FIRST_PORT), (VIP, PORT), flags);
            frame.padding = 10 - payload(flags);
            frame.numbers(seq, ack).payload(payload(flags)).build()
        };
        Packet::new(frame, flows, (self.offsets().0, port))
    }

    fn of_member(&self, flags: u8, (seq, ack): (u32, u32), flows: u32, port: u32) -> Packet {
        let frame = if self.v6 {
            let from = (address_v6(Net::Members, 1), PORT);
            let mut frame = TcpFrame6::new(from, (VIP6, FIRST_PORT), flags);
            frame.from_mac = BACKEND_MAC;
            frame.numbers(seq, ack).payload(payload(flags)).build()
        } else {
            let from = (address(Net::Members, 1), PORT);
            let mut frame = TcpFrame::new(from, (VIP, FIRST_PORT), flags).from_mac(BACKEND_MAC);
            frame.padding = 10 - payload(flags);
            frame.numbers(seq, ack).payload(payload(flags)).build()
        };
        Packet::new(frame, flows, (self.offsets().0, port))
    }

    fn offsets(&self) -> (u32, u32, u32) {
        if self.v6 { OFFSETS_V6 } else { OFFSETS }
    }
}

/// Octets of data: handshakes have none, and with ten a frame of IPv4 has the wrapper's 64 octets.
fn payload(flags: u8) -> usize {
    if flags & SYN == 0 { 10 } else { 0 }
}

fn address(net: Net, host: u16) -> Ipv4Addr {
    let [high, low] = host.to_be_bytes();
    Ipv4Addr::new(10, net as u8, high, low)
}

fn address_v6(net: Net, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, net as u16, 0, 0, 0, host)
}
