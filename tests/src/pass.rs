//! An XDP program that passes everything, for the bridge's ports.
//!
//! A veth delivers what its peer's XDP program transmits only if it has an XDP program itself. This one is two
//! instructions, so it is handed to the kernel as such, and the product's object holds nothing that only the lab needs.

use std::{
    ffi::CString,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result};

// Numbers from the kernel's uapi/linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
/// `r0 = 2 /* XDP_PASS */; exit`, as `struct bpf_insn` on a little-endian or big-endian host: opcode, registers, offset,
/// immediate.
const PROGRAM: [Instruction; 2] = [
    Instruction { code: 0xb7, immediate: 2, ..Instruction::ZERO },
    Instruction { code: 0x95, ..Instruction::ZERO },
];

#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const ZERO: Self = Self { code: 0, registers: 0, offset: 0, immediate: 0 };
}

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest as zero.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The first fields of `union bpf_attr` for `BPF_OBJ_PIN`.
#[repr(C)]
#[derive(Default)]
struct ObjPin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Loads the program and pins it, so that `ip link set dev X xdpdrv pinned PATH` can attach it.
pub(crate) fn pin(path: &Path) -> Result<()> {
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: PROGRAM.len() as u32,
        insns: PROGRAM.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        prog_flags: BPF_F_XDP_HAS_FRAGS,
        ..ProgLoad::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &load).context("cannot load the XDP program of the bridge's ports")?;
    let fd = i32::try_from(fd).context("file descriptor of a program")?;
    // SAFETY: BPF_PROG_LOAD succeeded, so this is a new file descriptor that nothing else owns.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };

    let pathname = CString::new(path.as_os_str().as_bytes())?;
    let pin =
        ObjPin { pathname: pathname.as_ptr() as u64, bpf_fd: program.as_raw_fd() as u32, file_flags: 0 };
    bpf(BPF_OBJ_PIN, &pin).with_context(|| format!("cannot pin {}", path.display()))?;
    Ok(())
}

fn bpf<T>(command: libc::c_long, attr: &T) -> std::io::Result<libc::c_long> {
    // SAFETY: both attribute types are `repr(C)` prefixes of `union bpf_attr` without padding, passed with their size,
    // and the kernel only reads them; the addresses in them are of data that outlives the call (statics and the
    // caller's locals).
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}
