//! What the process may do, looked at before anything is tried: the kernel's own answer is a bare "not permitted".

use std::fs;

use super::error::Error;

/// Bits of capability sets (linux/capability.h).
const NEEDED: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_BPF", 39), ("CAP_SYS_ADMIN", SYS_ADMIN)];
/// Includes CAP_BPF; the kernel asks for it where a map is reached by its number, as port tables are that exist already.
const SYS_ADMIN: u32 = 21;

/// Checks that the process may load and attach XDP programs.
///
/// # Errors
///
/// [`Error::Capabilities`] names those that are missing.
pub(super) fn check() -> Result<(), Error> {
    // Where /proc does not say, the kernel's own answers have to do.
    let Some(held) = fs::read_to_string("/proc/thread-self/status").ok().as_deref().and_then(effective)
    else {
        return Ok(());
    };
    let missing = missing(held);
    if missing.is_empty() { Ok(()) } else { Err(Error::Capabilities { missing: missing.join(" ") }) }
}

fn missing(held: u64) -> Vec<&'static str> {
    let has = |bit: u32| held & (1 << bit) != 0;
    let lacks = |&&(name, bit): &&(&str, u32)| !(has(bit) || name == "CAP_BPF" && has(SYS_ADMIN));
    NEEDED.iter().filter(lacks).map(|&(name, _)| name).collect()
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(effective("Name:\tx\nCapEff:\t0000008000001000\n"), Some(1 << 39 | 1 << 12));
        assert_eq!(missing(0), ["CAP_NET_ADMIN", "CAP_BPF", "CAP_SYS_ADMIN"]);
        assert_eq!(missing(1 << 39), ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
        assert!(missing(1 << 21 | 1 << 12).is_empty());
    }
}
