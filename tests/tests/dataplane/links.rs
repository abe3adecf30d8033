use etcd_lb::dataplane::{self, AttachedMode, Error, XdpMode};
use lb_common::maps::{name, program::TAIL_CALLED};

use super::sandbox::{Sandbox, complete_without_links, desired, ifindex, map_id, run, sh, veth};

#[test]
fn native_generic_and_auto() {
    run(|sandbox| {
        let veth = veth("v0");
        let mut plane = sandbox.open().unwrap();
        assert_eq!(plane.attach(veth, "v0", XdpMode::Auto).unwrap(), AttachedMode::Native);
        assert!(sh("ip link show v0").contains(" xdp "), "{}", sh("ip link show v0"));
        assert_eq!(plane.attach(1, "lo", XdpMode::Auto).unwrap(), AttachedMode::Generic);
        assert!(sh("ip link show lo").contains("xdpgeneric"));
        // A changed mode is followed.
        assert_eq!(plane.attach(veth, "v0", XdpMode::Generic).unwrap(), AttachedMode::Generic);
        assert!(sh("ip link show v0").contains("xdpgeneric"));
        assert_eq!(plane.attached(), [(1, AttachedMode::Generic), (veth, AttachedMode::Generic)]);

        drop(plane);
        assert!(!sh("ip link show").contains("xdp"), "not kept, so nothing stays");
        assert!(!sandbox.pin_dir.exists());
    });
}

#[test]
fn a_driver_without_native_xdp_is_named_with_the_remedy() {
    run(|sandbox| {
        let mut plane = sandbox.open().unwrap();
        let error = plane.attach(1, "lo", XdpMode::Native).unwrap_err();
        assert!(matches!(error, Error::NoNative { .. }));
        assert!(error.to_string().contains("xdp_mode = \"generic\""), "{error}");
        let error = plane.attach(77, "eth9", XdpMode::Auto).unwrap_err();
        assert!(matches!(error, Error::NoInterface { .. }), "{error}");
    });
}

