//! `max_flows_per_client`: established flows by client, for services that limit them; nothing is counted for others.
//!
//! A flow is counted when it is established and not before, so that nobody can use up another's share by forged SYNs;
//! and what is over the limit is refused then too, so that nobody gets past it by beginning many at once. An entry goes
//! with its client's last flow: there are never more of them than flows. The agent corrects what a race has lost.

use aya_ebpf::bindings::BPF_NOEXIST;
use lb_common::maps::{ClientKey, ClientLoad, FlowKey, Service};

use crate::{
    atomic,
    maps::{CLIENTS, SERVICES},
};

/// Whether a client has all the flows that it may have.
#[inline(always)]
pub fn is_at_limit(service: &Service, key: &FlowKey) -> bool {
    if service.max_flows_per_client == 0 {
        return false;
    }
    // SAFETY: a live map value, of which one word is read.
    let load = CLIENTS.get_ptr(key_of(key)).map(|load| unsafe { (*load).established });
    load.is_some_and(|established| established >= service.max_flows_per_client as i64)
}

/// A flow is about to be established; false if that is one too many.
#[inline(always)]
pub fn enter(key: &FlowKey) -> bool {
    let Some(limit) = limit_of(key.service) else { return true };
    let client = key_of(key);
    let load = match CLIENTS.get_ptr_mut(client) {
        Some(load) => load,
        None => {
            // Another CPU may be first; either way there is an entry then.
            let _there_already = CLIENTS.insert(client, ClientLoad { established: 0 }, BPF_NOEXIST.into());
            let Some(load) = CLIENTS.get_ptr_mut(client) else { return false };
            load
        }
    };
    // SAFETY: a live map value, aligned to 8.
    let before = unsafe { atomic::fetch_add(&raw mut (*load).established, 1) };
    if before < limit as i64 {
        return true;
    }
    // SAFETY: as above.
    unsafe { atomic::fetch_add(&raw mut (*load).established, -1) };
    false
}

/// A flow that was counted has ended.
#[inline(always)]
pub fn leave(key: &FlowKey) {
    if limit_of(key.service).is_none() {
        return;
    }
    let client = key_of(key);
    let Some(load) = CLIENTS.get_ptr_mut(client) else { return };
    // SAFETY: a live map value, aligned to 8.
    let before = unsafe { atomic::fetch_add(&raw mut (*load).established, -1) };
    if before <= 1 {
        let _gone_already = CLIENTS.remove(client);
    }
}

#[inline(always)]
fn limit_of(service: u16) -> Option<u32> {
    let limit = SERVICES.get(service as u32)?.max_flows_per_client;
    if limit == 0 { None } else { Some(limit) }
}

#[inline(always)]
fn key_of(key: &FlowKey) -> ClientKey {
    ClientKey { client: key.client, service: key.service as u32 }
}
