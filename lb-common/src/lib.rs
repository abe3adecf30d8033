//! What the XDP program and the agent share: the layouts and names of the BPF maps, and all packet logic that can be
//! plain functions, so that host tests and fuzzers run the very code that runs in the kernel.
//!
//! | module | what |
//! | --- | --- |
//! | [`addr`] | addresses, ports and MACs as they stand in packets and map keys |
//! | [`maps`] | names, sizes and layouts of the maps, and the hash over them |
//! | [`claim`] | the claim word of a NAT port: states, flags, generation |
//! | [`counters`] | every counter with its name; a drop or reset without a name cannot be written |
//! | [`checksum`] | incremental checksums (RFC 1624) |
//! | [`choose`], [`pending`] | which backend takes a new flow; handshakes under way |
//! | [`shortcut`] | guesses of which backend has a client's flow |
//! | [`tcp`] | sequence arithmetic and what a segment does to a flow |
//! | [`hash`] | the seeded flow hash |
//! | [`nat`] | which NAT ports are tried for a new flow |
//! | [`frame`] | reading a frame: bounds, tags, IP, TCP |
//! | [`rewrite`] | giving a packet other ends |
//! | [`quote`] | the packet that an ICMP error quotes |
//! | [`capture`] | the packets that `etcd-lb capture` shows |
//! | [`wire`] | headers as they stand in a frame |
//! | [`bench`] | what benchmarks tell their programs |
#![cfg_attr(not(test), no_std)]
#![warn(missing_docs)]

pub mod addr;
pub mod bench;
pub mod capture;
pub mod checksum;
pub mod choose;
pub mod claim;
pub mod counters;
pub mod election;
pub mod frame;
pub mod hash;
pub mod maps;
pub mod nat;
pub mod pending;
pub mod quote;
pub mod rewrite;
pub mod shortcut;
pub mod tcp;
pub mod wire;
