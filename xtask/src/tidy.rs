//! The house rules that neither rustfmt nor clippy knows.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};

/// Longest Rust file, in lines: a longer one holds more than one idea.
const LONGEST: usize = 500;

/// A rule about single lines.
struct Rule {
    /// What a line must not hold.
    part: &'static str,
    /// Which files it holds for, by ending.
    files: &'static str,
    reason: &'static str,
}

// Each part is put together here, so that this file keeps the rules too.
const RULES: &[Rule] = &[
    Rule { part: concat!("TO", "DO"), files: ".rs", reason: "open work belongs into an issue" },
    Rule { part: concat!("FIX", "ME"), files: ".rs", reason: "open work belongs into an issue" },
    Rule { part: concat!("XX", "X"), files: ".rs", reason: "open work belongs into an issue" },
    Rule { part: concat!("to", "do!("), files: ".rs", reason: "nothing unfinished is committed" },
    Rule { part: concat!("unimpl", "emented!("), files: ".rs", reason: "nothing unfinished is committed" },
    Rule { part: concat!("#[ign", "ore"), files: ".rs", reason: "a test that never runs proves nothing" },
    Rule { part: concat!("/ho", "me/"), files: "", reason: "a path of one machine means nothing to others" },
    Rule { part: concat!("/ro", "ot/"), files: "", reason: "a path of one machine means nothing to others" },
];

/// What docs say that code says too: configs' keys, defaults and ranges, commands, metrics, counters, alerts, schemas. The tests
/// named so compare them.
pub(crate) fn docs(root: &Path) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args([
        "test",
        "--quiet",
        "--package",
        "lb-core",
        "--package",
        "etcd-lb",
        "--lib",
        "--bins",
        "docs_in_step",
    ]);
    let output = command.current_dir(root).output().context("cannot run cargo")?;
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    ensure!(output.status.success(), "docs and code differ:\n{said}");
    Ok(())
}

/// Checks every file that git tracks.
///
/// # Errors
///
/// All violations, each with its place.
pub(crate) fn check(root: &Path) -> Result<()> {
    let mut violations = Vec::new();
    for path in tracked(root)? {
        // A file deleted but not yet committed as such; a binary file.
        let Ok(text) = fs::read_to_string(root.join(&path)) else { continue };
        // Inputs of fuzz targets, and what programs printed, are what they are.
        if path != "Cargo.lock" && !path.starts_with("tests/corpus/") && !path.ends_with(".snap") {
            violations.extend(violations_in(&path, &text));
        }
    }
    ensure!(violations.is_empty(), "{}", violations.join("\n"));
    Ok(())
}

fn violations_in(path: &str, text: &str) -> Vec<String> {
    let mut violations = Vec::new();
    let lines = text.lines().count();
    if path.ends_with(".rs") && lines > LONGEST {
        violations.push(format!("{path}: {lines} lines, more than {LONGEST}: split it by idea"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        for rule in RULES.iter().filter(|rule| path.ends_with(rule.files) && line.contains(rule.part)) {
            violations.push(format!("{path}:{number}: `{}`: {}", rule.part, rule.reason));
        }
        if line.ends_with([' ', '\t']) && !path.ends_with(".md") {
            violations.push(format!("{path}:{number}: space at the end of the line"));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        violations.push(format!("{path}: no newline at the end"));
    }
    violations
}

/// Paths git knows or would add, relative to the root.
fn tracked(root: &Path) -> Result<Vec<String>> {
    let mut command = Command::new("git");
    // The checkout may belong to the user who called sudo.
    command.arg("-c").arg(format!("safe.directory={}", root.display()));
    command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let output = command.output().context("cannot run git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    }
    let list = String::from_utf8(output.stdout).context("a file name that is not UTF-8")?;
    Ok(list.split_terminator('\0').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_it_forbids_and_where() {
        let text = format!("fn a() {{}}\n// {}\n", RULES[0].part);
        assert!(violations_in("a.rs", &text)[0].starts_with("a.rs:2: "));
        assert!(violations_in("a.toml", &text).is_empty());
        assert_eq!(violations_in("a.toml", "x = 1 \ny = 2").len(), 2);
        assert_eq!(violations_in("a.rs", &"x\n".repeat(LONGEST + 1)).len(), 1);
        assert!(violations_in("a.rs", &"x\n".repeat(LONGEST)).is_empty());
    }
}
