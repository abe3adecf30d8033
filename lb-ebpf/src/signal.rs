//! What the agent is told: signals, which ask for something at once, and events, which are the flows' history. Both are
//! rare, and neither waits: what finds its ring buffer full is counted and lost.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::helpers::generated;
use lb_common::{
    addr::{Addr, Mac, Port},
    claim::{self, Claim},
    counters::Counter,
    maps::{
        CLOSED_BY_BACKEND, CLOSED_BY_CLIENT, CLOSED_RESET_BY_BACKEND, CLOSED_RESET_BY_CLIENT, EVENT_CLOSED,
        FlowEvent, FlowKey, SIGNAL_GAP_NS, SIGNAL_TABLE_FULL, SIGNAL_VIP_CONFLICT, SUSPECT_TABLE_FULL,
        SUSPECT_VIP_CONFLICT, Signal, handshake_bucket,
    },
};

use crate::{
    clock, count,
    frame::put_mac,
    maps::{EVENTS, HANDSHAKES, NEWS, SIGNALS, SUSPECTS},
    suspect,
};

/// Something about a backend; one in 10 ms is told.
#[inline(always)]
pub fn of_backend(number: u16, kind: u16, now: u64) {
    send(number as u32, kind, number, now, None);
}

/// A SYN was refused, since the flow table is full.
#[inline(always)]
pub fn table_full(now: u64) {
    send(SUSPECT_TABLE_FULL, SIGNAL_TABLE_FULL, 0, now, None);
}

/// Another host, with this MAC, claims a VIP.
#[inline(always)]
pub fn vip_conflict(address: Addr, mac: Mac) {
    send(SUSPECT_VIP_CONFLICT, SIGNAL_VIP_CONFLICT, 0, clock::exact(), Some((address, mac)));
}

/// What became of a flow, for the agent and for the judgement of its backend. It lies in a per-CPU map, and is told by
/// `bpf_loop`: so the verifier forgets by which way the program came to it, and does not walk the rest once for each way.
#[repr(C)]
pub struct News {
    pub before: u64,
    /// The claim from now on.
    pub after: u64,
    /// The step that changed it.
    pub step: u64,
    pub key: FlowKey,
    pub generation: u32,
    pub established: u32,
    pub nat_port: Port,
    pub backend: u16,
    /// `EVENT_*`; 0: it neither began nor ended.
    pub kind: u16,
    /// Not 0: the backend ends a flow that its client had not begun to close.
    pub by_backend: u16,
}

/// This CPU's news, its claims and step written and forgotten.
#[inline(always)]
pub fn news(before: Claim, after: Claim, step: u64) -> Option<(&'static mut News, Claim, Claim, u64)> {
    let news = NEWS.get_ptr_mut(0)?;
    // SAFETY: a live map value, and this CPU's own.
    unsafe {
        (&raw mut (*news).before).write_volatile(before.0);
        (&raw mut (*news).after).write_volatile(after.0);
        (&raw mut (*news).step).write_volatile(step);
        let before = (&raw const (*news).before).read_volatile();
        let after = (&raw const (*news).after).read_volatile();
        let step = (&raw const (*news).step).read_volatile();
        Some((&mut *news, Claim(before), Claim(after), step))
    }
}

/// Tells this CPU's news.
#[inline(always)]
pub fn tell() {
    // SAFETY: the helper calls `tell_once`, which takes nothing.
    unsafe { generated::bpf_loop(1, tell_once as *mut c_void, core::ptr::null_mut(), 0) };
}

extern "C" fn tell_once(_number: u32, _nothing: *mut c_void) -> i64 {
    let Some(news) = NEWS.get_ptr_mut(0) else { return 1 };
    // SAFETY: a live map value, and this CPU's own.
    let news = unsafe { &*news };
    if news.by_backend != 0 {
        suspect::ended(news.backend);
    }
    if news.kind == EVENT_CLOSED && news.step & claim::RESET != 0 {
        let by_backend = news.step & claim::BY_BACKEND != 0;
        count::backend(news.backend, |counters| {
            if by_backend {
                counters.reset_by_backend += 1;
            } else {
                counters.reset_by_client += 1;
            }
        });
    }
    if news.kind != 0 {
        event(news);
    }
    1
}

