//! The pin directory: what lies in it, and what may be done with it.
//!
//! | name | what |
//! | --- | --- |
//! | those of [`name::KEPT`] | the maps; `layout` is pinned last, so its presence says that the others are complete |
//! | `xdp`, `programs` | the entry program and its tail-called programs, of the version that is attached everywhere |
//! | `xdp_N`, `programs_N` | the same of a version that is not attached everywhere yet |
//! | `fields` | where the maps keep their fields, for a version with other layouts |
//! | `old/` | the maps of another layout, until their flows are carried over (`migrate.rs`) |
//! | `capture_NAME` | the maps of `etcd-lb capture`, while packets are captured |
//! | `link_IFINDEX` | a link: as long as it is pinned, the program is attached |
//!
//! A program array is emptied by the kernel when its last descriptor or pin goes, so `programs_N` is pinned before any
//! link runs its entry program, and takes the name of `programs` by a rename, which is atomic, once no link runs the
//! older one. A process that is killed at any point leaves no attached program without its array.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use aya::maps::{Array, Map, MapData};
use lb_common::{
    capture,
    maps::{fields::FIELDS_LEN, name},
};
use lb_core::layout::Layouts;

use super::{bpf, error::Error};

const LINK: &str = "link_";
const NEXT_XDP: &str = "xdp_";
const NEXT_PROGRAMS: &str = "programs_";
/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Where maps of another layout are set aside.
const ASIDE: &str = "old";

/// Whether a directory has pinned links, attached or not.
pub fn has_links(dir: &Path) -> bool {
    let names = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.into_iter().any(|name| name.starts_with(LINK))
}

/// A pin directory. Only one process at a time may work on it: the agent holds a lock.
#[derive(Clone, Debug)]
pub(super) struct PinDir {
    dir: PathBuf,
}

/// What a pin directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// Nothing of ours, or what a process left that was killed before it was done: nothing can be attached.
    NothingUsable,
    /// A data plane.
    DataPlane,
}

