//! What the guide's commands meet in the lab, where several nodes share one machine's files: other paths than an operator's.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::Result;

use crate::Balancer;

/// Paths of the guide, and what they are in the lab; the longest first.
pub type Paths = [(String, String)];

/// Writes `etcd-lb` into a new directory: the program with the node's socket and files where an operator's are the defaults.
///
/// # Errors
///
/// If it cannot be written.
pub fn shim(directory: &Path, program: &Path, balancer: &Balancer) -> Result<()> {
    fs::create_dir(directory)?;
    let script = format!(
        "#!/bin/sh\ncase \"$1 $#\" in\n'doctor 1'|'check-config 1') set -- \"$1\" {config};;\n'detach 1') set -- \"$1\" --config \
         {config};;\nesac\nexec {program} --socket {socket} \"$@\"\n",
        config = balancer.config().display(),
        program = program.display(),
        socket = balancer.socket().display(),
    );
    let path = directory.join("etcd-lb");
    fs::write(&path, script)?;
    Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
}

/// A command with the lab's paths in place of the guide's.
pub fn in_the_lab(command: &str, paths: &Paths) -> String {
    paths.iter().fold(command.to_owned(), |text, (guide, lab)| text.replace(guide, lab))
}

/// What a command said, with the guide's paths in place of the lab's.
pub fn in_the_guide(said: &str, paths: &Paths) -> String {
    paths.iter().fold(said.to_owned(), |text, (guide, lab)| text.replace(lab, guide))
}
