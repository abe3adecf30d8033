//! Runs cargo for the BPF target, shielded from the cargo around it.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{Error, Linker, OBJECT_NAME, Options, Toolchain};

const TARGET: &str = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
/// Lines of output kept to tell a failure's cause from.
const TAIL: usize = 60;

pub(crate) fn build(options: &Options, toolchain: &Toolchain, linker: &Linker) -> Result<PathBuf, Error> {
    let target_dir = options.target_dir.join("ebpf");
    let mut command = Command::new(&toolchain.cargo);
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_the_outer_cargo(name)) {
        command.env_remove(name);
    }
    command
        .current_dir(&options.workspace_root)
        .env("RUSTC", &toolchain.rustc)
        // Lets a stable rustc build `core` and use the features that aya needs; a nightly does not mind.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(linker))
        .args(["build", "-Z", "build-std=core", "--target", TARGET, "--package", "lb-ebpf", "--release"])
        .arg("--target-dir")
        .arg(&target_dir);
    if !options.features.is_empty() {
        command.arg("--features").arg(options.features.join(","));
    }

    run(command)?;
    Ok(target_dir.join(TARGET).join("release").join(OBJECT_NAME))
}

/// Flags of every crate in the object.
fn rustflags(linker: &Linker) -> OsString {
    let mut flags = OsString::from("-Clinker=");
    flags.push(&linker.path);
    for flag in [
        // BTF is made from debug info: maps and programs are refused by name without it.
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        // 32-bit jumps and atomics with a result (kernel 5.12); the oldest kernel supported is 6.1.
        "-Ctarget-cpu=v3",
        "-Ccodegen-units=1",
    ] {
        // The separator of CARGO_ENCODED_RUSTFLAGS.
        flags.push("\x1f");
        flags.push(flag);
    }
    flags
}

/// Whether a variable was set by or for a cargo that runs this one (build script, `cargo run`, clippy), and would make
/// it build something else. What says where cargo keeps and fetches things is the user's, and stays.
fn is_of_the_outer_cargo(name: &OsStr) -> bool {
    const KEPT: [&str; 6] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_TERM_"];
    const DROPPED: [&str; 6] = ["CARGO", "__CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"];
    // Set by cargo for build scripts; the last two describe its job server.
    const DROPPED_EXACT: [&str; 7] =
        ["TARGET", "HOST", "OUT_DIR", "PROFILE", "OPT_LEVEL", "MAKEFLAGS", "MFLAGS"];

    let name = name.to_string_lossy();
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    DROPPED_EXACT.contains(&name.as_ref()) || (starts(&DROPPED) && !starts(&KEPT))
}

/// Runs cargo with its output on our stderr.
fn run(mut command: Command) -> Result<(), Error> {
    let line = format!("{command:?}");
    let fail = |reason: String, hint| Error::Build { command: line.clone(), reason, hint };

    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| fail(format!("cannot run cargo: {error}"), None))?;
    let mut tail = VecDeque::new();
    if let Some(stderr) = child.stderr.take() {
        for said in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            let said = String::from_utf8_lossy(&said).into_owned();
            eprintln!("{said}");
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(said);
        }
    }
    let status = child.wait().map_err(|error| fail(format!("cannot wait for cargo: {error}"), None))?;
    if status.success() {
        Ok(())
    } else {
        Err(fail(format!("cargo: {status}"), hint(tail.make_contiguous())))
    }
}

/// The likely cause of a failure whose message does not show it.
fn hint(tail: &[String]) -> Option<String> {
    let said = |part: &str| tail.iter().any(|line| line.contains(part));
    if said("Unknown attribute kind")
        || said("Invalid record")
        || said("Producer: 'LLVM")
        || said("failure linking module")
    {
        Some(
            "bpf-linker cannot read what rustc wrote: its LLVM is older than rustc's (compare `rustc -vV`). \
              Build bpf-linker with that LLVM or a newer one; scripts/setup.sh does so on Debian and Ubuntu."
                .into(),
        )
    } else if said("unable to find LLVM shared lib") || said("error while loading shared libraries") {
        Some("bpf-linker cannot find its LLVM; run scripts/setup.sh, or install bpf-linker anew".into())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_cargo_is_shut_out_and_the_users_settings_are_kept() {
        for name in [
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "CARGO_MANIFEST_DIR",
            "CARGO_MAKEFLAGS",
            "RUSTUP_TOOLCHAIN",
            "CARGO_PROFILE_RELEASE_LTO",
            "TARGET",
        ] {
            assert!(is_of_the_outer_cargo(OsStr::new(name)), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_HTTP_PROXY",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_X_INDEX",
            "PATH",
            "HOME",
        ] {
            assert!(!is_of_the_outer_cargo(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn old_linker_is_explained() {
        let tail = ["LLVM ERROR: Invalid record (Producer: 'LLVM23.1.0' Reader: 'LLVM 22.1.8')".to_owned()];
        assert!(hint(&tail).unwrap().contains("older than rustc's"));
        assert_eq!(hint(&["error[E0308]: mismatched types".to_owned()]), None);
    }
}
