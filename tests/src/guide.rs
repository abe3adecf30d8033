//! What the guide shows: commands as typed at a host's prompt, and what they print, so that a test can run the one and compare
//! the other.
//!
//! A runbook is what stands in the `console` blocks right after `<!-- run: NAME -->`. A line `lb1# COMMAND` or `client$ COMMAND`
//! is a command on that host, one that ends in `\` goes on in the next line; the lines below are what it prints, all of it.
//! They are compared line by line, loosely:
//!
//! * `…` is anything within a line, and alone in a line any number of lines, none included.
//! * A number is any number, except that 0 is only 0. A number followed by a unit of time is any time, in whatever unit.
//!   Exact are numbers in a word after a letter (`etcd-2`, `eth0`, `https://10.0.1.100:2379`) and IPv4 addresses.
//! * Blanks are any number of blanks: columns are as wide as what is in them.

use anyhow::{Context as _, Result, ensure};

/// The commands of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runbook {
    /// As the comment says it.
    pub name: String,
    /// In the order they are typed.
    pub steps: Vec<Step>,
}

/// A command, and what it prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where it stands in the document, from 1.
    pub line: usize,
    /// At whose prompt.
    pub host: String,
    /// As typed.
    pub command: String,
    /// As shown.
    pub shown: Vec<String>,
}

/// The runbooks of a document, in its order.
///
/// # Errors
///
/// If a comment is not followed by a block, a block does not end, or begins with no command.
pub fn runbooks(document: &str) -> Result<Vec<Runbook>> {
    let mut found = Vec::new();
    let mut lines = document.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let name = line.trim().strip_prefix("<!-- run: ").and_then(|rest| rest.strip_suffix(" -->"));
        let Some(name) = name else { continue };
        let at = format!("line {}: {name}", number + 1);
        let fence = lines.next().map(|(_, line)| line.trim());
        ensure!(fence == Some("```console"), "{at}: no console block follows, but {fence:?}");
        let mut steps: Vec<Step> = Vec::new();
        loop {
            let (number, line) = lines.next().with_context(|| format!("{at}: the block does not end"))?;
            if line.trim() == "```" {
                break;
            }
            // Between two commands.
            if let (Some(_), Some(step)) = (prompt(line), steps.last_mut()) {
                step.shown.truncate(
                    step.shown.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1),
                );
            }
            match (prompt(line), steps.last_mut()) {
                (Some((host, command)), _) => steps.push(Step {
                    line: number + 1,
                    host: host.into(),
                    command: command.into(),
                    shown: vec![],
                }),
                (None, Some(step)) if step.command.ends_with('\\') && step.shown.is_empty() => {
                    step.command.push('\n');
                    step.command.push_str(line);
                }
                (None, Some(step)) => step.shown.push(line.to_owned()),
                (None, None) => anyhow::bail!("{at}: begins with no command: {line:?}"),
            }
        }
        found.push(Runbook { name: name.into(), steps });
    }
    Ok(found)
}

/// The host and the command of a line that has a prompt.
fn prompt(line: &str) -> Option<(&str, &str)> {
    let (at, _) = line.char_indices().find(|(_, c)| !c.is_ascii_alphanumeric() && *c != '-')?;
    let (host, rest) = line.split_at(at);
    let command = rest.strip_prefix("# ").or_else(|| rest.strip_prefix("$ "))?;
    (host.starts_with(|c: char| c.is_ascii_lowercase())).then_some((host, command))
}

/// Whether what a command said is what is shown of it.
///
/// # Errors
///
/// Where they differ.
pub fn compare(shown: &[String], said: &str) -> Result<()> {
    let said: Vec<&str> = said.trim_end().lines().collect();
    let mut furthest = 0;
    if lines_match(shown, &said, 0, &mut furthest) {
        return Ok(());
    }
    let of = |lines: &[&str]| lines.iter().map(|line| format!("    {line}\n")).collect::<String>();
    let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
    let differs = shown.get(furthest).map_or("the end", |line| line);
    anyhow::bail!("shown, up to {differs:?} as it is:\n{}said:\n{}", of(&shown), of(&said))
}

