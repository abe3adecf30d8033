//! The object: its maps and programs, and its budget.

use std::net::Ipv4Addr;

use etcd_lb_tests::frames::{Program, scene::*};
use lb_common::maps::*;

#[test]
fn the_object_holds_every_map_and_program_that_the_agent_knows() {
    let object = aya::EbpfLoader::new().load(etcd_lb::object::XDP_OBJECT).expect("loads");
    for name in name::KEPT.iter().chain([&name::PROGRAMS]) {
        assert!(object.map(name).is_some(), "no map `{name}`");
    }
    for (name, _) in program::TAIL_CALLED.into_iter().chain([(program::ENTRY, 0), (program::PASS, 0)]) {
        assert!(object.program(name).is_some(), "no program `{name}`");
    }
}

#[test]
fn instructions_and_memory_are_within_the_budget() {
    let mut program = Program::load(DEFAULT_MAX_FLOWS);
    program.service(0, VIP, 2379, 0);
    for number in 0..4 {
        program.backend(number, 0, VIP, (Ipv4Addr::new(10, 0, 1, 11 + number as u8), 2379));
    }
    program.maglev(0, 0);
    let sizes = program.sizes();
    for (name, verified, octets) in &sizes {
        println!("program {name:<6} {verified:>6} verified instructions, {:>6} instructions", octets / 8);
    }
    let total: u32 = sizes.iter().map(|(_, verified, _)| verified).sum();
    println!("programs together {total} verified instructions (budget 40,000)");
    assert!(sizes[0].1 <= 15_000, "the established path takes {} verified instructions", sizes[0].1);
    assert!(total <= 40_000, "{total} verified instructions");

    let memory = program.memory();
    for (name, octets) in &memory {
        println!("map {name:<18} {:>9.1} KiB", *octets as f64 / 1024.0);
    }
    let total: u64 = memory.iter().map(|(_, octets)| octets).sum();
    println!("maps together {:.1} MiB (budget 64 MiB)", total as f64 / 1048576.0);
    assert!(total <= 64 << 20, "{total} octets of maps");
}
