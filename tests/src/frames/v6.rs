//! IPv6 frames, and one service with one backend for them.

use std::net::Ipv6Addr;

use etherparse::{NetSlice, SlicedPacket, TcpHeader, TransportSlice};
use lb_common::{addr::Mac, claim::State, tcp};

use super::{
    BACKEND_MAC, CLIENT_MAC, Deviation, OWN_MAC, Program,
    build::{Deviations, checksum, ethernet, tcp_segment},
    scene::TX,
};

pub const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x100);
pub const CLIENT6: (Ipv6Addr, u16) = (Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 7), 40_000);
pub const BACKEND6: (Ipv6Addr, u16) = (Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x11), 2379);

/// An extension header: what follows its length octet; the whole is a multiple of 8 octets.
#[derive(Clone, Debug)]
pub struct Extension {
    pub kind: u8,
    pub body: Vec<u8>,
}

/// A TCP segment in an IPv6 packet in an Ethernet frame; every field as a test wants it, lengths and checksums right.
#[derive(Clone, Debug)]
pub struct TcpFrame6 {
    pub to_mac: Mac,
    pub from_mac: Mac,
    pub tags: Vec<(u16, u16)>,
    pub source: (Ipv6Addr, u16),
    pub destination: (Ipv6Addr, u16),
    pub hop_limit: u8,
    pub extensions: Vec<Extension>,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub tcp_options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl TcpFrame6 {
    pub fn new(source: (Ipv6Addr, u16), destination: (Ipv6Addr, u16), flags: u8) -> Self {
        Self {
            to_mac: OWN_MAC,
            from_mac: CLIENT_MAC,
            tags: Vec::new(),
            source,
            destination,
            hop_limit: 64,
            extensions: Vec::new(),
            seq: 1000,
            ack: 0,
            flags,
            tcp_options: Vec::new(),
            payload: Vec::new(),
        }
    }

    pub fn numbers(mut self, seq: u32, ack: u32) -> Self {
        (self.seq, self.ack) = (seq, ack);
        self
    }

    pub fn payload(mut self, octets: usize) -> Self {
        self.payload = (0..octets).map(|n| n as u8).collect();
        self
    }

    /// Offset of the IP header.
    pub fn l3(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Offset of the TCP header.
    pub fn l4(&self) -> usize {
        self.l3() + 40 + self.extensions.iter().map(|extension| 2 + extension.body.len()).sum::<usize>()
    }

    pub fn build(&self) -> Vec<u8> {
        let mut segment = tcp_segment(
            (self.source.1, self.destination.1),
            (self.seq, self.ack),
            self.flags,
            &self.tcp_options,
            &self.payload,
        );
        let check = over_pseudo_header(self.source.0, self.destination.0, 6, &segment);
        segment[16..18].copy_from_slice(&check.to_be_bytes());

        let mut payload = Vec::new();
        let kinds = self.extensions.iter().map(|extension| extension.kind).chain([6]).collect::<Vec<_>>();
        for (extension, next) in self.extensions.iter().zip(&kinds[1..]) {
            let units = (2 + extension.body.len()) / 8 - 1;
            payload.extend([*next, units as u8]);
            payload.extend(&extension.body);
        }
        payload.extend(segment);
        let mut frame = ethernet(self.to_mac, self.from_mac, &self.tags, 0x86dd);
        frame.extend(ipv6(self.source.0, self.destination.0, kinds[0], self.hop_limit, payload.len()));
        frame.extend(payload);
        frame
    }
}

fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, hop_limit: u8, payload: usize) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend((payload as u16).to_be_bytes());
    header.extend([next, hop_limit]);
    header.extend(source.octets());
    header.extend(destination.octets());
    header
}

/// An ICMPv6 error; see [`super::icmp_error`].
pub fn icmp_error_v6(
    (mac, router): (Mac, Ipv6Addr),
    to: Ipv6Addr,
    (kind, code, rest): (u8, u8, u32),
    quoted: &[u8],
) -> Vec<u8> {
    let mut icmp = vec![kind, code, 0, 0];
    icmp.extend(rest.to_be_bytes());
    icmp.extend(quoted);
    let check = over_pseudo_header(router, to, 58, &icmp);
    icmp[2..4].copy_from_slice(&check.to_be_bytes());
    let mut frame = ethernet(OWN_MAC, mac, &[], 0x86dd);
    frame.extend(ipv6(router, to, 58, 64, icmp.len()));
    frame.extend(icmp);
    frame
}

fn over_pseudo_header(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> u16 {
    let mut pseudo = Vec::new();
    pseudo.extend(source.octets());
    pseudo.extend(destination.octets());
    pseudo.extend((payload.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, next]);
    pseudo.extend(payload);
    checksum(&pseudo)
}

/// The group that solicitations for an address are sent to (RFC 4291 section 2.7.1).
pub fn group_of(address: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low)
}

