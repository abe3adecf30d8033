//! Capturing packets: a program that stands before the entry while somebody looks, and keeps each packet as it came and as
//! the entry left it. What it keeps is read from a pinned ring buffer by whoever asked, not by the agent.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, PerCpuArray, RingBuf},
    programs::{ProgramError, Xdp},
};
use lb_common::capture::{self, Endpoint, Record, Settings};
use tokio::io::{Interest, unix::AsyncFd};
use zerocopy::FromBytes as _;

use super::{DataPlane, bpf, error::Error, pins::PinDir, rings::Reader};
use crate::object::CAPTURE_OBJECT;

/// `enum xdp_action` of linux/bpf.h.
const XDP_PASS: u32 = 2;

/// Which packets are to be captured.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Those from or to this client.
    pub client: Endpoint,
    /// Those from or to this backend.
    pub backend: Endpoint,
    /// Octets kept of each, at most [`capture::MAX_SNAP`].
    pub snap: u32,
    /// Also those that XDP passes on as they came.
    pub passed: bool,
}

/// A packet as the XDP program got and left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// When, by which interface, and what became of it.
    pub record: Record,
    /// What is kept of it before.
    pub before: Vec<u8>,
    /// What is kept of it after; empty if it was dropped.
    pub after: Vec<u8>,
}

/// The program that stands before the entry.
pub(super) struct Capturing {
    pub(super) program: OwnedFd,
    /// The kernel's number of it.
    pub(super) id: u32,
    settings: Settings,
    map: MapData,
}

impl DataPlane {
    /// Begins to capture packets, until `until`, ns of `CLOCK_MONOTONIC`, on every interface. There is none under way.
    ///
    /// # Errors
    ///
    /// The kernel's; then nothing has changed.
    pub fn begin_capture(&mut self, wanted: &Wanted, until: u64) -> Result<(), Error> {
        // What an agent left that was killed meanwhile.
        self.pins.clear_capture()?;
        let capturing = load(&self.pins, &self.entry, wanted, until);
        let begun = capturing.and_then(|capturing| {
            let program = self.capture.insert(capturing).program.as_fd().try_clone_to_owned();
            let program = program.map_err(Error::call("keep", capture::PROGRAM))?;
            self.run_everywhere(&program)
        });
        if begun.is_err() {
            self.end_capture()?;
        }
        begun
    }

    /// Puts the end of the capture off; whether there is one.
    ///
    /// # Errors
    ///
    /// [`Error::MapCall`].
    pub fn extend_capture(&mut self, until: u64) -> Result<bool, Error> {
        let Some(capturing) = &mut self.capture else { return Ok(false) };
        capturing.settings.until = until;
        write(&capturing.map, &capturing.settings)?;
        Ok(true)
    }

    /// Ends the capture, if there is one: the interfaces run the entry again, and nothing of it is left.
    ///
    /// # Errors
    ///
    /// [`Error::PinDir`], [`Error::Attach`]: an interface goes on with the program that captures, which after its end only
    /// calls the entry.
    pub fn end_capture(&mut self) -> Result<(), Error> {
        if self.capture.is_none() {
            return Ok(());
        }
        let entry = self.entry.try_clone().map_err(Error::call("keep", capture::ENTRY))?;
        self.run_everywhere(&entry)?;
        self.capture = None;
        self.pins.clear_capture()
    }

    /// The program that links are to run.
    pub(super) fn program(&self) -> &OwnedFd {
        self.capture.as_ref().map_or(&self.entry, |capturing| &capturing.program)
    }

    /// Whether a program is this load's.
    pub(super) fn is_this_load(&self, program_id: u32) -> bool {
        program_id == self.load || self.capture.as_ref().is_some_and(|capturing| capturing.id == program_id)
    }

    fn run_everywhere(&self, program: &OwnedFd) -> Result<(), Error> {
        for ifindex in self.attached.keys() {
            let path = self.pins.link(*ifindex);
            let done = bpf::open(&path).and_then(|link| bpf::update_link(link.as_fd(), program.as_fd()));
            match done {
                // The interface is gone, and soon its pin.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOLINK)) => {}
                done => done.map_err(Error::pin("replace the program of", path))?,
            }
        }
        Ok(())
    }
}

/// Packets that are captured, for whoever reads them: one at a time.
pub struct Captures {
    records: AsyncFd<Reader>,
    lost: PerCpuArray<MapData, u64>,
}

