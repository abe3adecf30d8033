//! How long to wait before a connection is tried again: not at all at first, and never long.

use std::time::Duration;

use crate::random::Random;

/// The first wait: short beside any outage worth measuring, long beside a refused handshake.
const FIRST: Duration = Duration::from_millis(10);
/// The longest wait: it bounds by how much an outage is measured too long.
const LONGEST: Duration = Duration::from_millis(500);

/// The waits of one connection.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    random: Random,
}

impl Backoff {
    /// The seed keeps many connections from trying in step.
    pub fn new(seed: u64) -> Self {
        Self { next: Duration::ZERO, random: Random::new(seed) }
    }

    /// The wait after an attempt that failed, or after a connection that lived for so long and broke: none at first, then
    /// 10 ms, doubled up to 500 ms, each less up to a half by chance. One that lived for longer than the longest wait
    /// counts as the first.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived > LONGEST {
            self.next = Duration::ZERO;
        }
        let wait = self.next;
        self.next = (wait * 2).clamp(FIRST, LONGEST);
        wait.mul_f64(1.0 - self.random.fraction() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_begins_again() {
        let mut backoff = Backoff::new(1);
        assert_eq!(backoff.after(Duration::from_secs(9)), Duration::ZERO);
        for ms in [10, 20, 40, 80, 160, 320, 500, 500, 500] {
            let wait = backoff.after(Duration::from_millis(1));
            let (least, most) = (Duration::from_millis(ms / 2), Duration::from_millis(ms));
            assert!((least..=most).contains(&wait), "{wait:?} for {ms} ms");
        }
        assert_eq!(backoff.after(Duration::from_secs(1)), Duration::ZERO);
    }
}
