//! A frame builder with named deviations.

use std::net::Ipv4Addr;

use lb_common::addr::Mac;

use super::{CLIENT_MAC, OWN_MAC};

/// A TCP segment in an IPv4 packet in an Ethernet frame; every field as a test wants it, lengths and checksums right.
#[derive(Clone, Debug)]
pub struct TcpFrame {
    pub to_mac: Mac,
    pub from_mac: Mac,
    /// (EtherType of the tag, tag control information), outermost first.
    pub tags: Vec<(u16, u16)>,
    pub source: (Ipv4Addr, u16),
    pub destination: (Ipv4Addr, u16),
    pub ttl: u8,
    pub ip_options: Vec<u8>,
    /// Flags and fragment offset, as in the header.
    pub fragment: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub tcp_options: Vec<u8>,
    pub payload: Vec<u8>,
    /// Octets after the IP packet, as Ethernet pads short frames.
    pub padding: usize,
}

impl TcpFrame {
    pub fn new(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), flags: u8) -> Self {
        Self {
            to_mac: OWN_MAC,
            from_mac: CLIENT_MAC,
            tags: Vec::new(),
            source,
            destination,
            ttl: 64,
            ip_options: Vec::new(),
            fragment: 0x4000,
            seq: 1000,
            ack: 0,
            flags,
            tcp_options: Vec::new(),
            payload: Vec::new(),
            padding: 0,
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

    pub fn from_mac(mut self, mac: Mac) -> Self {
        self.from_mac = mac;
        self
    }

    /// Offset of the IP header.
    pub fn l3(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Offset of the TCP header.
    pub fn l4(&self) -> usize {
        self.l3() + 20 + self.ip_options.len()
    }

    pub fn build(&self) -> Vec<u8> {
        let mut tcp = tcp_segment(
            (self.source.1, self.destination.1),
            (self.seq, self.ack),
            self.flags,
            &self.tcp_options,
            &self.payload,
        );
        let mut pseudo = Vec::new();
        pseudo.extend(self.source.0.octets());
        pseudo.extend(self.destination.0.octets());
        pseudo.extend([0, 6]);
        pseudo.extend((tcp.len() as u16).to_be_bytes());
        pseudo.extend(&tcp);
        let check = checksum(&pseudo);
        tcp[16..18].copy_from_slice(&check.to_be_bytes());

        let mut frame = ethernet(self.to_mac, self.from_mac, &self.tags, 0x0800);
        frame.extend(ipv4(self, 6, tcp.len()));
        frame.extend(tcp);
        frame.extend(vec![0; self.padding]);
        frame
    }
}

/// A segment whose checksum is still 0: ports from and to, SEQ and ACK.
pub(super) fn tcp_segment(
    (from, to): (u16, u16),
    (seq, ack): (u32, u32),
    flags: u8,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.to_be_bytes());
    segment.extend(to.to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.push((((20 + options.len()) / 4) << 4) as u8);
    segment.push(flags);
    segment.extend(0xfaf0u16.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(options);
    segment.extend(payload);
    segment
}

pub(super) fn ethernet(to: Mac, from: Mac, tags: &[(u16, u16)], ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(to.octets());
    frame.extend(from.octets());
    for (tag_type, control) in tags {
        frame.extend(tag_type.to_be_bytes());
        frame.extend(control.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn ipv4(frame: &TcpFrame, protocol: u8, payload: usize) -> Vec<u8> {
    let length = 20 + frame.ip_options.len();
    let mut header = vec![0x40 | (length / 4) as u8, 0];
    header.extend(((length + payload) as u16).to_be_bytes());
    header.extend(0x1234u16.to_be_bytes());
    header.extend(frame.fragment.to_be_bytes());
    header.extend([frame.ttl, protocol, 0, 0]);
    header.extend(frame.source.0.octets());
    header.extend(frame.destination.0.octets());
    header.extend(&frame.ip_options);
    let check = checksum(&header);
    header[10..12].copy_from_slice(&check.to_be_bytes());
    header
}

pub(super) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += (u32::from(pair[0]) << 8) | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// An ARP request for `target`.
pub fn arp_request(to_mac: Mac, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(to_mac, sender.0, &[], 0x0806);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(sender.0.octets());
    frame.extend(sender.1.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame.resize(60, 0);
    frame
}

/// An echo request.
pub fn ping(source: Ipv4Addr, destination: Ipv4Addr, data: usize) -> Vec<u8> {
    let mut template = TcpFrame::new((source, 0), (destination, 0), 0);
    template.fragment = 0;
    let mut icmp = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    icmp.extend((0..data).map(|n| n as u8));
    let check = checksum(&icmp);
    icmp[2..4].copy_from_slice(&check.to_be_bytes());
    let mut frame = ethernet(OWN_MAC, CLIENT_MAC, &[], 0x0800);
    frame.extend(ipv4(&template, 1, icmp.len()));
    frame.extend(icmp);
    frame
}

/// An ICMP error from a router that came by its MAC: (type, code, the header's last word), and the packet it quotes.
pub fn icmp_error(
    (mac, router): (Mac, Ipv4Addr),
    to: Ipv4Addr,
    (kind, code, rest): (u8, u8, u32),
    quoted: &[u8],
) -> Vec<u8> {
    let mut icmp = vec![kind, code, 0, 0];
    icmp.extend(rest.to_be_bytes());
    icmp.extend(quoted);
    let check = checksum(&icmp);
    icmp[2..4].copy_from_slice(&check.to_be_bytes());
    let mut frame = ethernet(OWN_MAC, mac, &[], 0x0800);
    frame.extend(ipv4(&TcpFrame { fragment: 0, ..TcpFrame::new((router, 0), (to, 0), 0) }, 1, icmp.len()));
    frame.extend(icmp);
    frame
}

/// A frame that deviates from a sound one in one named way.
pub struct Deviation {
    pub name: String,
    pub frame: Vec<u8>,
    /// The destination address can still be read: the program must know the packet for the VIP's.
    pub names_vip: bool,
}

/// Every named deviation from `sound`: cut at each header's edge, each length that contradicts another, options,
/// fragments.
pub fn deviations(sound: &TcpFrame) -> Vec<Deviation> {
    let (l3, l4) = (sound.l3(), sound.l4());
    let whole = sound.build();
    let mut deviations = Deviations::of(whole, l3 + 20);
    deviations.cut(&[0, 1, 13, 14, l3, l3 + 1, l3 + 19, l3 + 20, l4, l4 + 1, l4 + 13, l4 + 19]);
    let mut edit = |name: &str, at: usize, value: u8| deviations.edit(name, at, value);
    edit("version 5", l3, 0x55);
    for words in 0..5 {
        edit(&format!("IP header of {words} words"), l3, 0x40 | words);
    }
    edit("IP header longer than the packet", l3, 0x4f);
    edit("total length 0", l3 + 3, 0);
    edit("total length of the IP header alone", l3 + 3, 20);
    edit("total length over the frame's", l3 + 2, 0x10);
    edit("first fragment", l3 + 6, 0x20);
    edit("last fragment", l3 + 7, 0x10);
    edit("protocol UDP", l3 + 9, 17);
    edit("protocol ICMP over a TCP header", l3 + 9, 1);
    deviations.with_tcp(l4)
}

/// Deviations of a sound frame, as they are gathered.
pub(super) struct Deviations {
    whole: Vec<u8>,
    /// Octets up to the end of the destination address.
    address_end: usize,
    all: Vec<Deviation>,
}

impl Deviations {
    pub(super) fn of(whole: Vec<u8>, address_end: usize) -> Self {
        Self { whole, address_end, all: Vec::new() }
    }

    /// Cut to these lengths, and by one octet. No frame is shorter than an Ethernet header.
    pub(super) fn cut(&mut self, lengths: &[usize]) {
        let last = self.whole.len() - 1;
        for &length in lengths.iter().filter(|length| (14..last).contains(*length)).chain([&last]) {
            self.all.push(Deviation {
                name: format!("cut to {length} octets"),
                frame: self.whole[..length].to_vec(),
                names_vip: length >= self.address_end,
            });
        }
    }

    pub(super) fn edit(&mut self, name: &str, at: usize, value: u8) {
        let mut frame = self.whole.clone();
        frame[at] = value;
        self.all.push(Deviation { name: name.to_owned(), frame, names_vip: true });
    }

    /// All, with those of the TCP header.
    pub(super) fn with_tcp(mut self, l4: usize) -> Vec<Deviation> {
        for words in 0..5 {
            self.edit(&format!("TCP header of {words} words"), l4 + 12, words << 4);
        }
        self.edit("TCP header longer than the packet", l4 + 12, 0xf0);
        self.all
    }
}
