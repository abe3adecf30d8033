//! Which of a service's backends take new flows.

use crate::health::State;

/// What is known of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The verdict of its checks.
    pub state: State,
    /// Its last check could connect, whatever came after.
    pub accepts: bool,
    /// It is down by a failure of its own, not by one that all may share.
    pub fails_alone: bool,
    /// The operator drains it.
    pub drained: bool,
}

/// Which backends take new flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// For each backend.
    pub usable: Vec<bool>,
    /// None is healthy, and others are used in their place.
    pub failing_open: bool,
}

/// The healthy ones that are not drained. Where there is none and `fail_open` is set: those that still accept
/// connections; all that are not drained, if none does. A drained backend is never used.
///
/// A backend that has not been checked yet is not used, not even in place of others: its first check is under way.
pub fn choose(backends: &[Standing], fail_open: bool) -> Policy {
    let where_it = |takes: &dyn Fn(&Standing) -> bool| -> Vec<bool> {
        backends.iter().map(|backend| !backend.drained && takes(backend)).collect()
    };
    let healthy = where_it(&|backend| backend.state == State::Healthy);
    if healthy.contains(&true) || !fail_open {
        return Policy { usable: healthy, failing_open: false };
    }
    let down = |backend: &Standing| backend.state == State::Down;
    let accepting = where_it(&|backend| down(backend) && backend.accepts);
    let usable = if accepting.contains(&true) { accepting } else { where_it(&down) };
    let failing_open = usable.contains(&true);
    Policy { usable, failing_open }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `H`ealthy, `D`own, `S`tarting; `a`: accepts connections; `!`: drained.
    fn backends(text: &str) -> Vec<Standing> {
        text.split_whitespace()
            .map(|word| Standing {
                state: match word.as_bytes()[0] {
                    b'H' => State::Healthy,
                    b'D' => State::Down,
                    _ => State::Starting,
                },
                accepts: word.contains('a'),
                fails_alone: false,
                drained: word.contains('!'),
            })
            .collect()
    }

    #[test]
    fn the_table() {
        #[rustfmt::skip]
        let table = [
            // backends        fail_open  usable    failing open
            ("Ha Ha Ha",       true,      "111",    false),
            ("Ha D Ha",        true,      "101",    false),
            ("Ha! Ha Ha",      true,      "011",    false),
            ("Ha Da S",        true,      "100",    false),
            // Nobody is healthy: those that accept, else all.
            ("D Da D",         true,      "010",    true),
            ("D D D",          true,      "111",    true),
            ("D D D",          false,     "000",    false),
            ("Da Da D",        false,     "000",    false),
            // A drained backend is used by nobody, healthy or not.
            ("Ha! D D",        true,      "011",    true),
            ("Da! D D",        true,      "011",    true),
            ("Ha! Ha! Da!",    true,      "000",    false),
            // What was not checked yet waits for its check.
            ("S S",            true,      "00",     false),
            ("S D",            true,      "01",     true),
            ("",               true,      "",       false),
        ];
        for (standings, fail_open, usable, failing_open) in table {
            let policy = choose(&backends(standings), fail_open);
            let got: String = policy.usable.iter().map(|u| if *u { '1' } else { '0' }).collect();
            assert_eq!(
                (got.as_str(), policy.failing_open),
                (usable, failing_open),
                "{standings}, {fail_open}"
            );
        }
    }
}
