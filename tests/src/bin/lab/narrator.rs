//! How the demo speaks: numbered steps with the reason, commands with their output.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

/// Longest output of a command shown in full, in lines.
const LONGEST: usize = 24;

/// Tells the steps, with the time since the start.
pub(crate) struct Narrator {
    start: Instant,
    step: u32,
    colour: bool,
}

impl Narrator {
    pub(crate) fn new() -> Self {
        use std::io::IsTerminal as _;
        Self { start: Instant::now(), step: 0, colour: std::io::stdout().is_terminal() }
    }

    /// Begins a step: what is shown, and why it matters.
    pub(crate) fn step(&mut self, what: &str, why: &str) {
        self.step += 1;
        let line = format!("{}. {what}", self.step);
        println!("\n{}  [{:.1} s]", self.bold(&line), self.start.elapsed().as_secs_f32());
        println!("   {why}");
    }

    /// States what was seen.
    pub(crate) fn say(&self, text: &str) {
        for line in text.lines() {
            println!("   {line}");
        }
    }

    /// Shows a command as a person would type it, runs it, and shows its output, long ones cut.
    /// As in a terminal, its stderr belongs to it: that is where `etcdctl endpoint health` of etcd 3.4 answers.
    pub(crate) fn show(&self, typed: &str, command: &mut Command) -> Result<()> {
        println!("   {}", self.bold(&format!("$ {typed}")));
        let result = command.stdin(Stdio::null()).output().with_context(|| typed.to_owned())?;
        let output = [result.stdout, result.stderr].concat();
        let output = String::from_utf8_lossy(&output);
        ensure!(result.status.success(), "{typed}: {}: {output}", result.status);
        let lines: Vec<&str> = output.lines().collect();
        for line in lines.iter().take(LONGEST) {
            println!("     {line}");
        }
        if lines.len() > LONGEST {
            println!("     … {} lines more", lines.len() - LONGEST);
        }
        Ok(())
    }

    fn bold(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}