fn lines_match(shown: &[String], said: &[&str], at: usize, furthest: &mut usize) -> bool {
    *furthest = at.max(*furthest);
    match shown.get(at) {
        None => said.is_empty(),
        Some(line) if line.trim() == "…" => {
            (0..=said.len()).any(|skipped| lines_match(shown, &said[skipped..], at + 1, furthest))
        }
        Some(line) => said.split_first().is_some_and(|(first, rest)| {
            line_matches(line, first) && lines_match(shown, rest, at + 1, furthest)
        }),
    }
}

/// A part of a line that is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Exact(String),
    Blanks,
    Number,
    Time,
    Anything,
}

const UNITS: [&str; 8] = ["ns", "µs", "us", "ms", "s", "min", "m", "h"];

fn line_matches(shown: &str, said: &str) -> bool {
    parts_match(&parts(shown.trim()), said.trim())
}

fn parts(shown: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = shown;
    // Of the word so far: whether it has a letter.
    let mut lettered = false;
    while let Some(next) = rest.chars().next() {
        let number = number_in(rest);
        if next.is_whitespace() {
            (rest, lettered) = (rest.trim_start(), false);
            parts.push(Part::Blanks);
        } else if next == '…' {
            rest = &rest[next.len_utf8()..];
            parts.push(Part::Anything);
        } else if number > 0 && !lettered {
            let dots = rest[..number].matches('.').count();
            let time = time_in(rest);
            if dots == 3 {
                // With its port.
                let end =
                    rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(rest.len());
                push_exact(&mut parts, &rest[..end]);
                rest = &rest[end..];
            } else if time > 0 {
                parts.push(Part::Time);
                rest = &rest[time..];
            } else if &rest[..number] == "0" {
                push_exact(&mut parts, "0");
                rest = &rest[number..];
            } else {
                parts.push(Part::Number);
                rest = &rest[number..];
            }
        } else {
            lettered |= next.is_alphabetic();
            push_exact(&mut parts, &rest[..next.len_utf8()]);
            rest = &rest[next.len_utf8()..];
        }
    }
    parts
}

fn push_exact(parts: &mut Vec<Part>, text: &str) {
    match parts.last_mut() {
        Some(Part::Exact(before)) => before.push_str(text),
        _ => parts.push(Part::Exact(text.into())),
    }
}

/// Length of the number that a text begins with: `7`, `131,072`, `33.3`, `3.5.16`.
fn number_in(text: &str) -> usize {
    let mut length = 0;
    for (at, c) in text.char_indices() {
        let goes_on = text[at + c.len_utf8()..].starts_with(|c: char| c.is_ascii_digit());
        match c {
            '0'..='9' => length = at + 1,
            '.' | ',' if at > 0 && goes_on => {}
            _ => break,
        }
    }
    length
}

/// Length of the time that a text begins with: `335 ms`, `1.2s`.
fn time_in(text: &str) -> usize {
    let number = number_in(text);
    if number == 0 {
        return 0;
    }
    let rest = &text[number..];
    let unit = rest.strip_prefix(' ').unwrap_or(rest);
    let length = unit.find(|c: char| !c.is_alphabetic()).unwrap_or(unit.len());
    if UNITS.contains(&&unit[..length]) { text.len() - unit.len() + length } else { 0 }
}