impl Captures {
    /// Opens what the agent pinned; in a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Map`], [`Error::MapCall`].
    pub fn open(pin_dir: &Path) -> Result<Self, Error> {
        let open = |map: &'static str| {
            MapData::from_pin(pin_dir.join(format!("{}{map}", capture::PIN))).map_err(Error::map(map))
        };
        let records = RingBuf::try_from(Map::RingBuf(open(capture::RECORDS)?));
        let records = records.map_err(Error::map(capture::RECORDS))?;
        let lost = PerCpuArray::try_from(Map::PerCpuArray(open(capture::LOST)?));
        // SAFETY: the `RingBuf` owns an open descriptor, is moved into the `AsyncFd`, and is only borrowed from it, so that
        // the descriptor stays open and the same until the `AsyncFd` is dropped.
        let records = unsafe { AsyncFd::register_with_interest(Reader(records), Interest::READABLE) }
            .map_err(io::Error::from);
        Ok(Self {
            records: records.map_err(Error::call("wait for", capture::RECORDS))?,
            lost: lost.map_err(Error::map(capture::LOST))?,
        })
    }

    /// Waits for packets, and returns those that there are, at most `limit`. Cancel-safe: what was not answered is not taken.
    pub async fn next(&mut self, limit: usize) -> Vec<Captured> {
        loop {
            let Ok(mut ready) = self.records.readable_mut().await else {
                // The runtime is ending.
                return std::future::pending().await;
            };
            let mut packets = Vec::new();
            while packets.len() < limit {
                let Some(item) = ready.get_inner_mut().0.next() else {
                    ready.clear_ready();
                    break;
                };
                packets.extend(decode(&item));
            }
            if !packets.is_empty() {
                return packets;
            }
        }
    }

    /// Packets that are not among those returned, since nobody took the earlier ones fast enough.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub fn lost(&self) -> Result<u64, Error> {
        let counts = self.lost.get(&0, 0).map_err(Error::map(capture::LOST))?;
        Ok(counts.iter().sum())
    }
}

/// A record of the ring buffer and the octets that follow it; `None` if it is not of the form that ours have.
fn decode(item: &[u8]) -> Option<Captured> {
    let (record, octets) = Record::read_from_prefix(item).ok()?;
    let (before, rest) = octets.split_at_checked(record.before_kept.into())?;
    let after = rest.get(..record.after_kept.into())?;
    Some(Captured { record, before: before.into(), after: after.into() })
}

fn load(pins: &PinDir, entry: &OwnedFd, wanted: &Wanted, until: u64) -> Result<Capturing, Error> {
    let failed = |error| Error::Program { name: capture::PROGRAM, source: Box::new(error) };
    let mut ebpf =
        EbpfLoader::new().btf(None).load(CAPTURE_OBJECT).map_err(|error| Error::Load(Box::new(error)))?;
    let missing = || Error::Object { what: format!("XDP program `{}`", capture::PROGRAM) };
    let program: &mut Xdp = ebpf
        .program_mut(capture::PROGRAM)
        .ok_or_else(missing)?
        .try_into()
        .map_err(|error: ProgramError| failed(error))?;
    program.load().map_err(failed)?;
    let id = program.info().map_err(failed)?.id();
    let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
    let fd = fd.map_err(|error| failed(error.into()))?;

    let array = take(&mut ebpf, capture::ENTRY)?;
    pin(pins, &array, capture::ENTRY)?;
    let Map::ProgramArray(array) = array else {
        return Err(Error::Object { what: format!("program array `{}`", capture::ENTRY) });
    };
    bpf::set_program(array.fd().as_fd(), 0, entry.as_fd()).map_err(Error::call("write", capture::ENTRY))?;
    for name in [capture::RECORDS, capture::LOST] {
        pin(pins, &take(&mut ebpf, name)?, name)?;
    }
    let Map::Array(map) = take(&mut ebpf, capture::SETTINGS)? else {
        return Err(Error::Object { what: format!("array `{}`", capture::SETTINGS) });
    };
    let settings = Settings {
        until,
        client: wanted.client,
        backend: wanted.backend,
        snap: wanted.snap.min(capture::MAX_SNAP as u32),
        passed: wanted.passed.into(),
        missing: XDP_PASS,
        reserved: 0,
    };
    write(&map, &settings)?;
    Ok(Capturing { program: fd, id, settings, map })
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, Error> {
    ebpf.take_map(name).ok_or_else(|| Error::Object { what: format!("map `{name}`") })
}

fn pin(pins: &PinDir, map: &Map, name: &str) -> Result<(), Error> {
    let path = pins.path(&format!("{}{name}", capture::PIN));
    map.pin(&path).map_err(|error| Error::pin("pin", &path)(io::Error::other(error)))
}

fn write(map: &MapData, settings: &Settings) -> Result<(), Error> {
    // SAFETY: the map's values are `Settings`, as both sides have them from `lb_common`.
    unsafe { bpf::write(map.fd().as_fd(), 0, settings) }.map_err(Error::call("write", capture::SETTINGS))
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes as _;

    use super::*;

    #[test]
    fn a_record_that_promises_more_than_there_is_is_refused() {
        let record = |before_kept, after_kept| Record {
            time: 1,
            ifindex: 2,
            queue: 3,
            verdict: 4,
            before: 5,
            after: 6,
            before_kept,
            after_kept,
        };
        let item = |record: Record, octets: &[u8]| [record.as_bytes(), octets].concat();
        let whole = decode(&item(record(2, 1), b"abc")).unwrap();
        assert_eq!((&whole.before[..], &whole.after[..]), (&b"ab"[..], &b"c"[..]));
        assert_eq!(decode(&item(record(2, 2), b"abc")), None);
        assert_eq!(decode(&item(record(4, 0), b"abc")), None);
        assert_eq!(decode(b"short"), None);
    }
}
