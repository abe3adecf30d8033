//! Random frames, from a fixed seed: what is not for a VIP is passed bit by bit, what is transmitted is sound, what is for
//! the VIP never reaches the kernel, and every packet is counted under some reason.

use std::net::Ipv4Addr;

use etcd_lb_tests::frames::{scene::*, *};
use lb_common::{counters::Counter, maps::*};

const SEED: u64 = 0x5eed_0002;
const FRAMES: u32 = 10_000;

/// Two services, of which one has no backend.
fn two_services() -> Program {
    let mut program = setup();
    program.service(1, VIP, 6443, 0);
    program
}

/// Whether any place where a destination could be read names the VIP.
fn may_name_vip(frame: &[u8]) -> bool {
    frame.windows(4).any(|window| window == VIP.octets())
}

#[test]
fn frames_for_no_vip_are_passed_bit_by_bit() {
    let mut program = two_services();
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
    let mut program = two_services();
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
    let mut program = two_services();
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
