//! What cannot work is refused at start: with what is wrong, where, and what to do; exit status as in the contract; and
//! nothing left attached or pinned.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::process::{Command, Output, Stdio};

use etcd_lb_tests::{Balancer, Host, Lab, Role, Topology, VIP, balancer::binary};
use lb_common::maps::{LAYOUT_VERSION, Layout};
use zerocopy::IntoBytes as _;

struct Scene {
    host: Host,
    lab: Lab,
}

fn scene(name: &str) -> Scene {
    let topology = Topology::empty().with(Role::Balancer, "lb1", 2).with(Role::Client, "other", 21);
    let lab = Lab::start(name, &topology).unwrap();
    Scene { host: lab.host("lb1").clone(), lab }
}

fn config(top: &str, vip: &str, backend: &str) -> String {
    format!(
        "{top}\n[[service]]\nname = \"etcd\"\nvip = \"{vip}\"\nport = 2379\nalgorithm = \"maglev\"\n\
         on_backend_down = \"keep\"\n[service.health]\nkind = \"tcp\"\ninterval = \"200ms\"\ntimeout = \"100ms\"\n\
         [[service.backend]]\naddress = \"{backend}\"\n"
    )
}

fn standard() -> String {
    config("interface = \"eth0\"", &VIP.to_string(), "10.0.1.11:2379")
}

