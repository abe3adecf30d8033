//! A large array map, of which the part that is looked at is mapped into the agent's memory.
//!
//! The kernel maps all pages of an array at once and counts them as the process's own, 4 MiB for 65,536 records of a cache
//! line. So the map has its addresses, but only what is looked at has memory: some pages at a time, more while that goes on in
//! order, as the kernel reads a file ahead. All of it is let go in one step, when a walk ends or when it is too much. A page
//! costs about 80 ns to map (64 records, which cost as much to read from memory), but letting go costs an interrupt of each
//! CPU that runs another thread of the agent, and in a virtual machine that may be long: so it is rare.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use zerocopy::{FromBytes, IntoBytes};

use super::shared::Shared;

/// Octets that are mapped at a place that is looked at out of order, unless a page has more: four of the smallest pages.
const LEAST: usize = 16 << 10;
/// Octets that are mapped at once at most. More make a walk no faster (measured up to 2 MiB).
const MOST: usize = 256 << 10;
/// Octets that are mapped at most, until all are let go.
const TOGETHER: usize = 1 << 20;
/// Pieces that the windows of a process have mapped together. Each is up to two mappings to the kernel, of which a process may have
/// 65,530 unless told otherwise (`vm.max_map_count`).
const PIECES: usize = 16_384;
/// How many there are.
static PIECES_NOW: AtomicUsize = AtomicUsize::new(0);

/// Elements of an array map (`BPF_F_MMAPABLE`), shared with the kernel, of which some are mapped.
#[derive(Debug)]
pub(super) struct Windows<T> {
    map: Arc<OwnedFd>,
    /// Elements of the map before these.
    base: usize,
    len: usize,
    /// Elements that are mapped together: a chunk.
    chunk: usize,
    elements: Shared<T>,
    seen: RefCell<Seen>,
}

/// Which chunks are mapped.
#[derive(Debug)]
struct Seen {
    mapped: Vec<bool>,
    count: usize,
    /// How often some were mapped: so many pieces they are.
    pieces: usize,
    /// The chunk after the last one that was mapped, and how many were mapped with that.
    next: usize,
    run: usize,
}

impl<T: FromBytes + IntoBytes> Windows<T> {
    /// Every page has whole elements: pages have 4 KiB or a multiple.
    const IS_EVEN: () = assert!(4096usize.is_multiple_of(size_of::<T>()));

    /// Opens `len` elements of an array map, from `base` on, which is where a page begins.
    ///
    /// # Errors
    ///
    /// The kernel's: a map that is no mappable array, or that is smaller.
    pub(super) fn new(map: Arc<OwnedFd>, base: usize, len: usize) -> io::Result<Self> {
        let () = Self::IS_EVEN;
        let chunk = LEAST.max(page_size()) / size_of::<T>();
        let mapped = vec![false; len.div_ceil(chunk)];
        let last = mapped.len().saturating_sub(1);
        // SAFETY: `at` alone uses elements, of a chunk that `seen` says is mapped, and `close` lets go of all of them when none
        // is being used.
        let elements = unsafe { Shared::reserve(len) }?;
        let seen = RefCell::new(Seen { mapped, count: 0, pieces: 0, next: 0, run: 0 });
        let new = Self { map, base, len, chunk, elements, seen };
        // Whether there is an end to look at is found out now.
        new.show(last, 1)?;
        new.seen.borrow_mut().count = 1;
        new.close();
        Ok(new)
    }

    /// A copy of an element, as it is now. The data plane may change it meanwhile, so fields need not belong together.
    pub(super) fn read(&self, index: usize) -> T {
        self.at(index, |elements| elements.read(index))
    }

    /// Does something with the word of 64 bits at an offset of an element.
    pub(super) fn u64<R>(&self, index: usize, offset: usize, work: impl FnOnce(&AtomicU64) -> R) -> R {
        self.at(index, |elements| work(elements.u64(index, offset)))
    }

    /// Does something with the word of 32 bits at an offset of an element.
    pub(super) fn u32<R>(&self, index: usize, offset: usize, work: impl FnOnce(&AtomicU32) -> R) -> R {
        self.at(index, |elements| work(elements.u32(index, offset)))
    }

