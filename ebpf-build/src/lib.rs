//! Builds the XDP object: finds a compiler that can build `core` for BPF and a linker that understands it, and runs
//! cargo with the two.
//!
//! Three kinds of machine must work without being told how: one where rustup has a nightly with `rust-src`, one where
//! only the distribution's rustc comes with its sources, and one where the user names the compiler. `aya-build` serves
//! the first only, hence this crate. It has no dependencies, since a build script waits for it.

mod error;
mod linker;
mod nested;
mod system;
mod toolchain;

use std::path::{Path, PathBuf};

pub use error::{Error, Refused};
pub use linker::Linker;
pub use system::{Machine, System};
pub use toolchain::Toolchain;

/// Environment variable that names the rustc to build the object with. It must have its sources (`rust-src`).
pub const RUSTC_ENV: &str = "ETCD_LB_EBPF_RUSTC";
/// Environment variable that names the bpf-linker to use.
pub const LINKER_ENV: &str = "ETCD_LB_BPF_LINKER";
/// File name of the object with the data path, which is the name of a binary of the program crate.
pub const OBJECT_NAME: &str = "etcd-lb-xdp";
/// File name of the object with the tracing programs of `etcd-lb capture`, built beside it.
pub const CAPTURE_NAME: &str = "etcd-lb-capture";
/// What the object is made from, relative to the workspace's root: a build script reruns when one of these changes.
pub const SOURCES: [&str; 6] = [
    "Cargo.lock",
    "Cargo.toml",
    "lb-ebpf/Cargo.toml",
    "lb-ebpf/src",
    "lb-common/Cargo.toml",
    "lb-common/src",
];

/// What to build, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of the workspace's Cargo.toml.
    pub workspace_root: PathBuf,
    /// The workspace's target directory; the object is built in `ebpf` below it, shared by all profiles and tools, and
    /// separate since the outer cargo holds the lock of its own.
    pub target_dir: PathBuf,
    /// Features of `lb-ebpf`: `log`, the program's log lines, each of which halves the speed of its path and multiplies its
    /// verified instructions; `bench`, the program that benchmarks run it by.
    pub features: &'static [&'static str],
}

/// Builds the objects if their sources changed since the last time, and returns the path of [`OBJECT_NAME`].
///
/// # Errors
///
/// [`Error::NoLinker`] and [`Error::NoToolchain`] name all that was tried and how to mend it. [`Error::Build`] is a
/// failed build, whose output has gone to stderr.
pub fn build(options: &Options) -> Result<PathBuf, Error> {
    let (toolchain, linker) = find(&Machine, &options.target_dir)?;
    nested::build(options, &toolchain, &linker)
}

/// The compiler and linker that [`build`] would use.
///
/// # Errors
///
/// [`Error::NoLinker`] and [`Error::NoToolchain`].
pub fn find(system: &impl System, target_dir: &Path) -> Result<(Toolchain, Linker), Error> {
    let linker = linker::find(system, target_dir)?;
    let toolchain = toolchain::find(system, &linker)?;
    Ok((toolchain, linker))
}

/// The target directory that a build script's `OUT_DIR` lies in.
///
/// `OUT_DIR` is `TARGET_DIR[/TRIPLE]/PROFILE/build/PACKAGE-HASH/out`, with the triple if cargo was given `--target`.
/// `None` if it does not look like that.
pub fn target_dir_of(out_dir: &Path, triple: &str) -> Option<PathBuf> {
    let above_profile = out_dir.ancestors().nth(4)?;
    let inside_triple = above_profile.file_name().is_some_and(|name| name == triple);
    let target_dir = if inside_triple { above_profile.parent()? } else { above_profile };
    Some(target_dir.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_dir_with_and_without_triple() {
        let triple = "x86_64-unknown-linux-gnu";
        for out in
            ["/src/target/debug/build/p-1/out", "/src/target/x86_64-unknown-linux-gnu/debug/build/p-1/out"]
        {
            assert_eq!(target_dir_of(Path::new(out), triple), Some(PathBuf::from("/src/target")), "{out}");
        }
        assert_eq!(target_dir_of(Path::new("/out"), triple), None);
    }
}
