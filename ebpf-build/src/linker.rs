//! Finds bpf-linker, and the version of the LLVM inside it.

use std::path::{Path, PathBuf};

use crate::{Error, LINKER_ENV, Refused, System};

/// A bpf-linker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linker {
    /// Path of the executable.
    pub path: PathBuf,
    /// Major version of its LLVM; `None` where it cannot be known without linking (a static build, or one that loads
    /// rustc's own LLVM).
    pub llvm: Option<u32>,
}

/// Finds the linker: by the environment variable, else what setup.sh built below the target directory, else in `PATH`.
/// One that was named and does not work is an error, never replaced by another.
pub(crate) fn find(system: &impl System, target_dir: &Path) -> Result<Linker, Error> {
    if let Some(named) = system.env(LINKER_ENV) {
        let fix = format!("set {LINKER_ENV} to a bpf-linker executable, or unset it");
        return probe(system, Path::new(&named), &fix).map_err(|refused| {
            Error::NoLinker(vec![Refused {
                candidate: format!("{LINKER_ENV}={}", named.display()),
                ..refused
            }])
        });
    }

    let mut refused = Vec::new();
    let built = target_dir.join("tools/bin/bpf-linker");
    if system.exists(&built) {
        match probe(system, &built, "delete it and run scripts/setup.sh, which builds it anew") {
            Ok(linker) => return Ok(linker),
            Err(why) => refused.push(why),
        }
    } else {
        refused.push(Refused {
            candidate: built.display().to_string(),
            reason: "does not exist".into(),
            fix: "run scripts/setup.sh, which builds it".into(),
        });
    }
    match system.which("bpf-linker") {
        Some(path) => match probe(system, &path, "install it anew: cargo install bpf-linker --force") {
            Ok(linker) => return Ok(linker),
            Err(why) => refused.push(why),
        },
        None => refused.push(Refused {
            candidate: "bpf-linker in PATH".into(),
            reason: "not found".into(),
            fix: "cargo install bpf-linker".into(),
        }),
    }
    Err(Error::NoLinker(refused))
}

fn probe(system: &impl System, path: &Path, fix: &str) -> Result<Linker, Refused> {
    match system.run(path, &["--version"]) {
        Ok(version) => {
            let llvm = llvm_in_version(&version)
                .or_else(|| system.read(path).and_then(|executable| llvm_in_executable(&executable)));
            Ok(Linker { path: path.to_path_buf(), llvm })
        }
        Err(reason) => Err(Refused { candidate: path.display().to_string(), reason, fix: fix.into() }),
    }
}

/// `--version` names no LLVM as of bpf-linker 0.13; taken where a later one does.
fn llvm_in_version(version: &str) -> Option<u32> {
    let after = &version[version.find("LLVM")? + "LLVM".len()..];
    leading_number(after.trim_start_matches(|c: char| !c.is_ascii_digit()).as_bytes())
}

/// A linker that is dynamically linked with LLVM names the shared object, `libLLVM.so.22.1` (since LLVM 18) or
/// `libLLVM-17.so`.
fn llvm_in_executable(executable: &[u8]) -> Option<u32> {
    ["libLLVM.so.", "libLLVM-"].into_iter().find_map(|prefix| {
        let prefix = prefix.as_bytes();
        executable
            .windows(prefix.len())
            .enumerate()
            .filter(|(_, window)| *window == prefix)
            .find_map(|(at, _)| leading_number(&executable[at + prefix.len()..]))
    })
}

fn leading_number(text: &[u8]) -> Option<u32> {
    let digits: Vec<u8> = text.iter().copied().take_while(u8::is_ascii_digit).take(3).collect();
    std::str::from_utf8(&digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_of_a_dynamic_linker() {
        assert_eq!(llvm_in_executable(b"\0libc.so.6\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(llvm_in_executable(b"\0libLLVM-17.so\0"), Some(17));
        assert_eq!(llvm_in_executable(b"\0libLLVM-*-rust\0libc.so.6"), None);
    }

    #[test]
    fn llvm_of_the_version_line() {
        assert_eq!(llvm_in_version("bpf-linker 0.13.0\n"), None);
        assert_eq!(llvm_in_version("bpf-linker 0.20.0\nLLVM version: 23.1.0\n"), Some(23));
    }
}