    /// Sees the word of 64 bits at an offset of the elements from `first` on, as far as they are mapped together; where the next
    /// begin.
    pub(super) fn see_u64s(&self, first: usize, offset: usize, mut see: impl FnMut(usize, u64)) -> usize {
        let end = ((first / self.chunk + 1) * self.chunk).min(self.len);
        self.at(first, |elements| {
            for index in first..end {
                see(index, elements.u64(index, offset).load(Ordering::Acquire));
            }
        });
        end
    }

    /// Lets go of all memory, until an element is looked at.
    pub(super) fn close(&self) {
        self.let_go(&mut self.seen.borrow_mut());
    }

    #[inline]
    fn at<R>(&self, index: usize, work: impl FnOnce(&Shared<T>) -> R) -> R {
        assert!(index < self.len, "element {index} of {}", self.len);
        // Borrowed while `work` runs, so that nobody lets go of what it uses.
        let mut seen = self.seen.borrow_mut();
        let chunk = index / self.chunk;
        if !seen.mapped[chunk] {
            self.look_at(chunk, &mut seen);
        }
        work(&self.elements)
    }

    /// Maps a chunk, and others after it if chunks are looked at in order.
    #[cold]
    fn look_at(&self, chunk: usize, seen: &mut Seen) {
        let in_order = (seen.next..seen.next + seen.run).contains(&chunk);
        let most = MOST / (self.chunk * size_of::<T>());
        let run = if in_order { (seen.run * 2).clamp(1, most.max(1)) } else { 1 };
        let run = run.min(seen.mapped.len() - chunk);
        let too_many = PIECES_NOW.load(Ordering::Relaxed) >= PIECES;
        if too_many || (seen.count + run) * self.chunk * size_of::<T>() > TOGETHER {
            self.let_go(seen);
        }
        if let Err(error) = self.show(chunk, run) {
            // `new` has seen that the kernel maps this map. A process that has no memory for a few pages has none to go on
            // with, as when the allocator finds none: packets do not need it.
            panic!("elements from {} on cannot be mapped into memory: {error}", chunk * self.chunk);
        }
        seen.pieces += 1;
        PIECES_NOW.fetch_add(1, Ordering::Relaxed);
        for mapped in &mut seen.mapped[chunk..chunk + run] {
            seen.count += usize::from(!*mapped);
            *mapped = true;
        }
        (seen.next, seen.run) = (chunk + run, run);
    }

    fn let_go(&self, seen: &mut Seen) {
        if seen.count == 0 {
            return;
        }
        // SAFETY: `elements` was reserved; `at` holds `seen` while an element is used, and here it is held for a change.
        if unsafe { self.elements.hide() }.is_ok() {
            seen.mapped.fill(false);
            seen.count = 0;
            PIECES_NOW.fetch_sub(std::mem::take(&mut seen.pieces), Ordering::Relaxed);
        }
    }

    fn show(&self, chunk: usize, run: usize) -> io::Result<()> {
        let first = chunk * self.chunk;
        let count = (run * self.chunk).min(self.len - first);
        self.elements.show(self.map.as_fd(), (first, count), self.base + first)
    }
}

impl<T> Drop for Windows<T> {
    fn drop(&mut self) {
        PIECES_NOW.fetch_sub(self.seen.get_mut().pieces, Ordering::Relaxed);
    }
}