#[inline(always)]
fn event(news: &News) {
    let Some(mut entry) = EVENTS.reserve_untyped::<FlowEvent>(0) else {
        count::count(Counter::EventsLost);
        return;
    };
    let event: *mut FlowEvent = MaybeUninit::as_mut_ptr(&mut entry);
    // SAFETY: `reserve` gave room for an event, and each of its fields is written.
    unsafe {
        (*event).at = clock::exact();
        put_address(&raw mut (*event).client, &raw const news.key.client);
        (*event).client_port = news.key.port;
        (*event).nat_port = news.nat_port;
        (*event).backend = news.backend;
        (*event).service = news.key.service;
        (*event).generation = news.generation;
        (*event).established = news.established;
        (*event).kind = news.kind;
        (*event).why = if news.kind == EVENT_CLOSED { why(Claim(news.after), news.step) } else { 0 };
        (*event).reserved = 0;
    }
    entry.submit(0);
}

/// Copies an address word by word: as one copy it becomes a call of `memmove`, which a BPF program does not have.
///
/// # Safety
/// Both are valid and aligned to 4.
#[inline(always)]
pub unsafe fn put_address(to: *mut Addr, from: *const Addr) {
    let (to, from) = (to.cast::<u32>(), from.cast::<u32>());
    // SAFETY: an address has four words; the caller vouches for the pointers.
    unsafe {
        to.write_volatile(from.read_volatile());
        to.add(1).write_volatile(from.add(1).read_volatile());
        to.add(2).write_volatile(from.add(2).read_volatile());
        to.add(3).write_volatile(from.add(3).read_volatile());
    }
}

/// A backend answered a SYN: the one that was sent at `since`, ns, by a SYN-ACK; with 0, by a refusal.
#[inline(always)]
pub fn answer(number: u16, since: u64) {
    let mut answer = Answer { since, number };
    let raw: *mut Answer = &mut answer;
    // SAFETY: the helper calls `answer_once` with `answer`, which outlives the call.
    unsafe { generated::bpf_loop(1, answer_once as *mut c_void, raw.cast(), 0) };
}

struct Answer {
    since: u64,
    number: u16,
}

extern "C" fn answer_once(_number: u32, answer: *mut c_void) -> i64 {
    // SAFETY: the function above passes a pointer to its `Answer`, to which nothing else refers during the call.
    let answer = unsafe { &*answer.cast::<Answer>() };
    if answer.since == 0 {
        suspect::refused(answer.number);
    } else {
        handshake(answer.number, answer.since);
    }
    1
}

#[inline(always)]
fn handshake(number: u16, since: u64) {
    let took = clock::exact().saturating_sub(since);
    let Some(times) = HANDSHAKES.get_ptr_mut(number as u32) else { return };
    // SAFETY: a live map value, and this CPU's own.
    let times = unsafe { &mut *times };
    if let Some(bucket) = times.buckets.get_mut(handshake_bucket(took)) {
        *bucket += 1;
    }
    times.sum = times.sum.wrapping_add(took);
}

#[inline(always)]
fn send(slot: u32, kind: u16, backend: u16, at: u64, claim: Option<(Addr, Mac)>) {
    let Some(suspect) = SUSPECTS.get_ptr_mut(slot) else { return };
    // SAFETY: a live map value, of whole words that other CPUs may write too.
    unsafe {
        if (*suspect).signalled_at != 0 && at.saturating_sub((*suspect).signalled_at) < SIGNAL_GAP_NS {
            return;
        }
        (*suspect).signalled_at = at;
    }
    let Some(mut entry) = SIGNALS.reserve_untyped::<Signal>(0) else {
        count::count(Counter::EventsLost);
        return;
    };
    let signal: *mut Signal = MaybeUninit::as_mut_ptr(&mut entry);
    // SAFETY: `reserve` gave room for a signal, which is five words; each is written, the unused fields by 0.
    unsafe {
        for word in 0..size_of::<Signal>() / 8 {
            signal.cast::<u64>().add(word).write_volatile(0);
        }
        (*signal).at = at;
        (*signal).kind = kind;
        (*signal).backend = backend;
        if let Some((address, mac)) = &claim {
            put_address(&raw mut (*signal).address, address);
            put_mac(&raw mut (*signal).mac, *mac);
        }
    }
    entry.submit(0);
}

#[inline(always)]
const fn why(after: Claim, step: u64) -> u16 {
    if step & claim::RESET != 0 {
        if step & claim::BY_BACKEND != 0 { CLOSED_RESET_BY_BACKEND } else { CLOSED_RESET_BY_CLIENT }
    } else if after.has(claim::FREE_AT_ONCE) {
        CLOSED_BY_CLIENT
    } else {
        CLOSED_BY_BACKEND
    }
}
