//! The agent's own memory.

use std::fs;

/// Gives the kernel back what only the start needed: free heap, which glibc would keep (reading types and loading programs leaves
/// some 2 MB), and pages of the program's file: the start runs more code than all that follows (some 8 MB), and reads the objects
/// of the data plane.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, moves nothing that is allocated, and locks what it works on.
    let _whether_any_was = unsafe { libc::malloc_trim(0) };
    let mappings = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let program = fs::read_link("/proc/self/exe").unwrap_or_default();
    for (start, length) in of_file(&mappings, &program.to_string_lossy()) {
        // SAFETY: the pages of a private mapping of a file that nobody has written to, nor may write to, say what the file says: the
        // kernel reads them again when they are used. A program's own mappings stay as they are while it runs, and its file
        // cannot be written to (ETXTBSY). Where the memory is locked (`mlockall`) the call fails and nothing changes.
        let _not_while_locked =
            unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// The program's mappings that cannot be written to and have no page of their own, in memory or swapped out (relocations and a
/// debugger's breakpoints make such), by /proc/PID/smaps (proc_pid_smaps(5)): addresses and lengths.
fn of_file(smaps: &str, program: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        let Some((field, size)) = line.split_once(':').filter(|(field, _)| !field.contains(' ')) else {
            mapping = first_line(line, program);
            continue;
        };
        let is_none = size.split_whitespace().next() == Some("0");
        match field {
            "Anonymous" if !is_none => mapping = None,
            // It comes after the other one.
            "Swap" if is_none => found.extend(mapping.take()),
            _ => {}
        }
    }
    found
}

/// Where the mapping of a first line is, if it is one of the program's that cannot be written to.
fn first_line(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut words = line.splitn(6, char::is_whitespace);
    let (range, rights, path) = (words.next()?, words.next()?, words.nth(3)?.trim_start());
    if !matches!(rights, "r--p" | "r-xp") || program.is_empty() || path != program {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let [start, end] = [start, end].map(|place| usize::from_str_radix(place, 16));
    let (start, end) = (start.ok()?, end.ok()?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "/usr/sbin/etcd-lb";
    const SMAPS: &str = "\
55d7ea000000-55d7ea600000 r--p 00000000 fe:00 12                         /usr/sbin/etcd-lb
Size:               6144 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me sd
55d7ea600000-55d7eb5ff000 r-xp 00600000 fe:00 12                         /usr/sbin/etcd-lb
Anonymous:             0 kB
Swap:                  0 kB
55d7eb600000-55d7eb700000 r--p 015ff000 fe:00 12                         /usr/sbin/etcd-lb
Anonymous:          1024 kB
Swap:                  0 kB
55d7eb700000-55d7eb710000 r--p 015ff000 fe:00 12                         /usr/sbin/etcd-lb
Anonymous:             0 kB
Swap:                 64 kB
55d7eb710000-55d7eb720000 rw-p 016ff000 fe:00 12                         /usr/sbin/etcd-lb
Anonymous:             0 kB
Swap:                  0 kB
7efd7c000000-7efd7c200000 r-xp 00000000 fe:00 13                         /usr/lib/x86_64-linux-gnu/libc.so.6
Anonymous:             0 kB
Swap:                  0 kB
7efd7d000000-7efd7d021000 r--p 00000000 00:00 0
Anonymous:             0 kB
Swap:                  0 kB
";

    #[test]
    fn only_what_the_file_says_too_is_given_back() {
        let both = [(0x55d7_ea00_0000, 0x0060_0000), (0x55d7_ea60_0000, 0x00ff_f000)];
        assert_eq!(of_file(SMAPS, PROGRAM), both);
        assert_eq!(of_file(SMAPS, ""), []);
        let replaced = SMAPS.replace("etcd-lb\n", "etcd-lb (deleted)\n");
        assert_eq!(of_file(&replaced, "/usr/sbin/etcd-lb (deleted)"), both);
    }

    #[test]
    fn what_is_no_list_of_mappings_has_none() {
        let end = "Anonymous: 0 kB\nSwap: 0 kB";
        for text in ["", "\n", "x-y r-xp 0 0 0 /a\n", "2-1 r-xp 0 0 0 /a\n", "1-2 r-xp\n"] {
            assert_eq!(of_file(&format!("{text}{end}"), "/a"), [], "{text}");
        }
    }

    #[test]
    fn the_program_goes_on() {
        let program = fs::read_link("/proc/self/exe").unwrap();
        let mappings =
            || of_file(&fs::read_to_string("/proc/self/smaps").unwrap(), &program.to_string_lossy());
        let before = mappings();
        let own = (the_program_goes_on as fn() as *const ()).addr();
        assert!(before.iter().any(|(start, length)| (*start..start + length).contains(&own)), "{before:x?}");
        give_back();
        assert_eq!(mappings(), before);
    }
}
