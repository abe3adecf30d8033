use std::{collections::HashMap, ffi::OsString};

use super::*;
use crate::{LINKER_ENV, find};

/// A machine described by tables.
#[derive(Default)]
struct Fake {
    env: HashMap<&'static str, &'static str>,
    files: Vec<&'static str>,
    answers: HashMap<&'static str, &'static str>,
}

impl System for Fake {
    fn env(&self, name: &str) -> Option<OsString> {
        self.env.get(name).map(OsString::from)
    }
    fn exists(&self, path: &Path) -> bool {
        self.files.iter().any(|file| Path::new(file) == path)
    }
    fn read(&self, _: &Path) -> Option<Vec<u8>> {
        None
    }
    fn run(&self, program: &Path, args: &[&str]) -> Result<String, String> {
        let line = format!("{} {}", program.display(), args.join(" "));
        self.answers
            .get(line.as_str())
            .map(ToString::to_string)
            .ok_or_else(|| format!("no answer to `{line}`"))
    }
}

const SYSTEM_SOURCES: &str = "/usr/lib/rustlib/src/rust/library/core/src/lib.rs";
const NIGHTLY_SOURCES: &str = "/up/nightly/lib/rustlib/src/rust/library/core/src/lib.rs";

/// rustup with a nightly and the distribution's rustc, both with sources; the linker's LLVM is 22.
fn full() -> Fake {
    Fake {
        env: HashMap::from([("PATH", "/bin"), ("HOME", "/u")]),
        files: vec![
            "/bin/bpf-linker",
            "/bin/cargo",
            "/u/.cargo/bin/rustup",
            SYSTEM_RUSTC,
            SYSTEM_SOURCES,
            NIGHTLY_SOURCES,
        ],
        answers: HashMap::from([
            ("/bin/bpf-linker --version", "bpf-linker 1.0.0 LLVM 22.1"),
            ("/u/.cargo/bin/rustup toolchain list", "stable-x (active, default)\nnightly-x\n"),
            ("/u/.cargo/bin/rustup which --toolchain nightly-x rustc", "/up/nightly/bin/rustc\n"),
            (
                "/up/nightly/bin/rustc -vV",
                "rustc 1.97.0-nightly\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n",
            ),
            ("/up/nightly/bin/rustc --print sysroot", "/up/nightly\n"),
            ("/usr/bin/rustc -vV", "release: 1.96.0\nLLVM version: 22.1.8\n"),
            ("/usr/bin/rustc --print sysroot", "/usr\n"),
        ]),
    }
}

fn found(fake: &Fake) -> Toolchain {
    find(fake, Path::new("/t")).unwrap().0
}

fn refused(fake: &Fake) -> String {
    find(fake, Path::new("/t")).unwrap_err().to_string()
}

#[test]
fn rustup_nightly_comes_first_and_brings_its_cargo() {
    let toolchain = found(&full());
    assert_eq!(toolchain.rustc, Path::new("/up/nightly/bin/rustc"));
    assert_eq!(toolchain.cargo, Path::new("/up/nightly/bin/cargo"));
}

#[test]
fn nightly_without_sources_gives_way_to_the_system() {
    let mut fake = full();
    fake.files.retain(|file| *file != NIGHTLY_SOURCES);
    let toolchain = found(&fake);
    assert_eq!(toolchain.rustc, Path::new(SYSTEM_RUSTC));
    assert_eq!(toolchain.cargo, Path::new("/bin/cargo"));
}

#[test]
fn nightly_newer_than_the_linker_gives_way_to_the_system() {
    let mut fake = full();
    fake.answers.insert("/up/nightly/bin/rustc -vV", "release: 1.99.0-nightly\nLLVM version: 23.1.0\n");
    assert_eq!(found(&fake).rustc, Path::new(SYSTEM_RUSTC));
}

#[test]
fn outer_cargo_is_preferred_to_the_path() {
    let mut fake = full();
    fake.files.retain(|file| *file != NIGHTLY_SOURCES);
    fake.env.insert("CARGO", "/stable/bin/cargo");
    assert_eq!(found(&fake).cargo, Path::new("/stable/bin/cargo"));
}

#[test]
fn named_compiler_wins_and_is_never_replaced() {
    let mut fake = full();
    fake.env.insert(RUSTC_ENV, SYSTEM_RUSTC);
    assert_eq!(found(&fake).rustc, Path::new(SYSTEM_RUSTC));

    fake.files.retain(|file| *file != SYSTEM_SOURCES);
    let message = refused(&fake);
    assert!(message.contains("ETCD_LB_EBPF_RUSTC=/usr/bin/rustc: it lacks its sources"), "{message}");
    assert!(!message.contains("nightly"), "{message}");
}

#[test]
fn failure_lists_every_candidate_with_reason_and_fix() {
    let mut fake = full();
    fake.files.retain(|file| *file != NIGHTLY_SOURCES);
    fake.answers.insert("/usr/bin/rustc -vV", "release: 1.63.0\nLLVM version: 14.0\n");
    let message = refused(&fake);
    for part in [
        "rustup's nightly-x: it lacks its sources",
        "rustup component add rust-src --toolchain nightly-x",
        "/usr/bin/rustc: it is 1.63.0, and 1.95 is needed",
        "scripts/setup.sh",
    ] {
        assert!(message.contains(part), "no `{part}` in:\n{message}");
    }
}

#[test]
fn bare_machine_is_told_what_to_install() {
    let mut fake = Fake { env: HashMap::from([("PATH", "/bin")]), ..Fake::default() };
    assert!(refused(&fake).contains("cargo install bpf-linker"));

    fake.files = vec!["/bin/bpf-linker"];
    fake.answers.insert("/bin/bpf-linker --version", "bpf-linker 0.13.0");
    let message = refused(&fake);
    for part in
        ["rustup is not installed", "--component rust-src", "/usr/bin/rustc: not installed", "rust-web-src"]
    {
        assert!(message.contains(part), "no `{part}` in:\n{message}");
    }
}

#[test]
fn named_linker_is_never_replaced() {
    let mut fake = full();
    fake.env.insert(LINKER_ENV, "/nowhere");
    let message = refused(&fake);
    assert!(message.contains("ETCD_LB_BPF_LINKER=/nowhere"), "{message}");
}

#[test]
fn linker_below_the_target_directory_comes_before_the_path() {
    let mut fake = full();
    fake.files.push("/t/tools/bin/bpf-linker");
    fake.answers.insert("/t/tools/bin/bpf-linker --version", "bpf-linker 0.13.0");
    let linker = find(&fake, Path::new("/t")).unwrap().1;
    assert_eq!(linker, Linker { path: PathBuf::from("/t/tools/bin/bpf-linker"), llvm: None });
}
