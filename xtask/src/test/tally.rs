//! Counts what passed and failed.

/// The count of a run.
#[derive(Default)]
pub(crate) struct Tally {
    passed: u32,
    failed: u32,
    failures: Vec<String>,
    /// Names below the last `failures:` of the running test program; `None` below another heading.
    listed: Option<Vec<String>>,
    /// Failures counted before the running `cargo test`.
    failed_before: u32,
}

impl Tally {
    /// A step that counts as one.
    pub(crate) fn step(&mut self, name: &str, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.failures.push(name.to_owned());
        }
        self.failed_before = self.failed;
    }

    /// A line of a test program's output. It ends with the names of what failed, indented by four spaces below
    /// `failures:`, and
    /// `test result: FAILED. 6 passed; 5 failed; 0 ignored; 0 measured; 0 filtered out; finished in 15.89s`.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, " passed");
            self.failed += count(counts, " failed");
            self.failures.extend(self.listed.take().unwrap_or_default());
        } else if line == "failures:" {
            // Outputs come under the same heading first; the names are under the last.
            self.listed = Some(Vec::new());
        } else if line == "successes:" {
            self.listed = None;
        } else if let (Some(names), Some(name)) = (&mut self.listed, line.strip_prefix("    ")) {
            names.push(name.to_owned());
        }
    }

    /// The end of a `cargo test`. If it failed without a failed test, it did not compile or a test ended the program:
    /// that counts as one.
    pub(crate) fn end(&mut self, name: &str, succeeded: bool) {
        if !succeeded && self.failed == self.failed_before {
            self.failed += 1;
            self.failures.push(name.to_owned());
        }
        self.failed_before = self.failed;
    }

    pub(crate) fn passed(&self) -> u32 {
        self.passed
    }

    pub(crate) fn failed(&self) -> u32 {
        self.failed
    }

    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }
}

/// The number before a word.
fn count(counts: &str, word: &str) -> u32 {
    let before = counts.split_once(word).map_or("", |(before, _)| before);
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_steps_and_tests() {
        let mut tally = Tally::default();
        tally.step("fmt", true);
        tally.step("clippy", false);
        tally.line(
            "test result: ok. 14 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        );
        tally.end("host tests", true);
        for line in [
            "successes:",
            "    c::d",
            "failures:",
            "---- a::b stdout ----",
            "    output",
            "failures:",
            "    a::b",
            "",
        ] {
            tally.line(line);
        }
        tally.line("test result: FAILED. 6 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 15.89s");
        tally.end("scenarios", false);
        assert_eq!((tally.passed(), tally.failed()), (21, 2));
        assert_eq!(tally.failures(), ["clippy", "a::b"]);
    }

    #[test]
    fn a_run_that_ends_without_a_result_counts_as_failed() {
        let mut tally = Tally::default();
        tally.end("host tests", false);
        assert_eq!((tally.passed(), tally.failed()), (0, 1));
    }
}
