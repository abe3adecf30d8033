//! `docs/benchmarks.md`.

use std::fmt::Write as _;

use crate::{
    agreement::Agreement,
    report::{Line, Report},
};

/// What is said before the table.
const METHOD: &str = include_str!("method.md");

/// Groups in the order of the document, and what each is measured by is in [`METHOD`].
const GROUPS: [(&str, &str); 9] = [
    ("latency", "Added latency"),
    ("throughput", "Bulk throughput"),
    ("connections", "New connections"),
    ("cpu", "CPU time of balancing"),
    ("packets", "ns per packet"),
    ("etcd", "etcd"),
    ("takeover", "Takeover"),
    ("recovery", "Recovery of clients"),
    ("memory", "Memory and start"),
];

/// The whole document.
pub fn document(report: &Report, agreement: Option<&Agreement>, quick: bool) -> String {
    let mut text = METHOD.to_owned();
    let _ = writeln!(text, "## Figures of one run\n");
    if quick {
        let _ = writeln!(
            text,
            "**A run with `--quick`: few and short rounds. Client, server and balancers share the machine's processors: ratios \
             matter, values do not; where a spread is wide, neither does.**\n"
        );
    }
    let _ = writeln!(text, "```\n{}```\n", report.machine);
    for (group, title) in GROUPS {
        let rows: Vec<_> = report.rows.iter().filter(|row| row.group == group).collect();
        if let Some(error) = report.failed.get(group) {
            let _ = writeln!(text, "### {title}\n\nNot measured: {error}\n");
        }
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(text, "### {title}\n");
        let _ = writeln!(
            text,
            "| what | who | median | middle half of the rounds | all rounds | etcd-lb is | goal |"
        );
        let _ = writeln!(text, "| --- | --- | ---: | --- | --- | --- | --- |");
        for row in rows {
            for (number, Line { who, figure, spread, all, ratio }) in row.lines().into_iter().enumerate() {
                let (title, goal) = if number == 0 { (row.title.as_str(), row.goal) } else { ("", "") };
                let _ =
                    writeln!(text, "| {title} | {who} | {figure} | {spread} | {all} | {ratio} | {goal} |");
            }
        }
        text.push('\n');
    }
    if let Some(agreement) = agreement {
        let _ = writeln!(text, "### The run before it\n\n{agreement}");
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}
