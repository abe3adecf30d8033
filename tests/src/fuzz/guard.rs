//! Memory that ends where the input ends, or up to three octets behind it: the next page cannot be read, so that a header
//! read too far is a fault.

use std::{fs, path::PathBuf, ptr, sync::OnceLock};

/// Two pages, of which the second cannot be touched.
pub struct Guarded {
    start: *mut u8,
    /// Where in the first page the input begins.
    at: usize,
}

const PAGE: usize = 4096;

impl Guarded {
    pub fn new() -> Self {
        // SAFETY: a new mapping, of no file, at no place of ours.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                2 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED, "two pages");
        // SAFETY: the second page of the mapping.
        let outcome = unsafe { libc::mprotect(start.byte_add(PAGE), PAGE, libc::PROT_NONE) };
        assert_eq!(outcome, 0, "mprotect");
        Self { start: start.cast(), at: PAGE }
    }

    /// Copies `octets`, less than a page, to the end of the first page: to where, as for a frame in a host's memory, what
    /// follows 14 octets of Ethernet is aligned to 4.
    pub fn put(&mut self, octets: &[u8]) -> &mut [u8] {
        assert!(octets.len() + 4 <= PAGE, "more than a page");
        self.at = (PAGE - octets.len() - 2) / 4 * 4 + 2;
        // SAFETY: the first page can be read and written, and nobody else has it while this borrow of `self` lasts.
        let page = unsafe { std::slice::from_raw_parts_mut(self.start, PAGE) };
        let place = &mut page[self.at..][..octets.len()];
        place.copy_from_slice(octets);
        place
    }

    /// So many octets, from where the input begins, as they are now.
    pub fn get(&self, length: usize) -> &[u8] {
        // SAFETY: the first page can be read, and nobody writes it while this borrow of `self` lasts.
        let page = unsafe { std::slice::from_raw_parts(self.start, PAGE) };
        &page[self.at..][..length]
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast(), 2 * PAGE) };
    }
}

/// Keeps the input under way where a fault leaves it.
pub fn note(target: &str, input: &[u8]) {
    static DIR: OnceLock<Option<PathBuf>> = OnceLock::new();
    let dir = DIR.get_or_init(|| std::env::var_os("ETCD_LB_FUZZ_NOTES").map(PathBuf::from));
    if let Some(dir) = dir {
        fs::write(dir.join(target), input).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    }
}
