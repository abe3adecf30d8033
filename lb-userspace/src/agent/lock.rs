//! One agent a socket: a second one would take it over in silence. (The pin directory has a lock of its own.)

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// The lock of a running agent; the kernel lets go of it when it ends, however it ends.
#[derive(Debug)]
pub struct SocketLock {
    _file: File,
}

/// A lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent has it.
    #[error(
        "another etcd-lb agent{} has the socket {}: stop it first (`systemctl stop etcd-lb`), or give this one its own \
         `[api] socket`",
        pid.map_or_else(String::new, |pid| format!(" (pid {pid})")), socket.display()
    )]
    Held {
        /// What both want.
        socket: PathBuf,
        /// The other one.
        pid: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl SocketLock {
    /// Takes the lock file beside the socket, whose directory is made if need be.
    ///
    /// # Errors
    /// Another agent has it, or the file cannot be made.
    pub fn take(socket: &Path) -> Result<Self, Error> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |source| Error::Io { path: path.clone(), source };
        if let Some(parent) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                return Err(Error::Held { socket: socket.to_owned(), pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // For the message above only; the lock is what counts.
        let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}
