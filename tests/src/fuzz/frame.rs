//! The packet logic of the XDP program, as it is built for the host: reading a frame, and giving it other ends.

use std::{cell::RefCell, net::IpAddr};

use lb_common::{
    addr::{Addr, Port},
    frame::{Frame, Link, TcpPacket, extensions},
    quote::{self, Ports, Quote},
    rewrite::{End, rewrite},
    wire::{IPV6_LEN, Ipv4, Ipv6, ethertype, protocol},
};

use super::{frames_that_deviate, guard::Guarded};
use crate::frames::{
    CLIENT_MAC, Random, TcpFrame, check, icmp_error,
    scene::{BACKEND, CLIENT, SERVICE, VIP},
    v6::{BACKEND6, CLIENT6, TcpFrame6, VIP6, icmp_error_v6},
};

thread_local! {
    static MEMORY: RefCell<Guarded> = RefCell::new(Guarded::new());
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = frames_that_deviate();
    let mut random = Random(7);
    seeds.extend((0..60).map(|_| random.any(VIP)));
    seeds.extend((0..60).map(|_| random.any_v6().0));
    let quoted = TcpFrame::new(SERVICE, CLIENT, 16).payload(60).build();
    seeds.push(icmp_error((CLIENT_MAC, BACKEND.0), VIP, (3, 4, 1400), &quoted[14..]));
    let quoted = TcpFrame6::new((VIP6, 2379), CLIENT6, 16).payload(60).build();
    seeds.push(icmp_error_v6((CLIENT_MAC, BACKEND6.0), VIP6, (2, 0, 1400), &quoted[14..]));
    seeds
}

pub fn run(input: &[u8]) {
    MEMORY.with_borrow_mut(|memory| {
        let sound = check(input).is_ok();
        let octets = memory.put(input);
        let start = octets.as_ptr() as usize;
        let frame = Frame::between(start, start + octets.len());
        let Some(link) = Link::parse(&frame) else { return };
        let changed = match link.ethertype {
            ethertype::IPV4 => v4(&frame, &link, input.len()),
            ethertype::IPV6 => v6(&frame, &link, input.len()),
            _ => return,
        };
        if changed && sound {
            let after = memory.get(input.len());
            check(after).unwrap_or_else(|wrong| panic!("sound before, and now {wrong}: {after:02x?}"));
        }
    });
}

fn end(address: IpAddr, port: u16) -> End {
    let address = match address {
        IpAddr::V4(v4) => Addr::from_v4_word(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => Addr::new(v6.octets()),
    };
    End { address, port: Port::new(port) }
}

/// Whether the frame was rewritten.
fn v4(frame: &Frame, link: &Link, length: usize) -> bool {
    let (from, to) = (end(IpAddr::V4(VIP), 40_001), end(IpAddr::V4(BACKEND.0), 2379));
    if let Ok(packet) = TcpPacket::parse(frame, link, || length as u32) {
        assert!(packet.length as usize + link.l3 as usize <= length);
        // SAFETY: `parse` checked that the headers lie in the frame.
        return unsafe { rewrite(packet.ip, packet.tcp, from, to) }.is_ok();
    }
    // As `other` does: only a sound header of ICMP goes on.
    let Some(ip) = frame.at::<Ipv4>(link.l3) else { return false };
    // SAFETY: `at` checked that the header lies in the frame.
    let ip = unsafe { &*ip };
    if !ip.is_sound() || ip.is_fragment() || ip.protocol() != protocol::ICMP {
        return false;
    }
    error(frame, link, from, to)
}

fn v6(frame: &Frame, link: &Link, length: usize) -> bool {
    let (from, to) = (end(IpAddr::V6(VIP6), 40_001), end(IpAddr::V6(BACKEND6.0), 2379));
    let Some(ip) = frame.at::<Ipv6>(link.l3) else { return false };
    // SAFETY: `at` checked that the header lies in the frame.
    let next = unsafe { (*ip).next_header() };
    if next == protocol::ICMPV6 {
        return error(frame, link, from, to);
    }
    let Ok(before) = extensions(frame, link.l3 + IPV6_LEN, next) else { return false };
    let Ok(packet) = TcpPacket::parse_v6(frame, link, || length as u32, IPV6_LEN + before) else {
        return false;
    };
    assert!(packet.length as usize + link.l3 as usize <= length);
    // SAFETY: `parse_v6` checked that the headers lie in the frame.
    unsafe { rewrite(packet.ip, packet.tcp, from, to) }.is_ok()
}

/// The packet that an ICMP error quotes gets other ends.
fn error(frame: &Frame, link: &Link, from: End, to: End) -> bool {
    let Ok(quote) = Quote::read(frame, link.ethertype, link.l3) else { return false };
    assert!(quote.l4 <= 22 + 60 && quote.ports <= 22 + 60 + 8 + 60, "the verifier's bounds");
    let Some(ports) = frame.at::<Ports>(quote.ports) else { return false };
    // SAFETY: nothing changed the frame since it was read.
    unsafe { quote::rewrite(frame, link.ethertype, (link.l3, quote.l4), ports, from, to) }.is_ok()
}