/// Solicitation (135), advertisement (136) or another ICMPv6 message of that shape; MACs and addresses to and from.
pub fn neighbour(
    kind: u8,
    (to_mac, from_mac): (Mac, Mac),
    (source, destination): (Ipv6Addr, Ipv6Addr),
    target: Ipv6Addr,
    hop_limit: u8,
    options: &[u8],
) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend(options);
    let mut frame = ethernet(to_mac, from_mac, &[], 0x86dd);
    frame.extend(ipv6(source, destination, 58, hop_limit, message.len()));
    frame.extend(message);
    set_icmp_checksum(&mut frame);
    frame
}

/// Computes the checksum of an untagged ICMPv6 frame anew.
pub fn set_icmp_checksum(frame: &mut [u8]) {
    let address =
        |at: usize| -> Ipv6Addr { <[u8; 16]>::try_from(&frame[at..at + 16]).expect("sixteen octets").into() };
    let (source, destination) = (address(22), address(38));
    frame[56..58].fill(0);
    let check = over_pseudo_header(source, destination, 58, &frame[54..]);
    frame[56..58].copy_from_slice(&check.to_be_bytes());
}

/// An echo request.
pub fn ping_v6(source: Ipv6Addr, destination: Ipv6Addr, data: usize) -> Vec<u8> {
    let mut message = vec![128, 0, 0, 0, 0x12, 0x34, 0, 1];
    message.extend((0..data).map(|n| n as u8));
    let mut frame = ethernet(OWN_MAC, CLIENT_MAC, &[], 0x86dd);
    frame.extend(ipv6(source, destination, 58, 64, message.len()));
    frame.extend(message);
    set_icmp_checksum(&mut frame);
    frame
}

/// Every named deviation from `sound`: cut at each header's edge, each length that contradicts another.
pub fn deviations_v6(sound: &TcpFrame6) -> Vec<Deviation> {
    let (l3, l4) = (sound.l3(), sound.l4());
    let whole = sound.build();
    let mut deviations = Deviations::of(whole, l3 + 40);
    deviations.cut(&[14, l3 + 1, l3 + 39, l3 + 40, l4, l4 + 1, l4 + 13, l4 + 19]);
    let mut edit = |name: &str, at: usize, value: u8| deviations.edit(name, at, value);
    edit("version 4", l3, 0x45);
    edit("payload length 0", l3 + 5, 0);
    edit("payload length over the frame's", l3 + 4, 0x10);
    for (name, next) in [
        ("fragment", 44),
        ("UDP", 17),
        ("ICMPv6 over a TCP header", 58),
        ("nothing follows", 59),
        ("authentication", 51),
        ("IPv4's ICMP", 1),
    ] {
        edit(name, l3 + 6, next);
    }
    if let Some(first) = sound.extensions.first() {
        edit("an extension longer than the packet", l3 + 41, 0x1f);
        edit("an extension longer than allowed", l3 + 41, 0xff);
        edit("an extension that names itself", l3 + 40, first.kind);
    }
    deviations.with_tcp(l4)
}

/// One IPv6 service with one backend, number 3.
pub fn setup_v6() -> Program {
    let mut program = Program::load(1024);
    program.service(0, VIP6, 2379, 0);
    program.backend(3, 0, VIP6, BACKEND6);
    program.maglev(0, 3);
    program
}

pub fn client_v6(flags: u8) -> TcpFrame6 {
    TcpFrame6::new(CLIENT6, (VIP6, 2379), flags)
}

pub fn backend_v6(flags: u8) -> TcpFrame6 {
    let mut frame = TcpFrame6::new(BACKEND6, (VIP6, CLIENT6.1), flags);
    frame.from_mac = BACKEND_MAC;
    frame
}

/// Client's ISN 1000, backend's 5000.
pub fn handshake_v6(program: &mut Program) {
    for frame in [
        client_v6(tcp::SYN).numbers(1000, 0),
        backend_v6(tcp::SYN | tcp::ACK).numbers(5000, 1001),
        client_v6(tcp::ACK).numbers(1001, 5001),
    ] {
        assert_eq!(program.run(&frame.build()).action, TX);
    }
    assert!(program.record(3, CLIENT6.1).claim().is(State::Established));
}

/// ((source address, port), (destination address, port), header) of a TCP frame.
pub fn tcp_v6_of(frame: &[u8]) -> ((Ipv6Addr, u16), (Ipv6Addr, u16), TcpHeader) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a sound frame");
    let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Tcp(tcp))) = (&packet.net, &packet.transport) else {
        panic!("no TCP over IPv6: {frame:02x?}");
    };
    let (ip, tcp) = (ip.header(), tcp.to_header());
    ((ip.source_addr(), tcp.source_port), (ip.destination_addr(), tcp.destination_port), tcp)
}