fn page_size() -> usize {
    // SAFETY: it takes a number and reads nothing of this process.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // It is a constant that every system has.
    usize::try_from(size).unwrap_or(LEAST)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt as _, sync::atomic::Ordering::Relaxed};

    use super::*;

    const LEN: usize = 40_000;
    const ELEMENT: usize = 64;
    type Element = [u64; ELEMENT / 8];

    /// A file is mapped as an array map is.
    fn windows(name: &str) -> (File, Windows<Element>) {
        let path = std::env::temp_dir().join(format!("etcd-lb-windows-{name}-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for index in 0..LEN {
            file.write_all_at(&(index as u64).to_ne_bytes(), (index * ELEMENT) as u64).unwrap();
        }
        file.set_len((LEN * ELEMENT) as u64).unwrap();
        let windows = Windows::new(descriptor(&file), 0, LEN).unwrap();
        (file, windows)
    }

    fn descriptor(file: &File) -> Arc<OwnedFd> {
        Arc::new(file.as_fd().try_clone_to_owned().unwrap())
    }

    /// The first mapped chunk, and how many there are.
    fn seen(windows: &Windows<Element>) -> (usize, usize) {
        let seen = windows.seen.borrow();
        assert_eq!(seen.mapped.iter().filter(|mapped| **mapped).count(), seen.count);
        (seen.mapped.iter().position(|mapped| *mapped).unwrap_or(0), seen.count)
    }

    fn octets(windows: &Windows<Element>) -> usize {
        seen(windows).1 * windows.chunk * ELEMENT
    }

    #[test]
    fn every_element_is_seen_in_any_order() {
        let (_file, windows) = windows("any");
        assert_eq!(seen(&windows), (0, 0), "nothing is mapped before it is looked at");
        let orders: [&dyn Fn(usize) -> usize; 3] = [&|i| i, &|i| LEN - 1 - i, &|i| i * 7_919 % LEN];
        for order in orders {
            for index in (0..LEN).map(order) {
                assert_eq!(windows.u64(index, 0, |word| word.load(Relaxed)), index as u64);
                assert_eq!(windows.read(index)[0], index as u64);
                assert_eq!(windows.u32(index, 8, |word| word.load(Relaxed)), 0);
                assert!(octets(&windows) <= TOGETHER);
            }
        }
        windows.close();
        assert_eq!(seen(&windows), (0, 0));
    }

    #[test]
    fn words_are_seen_chunk_by_chunk() {
        let (_file, windows) = windows("words");
        let (mut seen, mut next) = (0, 0);
        while next < LEN {
            next = windows.see_u64s(next, 0, |index, word| {
                assert_eq!((index, word), (seen, seen as u64));
                seen += 1;
            });
        }
        assert_eq!((seen, next), (LEN, LEN));
        assert_eq!(windows.see_u64s(1, 0, |_, _| {}), windows.chunk);
    }

    #[test]
    fn more_is_mapped_while_it_is_looked_at_in_order_and_little_elsewhere() {
        let (_file, windows) = windows("grows");
        let chunk = windows.chunk;
        let look = |number: usize| {
            windows.read(number * chunk + 1);
            seen(&windows).1
        };
        assert_eq!([0, 1, 3, 7].map(look), [1, 3, 7, 15], "1, 2, 4, 8 more");
        assert_eq!(look(15), 31, "16: the most");
        assert_eq!(look(31), 47);
        assert_eq!([40, 3, 46].map(look), [47; 3], "it is there");
        assert_eq!(look(100), 48, "out of order");
        windows.close();
        assert_eq!(look(LEN / chunk), 1, "the end, which is no whole chunk");
    }

    #[test]
    fn what_is_looked_at_in_no_order_stays_until_it_is_too_much() {
        let (_file, windows) = windows("order");
        let most = TOGETHER / (windows.chunk * ELEMENT);
        for turn in 0..most {
            windows.read(turn * 3 % 150 * windows.chunk);
        }
        let (_, count) = seen(&windows);
        assert!(count > most / 2 && count <= most, "{count} of {most}");
    }

    #[test]
    fn what_is_written_stays_when_the_window_moves() {
        let (file, windows) = windows("written");
        windows.u64(30_000, 16, |word| word.store(7, Relaxed));
        let turned = windows.u64(5, 24, |word| word.compare_exchange(0, 8, Relaxed, Relaxed));
        assert_eq!(turned, Ok(0));
        windows.close();
        let mut octets = [0; 8];
        file.read_exact_at(&mut octets, 30_000 * ELEMENT as u64 + 16).unwrap();
        assert_eq!(u64::from_ne_bytes(octets), 7);
        assert_eq!(windows.read(5)[3], 8);
    }

    #[test]
    fn a_part_of_a_map_begins_at_its_base() {
        let (file, _) = windows("part");
        let part: Windows<Element> = Windows::new(descriptor(&file), 8192, LEN - 8192).unwrap();
        assert_eq!((part.read(0)[0], part.read(20_000)[0]), (8192, 28_192));
    }

    #[test]
    #[should_panic(expected = "element 40000 of 40000")]
    fn there_is_nothing_beyond_the_end() {
        windows("end").1.read(LEN);
    }
}
