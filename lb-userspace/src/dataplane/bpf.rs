//! The calls to the kernel's bpf(2) that aya does not offer, or not in the shape needed here: links that are never made
//! by netlink instead, the interface of a link, reading a hash map in batches, emptying a slot of a map of maps, and
//! values too large for the stack.

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info};
use zerocopy::{FromBytes, IntoBytes};

/// What the kernel says of an XDP link.
#[derive(Clone, Copy, Debug)]
pub(super) struct XdpLinkInfo {
    /// The program that the link runs.
    pub(super) program_id: u32,
    /// The interface; 0 once that is gone.
    pub(super) ifindex: u32,
}

/// Opens a pinned map, program or link.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let pathname = path_of(path)?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = pathname.as_ptr() as u64;
    // SAFETY: BPF_OBJ_GET reads the path, which outlives the call.
    unsafe { call_for_fd(bpf_cmd::BPF_OBJ_GET, &mut attr) }
}

/// Pins a map, program or link.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let pathname = path_of(path)?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = pathname.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = number(object);
    // SAFETY: BPF_OBJ_PIN reads the path, which outlives the call.
    unsafe { call(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Attaches a program to an interface, by a link that lasts as long as its descriptor or pin. `flags`: `XDP_FLAGS_*`.
pub(super) fn create_xdp_link(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = empty();
    attr.link_create.__bindgen_anon_1.prog_fd = number(program);
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = bpf_attach_type::BPF_XDP as u32;
    attr.link_create.flags = flags;
    // SAFETY: BPF_LINK_CREATE of an XDP link has no pointers.
    unsafe { call_for_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr) }
}

/// Replaces the program of a link; no packet sees neither.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = empty();
    attr.link_update.link_fd = number(link);
    attr.link_update.__bindgen_anon_1.new_prog_fd = number(program);
    // SAFETY: BPF_LINK_UPDATE has no pointers.
    unsafe { call(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches a link, whoever else holds it.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = empty();
    attr.link_detach.link_fd = number(link);
    // SAFETY: BPF_LINK_DETACH has no pointers.
    unsafe { call(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// What an XDP link runs, and where.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<XdpLinkInfo> {
    // SAFETY: all variants of the struct are integers and arrays of them, for which zero is a value.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    let mut attr = empty();
    attr.info.bpf_fd = number(link);
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = &raw mut info as u64;
    // SAFETY: BPF_OBJ_GET_INFO_BY_FD writes at most `info_len` octets to `info`, which outlives the call.
    unsafe { call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    // SAFETY: every bit pattern is a value of the integers in the union.
    let ifindex = unsafe { info.__bindgen_anon_1.xdp.ifindex };
    Ok(XdpLinkInfo { program_id: info.prog_id, ifindex })
}

/// Removes an element of a hash and returns what it was, in one step; `None`: there was none.
///
/// # Safety
///
/// `K` has the map's key size, `V` its value size.
pub(super) unsafe fn take<K: IntoBytes, V: FromBytes>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::new_zeroed();
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = number(map);
    attr.__bindgen_anon_2.key = &raw const *key as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = &raw mut value as u64;
    // SAFETY: the kernel reads a key and writes a value, of the sizes that the caller vouches for; any bits are a value.
    match unsafe { call(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads an array's element.
///
/// # Safety
///
/// `V` has the map's value size.
pub(super) unsafe fn read<V: FromBytes>(map: BorrowedFd<'_>, key: u32, value: &mut V) -> io::Result<()> {
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = number(map);
    attr.__bindgen_anon_2.key = &raw const key as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = &raw mut *value as u64;
    // SAFETY: an array's key has 4 octets; the kernel writes as many octets as the value has, the caller vouches; any bits
    // are a value of a `FromBytes` type.
    unsafe { call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) }.map(drop)
}

/// Writes an array's element.
///
/// # Safety
///
/// `V` has the map's value size.
pub(super) unsafe fn write<V: IntoBytes>(map: BorrowedFd<'_>, key: u32, value: &V) -> io::Result<()> {
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = number(map);
    attr.__bindgen_anon_2.key = &raw const key as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = &raw const *value as u64;
    // SAFETY: an array's key has 4 octets; the kernel reads as many octets as the value has, the caller vouches.
    unsafe { call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Puts a program into an array of programs.
pub(super) fn set_program(array: BorrowedFd<'_>, index: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let value = number(program);
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = number(array);
    attr.__bindgen_anon_2.key = &raw const index as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = &raw const value as u64;
    // SAFETY: keys and values of an array of programs have 4 octets; both outlive the call.
    unsafe { call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Removes a map's entry.
pub(super) fn delete(map: BorrowedFd<'_>, key: u32) -> io::Result<()> {
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = number(map);
    attr.__bindgen_anon_2.key = &raw const key as u64;
    // SAFETY: the caller's map has keys of 4 octets, as an array of maps has; the key outlives the call.
    unsafe { call(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) }.map(drop)
}

/// Where a walk over a hash map goes on; the kernel's, of 4 octets for a hash map.
pub(super) type Cursor = u32;

/// Reads the next entries of a hash map: how many, and where to go on, if that was not the end. A bucket that does not
/// fit into what is left of the buffers is an error (`ENOSPC`) only if nothing fits.
///
/// # Safety
///
/// `K` and `V` have the map's key and value size.
pub(super) unsafe fn lookup_batch<K: FromBytes + IntoBytes, V: FromBytes + IntoBytes>(
    map: BorrowedFd<'_>,
    from: Option<Cursor>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, Option<Cursor>)> {
    let count = keys.len().min(values.len());
    // SAFETY: the slices hold `count` keys and values, of the sizes that the caller vouches for; any bits are values.
    unsafe { lookup_batch_octets(map, from, count, keys.as_mut_bytes(), values.as_mut_bytes()) }
}

/// As [`lookup_batch`], for keys and values of any size: at most `count` of them.
///
/// # Safety
///
/// `keys` and `values` have room for `count` keys and values of the map's own sizes.
pub(super) unsafe fn lookup_batch_octets(
    map: BorrowedFd<'_>,
    from: Option<Cursor>,
    count: usize,
    keys: &mut [u8],
    values: &mut [u8],
) -> io::Result<(usize, Option<Cursor>)> {
    let start = from.unwrap_or_default();
    let mut next: Cursor = 0;
    let mut attr = empty();
    attr.batch.map_fd = number(map);
    attr.batch.in_batch = if from.is_some() { &raw const start as u64 } else { 0 };
    attr.batch.out_batch = &raw mut next as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = count as u32;
    // SAFETY: the kernel writes at most `count` keys and values, for which the caller vouches; the cursors outlive the call.
    let outcome = unsafe { call(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
    // SAFETY: the kernel wrote `count`, an integer, in the struct that was active before.
    let count = unsafe { attr.batch.count } as usize;
    match outcome {
        Ok(_) => Ok((count, Some(next))),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((count, None)),
        Err(error) => Err(error),
    }
}

fn empty() -> bpf_attr {
    // SAFETY: a union of structs of integers, for all of which zero is a value.
    unsafe { mem::zeroed() }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // A descriptor that is open is not negative.
    fd.as_raw_fd() as u32
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// # Safety
///
/// The pointers in `attr` are valid for what `command` does with them.
unsafe fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    let attr: *mut bpf_attr = attr;
    // SAFETY: `attr` is valid for reads and writes of its size; the caller vouches for what it points to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_int, attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// # Safety
///
/// As [`call`]; and `command` answers with a new descriptor.
unsafe fn call_for_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the caller's.
    let fd = unsafe { call(command, attr) }?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}
