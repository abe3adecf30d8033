//! What can go wrong with the data plane, and the way out.

use std::{
    fmt::{self, Display},
    io,
    path::PathBuf,
};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use lb_core::reconcile;

/// An error of the data plane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process may not do what it must.
    #[error(
        "the data plane needs {missing}, which this process does not have: run etcd-lb as root, or give its systemd unit \
         AmbientCapabilities={missing}"
    )]
    Capabilities {
        /// Their names, separated by blanks.
        missing: String,
    },
    /// The kernel refused although the capabilities are there.
    #[error(
        "the kernel refused to {what}: {source}. In a container or user namespace, bpf() must be allowed for it, which only \
         the host can do; see also `sysctl kernel.unprivileged_bpf_disabled` and the kernel's lockdown mode"
    )]
    Refused {
        /// What it was asked for.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The pin directory is on another file system.
    #[error("pin_dir {} is not on a BPF file system: mount one with `mount -t bpf bpf {}`", dir.display(), mount.display())]
    NotBpffs {
        /// The directory.
        dir: PathBuf,
        /// Where to mount.
        mount: PathBuf,
    },
    /// The pin directory cannot be used.
    #[error("cannot {what} {}: {source}", path.display())]
    PinDir {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What is pinned was made by another version, or for another `max_flows`.
    #[error(
        "the data plane pinned in {} does not fit this etcd-lb and was left untouched:{}\nEither start the version and \
         config that made it{}, or remove it with `etcd-lb detach`, which ends its connections",
        dir.display(), List(differences), max_flows.map_or_else(String::new, |n| format!(" (it has max_flows = {n})"))
    )]
    Layout {
        /// The directory.
        dir: PathBuf,
        /// Each of the differences.
        differences: Vec<String>,
        /// The `max_flows` it was made for, if that can be told and is another.
        max_flows: Option<u32>,
    },
    /// The object does not hold what this version needs.
    #[error("the XDP object of this build has no {what}: the build is broken, build it anew")]
    Object {
        /// What is missing.
        what: String,
    },
    /// The object could not be loaded.
    #[error("cannot load the XDP object: {0}")]
    Load(#[source] Box<EbpfError>),
    /// The kernel does not accept a program.
    #[error(
        "the kernel does not accept the XDP program `{name}`: {source}. Kernels from 6.1 on are supported; on one of \
         these, please report this with the text above and `uname -r`"
    )]
    Program {
        /// The program.
        name: &'static str,
        /// What the verifier said.
        source: Box<ProgramError>,
    },
    /// A map could not be read or written.
    #[error("map `{map}`: {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// A map could not be reached by a call of our own.
    #[error("cannot {what} the map `{map}`: {source}")]
    MapCall {
        /// What was tried.
        what: &'static str,
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no such interface.
    #[error("there is no interface `{interface}`: `ip link` lists those there are")]
    NoInterface {
        /// Its name.
        interface: String,
    },
    /// Something else runs on the interface.
    #[error("interface `{interface}` already runs another XDP program, {program}: remove it with `{remedy}`")]
    Occupied {
        /// The interface.
        interface: String,
        /// The program, with its number.
        program: String,
        /// The command that removes it.
        remedy: String,
    },
    /// The driver cannot do it.
    #[error(
        "interface `{interface}` does not take a native XDP program (driver {driver}: {source}): set xdp_mode = \
         \"generic\", or \"auto\" to have native XDP only where it works"
    )]
    NoNative {
        /// The interface.
        interface: String,
        /// Its driver.
        driver: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Not even generic XDP works.
    #[error("cannot attach the XDP program to interface `{interface}` (driver {driver}): {source}")]
    Attach {
        /// The interface.
        interface: String,
        /// Its driver.
        driver: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What is desired does not fit into the maps.
    #[error(transparent)]
    Plan(#[from] reconcile::Error),
}

impl Error {
    pub(super) fn map(map: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map { map, source }
    }

    pub(super) fn call(what: &'static str, map: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::MapCall { what, map, source }
    }

    /// The same with what else is in the way.
    pub(super) fn with(self, obstacles: Vec<String>) -> Self {
        match self {
            Self::Layout { dir, mut differences, max_flows } => {
                differences.extend(obstacles);
                Self::Layout { dir, differences, max_flows }
            }
            other => other,
        }
    }

    pub(super) fn pin(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::PinDir { what, path: path.into(), source }
    }
}

struct List<'a>(&'a [String]);

impl Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| write!(f, "\n  - {line}"))
    }
}
