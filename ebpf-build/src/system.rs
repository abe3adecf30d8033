//! What the finder asks of the machine, as a trait, so that tests can describe machines that they do not run on.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// Questions to the machine.
pub trait System {
    /// An environment variable; an empty one counts as unset.
    fn env(&self, name: &str) -> Option<OsString>;
    /// Whether the path is a file or directory.
    fn exists(&self, path: &Path) -> bool;
    /// The contents of a file, `None` if it cannot be read.
    fn read(&self, path: &Path) -> Option<Vec<u8>>;
    /// Runs a program and returns its stdout.
    ///
    /// # Errors
    ///
    /// Why it could not be run, or what it said as it failed.
    fn run(&self, program: &Path, args: &[&str]) -> Result<String, String>;

    /// Looks a program up in `PATH`, then where rustup puts its own (`CARGO_HOME/bin`), which a plain shell may lack.
    fn which(&self, program: &str) -> Option<PathBuf> {
        let path = self.env("PATH").unwrap_or_default();
        let cargo_home = self
            .env("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(Path::new(&self.env("HOME")?).join(".cargo")));
        std::env::split_paths(&path)
            .chain(cargo_home.map(|home| home.join("bin")))
            .map(|dir| dir.join(program))
            .find(|candidate| self.exists(candidate))
    }
}

/// The machine this process runs on.
#[derive(Debug, Clone, Copy)]
pub struct Machine;

impl System for Machine {
    fn env(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name).filter(|value| !value.is_empty())
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn read(&self, path: &Path) -> Option<Vec<u8>> {
        std::fs::read(path).ok()
    }

    fn run(&self, program: &Path, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(program);
        // A question must not become a download: rustup's proxies may install what is missing otherwise.
        command.args(args).env("RUSTUP_AUTO_INSTALL", "0");
        let output =
            command.output().map_err(|error| format!("cannot run {}: {error}", program.display()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let said = stderr.lines().find(|line| !line.trim().is_empty()).unwrap_or("no message").trim();
        Err(format!("{} {} failed ({}): {said}", program.display(), args.join(" "), output.status))
    }
}
