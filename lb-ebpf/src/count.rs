//! Counters, per CPU, so that counting needs no atomics.

use lb_common::{
    counters::{BackendCounters, Counter},
    maps::{LOAD_TOTAL, load_of_backend, load_of_service},
};

use crate::{
    atomic,
    maps::{BACKEND_COUNTERS, COUNTERS, LOADS},
};

/// Adds one.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: `Counters` is an array of u64 in the order of `Counter`, which a test proves, so the place lies inside
        // the map value; the value is this CPU's own.
        unsafe {
            let place = counters.cast::<u64>().add(counter as usize);
            *place = (*place).wrapping_add(1);
        }
    }
}

/// This CPU's counters of a backend.
#[inline(always)]
pub fn backend(number: u16, add: impl FnOnce(&mut BackendCounters)) {
    if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(number as u32) {
        // SAFETY: the pointer is a live map value, and this CPU's own.
        add(unsafe { &mut *counters });
    }
}

/// Established flows, or `None` if the map has no such slot.
#[inline(always)]
pub fn established() -> Option<i64> {
    LOADS.get(LOAD_TOTAL).map(|load| load.established)
}

/// A flow of a backend was established (+1) or closed (-1).
#[inline(always)]
pub fn load(backend: u16, service: u16, change: i64) {
    add_load(load_of_backend(backend), change);
    add_load(load_of_service(service), change);
    add_load(LOAD_TOTAL, change);
}

#[inline(always)]
fn add_load(slot: u32, change: i64) {
    if let Some(load) = LOADS.get_ptr_mut(slot) {
        // SAFETY: the pointer is a live map value, aligned to 8, and its first field is the number.
        unsafe { atomic::add(&raw mut (*load).established, change) };
    }
}
