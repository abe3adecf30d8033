use std::fs;

use aya::maps::{Array, HashMap, MapData};
use etcd_lb::dataplane::{self, DataPlane, Error, Options};
use lb_common::maps::{FlowKey, Layout, name};

use super::sandbox::{MAX_FLOWS, Sandbox, VIP, address, complete_without_links, desired, map_id, run};

#[test]
fn a_start_that_fails_leaves_nothing_and_one_that_is_kept_leaves_everything() {
    run(|sandbox| {
        drop(sandbox.open().unwrap());
        assert!(!sandbox.pin_dir.exists());

        sandbox.leave_behind(&desired(&[1, 2, 3]));
        assert!(complete_without_links(&sandbox.pinned()), "{:?}", sandbox.pinned());
        assert!(dataplane::is_pinned(&sandbox.pin_dir));
    });
}

#[test]
fn the_next_agent_finds_everything_as_it_was() {
    run(|sandbox| {
        let mut first = desired(&[1, 2, 3]);
        first.services[0].backends[1].healthy = false;
        first.services[0].backends[2].drained = true;
        sandbox.leave_behind(&first);

        let mut plane = sandbox.open().unwrap();
        assert!(plane.adopted());
        assert_eq!(plane.restored_health(VIP, 2379, address(1)), Some(true));
        assert_eq!(plane.restored_health(VIP, 2379, address(2)), Some(false));
        assert_eq!(plane.restored_health(VIP, 2379, address(9)), None);
        assert_eq!(plane.restored_drains(), [(VIP, 2379, address(3))]);
        assert_eq!(plane.backend_number(VIP, 2379, address(3)), Some(2));
        assert_eq!(plane.reconcile(&first).unwrap().changes, 0);
    });
}

#[test]
fn another_layout_is_refused_untouched() {
    run(|sandbox| {
        sandbox.leave_behind(&desired(&[1]));
        let map =
            aya::maps::Map::from_map_data(MapData::from_pin(sandbox.pin(name::LAYOUT)).unwrap()).unwrap();
        let mut layout = Array::<_, Layout>::try_from(map).unwrap();
        let pinned = layout.get(&0, 0).unwrap();
        layout.set(0, Layout { version: 99, ..pinned }, 0).unwrap();
        let error = refused(sandbox, MAX_FLOWS);
        assert!(error.contains("layout version 99"), "{error}");
    });
}

#[test]
fn a_map_with_a_smaller_value_is_refused_untouched() {
    run(|sandbox| {
        sandbox.leave_behind(&desired(&[1]));
        fs::remove_file(sandbox.pin(name::FLOWS)).unwrap();
        let smaller = HashMap::<MapData, FlowKey, u64>::create(5120, 0).unwrap();
        smaller.pin(sandbox.pin(name::FLOWS)).unwrap();
        let error = refused(sandbox, MAX_FLOWS);
        assert!(error.contains("map `flows`: value size 8, this version needs 12"), "{error}");
    });
}

#[test]
fn a_missing_map_is_refused_untouched() {
    run(|sandbox| {
        sandbox.leave_behind(&desired(&[1]));
        fs::remove_file(sandbox.pin(name::FLOWS)).unwrap();
        let error = refused(sandbox, MAX_FLOWS);
        assert!(error.contains("map `flows` is missing"), "{error}");
    });
}

#[test]
fn leftovers_of_an_agent_killed_while_it_made_the_maps_are_cleaned() {
    run(|sandbox| {
        sandbox.leave_behind(&desired(&[1]));
        let before = map_id(&sandbox.pin(name::FLOWS));
        // `layout` is pinned last.
        fs::remove_file(sandbox.pin(name::LAYOUT)).unwrap();
        assert!(!dataplane::is_pinned(&sandbox.pin_dir));

        let mut plane = sandbox.open().unwrap();
        plane.keep();
        assert!(!plane.adopted());
        assert!(complete_without_links(&sandbox.pinned()));
        assert_ne!(map_id(&sandbox.pin(name::FLOWS)), before);
    });
}

#[test]
fn a_directory_that_is_no_bpffs_is_refused_with_the_remedy() {
    run(|sandbox| {
        let pin_dir = sandbox.elsewhere.join("etcd-lb");
        let error = DataPlane::open(&Options { pin_dir: &pin_dir, max_flows: MAX_FLOWS }).unwrap_err();
        assert!(matches!(error, Error::NotBpffs { .. }));
        assert!(error.to_string().contains("mount -t bpf bpf"), "{error}");
        assert!(!pin_dir.exists());
    });
}

#[test]
fn detach_removes_whatever_is_there() {
    run(|sandbox| {
        assert!(!dataplane::detach(&sandbox.pin_dir).unwrap().found);
        sandbox.leave_behind(&desired(&[1]));
        fs::remove_file(sandbox.pin(name::RETURNS)).unwrap();
        assert!(dataplane::detach(&sandbox.pin_dir).unwrap().found);
        assert!(!sandbox.pin_dir.exists());
    });
}

#[test]
fn missing_capabilities_are_named() {
    run(|sandbox| {
        /// `struct __user_cap_header_struct` and two `struct __user_cap_data_struct` of linux/capability.h.
        #[repr(C)]
        struct Capabilities([u32; 2], [u32; 6]);
        let none = Capabilities([0x2008_0522, 0], [0; 6]);
        // SAFETY: the kernel reads both structs, of version 3, which outlive the call. Only this thread is concerned.
        let done = unsafe { libc::syscall(libc::SYS_capset, &raw const none.0, &raw const none.1) };
        assert_eq!(done, 0);
        let error = sandbox.open().unwrap_err().to_string();
        assert!(error.contains("CAP_NET_ADMIN CAP_BPF CAP_SYS_ADMIN"), "{error}");
        assert!(!sandbox.pin_dir.exists());
    });
}

#[test]
fn bpftool_prints_the_fields_by_name() {
    run(|sandbox| {
        sandbox.leave_behind(&desired(&[1]));
        let dump =
            super::sandbox::sh(&format!("bpftool map dump pinned {}", sandbox.pin(name::BACKENDS).display()));
        assert!(dump.contains("\"epoch\"") && dump.contains("\"hop\""), "{}", &dump[..400]);
    });
}

/// Opens what must be refused, and holds it to having changed nothing; the error's text.
fn refused(sandbox: &Sandbox, max_flows: u32) -> String {
    let state =
        || -> Vec<_> { sandbox.pinned().into_iter().map(|name| (id_of(sandbox, &name), name)).collect() };
    let before = state();
    let error = sandbox.open_for(max_flows).unwrap_err();
    assert!(matches!(error, Error::Layout { .. }), "{error}");
    assert_eq!(state(), before);
    error.to_string()
}

/// The kernel's number of a pinned map; 0 for what is none.
fn id_of(sandbox: &Sandbox, name: &str) -> u32 {
    if name::KEPT.contains(&name) { map_id(&sandbox.pin(name)) } else { 0 }
}
