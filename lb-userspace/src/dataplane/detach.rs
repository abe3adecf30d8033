//! Removing a data plane, with or without an agent that made it.

use std::{io, path::Path};

use super::{error::Error, links, pins::PinDir};

/// What [`detach`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DetachReport {
    /// Interfaces that no longer run the program.
    pub interfaces: Vec<u32>,
    /// Whether anything was pinned at all.
    pub found: bool,
}

/// Takes the program off every interface, and removes all that is pinned. Whatever version made it: nothing but names is
/// looked at. Connections through the VIP end. No agent may be running on the directory: it would go on with maps that
/// nobody reads any more.
///
/// # Errors
///
/// [`Error::Capabilities`], [`Error::NotBpffs`], [`Error::PinDir`].
pub fn detach(pin_dir: &Path) -> Result<DetachReport, Error> {
    let pins = match PinDir::open(pin_dir) {
        Ok(pins) => pins,
        Err(Error::PinDir { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(DetachReport::default());
        }
        Err(error) => return Err(error),
    };
    super::privilege::check()?;
    let attached = pins.attached()?.into_iter().map(|link| link.ifindex).collect();
    let found = pins.holds_anything()?;
    for ifindex in pins.links()? {
        links::detach(&pins, ifindex)?;
    }
    pins.clear()?;
    pins.remove_dir();
    Ok(DetachReport { interfaces: attached, found })
}
