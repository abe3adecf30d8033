//! What the requests are: a share of puts, of gets, and of watches.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// An operation, which is counted from its due time to the arrival of what it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// A put of a random key of the run: done when its answer is there.
    Put,
    /// A linearizable read of a random key of the run: done when its answer is there.
    Get,
    /// A put of the key that its own connection watches: done when its answer *and* its event on that connection's watch
    /// stream are there. It counts from when it was due to the event's arrival.
    Watch,
}

impl Operation {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 3] = [Self::Put, Self::Get, Self::Watch];

    /// Its place in [`Operation::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Its name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Watch => "watch",
        }
    }
}

/// Shares of the operations: `put=10,get=85,watch=5`. They are weights, and need not add up to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    weights: [u32; 3],
}

impl Mix {
    /// Whether any operation is of this kind.
    pub fn has(self, operation: Operation) -> bool {
        self.weights[operation.index()] > 0
    }

    /// One operation, as often as its share says.
    pub fn choose(self, random: &mut Random) -> Operation {
        let total: u64 = self.weights.iter().copied().map(u64::from).sum();
        let mut ticket = random.below(total);
        for operation in Operation::ALL {
            let weight = u64::from(self.weights[operation.index()]);
            if ticket < weight {
                return operation;
            }
            ticket -= weight;
        }
        // Not reached: the ticket is below the weights' sum.
        Operation::Get
    }
}

impl Default for Mix {
    /// What a kube-apiserver's etcd sees, roughly: mostly reads.
    fn default() -> Self {
        Self { weights: [10, 85, 5] }
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut weights = [None; 3];
        for share in text.split(',') {
            let (name, weight) =
                share.trim().split_once('=').ok_or_else(|| format!("{share:?} is not like put=10"))?;
            let operation = Operation::ALL.into_iter().find(|operation| operation.name() == name);
            let operation = operation.ok_or_else(|| format!("{name:?} is none of put, get, watch"))?;
            let weight: u32 =
                weight.parse().map_err(|_| format!("the share of {name}, {weight:?}, is no number"))?;
            if weights[operation.index()].replace(weight).is_some() {
                return Err(format!("{name} is given twice"));
            }
        }
        let weights = weights.map(Option::unwrap_or_default);
        if weights.iter().all(|weight| *weight == 0) {
            return Err("every share is 0".into());
        }
        Ok(Self { weights })
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shares = Operation::ALL.map(|operation| (operation.name(), self.weights[operation.index()]));
        let given: Vec<String> = shares
            .into_iter()
            .filter(|(_, weight)| *weight > 0)
            .map(|(name, weight)| format!("{name}={weight}"))
            .collect();
        formatter.write_str(&given.join(","))
    }
}

impl Serialize for Mix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_and_shown() {
        for (text, shown) in [
            ("put=10,get=85,watch=5", Ok("put=10,get=85,watch=5")),
            ("watch=1, put=3", Ok("put=3,watch=1")),
            ("get=1,put=0", Ok("get=1")),
            ("get=0", Err("every share is 0")),
            ("", Err("\"\" is not like put=10")),
            ("delete=1", Err("\"delete\" is none of put, get, watch")),
            ("get=1,get=2", Err("get is given twice")),
            ("get=-1", Err("the share of get, \"-1\", is no number")),
        ] {
            let read = text.parse::<Mix>().map(|mix| mix.to_string());
            assert_eq!(read.as_deref().map_err(String::as_str), shown, "{text}");
        }
    }

    #[test]
    fn operations_have_their_shares() {
        let mix: Mix = "put=1,get=3".parse().unwrap();
        let mut random = Random::new(3);
        let mut seen = [0; 3];
        for _ in 0..40_000 {
            seen[mix.choose(&mut random).index()] += 1;
        }
        assert!((9_500..10_500).contains(&seen[0]), "{seen:?}");
        assert_eq!(seen[2], 0);
        assert!(mix.has(Operation::Get) && !mix.has(Operation::Watch));
    }
}
