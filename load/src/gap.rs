//! The longest time without a successful answer: what a takeover costs whoever waits for one.

use std::time::Duration;

/// Follows answers through a window of time. All times are since the start of the run.
#[derive(Debug, Clone)]
pub struct Gap {
    end: Duration,
    last: Duration,
    longest: Stretch,
}

/// A stretch of time without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stretch {
    /// When it began: the last answer before it, or the window's begin.
    pub began: Duration,
    /// How long it was.
    pub length: Duration,
}

impl Gap {
    /// A window from `begin` to `end`.
    pub fn new(begin: Duration, end: Duration) -> Self {
        Self { end, last: begin, longest: Stretch { began: begin, length: Duration::ZERO } }
    }

    /// There was an answer. Answers before the window's begin and after its end count as at these; one that is told of too
    /// late, after a later one, changes nothing.
    pub fn answered(&mut self, at: Duration) {
        let at = at.min(self.end);
        let length = at.saturating_sub(self.last);
        if length > self.longest.length {
            self.longest = Stretch { began: self.last, length };
        }
        self.last = self.last.max(at);
    }

    /// The longest stretch, up to the window's end.
    pub fn longest(mut self) -> Stretch {
        self.answered(self.end);
        self.longest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn longest(answers: &[u64]) -> (u64, u64) {
        let mut gap = Gap::new(ms(100), ms(1100));
        answers.iter().for_each(|at| gap.answered(ms(*at)));
        let longest = gap.longest();
        (longest.began.as_millis() as u64, longest.length.as_millis() as u64)
    }

    #[test]
    fn the_edges_of_the_window_count() {
        assert_eq!(longest(&[]), (100, 1000));
        assert_eq!(longest(&[600]), (100, 500));
        assert_eq!(longest(&[150, 900, 1090]), (150, 750));
        assert_eq!(longest(&[150]), (150, 950));
        assert_eq!(longest(&[20, 90, 400, 5000]), (400, 700));
    }

    #[test]
    fn an_answer_told_of_too_late_changes_nothing() {
        assert_eq!(longest(&[600, 590, 1000]), (100, 500));
    }

    proptest! {
        #[test]
        fn is_the_longest_of_all_stretches(mut answers in prop::collection::vec(0u64..1300, 0..50)) {
            answers.sort_unstable();
            let mut edges: Vec<u64> = answers.iter().map(|at| (*at).clamp(100, 1100)).collect();
            edges.insert(0, 100);
            edges.push(1100);
            let expected = edges.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
            prop_assert_eq!(longest(&answers).1, expected);
        }
    }
}
