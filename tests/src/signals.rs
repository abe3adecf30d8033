//! Takes this process's labs down on Ctrl-C and SIGTERM.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, Once, PoisonError},
    thread,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::state;

static LIVE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static WATCH: Once = Once::new();

/// From now on a signal takes this lab down before the process ends.
pub(crate) fn protect(id: &str) {
    WATCH.call_once(watch);
    live().insert(id.to_owned());
}

/// The lab was taken down, or is to stay up.
pub(crate) fn release(id: &str) {
    live().remove(id);
}

fn watch() {
    let mut signals = match Signals::new([SIGINT, SIGTERM, SIGHUP]) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("cannot watch for signals: {error}; `cargo xtask lab down --all` removes leftovers");
            return;
        }
    };
    thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        // Held until the process ends, so that no lab can be added any more.
        let live = live();
        for id in live.iter() {
            if let Err(error) = state::teardown(id) {
                eprintln!("lab {id}: {error:#}");
            }
        }
        // As a shell shows a death by signal.
        std::process::exit(128 + signal);
    });
}

fn live() -> MutexGuard<'static, BTreeSet<String>> {
    // A panic cannot leave a set half-changed.
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}
