//! Finds a rustc that can build `core` for BPF: one with its sources, new enough, whose LLVM the linker can read.

use std::path::{Path, PathBuf};

use crate::{Error, Linker, RUSTC_ENV, Refused, System};

/// The oldest rustc that builds the program crate, as the workspace's `rust-version` says.
const OLDEST: (u32, u32) = (1, 95);
/// Where distributions install rustc.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

/// A compiler for the object, and the cargo to run it with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// Path of rustc. It may be a stable one: it is run with `RUSTC_BOOTSTRAP=1`.
    pub rustc: PathBuf,
    /// Path of cargo.
    pub cargo: PathBuf,
}

/// Finds the compiler: the one named by the environment variable, else a nightly of rustup, else the system's.
/// One that was named and cannot be used is an error, never replaced by another.
pub(crate) fn find(system: &impl System, linker: &Linker) -> Result<Toolchain, Error> {
    let cargo = system.env("CARGO").map(PathBuf::from).or_else(|| system.which("cargo"));

    if let Some(named) = system.env(RUSTC_ENV) {
        let candidate = format!("{RUSTC_ENV}={}", named.display());
        let fix = format!("name a rustc that has its sources, or unset {RUSTC_ENV} to have one looked for");
        return check(system, &candidate, Path::new(&named), linker, &fix)
            .and_then(|rustc| with_cargo(&candidate, rustc, cargo))
            .map_err(|refused| Error::NoToolchain(vec![refused]));
    }

    let mut refused = Vec::new();
    match rustup_nightly(system, linker) {
        Ok(toolchain) => return Ok(toolchain),
        Err(why) => refused.extend(why),
    }
    let candidate = format!("the system's rustc, {SYSTEM_RUSTC}");
    let fix = "on Debian and Ubuntu: apt-get install rustc-web rust-web-src (or a rustc and rust-src that are new enough)";
    let rustc = Path::new(SYSTEM_RUSTC);
    let found = if system.exists(rustc) {
        check(system, &candidate, rustc, linker, fix).and_then(|rustc| with_cargo(&candidate, rustc, cargo))
    } else {
        Err(Refused { candidate, reason: "not installed".into(), fix: fix.into() })
    };
    match found {
        Ok(toolchain) => Ok(toolchain),
        Err(why) => {
            refused.push(why);
            Err(Error::NoToolchain(refused))
        }
    }
}

fn rustup_nightly(system: &impl System, linker: &Linker) -> Result<Toolchain, Vec<Refused>> {
    let install = "rustup toolchain install nightly --component rust-src";
    let refuse = |candidate: &str, reason: String, fix: &str| Refused {
        candidate: candidate.into(),
        reason,
        fix: fix.into(),
    };

    let Some(rustup) = system.which("rustup") else {
        return Err(vec![refuse(
            "rustup's nightly",
            "rustup is not installed".into(),
            &format!("install rustup, then {install}"),
        )]);
    };
    let list = system
        .run(&rustup, &["toolchain", "list"])
        .map_err(|reason| vec![refuse("rustup's nightly", reason, install)])?;
    // A line is `nightly-x86_64-unknown-linux-gnu (active, default)`.
    let nightlies: Vec<&str> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .collect();
    if nightlies.is_empty() {
        return Err(vec![refuse("rustup's nightly", "no nightly toolchain is installed".into(), install)]);
    }

    let mut refused = Vec::new();
    for name in nightlies {
        let candidate = format!("rustup's {name}");
        let fix = format!("rustup component add rust-src --toolchain {name}");
        let found = system
            .run(&rustup, &["which", "--toolchain", name, "rustc"])
            .map_err(|reason| refuse(&candidate, reason, install))
            .and_then(|path| check(system, &candidate, Path::new(path.trim()), linker, &fix));
        match found {
            // Its own cargo, since the sources of its `core` may be of a format the default one cannot read.
            Ok(rustc) => return Ok(Toolchain { cargo: rustc.with_file_name("cargo"), rustc }),
            Err(why) => refused.push(why),
        }
    }
    Err(refused)
}

/// Whether this rustc can build the object. `fix_sources` is what to do if its sources are missing.
fn check(
    system: &impl System,
    candidate: &str,
    rustc: &Path,
    linker: &Linker,
    fix_sources: &str,
) -> Result<PathBuf, Refused> {
    let refuse = |reason: String, fix: &str| Refused { candidate: candidate.into(), reason, fix: fix.into() };

    let verbose = system.run(rustc, &["-vV"]).map_err(|reason| refuse(reason, fix_sources))?;
    let Version { release, rust, llvm } =
        parse_version(&verbose).ok_or_else(|| refuse("its -vV names no release".into(), fix_sources))?;
    if rust < OLDEST {
        let (major, minor) = OLDEST;
        return Err(refuse(format!("it is {release}, and {major}.{minor} is needed"), "update it"));
    }
    let sysroot = system.run(rustc, &["--print", "sysroot"]).map_err(|reason| refuse(reason, fix_sources))?;
    let sources = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if !system.exists(&sources) {
        return Err(refuse(format!("it lacks its sources ({})", sources.display()), fix_sources));
    }
    if let (Some(rustc_llvm), Some(linker_llvm)) = (llvm, linker.llvm)
        && linker_llvm < rustc_llvm
    {
        return Err(refuse(
            format!(
                "its LLVM {rustc_llvm} is newer than the LLVM {linker_llvm} of {}, which could not read its output",
                linker.path.display()
            ),
            &format!("build bpf-linker with LLVM {rustc_llvm}"),
        ));
    }
    Ok(rustc.to_path_buf())
}

fn with_cargo(candidate: &str, rustc: PathBuf, cargo: Option<PathBuf>) -> Result<Toolchain, Refused> {
    match cargo {
        Some(cargo) => Ok(Toolchain { rustc, cargo }),
        None => Err(Refused {
            candidate: candidate.into(),
            reason: "there is no cargo to run it with".into(),
            fix: "install cargo, or put it in PATH".into(),
        }),
    }
}

struct Version<'a> {
    release: &'a str,
    rust: (u32, u32),
    llvm: Option<u32>,
}

/// Reads `rustc -vV`: lines `release: 1.96.0` and `LLVM version: 22.1.8`.
fn parse_version(verbose: &str) -> Option<Version<'_>> {
    let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let release = field("release")?;
    let mut parts = release.split('.');
    let rust = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let llvm = field("LLVM version").and_then(|version| version.split('.').next()?.parse().ok());
    Some(Version { release, rust, llvm })
}

#[cfg(test)]
mod tests;
