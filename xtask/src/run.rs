//! Runs children so that Ctrl-C and SIGTERM end them in order.
//!
//! A child gets a process group of its own and a signal is passed on to the whole of it: cargo alone would die and leave
//! the test it runs, while the test takes its lab down first.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// Process group of the running child; 0 if none runs.
static GROUP: AtomicI32 = AtomicI32::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on signals are passed on to the running child, and nothing new is started after one.
pub(crate) fn end_children_on_signals() {
    let mut signals = match Signals::new([SIGINT, SIGTERM, SIGHUP]) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("cannot watch for signals: {error}");
            return;
        }
    };
    thread::spawn(move || {
        for signal in signals.forever() {
            INTERRUPTED.store(true, Ordering::SeqCst);
            match GROUP.load(Ordering::SeqCst) {
                0 => std::process::exit(128 + signal),
                // It may have ended meanwhile.
                group => drop(killpg(Pid::from_raw(group), Signal::SIGTERM)),
            }
        }
    });
}

/// Runs a command to its end.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    wait(spawn(command)?, command)
}

/// Runs a command to its end and passes each line of its stdout on, to ours and to `see`.
pub(crate) fn watch(command: &mut Command, mut see: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = spawn(command.stdout(Stdio::piped()))?;
    let stdout = child.stdout.take().context("stdout was piped")?;
    for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        see(&line);
    }
    wait(child, command)
}

fn spawn(command: &mut Command) -> Result<Child> {
    if INTERRUPTED.load(Ordering::SeqCst) {
        bail!("interrupted");
    }
    let child = command
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    GROUP.store(i32::try_from(child.id()).context("process id")?, Ordering::SeqCst);
    Ok(child)
}

fn wait(mut child: Child, command: &Command) -> Result<ExitStatus> {
    let status = child.wait().with_context(|| format!("waiting for {}", command.get_program().display()))?;
    GROUP.store(0, Ordering::SeqCst);
    if INTERRUPTED.load(Ordering::SeqCst) {
        bail!("interrupted");
    }
    Ok(status)
}
