//! What has happened lately: `events`.

use std::{collections::VecDeque, time::SystemTime};

use serde::{Deserialize, Serialize};

use super::timestamp;

/// Events that are kept.
const KEPT: usize = 1000;

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Event {
    /// Counts from 1 since the agent's start.
    pub number: u64,
    /// When, RFC 3339, UTC.
    pub at: String,
    /// `role`, `vip`, `backend`, `service`, `discovery`, `flows`, `sync` or `config`.
    pub kind: String,
    /// What it is about: a backend as SERVICE/BACKEND, a service, a peer, a VIP.
    pub subject: String,
    /// What happened, and why.
    pub message: String,
}

/// What `events` is asked.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Only events after this number.
    #[serde(default)]
    pub after: u64,
}

/// The last events.
#[derive(Debug, Default)]
pub struct Events {
    last: VecDeque<Event>,
    count: u64,
}

impl Events {
    /// Keeps an event; the oldest one goes.
    pub fn note(&mut self, kind: &str, subject: impl Into<String>, message: impl Into<String>) {
        self.count += 1;
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(Event {
            number: self.count,
            at: timestamp::rfc3339(SystemTime::now()),
            kind: kind.into(),
            subject: subject.into(),
            message: message.into(),
        });
    }

    /// Those after a number, oldest first.
    pub fn after(&self, number: u64) -> Vec<Event> {
        self.last.iter().filter(|event| event.number > number).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_thousand_are_kept() {
        let mut events = Events::default();
        for number in 1..=1500 {
            events.note("role", "", format!("{number}"));
        }
        let kept = events.after(0);
        assert_eq!((kept.len(), kept[0].number, kept[999].number), (1000, 501, 1500));
        assert_eq!(events.after(1499).len(), 1);
        assert!(events.after(1500).is_empty());
    }
}
