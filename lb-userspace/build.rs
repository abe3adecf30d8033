//! Builds the BPF objects and puts them where `object.rs` includes them from. No other build script builds them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use ebpf_build::{CAPTURE_NAME, LINKER_ENV, OBJECT_NAME, Options, RUSTC_ENV, SOURCES};

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let workspace_root = variable("CARGO_MANIFEST_DIR")?
        .parent()
        .ok_or("this crate is not inside its workspace, where the program crate is")?
        .to_path_buf();
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", workspace_root.join(source).display());
    }
    for name in [RUSTC_ENV, LINKER_ENV] {
        println!("cargo::rerun-if-env-changed={name}");
    }

    let out_dir = variable("OUT_DIR")?;
    let triple = env::var("TARGET").map_err(|error| format!("TARGET: {error}"))?;
    let target_dir = ebpf_build::target_dir_of(&out_dir, &triple)
        .ok_or_else(|| format!("OUT_DIR={} does not lie in a target directory", out_dir.display()))?;
    let object = ebpf_build::build(&Options {
        workspace_root,
        target_dir,
        features: match (cfg!(feature = "debug-log"), cfg!(feature = "other-layout")) {
            (false, false) => &[],
            (true, false) => &["log"],
            (false, true) => &["other-layout"],
            (true, true) => &["log", "other-layout"],
        },
    })
    .map_err(|error| error.to_string())?;
    for name in [OBJECT_NAME, CAPTURE_NAME] {
        copy(&object.with_file_name(name), &out_dir.join(name))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to)
        .map(drop)
        .map_err(|error| format!("cannot copy {} to {}: {error}", from.display(), to.display()))
}

fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo did not set {name}"))
}
