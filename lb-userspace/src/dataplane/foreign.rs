//! What is on interfaces that is not ours, for whoever looks before anything is attached.

use std::{io, path::Path};

use super::{device, pins::PinDir};

/// The XDP program on an interface that is not that of the data plane in a pin directory, by name, and the command that
/// removes it.
///
/// # Errors
///
/// The kernel's; `ENODEV` if there is no such interface.
pub fn foreign_program(pin_dir: &Path, ifindex: u32, name: &str) -> io::Result<Option<(String, String)>> {
    let Some(running) = device::running(ifindex)? else { return Ok(None) };
    let ours = PinDir::open(pin_dir).and_then(|pins| pins.attached());
    if ours.is_ok_and(|links| links.iter().any(|link| link.ifindex == ifindex)) {
        return Ok(None);
    }
    Ok(Some((device::program_name(running.program_id), device::removal(name, running))))
}

/// Name of an interface's driver, or the kind of a device that has none.
pub fn driver(ifindex: u32, name: &str) -> String {
    device::driver(ifindex, name)
}
