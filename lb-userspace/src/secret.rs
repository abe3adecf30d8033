//! Files that hold secrets: read only where nobody but their owner can.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// A secret file is larger than any key or seed.
const MAX_SIZE: u64 = 1 << 20;

/// A secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can read it too.
    #[error(
        "{} can be read by others (mode {mode:04o}): it holds a secret; run `chmod 600 {}`",
        path.display(), path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// The contents of a secret file, at most 1 MiB.
///
/// # Errors
/// It cannot be read, or its mode lets group or others in.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    // The mode of the file that is open, not of whatever the name points to a moment later.
    let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::Exposed { path: path.to_owned(), mode });
    }
    let mut contents = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut contents).map_err(failed)?;
    Ok(contents)
}
