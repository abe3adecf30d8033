//! The BPF objects, as built from `lb-ebpf`.

/// The ELF file with the programs and maps, aligned for parsing in place.
pub static XDP_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/etcd-lb-xdp"));
/// The same for the tracing programs of `etcd-lb capture`.
pub static CAPTURE_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/etcd-lb-capture"));
