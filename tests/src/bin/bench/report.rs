//! What was found: rows of figures, as a table and as JSON.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Value, json};

use crate::{
    machine::Machine,
    peers::OURS,
    stats::{Range, Ratio, Summary},
};

/// A figure of all who were measured.
#[derive(Debug, Clone)]
pub struct Row {
    /// The row group, as on the command line.
    pub group: &'static str,
    pub title: String,
    /// Of the samples.
    pub unit: &'static str,
    /// What is aimed at, in words.
    pub goal: &'static str,
    /// Who, and what each round found.
    pub cells: Vec<(String, Vec<f64>)>,
}

impl Row {
    pub fn new(group: &'static str, title: impl Into<String>, unit: &'static str) -> Self {
        Self { group, title: title.into(), unit, goal: "", cells: Vec::new() }
    }

    #[must_use]
    pub fn goal(mut self, goal: &'static str) -> Self {
        self.goal = goal;
        self
    }

    #[must_use]
    pub fn cell(mut self, who: impl Into<String>, samples: Vec<f64>) -> Self {
        self.cells.push((who.into(), samples));
        self
    }

    fn ours(&self) -> Option<Summary> {
        let cell = self.cells.iter().find(|(who, _)| who == OURS)?;
        Summary::of(&cell.1)
    }
}

/// Everything of a run.
pub struct Report {
    pub machine: Machine,
    pub rows: Vec<Row>,
    /// Row groups that could not be measured, and why.
    pub failed: BTreeMap<&'static str, String>,
    pub seconds: f64,
}

/// What a table's line says of one contestant.
pub struct Line {
    pub who: String,
    pub figure: String,
    /// The middle half of the rounds.
    pub spread: String,
    /// From the least to the most of all rounds.
    pub all: String,
    /// Ours divided by this one's.
    pub ratio: String,
}

impl Row {
    /// A line for each contestant, in order.
    pub fn lines(&self) -> Vec<Line> {
        let ours = self.ours();
        self.cells
            .iter()
            .map(|(who, samples)| {
                let Some(summary) = Summary::of(samples) else {
                    let none = || "–".to_owned();
                    let who = who.clone();
                    return Line { who, figure: none(), spread: none(), all: none(), ratio: none() };
                };
                let Summary { median, low, high, least, most, .. } = summary;
                let ratio = match &ours {
                    Some(ours) if who != OURS => Ratio::of(ours, &summary).to_string(),
                    _ => String::new(),
                };
                Line {
                    who: who.clone(),
                    figure: format!("{} {}", number(median), self.unit),
                    spread: format!("{} to {}", number(low), number(high)),
                    all: format!("{} to {}", number(least), number(most)),
                    ratio,
                }
            })
            .collect()
    }
}

impl Report {
    /// For a terminal.
    pub fn table(&self) -> String {
        let mut text = self.machine.to_string();
        for row in &self.rows {
            let goal = if row.goal.is_empty() { String::new() } else { format!("  (goal: {})", row.goal) };
            let _ = writeln!(text, "\n{}: {}{goal}", row.group, row.title);
            for Line { who, figure, spread, all, ratio } in row.lines() {
                let ratio = if ratio.is_empty() { ratio } else { format!("   {OURS} is {ratio}") };
                let _ = writeln!(text, "  {who:<34} {figure:>16}   [{spread}; {all}]{ratio}");
            }
        }
        for (group, error) in &self.failed {
            let _ = writeln!(text, "\n{group}: NOT MEASURED: {error}");
        }
        let _ = writeln!(
            text,
            "\n{:.0} s in all. [middle half of the rounds; all]; {OURS} is N × the other's figure; ≈ where",
            self.seconds
        );
        let _ = writeln!(text, "the middle halves overlap, so that the rounds cannot tell the two apart.");
        text
    }

    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let ours = row.ours();
                let cells: Vec<Value> = row
                    .cells
                    .iter()
                    .map(|(who, samples)| {
                        let summary = Summary::of(samples);
                        let ratio = match (&ours, &summary) {
                            (Some(ours), Some(other)) if who != OURS => match Ratio::of(ours, other) {
                                Ratio::Times(times) => json!({ "times": times }),
                                Ratio::Unclear(Range { low, high }) => json!({ "low": low, "high": high }),
                                Ratio::Meaningless => Value::Null,
                            },
                            _ => Value::Null,
                        };
                        json!({
                            "who": who,
                            "median": summary.map(|summary| summary.median),
                            "low": summary.map(|summary| summary.low),
                            "high": summary.map(|summary| summary.high),
                            "least": summary.map(|summary| summary.least),
                            "most": summary.map(|summary| summary.most),
                            "rounds": samples,
                            "ours_by_this": ratio,
                        })
                    })
                    .collect();
                json!({"group": row.group, "title": row.title, "unit": row.unit, "goal": row.goal, "cells": cells})
            })
            .collect();
        json!({
            "machine": self.machine.json(),
            "rows": rows,
            "failed": self.failed,
            "seconds": self.seconds,
        })
    }
}

/// Three significant digits.
pub fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if size >= 10_000.0 => {
            let digits = format!("{size:.0}");
            let mut grouped = String::new();
            for (place, digit) in digits.chars().enumerate() {
                if place > 0 && (digits.len() - place) % 3 == 0 {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            if value < 0.0 { format!("-{grouped}") } else { grouped }
        }
        _ if size >= 100.0 || value == 0.0 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let shown = [0.1234, 1.234, 12.34, 123.4, 1234.0, 12345.6, -1_234_567.0, 0.0].map(number);
        assert_eq!(shown, ["0.123", "1.23", "12.3", "123", "1234", "12,346", "-1,234,567", "0"]);
    }

    #[test]
    fn a_line_has_the_ratio_of_ours_to_it() {
        let row = Row::new("latency", "p50", "µs")
            .cell("direct", vec![1.0, 1.0, 1.0])
            .cell(OURS, vec![2.0, 2.0, 2.0])
            .cell("nobody", vec![]);
        let lines = row.lines();
        assert_eq!((lines[0].figure.as_str(), lines[0].ratio.as_str()), ("1.00 µs", "2.00 ×"));
        assert_eq!((lines[1].ratio.as_str(), lines[2].figure.as_str()), ("", "–"));
    }
}
