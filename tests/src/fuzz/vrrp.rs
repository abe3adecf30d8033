//! Frames of the protocol VRRP, as anybody on the LAN can send them to the agent.

use std::{net::IpAddr, time::Duration};

use lb_core::vrrp::{Checksum, Family, Version, VirtualRouter, packet};

use crate::frames::CLIENT_MAC;

/// A node of each kind that there is.
fn routers() -> Vec<VirtualRouter> {
    let v3 = VirtualRouter {
        version: Version::V3,
        router_id: 51,
        addresses: vec![[192, 0, 2, 10].into(), [192, 0, 2, 11].into()],
        source: [192, 0, 2, 2].into(),
        peers: vec![],
        checksum: Checksum::PseudoHeader,
        auth_pass: None,
        interval: Duration::from_secs(1),
    };
    let addresses: [IpAddr; 2] =
        [0xfe80 << 112 | 0x10, 0x2001_0db8 << 96 | 0x10].map(|bits: u128| IpAddr::V6(bits.into()));
    let v6 = VirtualRouter {
        addresses: addresses.into(),
        source: IpAddr::V6((0xfe80 << 112 | 2).into()),
        ..v3.clone()
    };
    let v2 = VirtualRouter { version: Version::V2, auth_pass: Some(*b"secret12"), ..v3.clone() };
    let unicast = VirtualRouter { peers: vec![[192, 0, 2, 1].into()], ..v3.clone() };
    vec![v3, v6, v2, unicast]
}

pub(super) fn run(input: &[u8]) {
    let Some(datagram) = packet::in_frame(input) else { return };
    assert!(datagram.message.len() <= input.len(), "more than there is");
    for router in routers() {
        for is_known in [false, true] {
            match packet::read(&router, &datagram, is_known) {
                Ok(advertisement) => {
                    assert!(!advertisement.interval.is_zero(), "an interval that nobody can keep");
                    assert!(is_known || !advertisement.other_list, "another pair's list");
                    assert_ne!(advertisement.source, router.source, "our own");
                }
                Err(reject) => assert!(reject.to_string().len() < 500, "a line of the log"),
            }
        }
    }
}

/// What the peer of each node sends.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let frames = routers().into_iter().map(|mut router| {
        let own = router.source;
        router.source = match router.family() {
            Family::V4 => [192, 0, 2, 1].into(),
            Family::V6 => IpAddr::V6((0xfe80 << 112 | 1).into()),
        };
        let to = if router.peers.is_empty() { router.family().group() } else { own };
        packet::frame(&router, CLIENT_MAC, (to, packet::group_mac(router.family())), 200, router.interval)
    });
    frames.collect()
}
