//! Random frames, from a fixed seed: what is not for a VIP is passed bit by bit, what is transmitted is sound, what is for
//! the VIP never reaches the kernel, and every packet is counted under some reason.

use std::net::Ipv4Addr;

use etcd_lb_tests::frames::*;
use lb_common::{addr::Mac, counters::Counter, maps::*};

const PASS: u32 = 2;
const TX: u32 = 3;
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 100);
const BACKEND: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 1, 11), 2379);
const SEED: u64 = 0x5eed_0002;
const FRAMES: u32 = 10_000;

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn octets(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// A sound TCP frame between few addresses and ports, so that flows are hit.
    fn tcp(&mut self, destination: Ipv4Addr) -> TcpFrame {
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

    /// Anything: a sound frame, one with a few octets changed, a truncated one, ARP, ping, or noise.
    fn any(&mut self, destination: Ipv4Addr) -> Vec<u8> {
        let client = Ipv4Addr::new(10, 0, 2, 7);
        let mut frame = match self.below(8) {
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

fn setup() -> Program {
    let mut program = Program::load(1024);
    program.service(0, VIP, 2379, 0);
    program.service(1, VIP, 6443, 0);
    program.backend(3, 0, VIP, BACKEND);
    program.maglev(0, 3);
    program
}

/// Whether any place where a destination could be read names the VIP.
fn may_name_vip(frame: &[u8]) -> bool {
    frame.windows(4).any(|window| window == VIP.octets())
}

#[test]
fn frames_for_no_vip_are_passed_bit_by_bit() {
    let mut program = setup();
    let before = program.counters();
    let mut random = Random(SEED);
    // The VIP's neighbours, an address with the VIP's last octets, and others.
    let others =
        ["10.0.1.101", "10.9.1.100", "10.0.1.1", "224.0.0.18", "255.255.255.255", "10.0.1.11", "0.0.0.0"];
    let others = others.map(|address| address.parse::<Ipv4Addr>().expect("an address"));
    let mut frames = 0;
    while frames < FRAMES {
        let destination = random.pick(&others);
        let frame = random.any(destination);
        if may_name_vip(&frame[..frame.len().min(62)]) {
            continue;
        }
        let ran = program.run(&frame);
        assert_eq!(ran.action, PASS, "frame {frames}: {frame:02x?}");
        assert_eq!(ran.frame, frame, "frame {frames} is changed");
        frames += 1;
    }
    assert_eq!(program.counters(), before, "nothing is counted");
}

#[test]
fn sound_frames_for_the_vip_are_transmitted_sound_or_counted() {
    let mut program = setup();
    let mut random = Random(SEED + 1);
    let mut transmitted = 0;
    for number in 0..FRAMES {
        let frame = random.tcp(VIP);
        let bytes = frame.build();
        let before = program.counters();
        let ran = program.run(&bytes);
        let context = format!("frame {number}: {frame:?}");
        match ran.action {
            TX => {
                transmitted += 1;
                assert_sound(&ran.frame, &context);
            }
            PASS => {
                let elsewhere = frame.to_mac != OWN_MAC && !frame.to_mac.is_group();
                assert!(elsewhere || frame.tags.len() > 2, "{context}");
                assert_eq!(ran.frame, bytes, "{context}");
            }
            _ => {
                let after = program.counters();
                let counted = Counter::ALL.iter().any(|counter| counter.of(&after) > counter.of(&before));
                assert!(counted, "{context}: dropped and not counted");
            }
        }
    }
    println!("{transmitted} of {FRAMES} frames transmitted");
    assert!(transmitted > FRAMES / 4, "the frames do not exercise the program");
}

#[test]
fn malformed_frames_for_the_vip_do_no_harm() {
    let mut program = setup();
    let mut random = Random(SEED + 2);
    for _ in 0..FRAMES {
        let frame = random.any(VIP);
        let ran = program.run(&frame);
        if ran.action == PASS {
            assert_eq!(ran.frame, frame, "passed and changed: {frame:02x?}");
        }
    }
    let established = program.load_of(LOAD_TOTAL);
    assert!((0..=1024).contains(&established), "{established} flows");
}
