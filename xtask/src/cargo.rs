//! Where the workspace and its build are, and the cargo to use.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

/// Directory of the workspace's Cargo.toml.
pub(crate) fn workspace_root() -> Result<PathBuf> {
    let xtask = env!("CARGO_MANIFEST_DIR");
    Ok(Path::new(xtask).parent().context("xtask lies outside its workspace")?.to_path_buf())
}

/// The target directory that this program was built in: it is `TARGET/PROFILE/xtask`.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let own = env::current_exe().context("own path")?;
    Ok(own
        .ancestors()
        .nth(2)
        .with_context(|| format!("{} lies in no target directory", own.display()))?
        .to_path_buf())
}

/// cargo, run in the workspace's root, building where this program was built.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root()?).env("CARGO_TARGET_DIR", target_dir()?);
    // What cargo tells this program about itself. Build scripts (ring's) watch for it, and all that needs them would be built
    // anew whenever a build by hand and one by us take turns.
    let ours = ["CARGO_MANIFEST_", "CARGO_PKG_"];
    for (name, _) in env::vars_os() {
        if ours.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    Ok(command)
}
