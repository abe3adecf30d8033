//! A large array map, of which the part that is looked at is mapped into the agent's memory.
//!
//! The kernel maps all pages of an array at once and counts them as the process's own, 4 MiB for 65,536 records of a cache
//! line. So a map is seen through a window, which moves where it is looked at, and grows while that goes on in order, as
//! the kernel reads a file ahead. A page costs about 80 ns to map and to unmap (64 records, which cost as much to read from
//! memory), a window 5 µs besides: a walk stays near memory's speed, a look at one record costs as much as a few lookups.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU32, AtomicU64},
};

use zerocopy::{FromBytes, IntoBytes};

use super::shared::Shared;

/// Octets of a window at a place that is looked at out of order, unless a page has more: four of the smallest pages.
const LEAST: usize = 16 << 10;
/// Octets of a window at most. Larger ones make a walk no faster (measured up to 2 MiB).
const MOST: usize = 256 << 10;

/// Elements of an array map (`BPF_F_MMAPABLE`), shared with the kernel, seen through a window.
#[derive(Debug)]
pub(super) struct Windows<T> {
    map: OwnedFd,
    /// Elements of the map before these.
    base: usize,
    len: usize,
    /// Elements of the smallest window. Others are multiples of it, and begin at one.
    least: usize,
    window: RefCell<Option<Window<T>>>,
}

#[derive(Debug)]
struct Window<T> {
    first: usize,
    elements: Shared<T>,
}

impl<T: FromBytes + IntoBytes> Windows<T> {
    /// Every page has whole elements: pages have 4 KiB or a multiple.
    const IS_EVEN: () = assert!(4096usize.is_multiple_of(size_of::<T>()));

    /// Opens `len` elements of an array map, from `base` on, which is where a page begins.
    ///
    /// # Errors
    ///
    /// The kernel's: a map that is no mappable array, or that is smaller.
    pub(super) fn new(map: BorrowedFd<'_>, base: usize, len: usize) -> io::Result<Self> {
        let () = Self::IS_EVEN;
        let least = LEAST.max(page_size()) / size_of::<T>();
        let new = Self { map: map.try_clone_to_owned()?, base, len, least, window: RefCell::new(None) };
        // Whether there is an end to look at is found out now.
        new.open((len - 1) / least * least, least)?;
        Ok(new)
    }

    /// A copy of an element, as it is now. The data plane may change it meanwhile, so fields need not belong together.
    pub(super) fn read(&self, index: usize) -> T {
        self.at(index, Shared::read)
    }

    /// Does something with the word of 64 bits at an offset of an element.
    pub(super) fn u64<R>(&self, index: usize, offset: usize, work: impl FnOnce(&AtomicU64) -> R) -> R {
        self.at(index, |elements, index| work(elements.u64(index, offset)))
    }

    /// Does something with the word of 32 bits at an offset of an element.
    pub(super) fn u32<R>(&self, index: usize, offset: usize, work: impl FnOnce(&AtomicU32) -> R) -> R {
        self.at(index, |elements, index| work(elements.u32(index, offset)))
    }

    /// Lets the window go, until an element is looked at.
    pub(super) fn close(&self) {
        self.window.replace(None);
    }

    #[inline]
    fn at<R>(&self, index: usize, work: impl FnOnce(&Shared<T>, usize) -> R) -> R {
        // Only `work` runs while it is borrowed, which is made above and sees nothing but the elements.
        let mut window = self.window.borrow_mut();
        match &*window {
            Some(window) if window.has(index) => work(&window.elements, index - window.first),
            _ => {
                let moved = self.moved(window.take(), index);
                let done = work(&moved.elements, index - moved.first);
                *window = Some(moved);
                done
            }
        }
    }

    /// The window that an element is seen through next.
    #[cold]
    fn moved(&self, before: Option<Window<T>>, index: usize) -> Window<T> {
        assert!(index < self.len, "element {index} of {}", self.len);
        let first = index / self.least * self.least;
        let len = match before {
            Some(before) if before.is_followed_by(first) => {
                (before.elements.len() * 2).min(MOST / size_of::<T>())
            }
            _ => self.least,
        };
        match self.open(first, len.max(self.least)) {
            Ok(window) => window,
            // `new` has seen that the kernel maps this map. A process that has no memory for a few pages has none to go on
            // with, as when the allocator finds none: packets do not need it.
            Err(error) => panic!("elements from {first} on cannot be mapped into memory: {error}"),
        }
    }

    fn open(&self, first: usize, len: usize) -> io::Result<Window<T>> {
        let elements = Shared::part(self.map.as_fd(), self.base + first, len.min(self.len - first))?;
        Ok(Window { first, elements })
    }
}

impl<T: FromBytes + IntoBytes> Window<T> {
    fn has(&self, index: usize) -> bool {
        index.wrapping_sub(self.first) < self.elements.len()
    }

    /// Whether whoever looks at an element now went on from here in order, if with gaps.
    fn is_followed_by(&self, first: usize) -> bool {
        let (end, len) = (self.first + self.elements.len(), self.elements.len());
        (end..end + len).contains(&first)
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
        let windows = Windows::new(file.as_fd(), 0, LEN).unwrap();
        (file, windows)
    }

    fn seen(windows: &Windows<Element>) -> (usize, usize) {
        windows.window.borrow().as_ref().map_or((0, 0), |w| (w.first, w.elements.len()))
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
                let (first, len) = seen(&windows);
                assert!(len * ELEMENT <= MOST && (first..first + len).contains(&index));
            }
        }
        windows.close();
        assert_eq!(seen(&windows), (0, 0));
    }

    #[test]
    fn a_window_grows_while_it_is_looked_at_in_order_and_is_small_elsewhere() {
        let (_file, windows) = windows("grows");
        let least = windows.least;
        let look = |index: usize| {
            windows.read(index);
            seen(&windows)
        };
        assert_eq!(look(0), (0, least));
        assert_eq!(look(least), (least, 2 * least));
        assert_eq!(look(3 * least + 1), (3 * least, 4 * least));
        assert_eq!(look(8 * least), (8 * least, 8 * least), "with a gap");
        assert_eq!(look(0), (0, least));
        let end = LEN / least * least;
        assert_eq!(look(LEN - 1), (end, LEN - end));
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
        let part: Windows<Element> = Windows::new(file.as_fd(), 8192, LEN - 8192).unwrap();
        assert_eq!((part.read(0)[0], part.read(20_000)[0]), (8192, 28_192));
    }

    #[test]
    #[should_panic(expected = "element 40000 of 40000")]
    fn there_is_nothing_beyond_the_end() {
        windows("end").1.read(LEN);
    }
}
