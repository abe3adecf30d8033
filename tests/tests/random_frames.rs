//! Random frames, from a fixed seed: what is not for a VIP is passed bit by bit, what is transmitted is sound, what is for
//! the VIP never reaches the kernel, and every packet is counted under some reason.

use std::net::Ipv4Addr;

use etcd_lb_tests::frames::{scene::*, v6::*, *};
use lb_common::{
    counters::{Counter, Counters},
    maps::*,
};

const SEED: u64 = 0x5eed_0002;
const FRAMES: u32 = 10_000;
/// Frames of every kind.
const ANY_FRAMES: u32 = if cfg!(feature = "long") { 1_000_000 } else { 20_000 };

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

/// NAT and direct return, both families, tags on one side, an MTU that not all frames fit.
fn everything() -> Program {
    let mut program = two_services();
    program.service(2, VIP, 40_000, SERVICE_DSR);
    program.backend(4, 2, VIP, (BACKEND.0, 40_000));
    program.maglev(2, 4);
    let mut tagged = program.get_backend(4);
    tagged.hop.tags = [7u16.to_be(), 0];
    program.set_backend(4, tagged);
    program.service(3, VIP6, 2379, 0);
    program.backend(5, 3, VIP6, BACKEND6);
    program.maglev(3, 5);
    program.set_mtu(1400);
    program
}

#[test]
fn frames_of_every_kind_do_no_harm_and_are_counted() {
    let mut program = everything();
    let mut random = Random(SEED + 2);
    let (mut transmitted, mut dropped, mut passed) = (0, 0, 0);
    let traffic = |program: &mut Program| {
        [3, 4, 5].map(|backend| program.backend_counters(backend)).map(|of| of.packets_in + of.packets_out)
    };
    let mut before = (program.counters(), traffic(&mut program));
    for number in 0..ANY_FRAMES {
        if number % 1000 == 0 {
            // Soon after a takeover for a while, then as usual.
            let grace_until = if number % 2000 == 0 { u64::MAX } else { 0 };
            program.set_lease(Lease { grace_until, ..Lease::STANDALONE });
        }
        let frame = if random.below(5) < 2 { random.any_v6().0 } else { random.any(VIP) };
        let ran = program.run(&frame);
        let after = (program.counters(), traffic(&mut program));
        match ran.action {
            PASS => {
                passed += 1;
                assert_eq!(ran.frame, frame, "frame {number}: passed and changed");
                let silent = after == before || counted_conflict(&before.0, &after.0);
                assert!(silent, "frame {number}: passed and counted: {frame:02x?}");
            }
            TX => {
                transmitted += 1;
                assert_ne!(after, before, "frame {number}: transmitted and not counted: {frame:02x?}");
                if check(&frame).is_ok() {
                    assert_sound(&ran.frame, &format!("frame {number}: {frame:02x?}"));
                }
            }
            DROP => {
                dropped += 1;
                assert_ne!(after.0, before.0, "frame {number}: dropped and not counted: {frame:02x?}");
            }
            other => panic!("frame {number}: action {other}: {frame:02x?}"),
        }
        before = after;
    }
    println!("{ANY_FRAMES} frames: {transmitted} transmitted, {dropped} dropped, {passed} passed");
    assert!(
        transmitted > ANY_FRAMES / 10 && dropped > ANY_FRAMES / 10,
        "the frames do not exercise the program"
    );
    let established = program.load_of(LOAD_TOTAL);
    println!("{established} flows established; counters: {:?}", program.counters());
    assert!((0..=1024).contains(&established), "{established} flows");
}

/// A claim of the VIP is counted also where the packet that claims it is for somebody else.
fn counted_conflict(before: &Counters, after: &Counters) -> bool {
    changed(before, after) == ["vip_conflict"]
}
