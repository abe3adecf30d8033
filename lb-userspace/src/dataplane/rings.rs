//! Reading the ring buffers: what the data plane tells by itself. They are pinned: what came while no agent ran is read by
//! the next one, as far as there was room.

use std::{io, marker::PhantomData, time::Duration};

use aya::maps::{MapData, RingBuf};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::Instant,
};
use zerocopy::FromBytes;

/// Items taken at once, so that other work of the agent gets its turn.
const BATCH: usize = 1024;

/// A ring buffer of `T`. It has one reader at a time: the agent that holds the pin directory's lock.
#[derive(Debug)]
pub struct Ring<T> {
    ring: AsyncFd<Reader>,
    /// The least time between two batches: meanwhile the data plane wakes nobody.
    pause: Duration,
    not_before: Instant,
    items: PhantomData<T>,
}

impl<T: FromBytes> Ring<T> {
    /// Reads from a ring buffer; in a tokio runtime.
    ///
    /// # Errors
    ///
    /// The kernel's, of epoll.
    pub(super) fn new(ring: RingBuf<MapData>, pause: Duration) -> io::Result<Self> {
        // SAFETY: the `RingBuf` owns an open descriptor, is moved into the `AsyncFd`, and is only borrowed from it, so that
        // the descriptor stays open and the same until the `AsyncFd` is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(Reader(ring), Interest::READABLE) }?;
        Ok(Self { ring, pause, not_before: Instant::now(), items: PhantomData })
    }

    /// Waits for the next items. Cancel-safe: what was not answered yet is not taken.
    pub async fn next(&mut self) -> Vec<T> {
        tokio::time::sleep_until(self.not_before).await;
        loop {
            let Ok(mut ready) = self.ring.readable_mut().await else {
                // The runtime is ending.
                return std::future::pending().await;
            };
            let mut items = Vec::new();
            while items.len() < BATCH {
                let Some(item) = ready.get_inner_mut().0.next() else {
                    ready.clear_ready();
                    break;
                };
                // An item of another size is of no version that has this layout hash.
                items.extend(T::read_from_bytes(&item).ok());
            }
            if !items.is_empty() {
                self.not_before = Instant::now() + self.pause;
                return items;
            }
        }
    }
}

/// A ring buffer that can be moved between threads and printed.
pub(super) struct Reader(pub(super) RingBuf<MapData>);

impl std::os::fd::AsRawFd for Reader {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RingBuf")
    }
}