fn parts_match(parts: &[Part], said: &str) -> bool {
    let Some((part, others)) = parts.split_first() else { return said.is_empty() };
    match part {
        Part::Exact(text) => said.strip_prefix(text.as_str()).is_some_and(|rest| {
            // The whole number, and not the beginning of another.
            let cut = text.ends_with(|c: char| c.is_ascii_digit())
                && rest.starts_with(|c: char| c.is_ascii_digit());
            !cut && parts_match(others, rest)
        }),
        Part::Blanks => {
            let rest = said.trim_start();
            // Beside anything there may be nothing.
            let none = others.first() == Some(&Part::Anything);
            if rest.len() < said.len() {
                parts_match(others, rest)
            } else {
                none && parts_match(others, rest)
            }
        }
        Part::Number => {
            let length = number_in(said);
            length > 0 && &said[..length] != "0" && parts_match(others, &said[length..])
        }
        Part::Time => {
            let length = time_in(said);
            length > 0 && parts_match(others, &said[length..])
        }
        Part::Anything => {
            let ends = said.char_indices().map(|(at, _)| at).chain([said.len()]);
            let mut ends = ends.map(|at| said.split_at(at));
            match others {
                // The blanks after it may be part of it, but no part of what is next.
                [Part::Blanks, others @ ..] => ends.any(|(before, rest)| {
                    (before.is_empty() || before.ends_with(char::is_whitespace)) && parts_match(others, rest)
                }),
                _ => ends.any(|(_, rest)| parts_match(others, rest)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(shown: &str, said: &str) -> bool {
        let shown: Vec<String> = shown.lines().map(str::to_owned).collect();
        compare(&shown, said).is_ok()
    }

    #[test]
    fn what_is_loose() {
        for (shown, said) in [
            ("in sync, 2 ms behind", "in sync, 117 ms behind"),
            ("in sync, 2 ms behind", "in sync, 0 ms behind"),
            ("took = 1.2ms", "took = 963.5µs"),
            ("66 of 131,072 flows", "7 of 1,024 flows"),
            ("etcd-1  healthy  3.5.16  33.3 %", "etcd-1   healthy   3.4.23   50 %"),
            ("etcd-1  healthy  3.5.16 … 33.3 %", "etcd-1   healthy   3.4.23   50 %"),
            ("etcd-1  healthy  3.5.16 … 33.3 %", "etcd-1   healthy   3.4.23 leader   50 %"),
            ("10.0.1.21:…  etcd-1", "10.0.1.21:46890   etcd-1"),
            ("a\n…\nb", "a\nb"),
            ("a\n…\nb", "a\nx\n\ny\nb\n"),
            ("…", ""),
            ("", ""),
        ] {
            assert!(matches(shown, said), "{shown:?} is shown, {said:?} said");
        }
    }

    #[test]
    fn what_is_wrong_is_found() {
        for (shown, said) in [
            ("", "something"),
            ("something", ""),
            ("active", "backup"),
            ("etcd-2  draining", "etcd-1  draining"),
            ("https://10.0.1.11:2379 is healthy", "https://10.0.1.12:2379 is healthy"),
            ("10.0.1.11:2379", "10.0.1.12:2379"),
            ("10.0.1.1", "10.0.1.11"),
            ("0 flows", "3 flows"),
            ("healthy … 0", "healthy leader 10"),
            ("3 flows", "0 flows"),
            ("3 flows", "no flows"),
            ("took 3 ms", "took 3 flows"),
            ("a\nb", "a\n\nb"),
            ("a\nb", "a"),
            ("a", "a\nb"),
            ("a\n…\nb", "a\nc"),
            ("healthy … leader", "healthy 3.4.23"),
            ("two words", "twowords"),
        ] {
            assert!(!matches(shown, said), "{shown:?} is shown, {said:?} said");
        }
    }

    #[test]
    fn commands_and_what_they_print_are_told_apart() {
        let document = "# A\n\n<!-- run: first -->\n```console\nlb1# etcd-lb drain etcd-2\netcd-2: draining\n\nclient$ a \\\n  b\n\
                        ```\n```console\nlb1# not run\n```\n";
        let found = runbooks(document).unwrap();
        assert_eq!(found.len(), 1);
        let step = |line, host: &str, command: &str, shown: &[&str]| Step {
            line,
            host: host.into(),
            command: command.into(),
            shown: shown.iter().map(|&line| line.into()).collect(),
        };
        let expected = [
            step(5, "lb1", "etcd-lb drain etcd-2", &["etcd-2: draining"]),
            step(8, "client", "a \\\n  b", &[]),
        ];
        assert_eq!(found[0].name, "first");
        assert_eq!(found[0].steps, expected);
        for broken in
            ["<!-- run: a -->\n", "<!-- run: a -->\n\n```console\n", "<!-- run: a -->\n```console\nlb1# a\n"]
        {
            assert!(runbooks(broken).is_err(), "{broken:?}");
        }
    }
}
