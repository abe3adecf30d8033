//! A map whose layout this version need not know, read in octets.

use std::{ops::Range, os::fd::AsFd as _};

use aya::maps::MapData;

use super::{bpf, error::Error, pins::PinDir};

/// A map as the kernel has it, read in octets.
pub(super) struct RawMap {
    map: MapData,
    pub(super) key: usize,
    pub(super) value: usize,
}

impl RawMap {
    pub(super) fn open(pins: &PinDir, map: &'static str) -> Result<Self, Error> {
        Self::of(MapData::from_pin(pins.path(map)).map_err(Error::map(map))?, map)
    }

    pub(super) fn of(data: MapData, map: &'static str) -> Result<Self, Error> {
        let info = data.info().map_err(Error::map(map))?;
        let (key, value) = (info.key_size() as usize, info.value_size() as usize);
        Ok(Self { map: data, key, value })
    }

    /// Every entry: its key and its value.
    pub(super) fn each(
        &self,
        map: &'static str,
        see: impl FnMut(&[u8], &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.each_from(map, None, usize::MAX, see)
    }

    /// These elements of an array.
    pub(super) fn each_of(
        &self,
        map: &'static str,
        indices: Range<u32>,
        see: impl FnMut(&[u8], &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // The cursor of an array is the index before.
        self.each_from(map, indices.start.checked_sub(1), indices.len(), see)
    }

    fn each_from(
        &self,
        map: &'static str,
        mut cursor: Option<bpf::Cursor>,
        mut left: usize,
        mut see: impl FnMut(&[u8], &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let batch = left.min(8192);
        let (mut keys, mut values) = (vec![0; batch * self.key], vec![0; batch * self.value]);
        while left > 0 {
            let count = left.min(batch);
            // SAFETY: the buffers have room for `count` keys and values of the sizes that the kernel itself says.
            let (found, next) = unsafe {
                bpf::lookup_batch_octets(self.map.fd().as_fd(), cursor, count, &mut keys, &mut values)
            }
            .map_err(Error::call("read", map))?;
            let entries = keys.chunks_exact(self.key).zip(values.chunks_exact(self.value));
            for (key, value) in entries.take(found) {
                see(key, value)?;
            }
            left = left.saturating_sub(found);
            match next {
                Some(next) => cursor = Some(next),
                None => return Ok(()),
            }
        }
        Ok(())
    }
}