#[test]
fn another_program_is_named_with_the_command_that_removes_it() {
    run(|sandbox| {
        let veth = veth("v0");
        let other = sandbox.pin_dir.with_file_name("other");
        let mut plane = sandbox.open().unwrap();
        plane.attach(veth, "v0", XdpMode::Auto).unwrap();
        plane.keep();
        drop(plane);
        // By netlink, as `ip` does it.
        sh(&format!(
            "bpftool prog pin pinned {} {} 2>/dev/null || true",
            sandbox.pin(name::XDP).display(),
            other.display()
        ));
        let id = sh("ip -d link show v0")
            .split("prog/xdp id ")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .to_owned();
        sh(&format!("ip link add w0 type veth peer name w0p; bpftool net attach xdpdrv id {id} dev w0"));
        let w0 = ifindex("w0");

        let mut plane = sandbox.open().unwrap();
        let error = plane.attach(w0, "w0", XdpMode::Auto).unwrap_err();
        assert!(matches!(error, Error::Occupied { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("`xdp` (id {id})")), "{text}");
        assert!(sh("ip link show w0").contains("xdp"), "untouched");
        let remedy = text.split('`').rev().nth(1).unwrap();
        sh(remedy);
    });
}

#[test]
fn the_program_is_replaced_in_the_pinned_link() {
    run(|sandbox| {
        let veth = veth("v0");
        let first = start(sandbox, &[(veth, "v0")]);
        let link = link_id(sandbox, veth);
        let programs = map_id(&sandbox.pin(name::PROGRAMS));
        let flows = map_id(&sandbox.pin(name::FLOWS));

        let second = start(sandbox, &[(veth, "v0")]);
        assert_ne!(first, second);
        assert_eq!(link_id(sandbox, veth), link);
        assert_eq!(map_id(&sandbox.pin(name::FLOWS)), flows);
        assert_ne!(map_id(&sandbox.pin(name::PROGRAMS)), programs);
        assert_tidy(sandbox);
    });
}

#[test]
fn an_agent_killed_between_two_links_leaves_each_with_its_programs() {
    run(|sandbox| {
        let (v0, w0) = (veth("v0"), veth("w0"));
        let first = start(sandbox, &[(v0, "v0"), (w0, "w0")]);
        // Replaced on one of two, and killed: a kept data plane that is dropped cleans up as little.
        let second = start(sandbox, &[(v0, "v0")]);
        assert_ne!(first, second);
        let arrays = program_arrays(sandbox);
        assert_eq!(arrays.len(), 2, "{:?}", sandbox.pinned());
        for array in &arrays {
            assert_eq!(entries(sandbox, array), TAIL_CALLED.len(), "{array} was emptied");
        }

        start(sandbox, &[(v0, "v0"), (w0, "w0")]);
        assert_tidy(sandbox);
    });
}

#[test]
fn a_failed_start_leaves_an_adopted_data_plane_attached() {
    run(|sandbox| {
        let veth = veth("v0");
        let program = start(sandbox, &[(veth, "v0")]);
        drop(sandbox.open().unwrap());
        assert_eq!(running("v0"), program);
        assert_tidy(sandbox);

        let mut plane = sandbox.open().unwrap();
        plane.attach(veth, "v0", XdpMode::Auto).unwrap();
        plane.attach(77, "eth9", XdpMode::Auto).unwrap_err();
        drop(plane);
        assert!(sh("ip link show v0").contains(" xdp "));
        assert_tidy(sandbox);
    });
}

#[test]
fn an_interface_that_is_deleted_and_returns_is_attached_anew() {
    run(|sandbox| {
        let before = veth("v0");
        let mut plane = sandbox.open().unwrap();
        plane.attach(before, "v0", XdpMode::Auto).unwrap();
        plane.forget_interface(before);
        assert_eq!(plane.attached().len(), 1, "it is still there");

        sh("ip link del v0");
        plane.forget_interface(before);
        assert_eq!(plane.attached(), []);
        // The number may come back too.
        sh(&format!("ip link add v0 index {before} type veth peer name v0p"));
        plane.attach(before, "v0", XdpMode::Auto).unwrap();
        assert!(sh("ip link show v0").contains(" xdp "));
    });
}

#[test]
fn an_interface_replaced_while_no_agent_ran_is_attached_anew() {
    run(|sandbox| {
        let before = veth("v0");
        start(sandbox, &[(before, "v0")]);
        sh(&format!("ip link del v0; ip link add v0 index {before} type veth peer name v0p"));
        start(sandbox, &[(before, "v0")]);
        assert!(sh("ip link show v0").contains(" xdp "));
        assert_tidy(sandbox);
    });
}

#[test]
fn an_interface_with_a_dot_in_its_name_works() {
    run(|sandbox| {
        let veth = veth("v0.100");
        start(sandbox, &[(veth, "v0.100")]);
        assert!(sh("ip link show v0.100").contains(" xdp "));
    });
}

#[test]
fn an_interface_that_the_config_no_longer_names_is_known_and_can_be_detached() {
    run(|sandbox| {
        let (v0, w0) = (veth("v0"), veth("w0"));
        start(sandbox, &[(v0, "v0"), (w0, "w0")]);
        let mut plane = sandbox.open().unwrap();
        plane.attach(v0, "v0", XdpMode::Auto).unwrap();
        let mut pinned = plane.pinned_interfaces().unwrap();
        pinned.sort_unstable();
        assert_eq!(pinned, [v0.min(w0), v0.max(w0)]);
        plane.detach_interface(w0).unwrap();
        plane.keep();
        assert!(!sh("ip link show w0").contains("xdp"));
        assert_tidy(sandbox);
    });
}

#[test]
fn detach_needs_no_agent() {
    run(|sandbox| {
        let veth = veth("v0");
        start(sandbox, &[(veth, "v0")]);
        let report = dataplane::detach(&sandbox.pin_dir).unwrap();
        assert_eq!(report.interfaces, [veth]);
        assert!(!sh("ip link show v0").contains("xdp"));
        assert!(!sandbox.pin_dir.exists());
    });
}

/// An agent that starts on these interfaces, and is gone; the number of its program.
fn start(sandbox: &Sandbox, interfaces: &[(u32, &str)]) -> u32 {
    let mut plane = sandbox.open().unwrap();
    plane.reconcile(&desired(&[1, 2])).unwrap();
    for &(ifindex, name) in interfaces {
        plane.attach(ifindex, name, XdpMode::Auto).unwrap();
    }
    plane.keep();
    running(interfaces[0].1)
}

/// Nothing of an earlier load is pinned, and the program array is whole.
fn assert_tidy(sandbox: &Sandbox) {
    assert!(complete_without_links(&sandbox.pinned()));
    assert_eq!(program_arrays(sandbox), [name::PROGRAMS], "{:?}", sandbox.pinned());
    assert!(sandbox.pin(name::XDP).exists());
    assert!(!sandbox.pinned().iter().any(|name| name.starts_with("xdp_")));
    assert_eq!(entries(sandbox, name::PROGRAMS), TAIL_CALLED.len());
}

fn program_arrays(sandbox: &Sandbox) -> Vec<String> {
    sandbox.pinned().into_iter().filter(|name| name.starts_with(name::PROGRAMS)).collect()
}

/// Programs in an array.
fn entries(sandbox: &Sandbox, array: &str) -> usize {
    let dump = sh(&format!("bpftool map dump pinned {}", sandbox.pin(array).display()));
    dump.matches("\"value\": ").count()
}

fn running(interface: &str) -> u32 {
    let shown = sh(&format!("ip -d link show {interface}"));
    shown.split("prog/xdp id ").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

fn link_id(sandbox: &Sandbox, ifindex: u32) -> u32 {
    let path = sandbox.pin(&format!("link_{ifindex}"));
    aya::programs::links::FdLink::from(aya::programs::links::PinnedLink::from_pin(path).unwrap())
        .info()
        .unwrap()
        .id()
}
