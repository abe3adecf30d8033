//! An array map that is mapped into the agent's memory, and that the data plane writes to at the same time.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicI64, AtomicU32, AtomicU64},
};

use zerocopy::{FromBytes, IntoBytes};

/// Elements of an array map (`BPF_F_MMAPABLE`), shared with the kernel. The mapping keeps the map alive.
#[derive(Debug)]
pub(super) struct Shared<T> {
    base: NonNull<T>,
    len: usize,
    elements: PhantomData<T>,
}

// SAFETY: the memory is shared with the kernel's CPUs already. It is accessed by atomics and volatile reads only, which
// do not care which thread they run on, and unmapped by the one owner.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T: FromBytes + IntoBytes> Shared<T> {
    /// The kernel lays elements out at multiples of 8 octets.
    const IS_DENSE: () = assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 4096);

    /// Maps the `len` elements of an array map.
    ///
    /// # Errors
    ///
    /// The kernel's: a map that is no mappable array, or that is smaller.
    pub(super) fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let () = Self::IS_DENSE;
        // SAFETY: a new mapping, placed by the kernel; nothing that exists is touched.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len * size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        Self::at_base(base, len)
    }

    /// Takes the addresses of `len` elements, and no memory: see [`Self::show`].
    ///
    /// # Errors
    ///
    /// There are not so many addresses.
    ///
    /// # Safety
    ///
    /// An element is used only between a [`Self::show`] that includes it and the next [`Self::hide`].
    pub(super) unsafe fn reserve(len: usize) -> io::Result<Self> {
        let () = Self::IS_DENSE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, placed by the kernel; nothing that exists is touched.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), len * size_of::<T>(), libc::PROT_NONE, flags, -1, 0) };
        Self::at_base(base, len)
    }

    /// Maps `count` elements from `first` on, to which those of the map from `source` on belong. All three are of whole pages,
    /// but for a `count` that reaches to the end.
    ///
    /// # Errors
    ///
    /// The kernel's; the elements are not to be used then.
    pub(super) fn show(
        &self,
        map: BorrowedFd<'_>,
        (first, count): (usize, usize),
        source: usize,
    ) -> io::Result<()> {
        assert!(first + count <= self.len);
        let offset = libc::off_t::try_from(source * size_of::<T>()).map_err(io::Error::other)?;
        let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        // SAFETY: inside this value's own addresses, as was just asserted. What was there is either nothing, or the very same
        // elements.
        let mapped = unsafe {
            let place = self.base.as_ptr().add(first).cast();
            libc::mmap(place, count * size_of::<T>(), rights, flags, map.as_raw_fd(), offset)
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Lets go of all memory, in one step, and keeps the addresses.
    ///
    /// # Errors
    ///
    /// The kernel's.
    ///
    /// # Safety
    ///
    /// This is one of [`Self::reserve`], and nothing refers to an element.
    pub(super) unsafe fn hide(&self) -> io::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: this value's own addresses, to whose elements nothing refers, says the caller.
        let hidden = unsafe {
            let place = self.base.as_ptr().cast();
            libc::mmap(place, self.len * size_of::<T>(), libc::PROT_NONE, flags, -1, 0)
        };
        if hidden == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn at_base(base: *mut libc::c_void, len: usize) -> io::Result<Self> {
        match NonNull::new(base.cast::<T>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => {
                Ok(Self { base, len, elements: PhantomData })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// A copy of an element, as it is now. The data plane may change it meanwhile, so fields need not belong together.
    pub(super) fn read(&self, index: usize) -> T {
        // SAFETY: `at` checked the bounds; pages are aligned beyond `T` (`IS_DENSE`); a volatile read of memory that
        // others write is a copy of some bits, and any bits are a value of a `FromBytes` type.
        unsafe { self.at(index).read_volatile() }
    }

    /// The word of 64 bits at an offset of an element.
    pub(super) fn u64(&self, index: usize, offset: usize) -> &AtomicU64 {
        // SAFETY: `field` checked bounds and alignment; it is written by atomics only, on both sides.
        unsafe { AtomicU64::from_ptr(self.field(index, offset)) }
    }

    /// The signed word of 64 bits at an offset of an element.
    pub(super) fn i64(&self, index: usize, offset: usize) -> &AtomicI64 {
        // SAFETY: as for `u64`.
        unsafe { AtomicI64::from_ptr(self.field(index, offset)) }
    }

    /// The word of 32 bits at an offset of an element.
    pub(super) fn u32(&self, index: usize, offset: usize) -> &AtomicU32 {
        // SAFETY: as for `u64`.
        unsafe { AtomicU32::from_ptr(self.field(index, offset)) }
    }

    fn field<F>(&self, index: usize, offset: usize) -> *mut F {
        assert!(offset + size_of::<F>() <= size_of::<T>() && offset.is_multiple_of(align_of::<F>()));
        // SAFETY: inside the element, which `at` found inside the mapping.
        let field = unsafe { self.at(index).byte_add(offset) }.cast::<F>();
        assert!(field.is_aligned());
        field
    }

    fn at(&self, index: usize) -> *mut T {
        assert!(index < self.len, "element {index} of {}", self.len);
        // SAFETY: inside the mapping, which is `len` elements long.
        unsafe { self.base.as_ptr().add(index) }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the addresses that `new` or `reserve` took, with their length; no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len * size_of::<T>()) };
    }
}
