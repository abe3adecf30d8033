//! Handshakes begun in the last instant: a flow counts as load only once it is established, so without them all
//! connections that begin at the same moment, as after an outage, would see the same loads and ignore each other.
//!
//! One word, changed by compare-and-swap: two windows of time of 2^27 ns (134 ms) each, the present one and the one
//! before. A handshake counts from its SYN until it is complete, but at most two windows, so that nothing has to be
//! cleaned up and a SYN that nobody completes is soon forgotten.
//!
//! ```text
//!  63          40 39           20 19            0
//! +--------------+---------------+---------------+
//! |  window      |  before       |  in it        |
//! +--------------+---------------+---------------+
//! ```

/// The number of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(u32);

impl Window {
    /// The window of a time, ns of `CLOCK_MONOTONIC`. Numbers repeat after 26 days.
    #[inline(always)]
    pub const fn at(now_ns: u64) -> Self {
        Self((now_ns >> 27) as u32 & 0x00ff_ffff)
    }

    /// The window of an [`crate::maps::age_stamp`].
    #[inline(always)]
    pub const fn of_stamp(stamp: u32) -> Self {
        Self(stamp >> 3 & 0x00ff_ffff)
    }

    #[inline(always)]
    const fn follows(self, other: Self) -> bool {
        self.0 == (other.0 + 1) & 0x00ff_ffff
    }
}

const COUNT: u64 = (1 << 20) - 1;

/// The word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending(pub u64);

impl Pending {
    #[inline(always)]
    const fn new(window: Window, before: u64, within: u64) -> Self {
        Self((window.0 as u64) << 40 | before << 20 | within)
    }

    #[inline(always)]
    const fn window(self) -> Window {
        Window((self.0 >> 40) as u32)
    }

    #[inline(always)]
    const fn within(self) -> u64 {
        self.0 & COUNT
    }

    #[inline(always)]
    const fn before(self) -> u64 {
        (self.0 >> 20) & COUNT
    }

    /// The same, seen from `now`.
    #[inline(always)]
    const fn moved_to(self, now: Window) -> Self {
        let then = self.window();
        // A CPU whose clock is read a moment earlier, or coarser, sees the next window as the present one.
        if now.0 == then.0 || then.follows(now) {
            self
        } else if now.follows(then) {
            Self::new(now, self.within(), 0)
        } else {
            Self::new(now, 0, 0)
        }
    }

    /// Handshakes under way.
    #[inline(always)]
    pub const fn count(self, now: Window) -> u64 {
        let seen = self.moved_to(now);
        seen.before() + seen.within()
    }

    /// With one more.
    #[inline(always)]
    pub const fn begun(self, now: Window) -> Self {
        let seen = self.moved_to(now);
        if seen.within() == COUNT { seen } else { Self(seen.0 + 1) }
    }

    /// Without one that began in `begun`.
    #[inline(always)]
    pub const fn done(self, now: Window, begun: Window) -> Self {
        let seen = self.moved_to(now);
        if begun.0 == seen.window().0 {
            Self(seen.0 - (seen.within() != 0) as u64)
        } else if seen.window().follows(begun) {
            Self(seen.0 - (((seen.before() != 0) as u64) << 20))
        } else {
            seen
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::maps::age_stamp;

    const fn window(number: u32) -> Window {
        Window(number & 0x00ff_ffff)
    }

    #[test]
    fn a_stamp_has_the_window_of_its_time() {
        for now in [0, 1 << 27, 0x1234_5678_9abc_def0, u64::MAX] {
            assert_eq!(Window::of_stamp(age_stamp(now)), Window::at(now));
        }
    }

    #[test]
    fn it_counts_two_windows() {
        for at in [5, 0x00ff_fffe] {
            let word = Pending(0).begun(window(at)).begun(window(at)).begun(window(at + 1));
            assert_eq!(word.count(window(at)), 3, "a clock that is behind");
            assert_eq!(word.count(window(at + 1)), 3);
            assert_eq!(word.count(window(at + 2)), 1);
            assert_eq!(word.count(window(at + 3)), 0);
            assert_eq!(word.done(window(at + 1), window(at)).count(window(at + 1)), 2);
            assert_eq!(word.done(window(at + 1), window(at + 1)).count(window(at + 2)), 0);
            assert_eq!(word.done(window(at + 2), window(at)).count(window(at + 2)), 1, "forgotten already");
        }
        assert_eq!(Window::at(u64::MAX), window(u32::MAX));
    }

    #[test]
    fn it_does_not_run_over() {
        let full = Pending::new(window(7), 0, COUNT);
        assert_eq!(full.begun(window(7)), full);
        assert_eq!(Pending(0).done(window(0), window(0)), Pending(0));
    }

    proptest! {
        /// Against a list of handshakes.
        #[test]
        fn it_counts_what_is_under_way(steps in vec((0u32..3, any::<bool>()), 1..60)) {
            let (mut now, mut word, mut under_way) = (100u32, Pending(0), Vec::new());
            for (later, begins) in steps {
                now += later;
                under_way.retain(|&begun| now - begun <= 1);
                if begins {
                    word = word.begun(window(now));
                    under_way.push(now);
                } else if let Some(begun) = under_way.pop() {
                    word = word.done(window(now), window(begun));
                }
                prop_assert_eq!(word.count(window(now)), under_way.len() as u64);
            }
        }
    }
}
