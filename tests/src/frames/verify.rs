//! An independent look at what the program transmits: etherparse reads it and computes its checksums anew.

use etherparse::{NetSlice, SlicedPacket, TcpHeader, TransportSlice};

/// Fails unless the frame is a sound IPv4, IPv6 or ARP packet with right checksums.
pub fn assert_sound(frame: &[u8], context: &str) {
    check(frame).unwrap_or_else(|wrong| panic!("{context}: {wrong}\n{frame:02x?}"));
}

/// What is wrong with a frame's structure or checksums.
///
/// # Errors
///
/// In words.
pub fn check(frame: &[u8]) -> Result<(), String> {
    let packet = SlicedPacket::from_ethernet(frame).map_err(|error| format!("malformed: {error}"))?;
    let (sum, want, of) = match (&packet.net, &packet.transport) {
        (Some(NetSlice::Ipv4(ip)), transport) => {
            let header = ip.header().to_header();
            if header.header_checksum != header.calc_header_checksum() {
                return Err("IPv4 header checksum".to_owned());
            }
            match transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    let want = tcp.to_header().calc_checksum_ipv4(&header, tcp.payload());
                    (tcp.checksum(), want.map_err(|error| error.to_string())?, "TCP")
                }
                Some(TransportSlice::Icmpv4(icmp)) => {
                    (icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()), "ICMP")
                }
                _ => return Ok(()),
            }
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Tcp(tcp))) => {
            let want = tcp.to_header().calc_checksum_ipv6(&ip.header().to_header(), tcp.payload());
            (tcp.checksum(), want.map_err(|error| error.to_string())?, "TCP")
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) => {
            let header = ip.header().to_header();
            let sound = icmp.is_checksum_valid(header.source, header.destination);
            (u16::from(!sound), 0, "ICMPv6")
        }
        _ => return Ok(()),
    };
    if sum == want { Ok(()) } else { Err(format!("{of} checksum")) }
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