impl PinDir {
    /// Makes the directory if need be.
    ///
    /// # Errors
    ///
    /// [`Error::NotBpffs`], [`Error::PinDir`].
    pub(super) fn prepare(dir: &Path) -> Result<Self, Error> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_bpffs(dir)),
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::pin("create the directory", dir)(error))
            }
            made => {
                let opened = Self::open(dir);
                if made.is_ok() && opened.is_err() {
                    let _not_ours_to_keep = fs::remove_dir(dir);
                }
                opened
            }
        }
    }

    /// Opens an existing directory.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let opened = File::open(dir).map_err(Error::pin("open", dir))?;
        if file_system(&opened).map_err(Error::pin("look at", dir))? != BPF_FS_MAGIC {
            return Err(not_bpffs(dir));
        }
        Ok(Self { dir: dir.into() })
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where something of this name is pinned.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where the link of an interface is pinned.
    pub(super) fn link(&self, ifindex: u32) -> PathBuf {
        self.path(&format!("{LINK}{ifindex}"))
    }

    /// Where the entry program of a load is pinned until it runs everywhere.
    pub(super) fn next_xdp(&self, load: u32) -> PathBuf {
        self.path(&format!("{NEXT_XDP}{load}"))
    }

    /// Where the program array of a load is pinned until its entry program runs everywhere.
    pub(super) fn next_programs(&self, load: u32) -> PathBuf {
        self.path(&format!("{NEXT_PROGRAMS}{load}"))
    }

    /// What the directory holds.
    pub(super) fn contents(&self) -> Result<Contents, Error> {
        let usable = self.has(name::LAYOUT) || !self.links()?.is_empty();
        Ok(if usable { Contents::DataPlane } else { Contents::NothingUsable })
    }

    /// Whether anything of ours is pinned.
    pub(super) fn holds_anything(&self) -> Result<bool, Error> {
        Ok(self.names()?.iter().any(|name| is_ours(name) || name.starts_with(LINK)))
    }

    /// Whether something of this name is pinned.
    pub(super) fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// The interfaces whose links are pinned, those of interfaces that are gone included.
    pub(super) fn links(&self) -> Result<Vec<u32>, Error> {
        let number = |name: &String| name.strip_prefix(LINK)?.parse().ok();
        Ok(self.names()?.iter().filter_map(number).collect())
    }

    /// The interface and program of each pinned link that is attached.
    pub(super) fn attached(&self) -> Result<Vec<bpf::XdpLinkInfo>, Error> {
        let mut attached = Vec::new();
        for ifindex in self.links()? {
            let path = self.link(ifindex);
            let link = bpf::open(&path).map_err(Error::pin("open the pinned link", &path))?;
            let info = bpf::link_info(std::os::fd::AsFd::as_fd(&link))
                .map_err(Error::pin("look at the pinned link", &path))?;
            if info.ifindex != 0 {
                attached.push(info);
            }
        }
        Ok(attached)
    }

    /// The load's entry program runs on every link: it and its array take their names, which ends the older ones.
    pub(super) fn promote(&self, load: u32) -> Result<(), Error> {
        for (next, name) in [(self.next_xdp(load), name::XDP), (self.next_programs(load), name::PROGRAMS)] {
            if next.exists() {
                fs::rename(&next, self.path(name)).map_err(Error::pin("rename", next))?;
            }
        }
        self.remove_where(|name| name.starts_with(NEXT_XDP) || name.starts_with(NEXT_PROGRAMS))
    }

    /// Removes what was pinned to capture packets. Only right where no link runs the program that captures.
    pub(super) fn clear_capture(&self) -> Result<(), Error> {
        self.remove_where(|name| name.starts_with(capture::PIN))
    }

    /// Says that the maps are complete, and where they keep their fields.
    pub(super) fn pin_layout(&self, layout: &mut Option<Map>) -> Result<(), Error> {
        let mut fields: Array<MapData, [u8; FIELDS_LEN]> =
            Array::create(1, 0).map_err(Error::map(name::FIELDS))?;
        let mut text = [0; FIELDS_LEN];
        let current = Layouts::current().to_text();
        text[..current.len()].copy_from_slice(current.as_bytes());
        fields.set(0, text, 0).map_err(Error::map(name::FIELDS))?;
        let path = self.path(name::FIELDS);
        fields.pin(&path).map_err(|error| Error::pin("pin", &path)(io::Error::other(error)))?;
        // Known to the program since it was loaded, and now to the next agent.
        let path = self.path(name::LAYOUT);
        match layout.take() {
            Some(map) => map.pin(&path).map_err(|error| Error::pin("pin", &path)(io::Error::other(error))),
            None => Ok(()),
        }
    }

    /// Sets the maps aside, complete: their layout goes last, and says so.
    pub(super) fn set_aside(&self) -> Result<Self, Error> {
        let aside = self.path(ASIDE);
        DirBuilder::new().mode(0o700).create(&aside).map_err(Error::pin("create the directory", &aside))?;
        let aside = Self { dir: aside };
        for name in maps() {
            if self.has(name) {
                let from = self.path(name);
                fs::rename(&from, aside.path(name)).map_err(Error::pin("rename", from))?;
            }
        }
        Ok(aside)
    }

    /// The maps that are set aside are no longer the ones that count.
    pub(super) fn give_up_aside(&self) -> Result<(), Error> {
        let path = self.path(ASIDE).join(name::LAYOUT);
        fs::remove_file(&path).map_err(Error::pin("remove", path))
    }

    /// Removes maps that are set aside.
    pub(super) fn remove_aside(&self) -> Result<(), Error> {
        let aside = Self { dir: self.path(ASIDE) };
        if aside.dir.exists() {
            aside.remove_where(|_| true)?;
            fs::remove_dir(&aside.dir).map_err(Error::pin("remove", aside.dir))?;
        }
        Ok(())
    }

    /// After a process that was killed while maps were set aside, or gave up: goes back to them if they are the ones that
    /// count, which their layout says, and lets them go if not.
    pub(super) fn settle_aside(&self) -> Result<(), Error> {
        let aside = Self { dir: self.path(ASIDE) };
        if !aside.dir.exists() {
            return Ok(());
        }
        let counts = aside.has(name::LAYOUT);
        for name in maps() {
            let (here, there) = (self.path(name), aside.path(name));
            // Without their layout: either not all are there yet, or they are what is left of those that were given up.
            if there.exists() && (counts || !here.exists()) {
                fs::rename(&there, &here).map_err(Error::pin("rename", there))?;
            }
        }
        self.remove_aside()
    }

    /// Gives up a load that runs nowhere.
    pub(super) fn discard(&self, load: u32) {
        for path in [self.next_xdp(load), self.next_programs(load)] {
            let _gone_already = fs::remove_file(path);
        }
    }

    /// Removes everything of ours save links. Only right where nothing is attached.
    pub(super) fn clear(&self) -> Result<(), Error> {
        self.remove_aside()?;
        self.remove_where(is_ours)
    }

    /// Removes the directory if nothing else is in it.
    pub(super) fn remove_dir(&self) {
        let _not_empty = fs::remove_dir(&self.dir);
    }

    fn remove_where(&self, matches: impl Fn(&str) -> bool) -> Result<(), Error> {
        // The layout goes first, so that what is left of an interrupted removal is not taken for complete.
        let mut names = self.names()?;
        names.sort_by_key(|name| name != name::LAYOUT);
        for name in names.iter().filter(|name| matches(name)) {
            let path = self.path(name);
            fs::remove_file(&path).map_err(Error::pin("remove", path))?;
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let entries = fs::read_dir(&self.dir).map_err(Error::pin("list", &self.dir))?;
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        entries.map(name).collect::<io::Result<_>>().map_err(Error::pin("list", &self.dir))
    }
}

fn not_bpffs(dir: &Path) -> Error {
    let whole = std::path::absolute(dir).unwrap_or_else(|_| dir.into());
    Error::NotBpffs { dir: dir.into(), mount: whole.parent().unwrap_or(&whole).into() }
}

fn is_ours(file: &str) -> bool {
    maps().any(|map| map == file)
        || [name::XDP, name::PROGRAMS].contains(&file)
        || file.starts_with(NEXT_XDP)
        || file.starts_with(NEXT_PROGRAMS)
        || file.starts_with(capture::PIN)
}

/// Every map that is pinned, the layout last.
fn maps() -> impl Iterator<Item = &'static str> {
    let others = name::KEPT.iter().copied().filter(|&map| map != name::LAYOUT);
    others.chain([name::FIELDS, name::LAYOUT])
}

fn file_system(file: &File) -> io::Result<i64> {
    // SAFETY: a struct of integers, for which zero is a value.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor, and a struct that the kernel fills in.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat.f_type)
}
