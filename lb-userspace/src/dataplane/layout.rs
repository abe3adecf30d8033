//! Whether pinned maps are what this version takes them for. aya compares nothing when it opens a pinned map, and the
//! kernel copies as many octets as the map's own value has, so a smaller value type would be memory corruption.

use aya::maps::{Array, Map, MapData, MapInfo};
use aya_obj::Object;
use lb_common::maps::{self, Layout, name};

use super::{error::Error, pins::PinDir};

/// The layout that this version pins.
pub(super) const fn current(max_flows: u32) -> Layout {
    Layout { version: maps::LAYOUT_VERSION, max_flows, hash: maps::layout_hash() }
}

/// The capacity of a map where it depends on `max_flows`.
pub(super) fn capacity(map: &str, max_flows: u32) -> Option<u32> {
    match map {
        name::FLOWS | name::CLIENTS => Some(maps::flows_capacity(max_flows)),
        name::HALF_OPEN => Some(maps::half_open_capacity(max_flows)),
        name::SHORTCUTS => Some(maps::shortcuts_capacity(max_flows)),
        _ => None,
    }
}

/// Compares every pinned map with the object's definition, and the pinned layout with this version's. Changes nothing.
///
/// # Errors
///
/// [`Error::Layout`] with each difference, [`Error::Object`] for a map that the object does not define.
pub(super) fn check(pins: &PinDir, object: &Object, max_flows: u32) -> Result<(), Error> {
    let mut differences = Vec::new();
    for &map in name::KEPT {
        let defined = object.maps.get(map).ok_or_else(|| Error::Object { what: format!("map `{map}`") })?;
        let wanted = Shape {
            kind: defined.map_type(),
            key: defined.key_size(),
            value: defined.value_size(),
            entries: capacity(map, max_flows).unwrap_or_else(|| defined.max_entries()),
            flags: defined.map_flags(),
        };
        match MapInfo::from_pin(pins.path(map)) {
            Ok(info) => differences.extend(compare(map, &wanted, &Shape::of(&info))),
            Err(_) if !pins.has(map) => differences.push(format!("map `{map}` is missing")),
            Err(error) => differences.push(format!("map `{map}` cannot be opened: {error}")),
        }
    }
    let layout = read(pins);
    if let Some(layout) = &layout {
        differences.extend(compare_layout(layout, &current(max_flows)));
    }
    if differences.is_empty() {
        return Ok(());
    }
    let other = layout.map(|layout| layout.max_flows).filter(|&pinned| pinned != max_flows);
    Err(Error::Layout { dir: pins.dir().into(), differences, max_flows: other })
}

/// What the kernel knows a map by.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

impl Shape {
    fn of(info: &MapInfo) -> Self {
        Self {
            kind: info.map_type().map_or(0, |kind| kind as u32),
            key: info.key_size(),
            value: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
        }
    }
}

fn compare(map: &str, wanted: &Shape, pinned: &Shape) -> Vec<String> {
    let facts = [
        ("type", wanted.kind, pinned.kind),
        ("key size", wanted.key, pinned.key),
        ("value size", wanted.value, pinned.value),
        ("capacity", wanted.entries, pinned.entries),
        ("flags", wanted.flags, pinned.flags),
    ];
    let differ = facts.into_iter().filter(|(_, wanted, pinned)| wanted != pinned);
    differ
        .map(|(what, wanted, pinned)| format!("map `{map}`: {what} {pinned}, this version needs {wanted}"))
        .collect()
}

fn compare_layout(pinned: &Layout, wanted: &Layout) -> Vec<String> {
    let mut differences = Vec::new();
    if pinned.version != wanted.version {
        differences.push(format!("layout version {}, this version has {}", pinned.version, wanted.version));
    } else if pinned.hash != wanted.hash {
        differences.push(format!("layout hash {:016x}, this version has {:016x}", pinned.hash, wanted.hash));
    }
    if pinned.max_flows != wanted.max_flows {
        differences.push(format!("max_flows = {}, the config has {}", pinned.max_flows, wanted.max_flows));
    }
    differences
}

/// The pinned layout, if it is one.
pub(super) fn read(pins: &PinDir) -> Option<Layout> {
    let map = Map::from_map_data(MapData::from_pin(pins.path(name::LAYOUT)).ok()?).ok()?;
    // aya checks key and value size by what the kernel says of the map.
    let layout: Array<MapData, Layout> = map.try_into().ok()?;
    layout.get(&0, 0).ok()
}
