//! Links: what attaches the program to an interface. Each is pinned, so that it outlives the agent.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya_obj::generated::{XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE};
use tracing::warn;

use super::{
    AttachedMode, XdpMode, bpf,
    device::{self, Running},
    error::Error,
    pins::PinDir,
};

/// How an interface came to run our program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The pinned link was there, and now runs this program.
    Adopted,
    /// There was none.
    New,
}

/// An interface that the program is to run on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device<'a> {
    pub(super) ifindex: u32,
    pub(super) name: &'a str,
}

/// Makes an interface run a program: in its pinned link if there is one, which no packet notices, else by a new one.
///
/// # Errors
///
/// [`Error::Occupied`], [`Error::NoNative`], [`Error::NoInterface`], [`Error::Attach`], [`Error::PinDir`].
pub(super) fn attach(
    pins: &PinDir,
    program: &OwnedFd,
    device: Device<'_>,
    wanted: XdpMode,
) -> Result<(AttachedMode, Origin), Error> {
    let Some((link, mode)) = pinned(pins, device)? else {
        return Ok((create(pins, program, device, wanted)?, Origin::New));
    };
    if fits(mode, wanted) {
        bpf::update_link(link.as_fd(), program.as_fd()).map_err(refused(device))?;
        if wanted == XdpMode::Auto && mode == AttachedMode::Generic {
            warn!(
                interface = device.name,
                "XDP stays generic, as it was attached; to try native XDP again: etcd-lb detach, then start"
            );
        }
        return Ok((mode, Origin::Adopted));
    }
    warn!(interface = device.name, from = %mode, to = %wanted, "XDP mode changed: attaching anew, packets may be lost");
    drop(link);
    detach(pins, device.ifindex)?;
    match create(pins, program, device, wanted) {
        Ok(mode) => Ok((mode, Origin::Adopted)),
        Err(error) => {
            // As it was before: the flows go on.
            create(pins, program, device, mode.into())?;
            Err(error)
        }
    }
}

/// Takes the program off an interface and removes the link's pin.
pub(super) fn detach(pins: &PinDir, ifindex: u32) -> Result<(), Error> {
    let path = pins.link(ifindex);
    match bpf::open(&path) {
        // A link whose interface is gone cannot be detached any more, and need not be.
        Ok(link) => drop(bpf::detach_link(link.as_fd())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::pin("open the pinned link", path)(error)),
    }
    fs::remove_file(&path).map_err(Error::pin("remove the pinned link", path))
}

/// Removes the pin of a link whose interface is gone; whether there was one.
pub(super) fn forget(pins: &PinDir, ifindex: u32) -> Result<bool, Error> {
    let path = pins.link(ifindex);
    let link = match bpf::open(&path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::pin("open the pinned link", path)(error)),
    };
    let info = bpf::link_info(link.as_fd()).map_err(Error::pin("look at the pinned link", &path))?;
    if info.ifindex != 0 {
        return Ok(false);
    }
    fs::remove_file(&path).map_err(Error::pin("remove the pinned link", path))?;
    Ok(true)
}

/// The interface's pinned link, if it is attached. One whose interface went away is removed.
fn pinned(pins: &PinDir, device: Device<'_>) -> Result<Option<(OwnedFd, AttachedMode)>, Error> {
    forget(pins, device.ifindex)?;
    let path = pins.link(device.ifindex);
    let link = match bpf::open(&path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::pin("open the pinned link", path)(error)),
    };
    let running = device::running(device.ifindex).map_err(refused(device))?;
    // A link that is attached to this interface is what runs there.
    let mode = running.map_or(AttachedMode::Native, |running| running.mode);
    Ok(Some((link, mode)))
}

fn create(
    pins: &PinDir,
    program: &OwnedFd,
    device: Device<'_>,
    wanted: XdpMode,
) -> Result<AttachedMode, Error> {
    let (link, mode) = match wanted {
        XdpMode::Native => (native(program, device)?, AttachedMode::Native),
        XdpMode::Generic => (generic(program, device)?, AttachedMode::Generic),
        XdpMode::Auto => match native(program, device) {
            Ok(link) => (link, AttachedMode::Native),
            Err(Error::NoNative { driver, source, .. }) => {
                let link = generic(program, device)?;
                warn!(
                    interface = device.name, driver, reason = %source,
                    "the driver does not take a native XDP program; generic XDP is several times slower"
                );
                (link, AttachedMode::Generic)
            }
            Err(error) => return Err(error),
        },
    };
    let path = pins.link(device.ifindex);
    bpf::pin(link.as_fd(), &path).map_err(Error::pin("pin the link", path))?;
    Ok(mode)
}

fn native(program: &OwnedFd, device: Device<'_>) -> Result<OwnedFd, Error> {
    bpf::create_xdp_link(program.as_fd(), device.ifindex, XDP_FLAGS_DRV_MODE).map_err(|source| {
        match known(device, &source) {
            Some(error) => error,
            None => Error::NoNative {
                interface: device.name.into(),
                driver: device::driver(device.ifindex, device.name),
                source,
            },
        }
    })
}

fn generic(program: &OwnedFd, device: Device<'_>) -> Result<OwnedFd, Error> {
    bpf::create_xdp_link(program.as_fd(), device.ifindex, XDP_FLAGS_SKB_MODE).map_err(refused(device))
}

fn refused(device: Device<'_>) -> impl FnOnce(io::Error) -> Error {
    move |source| match known(device, &source) {
        Some(error) => error,
        None => Error::Attach {
            interface: device.name.into(),
            driver: device::driver(device.ifindex, device.name),
            source,
        },
    }
}

/// Answers of the kernel that have nothing to do with the driver.
fn known(device: Device<'_>, error: &io::Error) -> Option<Error> {
    match error.raw_os_error()? {
        // The kernel's answer to a number that no interface has is EINVAL.
        libc::EINVAL | libc::ENODEV if is_gone(device) => {
            Some(Error::NoInterface { interface: device.name.into() })
        }
        libc::EPERM => Some(Error::Refused {
            what: "attach an XDP program",
            source: io::Error::from_raw_os_error(libc::EPERM),
        }),
        // Another program, or (EEXIST) another one in the other mode.
        libc::EBUSY | libc::EEXIST => {
            let running = device::running(device.ifindex).ok().flatten();
            Some(Error::Occupied {
                interface: device.name.into(),
                program: running
                    .map_or("which went away meanwhile".into(), |r| device::program_name(r.program_id)),
                remedy: removal(device.name, running),
            })
        }
        _ => None,
    }
}

fn is_gone(device: Device<'_>) -> bool {
    device::running(device.ifindex).is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV))
}

fn removal(name: &str, running: Option<Running>) -> String {
    running
        .map_or_else(|| format!("ip link set dev {name} xdp off"), |running| device::removal(name, running))
}

const fn fits(mode: AttachedMode, wanted: XdpMode) -> bool {
    match wanted {
        XdpMode::Auto => true,
        XdpMode::Native => matches!(mode, AttachedMode::Native),
        XdpMode::Generic => matches!(mode, AttachedMode::Generic),
    }
}
