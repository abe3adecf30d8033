//! An independent look at what the program transmits: etherparse reads it and computes its checksums anew.

use etherparse::{Ipv6Header, NetSlice, SlicedPacket, TcpHeader, TransportSlice};

/// Fails unless the frame is a sound IPv4, IPv6 or ARP packet with right checksums.
pub fn assert_sound(frame: &[u8], context: &str) {
    let packet = SlicedPacket::from_ethernet(frame)
        .unwrap_or_else(|error| panic!("{context}: transmitted frame is malformed: {error}\n{frame:02x?}"));
    if let Some(NetSlice::Ipv6(ip)) = &packet.net {
        return assert_sound_v6(&ip.header().to_header(), &packet, context);
    }
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { return };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum(), "{context}: IPv4 header checksum");
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let want = tcp
                .to_header()
                .calc_checksum_ipv4(&header, tcp.payload())
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(tcp.checksum(), want, "{context}: TCP checksum");
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let want = icmp.icmp_type().calc_checksum(icmp.payload());
            assert_eq!(icmp.checksum(), want, "{context}: ICMP checksum");
        }
        _ => {}
    }
}

fn assert_sound_v6(header: &Ipv6Header, packet: &SlicedPacket<'_>, context: &str) {
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let want = tcp
                .to_header()
                .calc_checksum_ipv6(header, tcp.payload())
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(tcp.checksum(), want, "{context}: TCP checksum");
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let sound = icmp.is_checksum_valid(header.source, header.destination);
            assert!(sound, "{context}: ICMPv6 checksum");
        }
        _ => {}
    }
}

/// ((source address, port), (destination address, port), header) of a TCP frame.
pub fn tcp_of(frame: &[u8]) -> ((std::net::Ipv4Addr, u16), (std::net::Ipv4Addr, u16), TcpHeader) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a sound frame");
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (&packet.net, &packet.transport) else {
        panic!("no TCP over IPv4: {frame:02x?}");
    };
    let ip = ip.header();
    let tcp = tcp.to_header();
    ((ip.source_addr(), tcp.source_port), (ip.destination_addr(), tcp.destination_port), tcp)
}

/// (SEQ, ACK if set) of a frame that must be a RST without data.
pub fn reset_of(frame: &[u8]) -> (u32, Option<u32>) {
    let (_, _, tcp) = tcp_of(frame);
    assert!(tcp.rst && !tcp.syn && !tcp.fin, "no RST: {tcp:?}");
    assert!(frame.len() >= 60, "a frame of {} octets is too short for the wire", frame.len());
    (tcp.sequence_number, tcp.ack.then_some(tcp.acknowledgment_number))
}

/// 0 over octets that hold their own right checksum.
pub fn internet_sum(octets: &[u8]) -> u16 {
    let mut sum: u32 =
        octets.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}
