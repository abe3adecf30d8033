//! The answer to a packet that does not fit where it would be sent: fragmentation needed (RFC 1191 section 4), or packet
//! too big (RFC 8201, RFC 4443 section 3.2), with as much of the packet as its sender needs to know its connection again.

use aya_ebpf::{bindings::xdp_action, helpers::generated, programs::XdpContext};
use lb_common::{
    checksum::fold,
    counters::Counter,
    wire::{Ethernet, IPV4_LEN, IPV6_LEN, IcmpTooBig, Ipv4, Ipv6, protocol},
};

use crate::{
    Outcome, count,
    frame::{self, put_mac, resize},
    handover,
    nat::interface,
};

/// Octets of the packet that the answer holds: any IP header and 8 octets of TCP and more, with IPv6 all but the longest
/// extension headers. What does not fit is longer than this, since no MTU is below 576.
const QUOTED: u32 = 128;
const ICMP_LEN: u32 = size_of::<IcmpTooBig>() as u32;

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let (link, packet, _) = handover::take(ctx)?;
    let onward = handover::onward().ok_or(Counter::TailCall)?;
    let mtu = interface(onward.ifindex).ok_or(Counter::NoNextHop)?.mtu;
    if packet.ip.is_v6 {
        let (from, to) = (packet.destination.words(), packet.source.words());
        let ip = Ipv6::reply(protocol::ICMPV6, (ICMP_LEN + QUOTED) as u16, from, to);
        let pseudo = ip.sum_of_addresses()
            + u64::from(((ICMP_LEN + QUOTED) as u16).to_be())
            + u64::from(u16::from(protocol::ICMPV6).to_be());
        return send(ctx, link.l3, IPV6_LEN, Head { ip, icmp: IcmpTooBig::v6(mtu) }, pseudo);
    }
    let (from, to) = (packet.destination.v4_word(), packet.source.v4_word());
    let ip = Ipv4::reply(protocol::ICMP, (IPV4_LEN + ICMP_LEN + QUOTED) as u16, from, to);
    send(ctx, link.l3, IPV4_LEN, Head { ip, icmp: IcmpTooBig::v4(mtu) }, 0)
}

#[repr(C)]
struct Head<I> {
    ip: I,
    icmp: IcmpTooBig,
}

/// Puts the answer's headers before the packet, cuts that off behind [`QUOTED`] octets, and sends it back.
#[inline(always)]
fn send<I>(ctx: &XdpContext, l3: u32, ip_len: u32, head: Head<I>, pseudo: u64) -> Outcome {
    let added = ip_len + ICMP_LEN;
    let frame = frame::of(ctx);
    let old = frame.at::<Link>(0).ok_or(Counter::Malformed)?;
    // SAFETY: `at` checked that the octets lie in the frame.
    let words: Link = core::array::from_fn(|word| unsafe { (&raw const (*old)[word]).read_volatile() });
    // SAFETY: the helper takes the context that the program was called with, and checks the length itself.
    if unsafe { generated::bpf_xdp_adjust_head(ctx.ctx, -(added as i32)) } != 0 {
        return Err(Counter::AdjustFailed);
    }
    resize(ctx, l3 + added + QUOTED)?;
    let frame = frame::of(ctx);
    let link = frame.at::<Link>(0).ok_or(Counter::AdjustFailed)?;
    let ethernet: *mut Ethernet = link.cast();
    let answer = frame.at::<Head<I>>(l3).ok_or(Counter::AdjustFailed)?;
    let quoted = frame.at::<[u32; QUOTED as usize / 4]>(l3 + added).ok_or(Counter::AdjustFailed)?;
    // SAFETY: `at` checked that all lie in the frame; the tags' end is overwritten by the answer, which follows them.
    unsafe {
        for (word, value) in words.into_iter().enumerate() {
            (&raw mut (*link)[word]).write_volatile(value);
        }
        let (source, destination) = ((*ethernet).source, (*ethernet).destination);
        put_mac(&raw mut (*ethernet).source, destination);
        put_mac(&raw mut (*ethernet).destination, source);
        answer.write(head);
        let sum = generated::bpf_csum_diff(core::ptr::null_mut(), 0, quoted.cast(), QUOTED, 0);
        (*answer).icmp.check = !fold((*answer).icmp.sum() + pseudo + u64::from(sum as u32));
    }
    count::count(Counter::TooBig);
    Ok(xdp_action::XDP_TX)
}

/// The Ethernet header and two tags, as words.
type Link = [u16; 11];
