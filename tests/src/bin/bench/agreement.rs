//! Whether two runs say the same, as those on one machine should.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::{
    peers::OURS,
    report::{Report, Row},
    stats::{Range, Summary},
};

/// What `--json` wrote of a run, as far as it is compared.
#[derive(Deserialize)]
struct Written {
    rows: Vec<WrittenRow>,
}

#[derive(Deserialize)]
struct WrittenRow {
    group: String,
    title: String,
    cells: Vec<WrittenCell>,
}

#[derive(Deserialize)]
struct WrittenCell {
    who: String,
    /// A round without a number is none.
    rounds: Vec<Option<f64>>,
}

/// Row group, row, and to whom ours is compared.
type Name = (String, String, String);

/// The ratios of an earlier run.
pub struct Earlier(BTreeMap<Name, Range>);

impl Earlier {
    /// Of a file that `--json` wrote.
    ///
    /// # Errors
    /// It cannot be read, or says something else.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{}: not what `--json` writes", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let written: Written = serde_json::from_str(text)?;
        let rows = written.rows.into_iter().map(|row| {
            let cells = row.cells.into_iter();
            let cells = cells.map(|cell| (cell.who, cell.rounds.into_iter().flatten().collect())).collect();
            (row.group, row.title, cells)
        });
        Ok(Self(rows.flat_map(|(group, title, cells)| ratios(&group, &title, cells)).collect()))
    }
}

/// Ours to each of the others, where the rounds say anything.
fn ratios(group: &str, title: &str, cells: Vec<(String, Vec<f64>)>) -> Vec<(Name, Range)> {
    let ours = cells.iter().find(|(who, _)| who == OURS).and_then(|(_, rounds)| Summary::of(rounds));
    let Some(ours) = ours else { return Vec::new() };
    let others = cells.into_iter().filter(|(who, _)| who != OURS);
    let ratio = |(who, rounds): (String, Vec<f64>)| {
        let range = Range::of_all(&ours, &Summary::of(&rounds)?)?;
        Some(((group.to_owned(), title.to_owned(), who), range))
    };
    others.filter_map(ratio).collect()
}

/// Two runs beside each other.
pub struct Agreement {
    /// Ratios that both have.
    pub both: usize,
    /// Those whose ranges do not meet: this run's, the earlier one's.
    pub apart: Vec<(Name, Range, Range)>,
}

impl Agreement {
    pub fn of(report: &Report, earlier: &Earlier) -> Self {
        let of_row = |row: &Row| ratios(row.group, &row.title, row.cells.clone());
        let both: Vec<_> = report
            .rows
            .iter()
            .flat_map(of_row)
            .filter_map(|(name, range)| {
                let other = *earlier.0.get(&name)?;
                Some((name, range, other))
            })
            .collect();
        Self {
            both: both.len(),
            apart: both.into_iter().filter(|(_, one, other)| !one.meets(other)).collect(),
        }
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let agreed = self.both - self.apart.len();
        writeln!(
            f,
            "An earlier run agrees in {agreed} of {} ratios: their ranges, by the least and the most of all rounds, meet.",
            self.both
        )?;
        for ((group, title, who), here, there) in &self.apart {
            writeln!(f, "* {group}: {title}: {OURS} is {here} × {who} here, {there} × there")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;

    fn report(ours: [f64; 3], other: [f64; 3]) -> Report {
        let row = Row::new("latency", "p50", "µs").cell("direct", other.into()).cell(OURS, ours.into());
        Report {
            machine: Machine::look(false, "0".into()),
            rows: vec![row],
            failed: BTreeMap::new(),
            seconds: 0.0,
        }
    }

    fn beside(one: &Report, other: &Report) -> Agreement {
        Agreement::of(one, &Earlier::parse(&other.json().to_string()).unwrap())
    }

    #[test]
    fn ranges_that_meet_agree() {
        let one = report([2.0, 2.1, 2.2], [1.0, 1.0, 1.0]);
        let agreement = beside(&one, &report([4.2, 4.4, 4.6], [2.0, 2.0, 2.0]));
        assert_eq!((agreement.both, agreement.apart.len()), (1, 0));
    }

    #[test]
    fn those_that_do_not_are_named() {
        let one = report([2.0, 2.0, 2.0], [1.0, 1.0, 1.0]);
        let said = beside(&one, &report([3.0, 3.0, 3.0], [1.0, 1.0, 1.0])).to_string();
        assert!(said.contains("agrees in 0 of 1"), "{said}");
        assert!(
            said.contains("latency: p50: etcd-lb is 2.00 to 2.00 × direct here, 3.00 to 3.00 × there"),
            "{said}"
        );
    }

    #[test]
    fn what_says_nothing_is_not_compared() {
        let one = report([2.0, 2.0, 2.0], [0.0, 0.0, 0.0]);
        assert_eq!(beside(&one, &one).both, 0);
        let nothing = Report { rows: vec![], ..report([1.0; 3], [1.0; 3]) };
        assert_eq!(beside(&report([1.0; 3], [1.0; 3]), &nothing).both, 0);
    }

    #[test]
    fn another_file_is_an_error() {
        assert!(Earlier::parse("{}").is_err());
        assert!(Earlier::parse(r#"{"rows": [{"group": 1}]}"#).is_err());
        let empty =
            r#"{"rows": [{"group": "a", "title": "b", "cells": [{"who": "etcd-lb", "rounds": [null]}]}]}"#;
        assert!(Earlier::parse(empty).unwrap().0.is_empty());
    }
}
