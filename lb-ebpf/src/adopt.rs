//! A connection that nobody here knows, soon after a takeover: perhaps the other node had it and could not tell any more.
//!
//! Where the client's own port is free toward a backend, the client's packet is sent there from it, as the other node will
//! have done. A backend that knows the connection goes on with it, and its first answer establishes the flow here; the RST
//! of one that does not is kept from the client, whose next packet goes to the next backend in the order of its slots. When
//! all were asked the client gets no answer until the grace time is over.

use core::ffi::c_void;

use aya_ebpf::{helpers::generated, programs::XdpContext};
use lb_common::{
    counters::Counter,
    hash,
    maps::{
        FlowKey, MAGLEV_SLOTS, NO_BACKEND, SERVICE_AFFINITY, SERVICE_ALLOW, SERVICE_DSR, flow_asked,
        load_of_service, program,
    },
    nat, tcp,
};

use crate::{
    Outcome, choose, clock, handover,
    lookup::record,
    maps::{HALF_OPEN, LOADS, SERVICES, maglev, table_in_use},
    tail_call,
};

/// Slots that are looked at: enough to meet each backend of a service of a dozen (with Maglev's even spread a backend of a
/// twelfth is missed by one client in 260).
const SLOTS: u32 = 64;

#[inline(always)]
pub fn handle(ctx: &XdpContext) -> Outcome {
    let (_, packet, number) = handover::take(ctx)?;
    let key = FlowKey { client: packet.source, port: packet.ports.0, service: number };
    let service = SERVICES.get(number as u32).ok_or(Counter::TakeoverGrace)?;
    if service.flags & SERVICE_ALLOW != 0 && !choose::is_allowed(&key) {
        return Err(Counter::NotAllowed);
    }
    // A FIN can wait until the connection is known, it comes again. In `dsr` the backend's answer would not be seen. A
    // system port was changed by the other node.
    if packet.segment.flags & (tcp::ACK | tcp::SYN | tcp::FIN) != tcp::ACK
        || service.flags & SERVICE_DSR != 0
        || (key.port.get() as u32) < nat::FIRST_PORT
        || !choose::has_room()
    {
        return Err(Counter::TakeoverGrace);
    }
    let by_address = service.flags & SERVICE_AFFINITY != 0;
    let hash = hash::client_of(&service.seed, &key.client, key.port, by_address);
    let load = LOADS.get_ptr(load_of_service(number)).ok_or(Counter::TakeoverGrace)?;
    let mut search = Search {
        slot: hash::slot(hash, MAGLEV_SLOTS).into(),
        table: table_in_use(load),
        service: number,
        port: key.port.get(),
        asked: asked(&key),
        found: NO_BACKEND,
    };
    let raw: *mut Search = &raw mut search;
    // SAFETY: the helper calls `ask` with `search`, which outlives the call.
    unsafe { generated::bpf_loop(SLOTS, ask as *mut c_void, raw.cast(), 0) };
    if search.found == NO_BACKEND {
        return Err(Counter::TakeoverGrace);
    }
    let asked = search.asked | flow_asked(search.found);
    handover::put_chosen(search.found, hash, clock::exact(), asked);
    tail_call(ctx, program::NEW_INDEX)
}

/// The bits of the backends that were asked for a flow already.
#[inline(always)]
fn asked(key: &FlowKey) -> u16 {
    // SAFETY: a live map value, of which one word is read.
    HALF_OPEN.get_ptr(key).map_or(0, |flow| unsafe { (*flow).asked })
}

/// The search under way. It lies on the caller's stack.
struct Search {
    /// The client's slot. 64 bits, as in `walk`.
    slot: u64,
    /// The service's table that counts.
    table: u64,
    service: u16,
    /// The client's port.
    port: u16,
    asked: u16,
    /// [`NO_BACKEND`]: none yet.
    found: u16,
}

/// Looks at one slot; returns 1 to end the loop.
extern "C" fn ask(number: u32, search: *mut c_void) -> i64 {
    // SAFETY: `handle` passes a pointer to its `Search`, to which nothing else refers during the call.
    let search = unsafe { &mut *search.cast::<Search>() };
    let Some(table) = maglev(search.service, search.table) else { return 1 };
    let slot = search.slot.wrapping_add(number as u64);
    let slot = if slot >= MAGLEV_SLOTS as u64 { slot.wrapping_sub(MAGLEV_SLOTS as u64) } else { slot };
    let Some(&backend) = table.slots.get(slot as usize) else { return 1 };
    if search.asked & flow_asked(backend) != 0 {
        return 0;
    }
    // Where it is a flow's of this node, the connection is not this backend's.
    let Some((_, claim)) = record(backend, search.port) else { return 0 };
    if !claim.may_be_claimed() {
        return 0;
    }
    search.found = backend;
    1
}