/// Runs `etcd-lb run` until it gives up.
fn start(scene: &Scene, config: &str, wrap: impl FnOnce(Command) -> Command) -> Output {
    let balancer = Balancer::prepare(&scene.host, config).unwrap();
    let mut command = scene.host.command(binary().unwrap());
    command.arg("run").arg("--config").arg(balancer.config()).stdin(Stdio::null());
    let mut command = wrap(command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let begun = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed().as_secs() > 20 {
            child.kill().unwrap();
            panic!(
                "etcd-lb did not refuse: {}",
                String::from_utf8_lossy(&child.wait_with_output().unwrap().stderr)
            );
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn refused(scene: &Scene, output: &Output, status: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("exit {:?}: {}", output.status.code(), text.trim());
    assert_eq!(output.status.code(), Some(status), "{text}");
    for word in words {
        assert!(text.contains(word), "the message lacks {word:?}: {text}");
    }
    nothing_left(scene);
}

fn nothing_left(scene: &Scene) {
    let link = scene.host.output("ip", &["link", "show"]).unwrap();
    assert!(!link.contains("xdp"), "something is attached: {link}");
    let pins = scene.lab.bpffs().join(scene.host.name());
    let left = std::fs::read_dir(&pins).map(Iterator::count).unwrap_or(0);
    assert_eq!(left, 0, "pins are left in {}", pins.display());
}

fn plain(command: Command) -> Command {
    command
}

#[test]
fn a_missing_interface() {
    let scene = scene("noif");
    let output = start(&scene, &config("interface = \"eth9\"", &VIP.to_string(), "10.0.1.11:2379"), plain);
    refused(&scene, &output, 2, &["eth9", "eth0"]);
}

#[test]
fn a_vip_on_a_local_interface_and_a_local_backend() {
    let scene = scene("local");
    let output = start(&scene, &config("interface = \"eth0\"", "10.0.1.2", "10.0.1.11:2379"), plain);
    refused(&scene, &output, 2, &["10.0.1.2", "eth0"]);
    let none = config("interface = \"eth0\"\nnode_interface = \"none\"", &VIP.to_string(), "10.0.1.2:2379");
    refused(&scene, &start(&scene, &none, plain), 2, &["10.0.1.2:2379", "node_interface"]);
    let own = config("interface = \"eth0\"", &VIP.to_string(), "10.0.1.2:2379");
    let dsr = own.replace("port = 2379\n", "port = 2379\nmode = \"dsr\"\n");
    refused(&scene, &start(&scene, &dsr, plain), 2, &["10.0.1.2:2379", "dsr"]);
    let loopback = config("interface = \"eth0\"", &VIP.to_string(), "127.0.0.1:2379");
    refused(&scene, &start(&scene, &loopback, plain), 2, &["127.0.0.1:2379", "loopback"]);
}

#[test]
fn a_driver_without_native_xdp() {
    let scene = scene("nonative");
    // The loopback's driver has no XDP; the bridge's neither.
    let config = config("interface = \"lo\"\nxdp_mode = \"native\"", &VIP.to_string(), "10.0.1.11:2379");
    let output = start(&scene, &config, plain);
    refused(&scene, &output, 1, &["lo", "native", "generic"]);
}

#[test]
fn without_the_capability_to_load_programs() {
    let scene = scene("nocap");
    let output = start(&scene, &standard(), |inner| {
        let mut command = scene.host.command("setpriv");
        command.args([
            "--bounding-set",
            "-bpf,-sys_admin,-perfmon",
            "--inh-caps",
            "-bpf,-sys_admin,-perfmon",
        ]);
        command.arg(inner.get_program()).args(inner.get_args());
        command
    });
    refused(&scene, &output, 1, &["CAP_BPF"]);
}

#[test]
fn a_vip_that_another_host_answers_for() {
    let scene = scene("taken");
    let other = scene.lab.host("other");
    other.output("ip", &["address", "add", &format!("{VIP}/32"), "dev", "eth0"]).unwrap();
    let mac = other.mac().unwrap().map(|octet| format!("{octet:02x}")).join(":");
    let output = start(&scene, &standard(), plain);
    refused(&scene, &output, 1, &[&VIP.to_string(), &mac]);
}

#[test]
fn another_xdp_program_is_named() {
    let scene = scene("occupied");
    let object = scene.lab.dir().join("run").join("other.o");
    std::fs::write(&object, etcd_lb::object::XDP_OBJECT).unwrap();
    let link = scene.lab.bpffs().join("other");
    let run = |args: &[&str]| scene.host.output("bpftool", args);
    run(&["prog", "loadall", object.to_str().unwrap(), link.to_str().unwrap()]).unwrap();
    let pass = link.join("pass");
    run(&["net", "attach", "xdpdrv", "pinned", pass.to_str().unwrap(), "dev", "eth0"]).unwrap();
    let balancer_pins = scene.lab.bpffs().join(scene.host.name());
    let output = start(&scene, &standard(), plain);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("exit {:?}: {}", output.status.code(), text.trim());
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in ["eth0", "pass"] {
        assert!(text.contains(word), "the message lacks {word:?}: {text}");
    }
    assert_eq!(std::fs::read_dir(&balancer_pins).map(Iterator::count).unwrap_or(0), 0);
    let shown = scene.host.output("ip", &["link", "show", "dev", "eth0"]).unwrap();
    assert!(shown.contains("xdp"), "the other program is still there: {shown}");
    run(&["net", "detach", "xdpdrv", "dev", "eth0"]).unwrap();
}

#[test]
fn pins_of_another_version_are_refused_untouched() {
    let scene = scene("version");
    let mut balancer = Balancer::start(&scene.host, &standard()).unwrap();
    balancer.stop().unwrap();
    // Another version's layout, over which nothing is carried over.
    let layout = balancer.pin_dir().join("layout");
    let pinned = ["map", "update", "pinned", layout.to_str().unwrap(), "key", "0", "0", "0", "0", "value"];
    let other = Layout { version: LAYOUT_VERSION + 1, max_flows: 131_072, hash: 1 };
    let value: Vec<String> = other.as_bytes().iter().map(u8::to_string).collect();
    let args: Vec<&str> = pinned.into_iter().chain(value.iter().map(String::as_str)).collect();
    scene.host.output("bpftool", &args).unwrap();
    let names = || {
        let mut names: Vec<_> =
            std::fs::read_dir(balancer.pin_dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let program = || scene.host.output("ip", &["-d", "link", "show", "dev", "eth0"]).unwrap();
    let attached = program();
    let output = start(&scene, &standard(), plain);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("exit {:?}: {}", output.status.code(), text.trim());
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("etcd-lb detach"), "{text}");
    assert_eq!(names(), before, "the pins are untouched");
    assert_eq!(program(), attached, "the program goes on");
}

#[test]
fn two_agents_on_one_pin_directory() {
    let scene = scene("twice");
    let balancer = Balancer::start(&scene.host, &standard()).unwrap();
    let output = start(&scene, &standard(), plain);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("exit {:?}: {}", output.status.code(), text.trim());
    assert_eq!(output.status.code(), Some(1), "{text}");
    balancer.status().unwrap();
}

#[test]
fn a_pin_directory_that_is_not_on_a_bpf_file_system() {
    let scene = scene("nobpffs");
    let run = scene.lab.dir().join("run");
    let config = standard()
        + &format!("\n[api]\nsocket = {:?}\npin_dir = {:?}\n", run.join("a.sock"), run.join("pins"));
    let output = start(&scene, &config, plain);
    refused(&scene, &output, 1, &["mount -t bpf"]);
}

#[test]
fn config_mistakes_and_usage_are_status_2_and_no_agent_is_3() {
    let scene = scene("status");
    let output = start(&scene, &standard().replace("interface", "interfase"), plain);
    refused(&scene, &output, 2, &["interfase", "interface", ":1:1"]);
    let run = |args: &[&str]| {
        let mut command = scene.host.command(binary().unwrap());
        command.args(args).output().unwrap()
    };
    assert_eq!(run(&["stauts"]).status.code(), Some(2));
    assert_eq!(run(&["check-config", "/nonexistent.toml"]).status.code(), Some(2));
    let output = run(&["status", "--socket", "/nonexistent.sock"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{}", text.trim());
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("/nonexistent.sock"), "{text}");
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success() && output.stdout.len() > 500, "{shell}");
    }
}

#[test]
fn a_pair_that_cannot_be_is_refused() {
    let scene = scene("no_pair");
    let key = scene.lab.dir().join("run").join("key");
    let sync = |listen: &str| {
        let lines =
            format!("[sync]\nlisten = \"{listen}:3780\"\npeer = \"10.0.1.3:3780\"\nkey_file = {key:?}\n");
        start(&scene, &(standard() + "[vrrp]\n" + &lines), plain)
    };
    refused(&scene, &sync("10.0.1.2"), 2, &["cannot read", "run/key"]);
    std::fs::write(&key, [7; 31]).unwrap();
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(&key, mode(0o644)).unwrap();
    refused(&scene, &sync("10.0.1.2"), 2, &["can be read by others", "chmod 600"]);
    std::fs::set_permissions(&key, mode(0o600)).unwrap();
    refused(&scene, &sync("10.0.1.2"), 2, &["31 bytes", "at least 32"]);
    std::fs::write(&key, [7; 32]).unwrap();
    refused(
        &scene,
        &sync("10.0.1.99"),
        2,
        &["cannot listen on 10.0.1.99:3780", "is `listen` an address of this node"],
    );
}
