//! The agent's own memory.

use std::fs;

/// Gives the kernel back what only the start needed: free heap, which glibc would keep (reading types and loading programs leaves
/// some 2 MB), and code, of which the start runs more than all that follows (some 8 MB).
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, moves nothing that is allocated, and locks what it works on.
    let _whether_any_was = unsafe { libc::malloc_trim(0) };
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = fs::read_link("/proc/self/exe").unwrap_or_default();
    for (start, length) in code_in(&maps, &program.to_string_lossy()) {
        // SAFETY: the pages of a private mapping of a file that is neither written nor writable say what the file says: the kernel
        // reads them again when they are run. The file of a running program cannot be written to. Where the memory is
        // locked (`mlockall`) the call fails and nothing changes.
        let _not_while_locked =
            unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Where a program's code lies, by the lines of /proc/PID/maps (proc_pid_maps(5)): addresses and lengths.
fn code_in(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let code = |line: &str| {
        let mut words = line.splitn(6, char::is_whitespace);
        let (range, rights) = (words.next()?, words.next()?);
        let path = words.nth(3)?.trim_start();
        if rights != "r-xp" || program.is_empty() || path != program {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        let [start, end] = [start, end].map(|place| usize::from_str_radix(place, 16));
        let (start, end) = (start.ok()?, end.ok()?);
        Some((start, end.checked_sub(start)?))
    };
    maps.lines().filter_map(code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d7ea000000-55d7ea600000 r--p 00000000 fe:00 12                         /usr/sbin/etcd-lb
55d7ea600000-55d7eb5ff000 r-xp 00600000 fe:00 12                         /usr/sbin/etcd-lb
55d7eb600000-55d7eb700000 r--p 015ff000 fe:00 12                         /usr/sbin/etcd-lb
55d7eb700000-55d7eb710000 rw-p 016ff000 fe:00 12                         /usr/sbin/etcd-lb
7efd7c000000-7efd7c200000 r-xp 00000000 fe:00 13                         /usr/lib/x86_64-linux-gnu/libc.so.6
7efd7d000000-7efd7d021000 rw-p 00000000 00:00 0
7ffdf6acb000-7ffdf6aec000 r-xp 00000000 00:00 0                          [vdso]
";

    #[test]
    fn only_the_programs_own_code_is_code() {
        assert_eq!(code_in(MAPS, "/usr/sbin/etcd-lb"), [(0x55d7_ea60_0000, 0x00ff_f000)]);
        assert_eq!(code_in(MAPS, ""), []);
        assert_eq!(code_in("x-y r-xp 0 0 0 /a\n1-0 r-xp 0 0 0 /a\n\n", "/a"), []);
        let replaced = MAPS.replace("etcd-lb", "etcd-lb (deleted)");
        assert_eq!(code_in(&replaced, "/usr/sbin/etcd-lb (deleted)").len(), 1);
    }

    #[test]
    fn the_program_goes_on() {
        let (maps, program) =
            (fs::read_to_string("/proc/self/maps").unwrap(), fs::read_link("/proc/self/exe").unwrap());
        let code = code_in(&maps, &program.to_string_lossy());
        assert!(code.iter().map(|(_, length)| length).sum::<usize>() > 100_000, "{maps}");
        give_back();
        let after = fs::read_to_string("/proc/self/maps").unwrap();
        assert_eq!(code_in(&after, &program.to_string_lossy()), code);
    }
}
