//! `cargo xtask deb`: the Debian package, by cargo-deb, of the release build. Its metadata stands in lb-userspace/Cargo.toml,
//! its maintainer scripts in deploy/debian.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{cargo, lab, run};

/// Builds everything, and prints the package's path.
pub(crate) fn build(version: Option<&str>, features: Option<&str>) -> Result<()> {
    let target = cargo::target_dir()?;
    let cargo_deb = target.join("tools/bin/cargo-deb");
    ensure!(
        cargo_deb.is_file(),
        "no cargo-deb at {}; `scripts/setup.sh --build --deb` builds it",
        cargo_deb.display()
    );
    let mut build = vec!["--release", "--package", "etcd-lb"];
    build.extend(features.iter().flat_map(|features| ["--features", features]));
    lab::build(&build)?;

    let version = version.map_or_else(|| format!("{}-1", env!("CARGO_PKG_VERSION")), str::to_owned);
    generate(&target.join("release/etcd-lb"), &target.join("release/deb"), &version)?;

    let mut command = Command::new(cargo_deb);
    command.args(["--package", "etcd-lb", "--deb-version", &version, "--no-build", "--locked", "--strip"]);
    command.arg("--output").arg(target.join("debian").join(""));
    command.current_dir(cargo::workspace_root()?).env("CARGO_TARGET_DIR", &target);
    // It prints the package's path.
    let status = run::status(&mut command)?;
    ensure!(status.success(), "cargo-deb ended with {status}");
    Ok(())
}

/// Makes what the package has beside the repository's own files.
fn generate(binary: &Path, dir: &Path, version: &str) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    let completions = dir.join("completions");
    fs::create_dir_all(&completions).with_context(|| format!("making {}", completions.display()))?;
    let man = dir.join("man");
    output(Command::new(binary).arg("man").arg(&man))?;
    // Without name and time, so that the same source makes the same package.
    output(Command::new("gzip").args(["-9", "--no-name", "--recursive"]).arg(&man))?;
    for (shell, file) in [("bash", "etcd-lb"), ("zsh", "_etcd-lb"), ("fish", "etcd-lb.fish")] {
        let script = output(Command::new(binary).args(["completions", shell]))?;
        fs::write(completions.join(file), script).with_context(|| format!("writing {file}"))?;
    }
    fs::write(dir.join("changelog.Debian"), changelog(version)?).context("writing the changelog")
}

/// The changelog that Debian's tools read; what changed stands in CHANGELOG.md. It bears the date of the last commit, so
/// that the same source makes the same package.
fn changelog(version: &str) -> Result<String> {
    let root = cargo::workspace_root()?;
    let mut git = Command::new("git");
    // The checkout may belong to the user who called sudo.
    git.arg("-c").arg(format!("safe.directory={}", root.display()));
    git.args(["log", "-1", "--format=%cD"]).current_dir(root);
    // A source archive has no commits.
    let date = output(&mut git).or_else(|_| output(Command::new("date").args(["--rfc-email"])))?;
    Ok(format!(
        "etcd-lb ({version}) unstable; urgency=medium\n\n  * See changelog.gz beside this file.\n\n \
         -- The etcd-lb authors <etcd-lb@localhost.localdomain>  {}\n",
        date.trim()
    ))
}

fn output(command: &mut Command) -> Result<String> {
    let result = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !result.status.success() {
        bail!("{command:?}: {}: {}", result.status, String::from_utf8_lossy(&result.stderr));
    }
    String::from_utf8(result.stdout).with_context(|| format!("{command:?} prints no UTF-8"))
}
