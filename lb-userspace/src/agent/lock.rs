//! One agent a socket and a pin directory: two would overwrite each other's maps.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// The locks of a running agent; the kernel lets go of them when it ends, however it ends.
#[derive(Debug)]
pub struct Locks {
    _socket: File,
    pin_dir: Option<File>,
}

/// A lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent has it.
    #[error(
        "another etcd-lb agent{} uses {}: stop it first (`systemctl stop etcd-lb`), or give this one its own `[api] {key}`",
        pid.map_or_else(String::new, |pid| format!(" (pid {pid})")), path.display()
    )]
    Held {
        /// The config's key for it.
        key: &'static str,
        /// What both want.
        path: PathBuf,
        /// The other one, if it is known.
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

impl Locks {
    /// Takes the lock file beside the socket, whose directory is made if need be.
    ///
    /// # Errors
    /// Another agent has it, or the file cannot be made.
    pub fn of_socket(socket: &Path) -> Result<Self, Error> {
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
                return Err(Error::Held {
                    key: "socket",
                    path: socket.to_owned(),
                    pid: text.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // For the message above only; the lock is what counts.
        let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        Ok(Self { _socket: file, pin_dir: None })
    }

    /// Takes the pin directory too, if it exists by now. Once taken, it is not asked again.
    ///
    /// # Errors
    /// Another agent has it, or it cannot be opened.
    pub fn take_pin_dir(&mut self, pin_dir: &Path) -> Result<(), Error> {
        if self.pin_dir.is_none() {
            self.pin_dir = lock_directory(pin_dir)?;
        }
        Ok(())
    }
}

/// Locks a directory for as long as the answer lives; `None` if there is no such directory.
///
/// # Errors
/// An agent has it, or it cannot be opened.
pub fn lock_directory(path: &Path) -> Result<Option<File>, Error> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let directory = match File::open(path) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    match directory.try_lock() {
        Ok(()) => Ok(Some(directory)),
        Err(TryLockError::WouldBlock) => {
            Err(Error::Held { key: "pin_dir", path: path.to_owned(), pid: None })
        }
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}
