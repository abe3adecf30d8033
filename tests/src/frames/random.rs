//! Random frames, from a seed.

use std::net::{Ipv4Addr, Ipv6Addr};

use lb_common::addr::Mac;

use super::{
    BACKEND_MAC, CLIENT_MAC, OWN_MAC, TcpFrame, arp_request, icmp_error, ping,
    scene::{BACKEND, VIP},
    v6::{BACKEND6, CLIENT6, Extension, TcpFrame6, VIP6, group_of, neighbour, ping_v6},
};

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// Any number.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// So many.
    pub fn octets(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// Frames of IPv4.
impl Random {
    /// A sound TCP frame between few addresses and ports, so that flows are hit.
    pub fn tcp(&mut self, destination: Ipv4Addr) -> TcpFrame {
        let addresses = [Ipv4Addr::new(10, 0, 2, 7), Ipv4Addr::new(10, 0, 2, 8), BACKEND.0, VIP];
        let source = (self.pick(&addresses), self.pick(&[2379, 6443, 40_000, 40_001, 1, 65_535]));
        let port = self.pick(&[2379, 6443, 40_000, 40_001, 22, 0]);
        let mut frame =
            TcpFrame::new(source, (destination, port), self.pick(&[2, 18, 16, 24, 17, 4, 20, 0, 63, 255]));
        frame.to_mac = self.pick(&[OWN_MAC, OWN_MAC, OWN_MAC, Mac::new([0xff; 6]), CLIENT_MAC]);
        frame.from_mac = self.pick(&[CLIENT_MAC, BACKEND_MAC]);
        frame.seq = self.pick(&[0, 1000, 1001, 5000, u32::MAX]);
        frame.ack = self.pick(&[0, 1001, 5001, u32::MAX]);
        frame.ttl = self.pick(&[64, 64, 64, 2, 1, 0]);
        frame.ip_options = vec![1; self.pick(&[0, 0, 0, 4, 40])];
        frame.tcp_options = vec![1; self.pick(&[0, 12, 40])];
        if self.below(3) == 0 {
            // An MSS, at an even or an odd place.
            let at = self.below(9);
            frame.tcp_options = vec![1; 12];
            frame.tcp_options[at..][..4].copy_from_slice(&[2, 4, self.pick(&[5, 35]), 180]);
        }
        let length = self.pick(&[0, 1, 100, 1400]);
        frame.payload = self.octets(length);
        if self.below(8) == 0 {
            frame.tags = vec![(self.pick(&[0x8100, 0x88a8]), self.next() as u16); 1 + self.below(3)];
        }
        if self.below(10) == 0 {
            frame.fragment = self.next() as u16;
        }
        frame
    }

    /// Anything: a sound frame, one with a few octets changed, a truncated one, ARP, ping, an ICMP error, or noise.
    pub fn any(&mut self, destination: Ipv4Addr) -> Vec<u8> {
        let client = Ipv4Addr::new(10, 0, 2, 7);
        let mut frame = match self.below(9) {
            8 => {
                let mut quoted = self.tcp(client);
                (quoted.tags, quoted.source.0) = (Vec::new(), destination);
                let quoted = quoted.build();
                let length = 14 + self.below(80).min(quoted.len() - 14);
                let error = (self.pick(&[3, 3, 11, 12, 5]), self.pick(&[4, 1, 0]), 1400);
                icmp_error((CLIENT_MAC, client), destination, error, &quoted[14..length])
            }
            0 => arp_request(Mac::new([0xff; 6]), (CLIENT_MAC, client), destination),
            1 => {
                let length = self.below(1400);
                ping(client, destination, length)
            }
            2 => {
                let length = 14 + self.below(1500);
                self.octets(length)
            }
            _ => self.tcp(destination).build(),
        };
        match self.below(4) {
            0 => {
                for _ in 0..=self.below(4) {
                    let at = self.below(frame.len());
                    frame[at] = self.next() as u8;
                }
            }
            1 => frame.truncate(14 + self.below(frame.len() - 13)),
            _ => {}
        }
        frame
    }
}

/// Frames of IPv6.
impl Random {
    /// Anything IPv6, for the VIP or for others, and whether it is sound: TCP of few flows, with extension headers and
    /// tags; neighbour discovery; ping; some of each with octets changed or cut.
    pub fn any_v6(&mut self) -> (Vec<u8>, bool) {
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let addresses = [VIP6, VIP6, BACKEND6.0, CLIENT6.0, group_of(VIP6), all_nodes, Ipv6Addr::UNSPECIFIED];
        let address = |random: &mut Self| random.pick(&addresses);
        let (source, destination) = (address(self), address(self));
        let mut frame = match self.below(6) {
            0 => {
                let macs = (self.pick(&[OWN_MAC, Mac::new([0x33, 0x33, 0, 0, 0, 1])]), CLIENT_MAC);
                let (kind, target) = (self.pick(&[135, 135, 136, 134]), address(self));
                let hop_limit = self.pick(&[255, 255, 64]);
                neighbour(kind, macs, (source, destination), target, hop_limit, &[1, 1, 2, 0, 0, 0, 0, 0x22])
            }
            1 => {
                let length = self.below(1400);
                ping_v6(source, destination, length)
            }
            _ => self.tcp_v6(source, destination),
        };
        let change = self.below(5);
        if change == 0 {
            for _ in 0..=self.below(4) {
                let at = 14 + self.below(frame.len() - 14);
                frame[at] = self.next() as u8;
            }
        } else if change == 1 {
            let length = 14 + self.below(frame.len() - 14);
            frame.truncate(length);
        }
        (frame, change > 1)
    }

    fn tcp_v6(&mut self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let source = (source, self.pick(&[2379, 40_000, 40_001, 1]));
        let destination = (destination, self.pick(&[2379, 2379, 40_000, 22]));
        let mut frame = TcpFrame6::new(source, destination, self.pick(&[2, 18, 16, 24, 17, 4, 20, 0, 255]));
        frame.to_mac = self.pick(&[OWN_MAC, OWN_MAC, OWN_MAC, CLIENT_MAC, Mac::new([0xff; 6])]);
        frame.seq = self.pick(&[1000, 1001, 5000, u32::MAX]);
        frame.ack = self.pick(&[0, 1001, 5001]);
        frame.hop_limit = self.pick(&[64, 64, 64, 1, 0]);
        for _ in 0..self.pick(&[0, 0, 0, 1, 2, 9]) {
            let kind = self.pick(&[0, 60, 43, 44]);
            frame.extensions.push(Extension { kind, body: vec![0; self.pick(&[6, 14, 62])] });
        }
        if self.below(8) == 0 {
            frame.tags = vec![(0x8100, self.next() as u16); 1 + self.below(3)];
        }
        frame.tcp_options = vec![1; self.pick(&[0, 12, 40])];
        let length = self.pick(&[0, 1, 100, 1300]);
        frame.payload(length).build()
    }
}
