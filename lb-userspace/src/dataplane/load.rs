//! Loading: the programs of this version, on the maps that are pinned or on new ones.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, Map, MapData, ProgramArray},
    programs::{ProgramError, TestRun as _, TestRunOptions, Xdp},
};
use aya_obj::Object;
use lb_common::{
    maps::{Layout, Ticks, name, program},
    wire::MIN_FRAME,
};

use super::{
    bpf,
    error::Error,
    layout,
    maps::Maps,
    migrate::{Migration, Plan},
    pins::{Contents, PinDir},
    tick_ns,
};

/// Programs that are loaded, on maps that are pinned. The program array is pinned under the load's number.
pub(super) struct Loaded {
    /// The entry program.
    pub(super) entry: OwnedFd,
    /// The kernel's number of it, which is the load's.
    pub(super) id: u32,
    /// The program that passes every packet.
    pub(super) pass: OwnedFd,
    pub(super) maps: Maps,
    /// Whether there was a data plane.
    pub(super) adopted: bool,
    /// The map of the layout of new maps, which is pinned once they are complete.
    pub(super) layout: Option<Map>,
    /// Its maps were of another layout: their flows are to be carried over.
    pub(super) migration: Option<Migration>,
}

/// Loads an object's programs on the maps in the pin directory, which are made if it holds none.
///
/// # Errors
///
/// [`Error::Layout`] if what is pinned neither fits nor can be carried over, and is left as it is; the kernel's refusals. Maps
/// that were made are removed again.
pub(super) fn load(pins: &PinDir, object: &[u8], max_flows: u32) -> Result<Loaded, Error> {
    let parsed =
        Object::parse(object).map_err(|error| Error::Load(Box::new(EbpfError::ParseError(error))))?;
    pins.settle_aside()?;
    let adopted = pins.contents()? == Contents::DataPlane;
    if !adopted {
        pins.clear()?;
    } else if let Err(misfit) = layout::check(pins, &parsed, max_flows) {
        return migrate(pins, object, max_flows, misfit);
    }
    let loaded = load_on(pins, object, max_flows, adopted).and_then(|mut loaded| {
        if loaded.layout.is_some() {
            pins.pin_layout(&mut loaded.layout)?;
        }
        Ok(loaded)
    });
    if loaded.is_err() && !adopted {
        // What was there before is what counts; that this fails too does not help the reader.
        let _unused = pins.clear();
    }
    loaded
}

/// Loads on new maps, and carries over into them what those have that do not fit.
fn migrate(pins: &PinDir, object: &[u8], max_flows: u32, misfit: Error) -> Result<Loaded, Error> {
    let plan = Plan::of(pins, max_flows).map_err(|obstacles| misfit.with(obstacles))?;
    let migration = plan.begin(pins)?;
    let loaded = load_on(pins, object, max_flows, false).and_then(|mut loaded| {
        migration.carry_policy(&mut loaded.maps)?;
        Ok(loaded)
    });
    if loaded.is_err() {
        pins.settle_aside()?;
    }
    Ok(Loaded { adopted: true, migration: Some(migration), ..loaded? })
}

fn load_on(pins: &PinDir, object: &[u8], max_flows: u32, adopted: bool) -> Result<Loaded, Error> {
    let mut ebpf = maps_of(pins, object, max_flows, adopted)?;
    for (name, _) in program::TAIL_CALLED {
        accept(&mut ebpf, name)?;
    }
    accept(&mut ebpf, program::ENTRY)?;
    accept(&mut ebpf, program::PASS)?;
    #[cfg(feature = "debug-log")]
    super::debug_log::start(&mut ebpf);
    let (entry, id) = descriptor(&mut ebpf, program::ENTRY)?;
    let (pass, _) = descriptor(&mut ebpf, program::PASS)?;
    set_clock(&mut ebpf)?;
    let layout = if adopted { None } else { Some(layout_of(&mut ebpf, max_flows)?) };
    let pinned = pin_load(pins, &mut ebpf, &entry, id).and_then(|()| Maps::open(pins, &mut ebpf));
    if pinned.is_err() {
        pins.discard(id);
    }
    Ok(Loaded { entry, id, pass, maps: pinned?, adopted, layout, migration: None })
}

