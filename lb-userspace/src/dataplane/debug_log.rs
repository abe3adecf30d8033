//! The XDP program's own debug messages, in builds with the feature `debug-log`.

use std::{os::fd::AsRawFd as _, thread};

use aya::Ebpf;
use aya_log::EbpfLogger;
use tracing::warn;

/// Passes the messages of a load's programs on to the agent's log, from a thread that ends with the process.
pub(super) fn start(ebpf: &mut Ebpf) {
    match EbpfLogger::init(ebpf) {
        Ok(mut logger) => drop(thread::spawn(move || {
            while wait(&logger) {
                logger.flush();
            }
        })),
        Err(error) => warn!(%error, "the XDP program's messages cannot be read"),
    }
}

/// Waits for messages; `false` if that is not possible.
fn wait<T: log::Log>(logger: &EbpfLogger<T>) -> bool {
    let mut poll = libc::pollfd { fd: logger.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor that is open as long as `logger`, and a struct that outlives the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, -1) };
    ready >= 0 || std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
}
