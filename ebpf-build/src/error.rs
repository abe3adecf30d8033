//! Why the object could not be built, in words for the person at the terminal.

use std::fmt;

/// A compiler or linker that was looked at and not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What was looked at: a toolchain's name, a path.
    pub candidate: String,
    /// Why it was not taken.
    pub reason: String,
    /// What would make it usable.
    pub fix: String,
}

/// Failure to build the object.
#[derive(Debug)]
pub enum Error {
    /// No bpf-linker was found.
    NoLinker(Vec<Refused>),
    /// No compiler can build the object.
    NoToolchain(Vec<Refused>),
    /// cargo could not be run, or failed; its output has gone to stderr.
    Build {
        /// The command line.
        command: String,
        /// The exit status, or why it could not be run.
        reason: String,
        /// The likely cause, where the output shows one.
        hint: Option<String>,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLinker(refused) => {
                writeln!(f, "no bpf-linker to link the XDP object with. Looked at:")?;
                list(f, refused)
            }
            Self::NoToolchain(refused) => {
                writeln!(f, "no Rust compiler that can build the XDP object. Looked at:")?;
                list(f, refused)
            }
            Self::Build { command, reason, hint } => {
                write!(f, "building the XDP object failed: {reason}\n  command: {command}")?;
                match hint {
                    Some(hint) => write!(f, "\n  hint: {hint}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for Error {}

fn list(f: &mut fmt::Formatter<'_>, refused: &[Refused]) -> fmt::Result {
    for Refused { candidate, reason, fix } in refused {
        writeln!(f, "  - {candidate}: {reason}\n    fix: {fix}")?;
    }
    write!(f, "One is enough. scripts/setup.sh does what is needed on Debian and Ubuntu.")
}