/// Pins the entry program, and the array of the programs it calls, under the load's number.
fn pin_load(pins: &PinDir, ebpf: &mut Ebpf, entry: &OwnedFd, load: u32) -> Result<(), Error> {
    fill_programs(pins, ebpf, load)?;
    let path = pins.next_xdp(load);
    bpf::pin(entry.as_fd(), &path).map_err(Error::pin("pin", path))
}

/// Makes or opens the maps. A new layout is not pinned yet.
fn maps_of(pins: &PinDir, object: &[u8], max_flows: u32, adopted: bool) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    // Nothing in the object is relocated by the kernel's own types.
    loader.btf(None);
    for &map in name::KEPT {
        if adopted || map != name::LAYOUT {
            loader.map_pin_path(map, pins.path(map));
        }
        if let Some(capacity) = layout::capacity(map, max_flows) {
            loader.map_max_entries(map, capacity);
        }
    }
    loader.load(object).map_err(|error| Error::Load(Box::new(error)))
}

fn accept(ebpf: &mut Ebpf, name: &'static str) -> Result<(), Error> {
    xdp(ebpf, name)?.load().map_err(|error| match error {
        ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM) => {
            Error::Refused { what: "load an XDP program", source: io_error }
        }
        error => Error::Program { name, source: Box::new(error) },
    })
}

fn descriptor(ebpf: &mut Ebpf, name: &'static str) -> Result<(OwnedFd, u32), Error> {
    let failed = |error| Error::Program { name, source: Box::new(error) };
    let program = xdp(ebpf, name)?;
    let id = program.info().map_err(failed)?.id();
    let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
    Ok((fd.map_err(|error| failed(error.into()))?, id))
}

fn fill_programs(pins: &PinDir, ebpf: &mut Ebpf, load: u32) -> Result<(), Error> {
    let map = take(ebpf, name::PROGRAMS)?;
    let path = pins.next_programs(load);
    // The pin must be there before this function lets go of the array's only descriptor.
    map.pin(&path).map_err(|error| Error::pin("pin", &path)(std::io::Error::other(error)))?;
    let mut programs: ProgramArray<MapData> = map.try_into().map_err(Error::map(name::PROGRAMS))?;
    for (name, index) in program::TAIL_CALLED {
        let program = xdp(ebpf, name)?;
        let fd = program.fd().map_err(|error| Error::Program { name, source: Box::new(error) })?;
        programs.set(index, fd, 0).map_err(Error::map(name::PROGRAMS))?;
    }
    Ok(())
}

/// Sets the programs' clock.
fn set_clock(ebpf: &mut Ebpf) -> Result<(), Error> {
    let mut map = take(ebpf, name::TICKS)?;
    let mut ticks: Array<&mut MapData, Ticks> = (&mut map).try_into().map_err(Error::map(name::TICKS))?;
    ticks.set(0, Ticks { ns: tick_ns(), offset: 0 }, 0).map_err(Error::map(name::TICKS))?;
    accept(ebpf, program::SET_CLOCK)?;
    let options = TestRunOptions { data_in: Some(&[0; MIN_FRAME as usize]), ..TestRunOptions::new() };
    let failed = |error| Error::Program { name: program::SET_CLOCK, source: Box::new(error) };
    xdp(ebpf, program::SET_CLOCK)?.test_run(options).map(drop).map_err(failed)
}

/// What the program reads of the layout, in new maps.
fn layout_of(ebpf: &mut Ebpf, max_flows: u32) -> Result<Map, Error> {
    let mut map = take(ebpf, name::LAYOUT)?;
    let mut layout: Array<&mut MapData, Layout> = (&mut map).try_into().map_err(Error::map(name::LAYOUT))?;
    layout.set(0, layout::current(max_flows), 0).map_err(Error::map(name::LAYOUT))?;
    Ok(map)
}

fn take(ebpf: &mut Ebpf, map: &'static str) -> Result<Map, Error> {
    ebpf.take_map(map).ok_or_else(|| Error::Object { what: format!("map `{map}`") })
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, Error> {
    let missing = || Error::Object { what: format!("XDP program `{name}`") };
    let program = ebpf.program_mut(name).ok_or_else(missing)?;
    program.try_into().map_err(|error| Error::Program { name, source: Box::new(error) })
}
