//! Verdicts that depend on how the other backends of a service fare.

use std::time::Instant;

use super::{Flip, Health, State};

/// Brings the machines of one service's backends together, after each input to one of them.
///
/// A shared failure takes a backend down once it fails a probe begun after another had passed one, which in turn began after
/// this one's first failure: only then does it fail alone. So an election, or the return of a quorum that some members see a
/// moment before others, is nobody's verdict. Where nobody passes, every withheld verdict is spoken at once, unconfirmed: the
/// service fails open, and nothing is reset.
///
/// Failures of a backend's own take it down by themselves. Its flows are reset if another passed a probe begun after its
/// first failure; else, as where most of a cluster freezes and returns, once it fails a probe begun after another's pass.
///
/// Returns the flips, with the places of their backends.
pub fn settle(backends: &mut [&mut Health], now: Instant) -> Vec<(usize, Flip)> {
    let passes: Vec<_> = backends.iter().map(|backend| backend.pass()).collect();
    for (place, pass) in passes.iter().enumerate() {
        let Some(pass) = pass else { continue };
        for (_, other) in backends.iter_mut().enumerate().filter(|(other, _)| *other != place) {
            other.on_witness(*pass);
        }
    }
    let sound = |backend: &Health| backend.state() == State::Healthy && !backend.is_withheld();
    if backends.iter().any(|backend| sound(backend)) {
        return Vec::new();
    }
    let mut conceded = Vec::new();
    for (place, backend) in backends.iter_mut().enumerate() {
        conceded.extend(backend.concede(now).map(|flip| (place, flip)));
        backend.doubt_again(now);
    }
    conceded
}

/// A backend has just begun to fail: those that are well are asked at once, so that it is soon known whether it fails alone.
pub fn ask_others(backends: &mut [&mut Health], failing: usize, now: Instant) {
    if !backends.get(failing).is_some_and(|backend| backend.begins_to_fail()) {
        return;
    }
    for (_, other) in backends.iter_mut().enumerate().filter(|(place, _)| *place != failing) {
        if other.state() == State::Healthy && !other.is_withheld() {
            other.hurry(now);
        }
    }
}

#[cfg(test)]
mod tests;
