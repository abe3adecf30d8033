//! Frames that carry one TCP segment without data: what the agent says in place of one end of a flow.

use lb_common::{
    addr::{Addr, Mac, Port},
    tcp::{self, Segment},
    wire::{IPV4_LEN, Ipv4, MIN_FRAME, Tcp, ethertype, protocol},
};

/// How a frame gets where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The interface's own MAC.
    pub source: Mac,
    /// The neighbour's.
    pub destination: Mac,
    /// Tag control information of up to two VLAN tags, outermost first, network order; 0: no tag.
    pub tags: [u16; 2],
}

/// An address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The address.
    pub address: Addr,
    /// The port.
    pub port: Port,
}

/// What ends the half-connection of a receiver whose last ACK seen was `last_ack`, and which has sent up to `edge`.
///
/// The RST is exact if nothing went by since (RFC 9293 section 3.10.7.4). If something did, it lies left of the window and
/// is dropped in silence (RFC 5961 section 3.2); but the empty ACK, whose SEQ is old in either case, is answered with an
/// ACK (RFC 9293 section 3.10.7.4), which the data plane answers with an exact RST.
pub const fn farewell(last_ack: u32, edge: u32) -> [Segment; 2] {
    [
        Segment { seq: last_ack, ack: 0, payload: 0, flags: tcp::RST },
        Segment { seq: last_ack.wrapping_sub(1), ack: edge, payload: 0, flags: tcp::ACK },
    ]
}

/// The frame, checksums included, padded to Ethernet's shortest; `None` if the ends are of two families, or of one that
/// is not built here.
pub fn frame(link: &Link, from: &End, to: &End, segment: &Segment) -> Option<Vec<u8>> {
    let mut frame = Vec::with_capacity(MIN_FRAME as usize);
    frame.extend_from_slice(link.destination.octets());
    frame.extend_from_slice(link.source.octets());
    let tags: Vec<u16> = link.tags.into_iter().filter(|tag| *tag != 0).collect();
    for (number, tag) in tags.iter().enumerate() {
        // Outside of another tag stands a service tag (IEEE 802.1ad).
        let outer = number + 1 < tags.len();
        let announced = if outer { ethertype::SERVICE_VLAN } else { ethertype::VLAN };
        frame.extend_from_slice(&announced.to_ne_bytes());
        frame.extend_from_slice(&tag.to_ne_bytes());
    }
    if from.address.is_v4() && to.address.is_v4() {
        put_v4(&mut frame, from, to, segment);
    } else {
        return None;
    }
    frame.resize(frame.len().max(MIN_FRAME as usize), 0);
    Some(frame)
}

fn put_v4(frame: &mut Vec<u8>, from: &End, to: &End, segment: &Segment) {
    let addresses = (from.address.v4_word(), to.address.v4_word());
    let length = (IPV4_LEN + tcp::HEADER_LEN) as u16;
    let ip = Ipv4::reply(protocol::TCP, length, addresses.0, addresses.1);
    frame.extend_from_slice(&ethertype::IPV4.to_ne_bytes());
    frame.extend_from_slice(&[ip.version_ihl, ip.tos]);
    for word in [ip.total_length, ip.id, ip.fragment, ip.ttl_protocol, ip.check] {
        frame.extend_from_slice(&word.to_ne_bytes());
    }
    frame.extend_from_slice(&ip.source.to_ne_bytes());
    frame.extend_from_slice(&ip.destination.to_ne_bytes());
    put_tcp(frame, &Tcp::reply_v4((from.port.word(), to.port.word()), addresses, segment));
}

fn put_tcp(frame: &mut Vec<u8>, tcp: &Tcp) {
    frame.extend_from_slice(&tcp.source.to_ne_bytes());
    frame.extend_from_slice(&tcp.destination.to_ne_bytes());
    frame.extend_from_slice(&tcp.seq.to_ne_bytes());
    frame.extend_from_slice(&tcp.ack.to_ne_bytes());
    for word in [tcp.offset_flags, tcp.window, tcp.check, tcp.urgent] {
        frame.extend_from_slice(&word.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn end(last: u8, port: u16) -> End {
        End { address: Ipv4Addr::new(10, 0, 1, last).into(), port: Port::new(port) }
    }

    fn sum(octets: &[u8]) -> u16 {
        let words = octets.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn a_frame_holds_what_it_should_with_right_checksums() {
        let link = Link {
            source: Mac::new([2; 6]),
            destination: Mac::new([4; 6]),
            tags: [5u16.to_be(), 7u16.to_be()],
        };
        for (tags, l3) in [(0, 14), (1, 18), (2, 22)] {
            let mut link = link;
            link.tags[tags..].fill(0);
            for segment in farewell(u32::MAX, 77) {
                let frame = frame(&link, &end(100, 2379), &end(21, 40_000), &segment).unwrap();
                assert_eq!(frame.len(), (l3 + 40).max(60));
                assert_eq!((&frame[..6], &frame[6..12]), (&[4; 6][..], &[2; 6][..]));
                assert_eq!(frame[l3 - 2..l3], [8, 0]);
                if tags == 2 {
                    assert_eq!(frame[12..20], [0x88, 0xa8, 0, 5, 0x81, 0, 0, 7]);
                }
                let (ip, tcp) = (&frame[l3..l3 + 20], &frame[l3 + 20..l3 + 40]);
                assert_eq!(sum(ip), 0xffff);
                let pseudo = [&ip[12..20], &[0, 6, 0, 20], tcp].concat();
                assert_eq!(sum(&pseudo), 0xffff);
                assert_eq!((&ip[12..16], &ip[16..20]), (&[10, 0, 1, 100][..], &[10, 0, 1, 21][..]));
                assert_eq!(tcp[..4], [9, 75, 156, 64]);
                let numbers = (tcp[4..8].try_into().unwrap(), tcp[8..12].try_into().unwrap(), tcp[13]);
                let expected = (segment.seq, segment.ack, segment.flags);
                assert_eq!(
                    (u32::from_be_bytes(numbers.0), u32::from_be_bytes(numbers.1), numbers.2),
                    expected
                );
            }
        }
    }

    #[test]
    fn the_second_segment_is_old_by_one() {
        let [rst, ack] = farewell(0, 9);
        assert_eq!((rst.seq, rst.flags, ack.seq, ack.ack), (0, tcp::RST, u32::MAX, 9));
    }
}
