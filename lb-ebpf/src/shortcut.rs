//! Shortcuts, which save the established path a look into `flows`: see [`lb_common::shortcut`].

use lb_common::{
    addr::Port,
    maps::{FlowKey, Layout, shortcuts_capacity},
    shortcut::{Bucket, Hash},
};

use crate::maps::{LAYOUT, SHORTCUTS};

/// The backend that seems to have a flow, which then has its client's own port.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<u16> {
    let hash = Hash::of(key);
    hash.find(*SHORTCUTS.get(number(hash)?)?)
}

/// Adds a shortcut to a flow's slot, which has none, if it can be told by its backend alone.
#[inline(always)]
pub fn add(key: &FlowKey, backend: u16, nat_port: Port) {
    if nat_port.word() == key.port.word() {
        change(key, |hash, bucket| hash.add(bucket, backend));
    }
}

/// The same where it may have one, or a wrong one.
#[inline(always)]
pub fn leave(key: &FlowKey, backend: u16, nat_port: Port) {
    if nat_port.word() == key.port.word() {
        change(key, |hash, bucket| hash.put(bucket, backend));
    }
}

/// Takes a flow's shortcut away.
#[inline(always)]
pub fn take_away(key: &FlowKey, backend: u16) {
    change(key, |hash, bucket| hash.remove(bucket, backend));
}

/// Another CPU may change the bucket at the same moment: then one of the two changes is lost, which costs time only.
#[inline(always)]
fn change(key: &FlowKey, to: impl FnOnce(Hash, Bucket) -> Bucket) {
    let hash = Hash::of(key);
    let Some(bucket) = number(hash).and_then(|number| SHORTCUTS.get_ptr_mut(number)) else { return };
    // SAFETY: a live map value, a whole word, aligned to 8.
    unsafe { bucket.write_volatile(to(hash, bucket.read_volatile())) };
}

/// The number of a flow's bucket.
#[inline(always)]
fn number(hash: Hash) -> Option<u32> {
    let layout: &Layout = LAYOUT.get(0)?;
    Some(hash.bucket(shortcuts_capacity(layout.max_flows)))
}
