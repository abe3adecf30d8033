//! The Debian package under load: installed, upgraded, taken back and removed by dpkg, on machines with systemd and on one
//! without.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

mod guide;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use etcd_lb_tests::{
    Config, Host, Lab, Process, Topology, VIP,
    config::secret_file,
    echo::{BusyClients, EchoServer},
    eventually,
    machine::{Init, Machine},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);
const BUSY: usize = 50;
const UNIT: &str = "etcd-lb.service";
const CONFIG: &str = "/etc/etcd-lb/config.toml";
/// What the release before this one would be.
const OLDER: &str = "0.0.9-1";

/// A package of this source, under an older version and with another layout of the maps, and under its own.
struct Packages {
    older: PathBuf,
    newer: PathBuf,
}

fn packages() -> &'static Packages {
    static PACKAGES: OnceLock<Packages> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let target = target();
        let build = |version: &str, features: &[&str]| {
            let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            command.args(["xtask", "deb", "--deb-version", version]).args(features);
            command.env("CARGO_TARGET_DIR", &target);
            let output =
                command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            target.join(format!("debian/etcd-lb_{version}_amd64.deb"))
        };
        // cargo-deb removes what it made before.
        let built = build(OLDER, &["--features", "other-layout"]);
        let older = Path::new(env!("CARGO_TARGET_TMPDIR")).join(built.file_name().unwrap());
        fs::rename(built, &older).unwrap();
        let newer = build(&format!("{}-1", env!("CARGO_PKG_VERSION")), &[]);
        Packages { older, newer }
    })
}

/// This program is TARGET/PROFILE/deps/NAME.
fn target() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_path_buf()
}

struct Scene {
    // Dropped in this order: what runs in the lab, then the lab.
    machines: Vec<Machine>,
    servers: Vec<EchoServer>,
    client: Host,
    _lab: Lab,
}

impl Scene {
    fn start(name: &str, nodes: &[&str], init: Init) -> Self {
        let topology = Topology::standard().without("client-2");
        let lab = Lab::start(name, &topology).unwrap();
        let servers = ["etcd-1", "etcd-2", "etcd-3"]
            .map(|name| EchoServer::start(lab.host(name), 2379).unwrap())
            .into_iter()
            .collect();
        let machines = machines(&lab, nodes, init);
        Self { client: lab.host("client-1").clone(), machines, servers, _lab: lab }
    }

    fn config(&self, host: &Host) -> Config {
        Config::echo(host).addresses(self.servers.iter().map(EchoServer::address))
    }

    fn busy(&self) -> BusyClients {
        let vip: SocketAddr = (VIP, 2379).into();
        let busy = BusyClients::start(&self.client, vip, BUSY, Duration::from_millis(20)).unwrap();
        busy.wait_progress(20, LIMIT).unwrap();
        busy
    }
}

/// Machines on these hosts, with both packages lying in them.
fn machines(lab: &Lab, nodes: &[&str], init: Init) -> Vec<Machine> {
    let archive = target().join("tools/system.tar.gz");
    let start = |node: &&str| {
        let machine = Machine::start(lab.host(node), &archive, init).unwrap();
        for package in [&packages().older, &packages().newer] {
            fs::copy(package, machine.file(&inside(package))).unwrap();
        }
        machine
    };
    nodes.iter().map(start).collect()
}

/// What dpkg says to this.
fn dpkg(machine: &Machine, args: &[&str]) -> String {
    let begun = Instant::now();
    let text = machine.output("dpkg", args).unwrap();
    println!("dpkg {}: {:?}", args.join(" "), begun.elapsed());
    text
}

fn install(machine: &Machine, package: &Path) -> String {
    dpkg(machine, &["--install", &inside(package)])
}

/// Where a package lies on a machine.
fn inside(package: &Path) -> String {
    Path::new("/var/cache").join(package.file_name().unwrap()).to_str().unwrap().to_owned()
}

fn write_config(machine: &Machine, text: &str) {
    fs::write(machine.file(CONFIG), format!("{text}\n[api]\nhttp_listen = \"127.0.0.1:9479\"\n")).unwrap();
}

fn status(machine: &Machine) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&machine.output("etcd-lb", &["status", "--json"])?)?)
}

fn wait_role(machine: &Machine, role: &str) {
    eventually(LIMIT, role, || {
        let status = status(machine)?;
        ensure!(status["role"] == role && status["peer"]["synced"] == true, "{status}");
        Ok(())
    })
    .unwrap();
}

fn wait_healthy(machine: &Machine) {
    eventually(LIMIT, "three healthy backends", || {
        let status = status(machine)?;
        let backends = status["services"][0]["backends"].as_array().context("no backends")?;
        let healthy = backends.iter().filter(|backend| backend["state"] == "healthy").count();
        ensure!(healthy == 3, "{status}");
        Ok(())
    })
    .unwrap();
}

/// A property of the unit, as systemd has it.
fn show(machine: &Machine, property: &str) -> String {
    let text = machine.output("systemctl", &["show", "--value", "--property", property, UNIT]).unwrap();
    text.trim().to_owned()
}

fn systemctl(machine: &Machine, verb: &str) -> (bool, String) {
    machine.said("systemctl", &["--no-pager", verb, UNIT]).unwrap()
}

/// The agent of the unit runs, and from the binary that is installed now.
fn assert_runs_installed(machine: &Machine) {
    let pid = show(machine, "MainPID");
    let exe = machine.output("readlink", &[&format!("/proc/{pid}/exe")]).unwrap();
    assert_eq!(exe.trim(), "/usr/bin/etcd-lb");
}

/// Nothing broke since the connections were made; the longest pause of one.
fn assert_unbroken(busy: &BusyClients, what: &str) {
    busy.wait_progress(10, LIMIT).unwrap();
    let outcomes = busy.outcomes();
    let broken: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.broken.as_ref()).collect();
    let gap = outcomes.iter().map(|outcome| outcome.longest_gap).max().unwrap();
    let exchanges: u64 = outcomes.iter().map(|outcome| outcome.exchanges).sum();
    println!("{what}: {} of {BUSY} broken, {exchanges} exchanges, longest gap {gap:?}", broken.len());
    assert!(broken.is_empty(), "{what}: {broken:?}");
}

/// Nothing of the data plane is left: no pin, no program on the interface.
fn assert_detached(machine: &Machine) {
    let pins: Vec<_> = fs::read_dir(machine.bpffs()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(pins.is_empty(), "{pins:?}");
    let links = machine.output("ip", &["-details", "link", "show"]).unwrap();
    assert!(!links.contains("xdp") && !links.contains("etcdlb"), "{links}");
}

#[test]
fn under_systemd() {
    let scene = Scene::start("package", &["lb1"], Init::Systemd);
    let (machine, packages) = (&scene.machines[0], packages());

    // Without a config: enabled, but neither started nor failed.
    println!("{}", install(machine, &packages.older));
    assert_eq!(show(machine, "UnitFileState"), "enabled");
    assert_eq!(
        (show(machine, "ActiveState"), show(machine, "ConditionResult")),
        ("inactive".into(), "no".into())
    );
    assert!(!machine.output("systemctl", &["--failed", "--quiet"]).unwrap().contains("etcd-lb"));
    assert!(machine.said("etcd-lb", &["check-config"]).unwrap().1.contains(CONFIG));

    // `systemctl start` waits for the agent's word that it is ready.
    write_config(machine, &scene.config(machine.host()).text());
    let begun = Instant::now();
    machine.output("systemctl", &["start", UNIT]).unwrap();
    println!("systemctl start: {:?}", begun.elapsed());
    println!("{}", systemctl(machine, "status").1);
    assert_eq!((show(machine, "Type"), show(machine, "ActiveState")), ("notify".into(), "active".into()));
    wait_healthy(machine);
    let busy = scene.busy();

    for (package, what) in
        [(&packages.newer, "upgrade"), (&packages.older, "back"), (&packages.newer, "upgrade again")]
    {
        let pid = show(machine, "MainPID");
        install(machine, package);
        assert_eq!(show(machine, "ActiveState"), "active");
        assert_ne!(show(machine, "MainPID"), pid, "the agent was not restarted");
        assert_runs_installed(machine);
        assert_unbroken(&busy, what);
    }

    reload(machine, &scene.config(machine.host()).text());
    assert_unbroken(&busy, "reload");
    hang(machine);
    assert_unbroken(&busy, "watchdog");

    // A new agent that does not start: dpkg says so and is done, and what was served goes on.
    let good = fs::read_to_string(machine.file(CONFIG)).unwrap();
    fs::write(machine.file(CONFIG), "nothing good").unwrap();
    let (succeeded, said) = machine.said("dpkg", &["--install", &inside(&packages.older)]).unwrap();
    assert!(succeeded && said.contains("does not start"), "{said}");
    assert_unbroken(&busy, "upgrade to an agent that does not start");
    fs::write(machine.file(CONFIG), good).unwrap();
    machine.output("systemctl", &["restart", UNIT]).unwrap();
    assert_unbroken(&busy, "its restart with a good config");

    // One that an operator has stopped stays so, and its data plane goes on.
    machine.output("systemctl", &["stop", UNIT]).unwrap();
    install(machine, &packages.older);
    assert_eq!(show(machine, "ActiveState"), "inactive");
    assert_unbroken(&busy, "upgrade of a stopped agent");
    machine.output("systemctl", &["start", UNIT]).unwrap();
    assert_unbroken(&busy, "start after it");
    let outcomes = busy.finish();
    assert!(outcomes.iter().all(|outcome| outcome.broken.is_none()));

    // Removed, the config stays; installed again, it is used.
    println!("{}", dpkg(machine, &["--remove", "etcd-lb"]));
    assert_detached(machine);
    assert_eq!(show(machine, "ActiveState"), "inactive");
    assert!(machine.file(CONFIG).exists());
    install(machine, &packages.newer);
    assert_eq!(show(machine, "ActiveState"), "active", "{}", systemctl(machine, "status").1);
    wait_healthy(machine);

    dpkg(machine, &["--purge", "etcd-lb"]);
    assert_detached(machine);
    for gone in ["/etc/etcd-lb", "/var/log/etcd-lb", "/usr/share/etcd-lb", "/usr/bin/etcd-lb"] {
        assert!(!machine.file(gone).exists(), "{gone}");
    }
    assert_eq!(show(machine, "LoadState"), "not-found");
    assert!(!machine.said("test", &["-e", "/run/etcd-lb"]).unwrap().0, "/run/etcd-lb is still there");
}

/// `systemctl reload`: a bad file is refused, and says why; a good one is taken.
fn reload(machine: &Machine, text: &str) {
    let pid = show(machine, "MainPID");
    write_config(machine, &text.replace("interval", "intervall"));
    let (succeeded, said) = systemctl(machine, "reload");
    let journal = machine.output("journalctl", &["--unit", UNIT, "--lines", "20", "--no-pager"]).unwrap();
    assert!(!succeeded && journal.contains("intervall"), "{said}{journal}");
    assert_eq!(show(machine, "ActiveState"), "active");
    write_config(machine, &text.replacen("[[service.backend]]\n", "[[service.backend]]\nweight = 7\n", 1));
    let (succeeded, said) = systemctl(machine, "reload");
    assert!(succeeded, "{said}");
    assert_eq!(status(machine).unwrap()["services"][0]["backends"][0]["weight"], 7);
    assert_eq!(show(machine, "MainPID"), pid);
}

/// A hung agent is killed by the watchdog and started again.
fn hang(machine: &Machine) {
    let pid = show(machine, "MainPID");
    let begun = Instant::now();
    machine.output("systemctl", &["kill", "--kill-whom", "main", "--signal", "STOP", UNIT]).unwrap();
    eventually(LIMIT, "a new agent in place of the hung one", || {
        let now = show(machine, "MainPID");
        ensure!(now != pid && now != "0" && show(machine, "ActiveState") == "active", "{now}");
        Ok(())
    })
    .unwrap();
    println!("hung, killed by the watchdog and started again: {:?}", begun.elapsed());
    let journal = machine.output("journalctl", &["--unit", UNIT, "--no-pager"]).unwrap();
    assert!(journal.contains("Watchdog timeout"), "{journal}");
}

/// Ends an agent as systemd does.
fn terminate(agent: &mut Process) {
    // What entered the machine waits for its child, the agent, and ends as it does.
    let pid = agent.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let child = Pid::from_raw(children.trim().parse().unwrap());
    kill(child, Signal::SIGTERM).unwrap();
    let status = agent.wait(LIMIT).unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn without_systemd() {
    let scene = Scene::start("chroot", &["lb1"], Init::Nothing);
    let (machine, packages) = (&scene.machines[0], packages());
    let before = machine.files().unwrap();

    println!("{}", install(machine, &packages.older));
    println!("{}", machine.output("dpkg", &["--listfiles", "etcd-lb"]).unwrap());
    write_config(machine, &scene.config(machine.host()).text());
    let start = || -> Process {
        let mut command = machine.command("etcd-lb");
        command.arg("run");
        let process = machine.host().spawn("etcd-lb", command).unwrap();
        wait_healthy(machine);
        process
    };
    let mut agent = start();
    let busy = scene.busy();
    for (package, what) in [(&packages.newer, "upgrade"), (&packages.older, "back")] {
        install(machine, package);
        terminate(&mut agent);
        agent = start();
        assert_unbroken(&busy, what);
    }

    // While an agent runs that nobody told the scripts of, nothing is taken from under it.
    let (succeeded, said) = machine.said("dpkg", &["--remove", "etcd-lb"]).unwrap();
    println!("{said}");
    assert!(!succeeded && said.contains("stop it first"), "{said}");
    assert_unbroken(&busy, "a removal that was refused");
    assert!(busy.finish().iter().all(|outcome| outcome.broken.is_none()));

    terminate(&mut agent);
    println!("{}", dpkg(machine, &["--remove", "etcd-lb"]));
    assert_detached(machine);
    assert!(machine.file(CONFIG).exists());
    dpkg(machine, &["--purge", "etcd-lb"]);

    let bookkeeping = ["/var/lib/dpkg/", "/var/log/", "/var/lib/systemd/deb-systemd-helper", "/var/cache/"];
    let left: Vec<String> = machine.files().unwrap();
    let left = left.iter().filter(|path| before.binary_search(path).is_err());
    let left: Vec<_> = left.filter(|path| !bookkeeping.iter().any(|known| path.starts_with(known))).collect();
    assert!(left.is_empty(), "{left:?}");
    // Once more, on a machine where it never ran: nothing is there to detach, and no config names a place.
    install(machine, &packages.newer);
    dpkg(machine, &["--purge", "etcd-lb"]);
}

#[test]
fn the_active_node_of_a_pair_keeps_the_vip_through_an_upgrade() {
    let scene = Scene::start("package_pair", &["lb1", "lb2"], Init::Systemd);
    let packages = packages();
    let hosts = (scene.machines[0].host(), scene.machines[1].host());
    for (machine, (host, other), priority) in
        [(&scene.machines[0], hosts, 200), (&scene.machines[1], (hosts.1, hosts.0), 100)]
    {
        install(machine, &packages.older);
        secret_file(&machine.file("/etc/etcd-lb/sync.key"), &[7; 32]).unwrap();
        let text = scene.config(host).pair_text(
            (host, other),
            priority,
            "100ms",
            Path::new("/etc/etcd-lb/sync.key"),
        );
        write_config(machine, &text);
        machine.output("systemctl", &["start", UNIT]).unwrap();
    }
    let [first, second] = &scene.machines[..] else { panic!("two machines") };
    wait_role(first, "active");
    wait_role(second, "backup");
    wait_healthy(first);
    let busy = scene.busy();

    // The backup first, then the active node: the VIP stays where it is.
    for machine in [second, first] {
        install(machine, &packages.newer);
        assert_runs_installed(machine);
        wait_role(first, "active");
        wait_role(second, "backup");
        assert_unbroken(&busy, &format!("upgrade of {}", machine.host().name()));
    }
    assert_eq!(became_active(second), 0, "the VIP moved");
    let events = first.output("etcd-lb", &["events"]).unwrap();
    println!("{events}");

    // Removed, the active node hands over: the connections go on through the other one.
    dpkg(first, &["--remove", "etcd-lb"]);
    assert_detached(first);
    eventually(LIMIT, "the other node is active", || {
        ensure!(status(second)?["role"] == "active");
        Ok(())
    })
    .unwrap();
    assert_unbroken(&busy, "removal of the active node");
    assert_eq!(became_active(second), 1);
    assert!(busy.finish().iter().all(|outcome| outcome.broken.is_none()));
    dpkg(first, &["--purge", "etcd-lb"]);
    let begun = Instant::now();
    second.output("systemctl", &["stop", UNIT]).unwrap();
    println!("systemctl stop of the last node: {:?}", begun.elapsed());
    println!("{}", second.output("journalctl", &["--unit", UNIT, "--lines", "12", "--no-pager"]).unwrap());
    dpkg(second, &["--purge", "etcd-lb"]);
    assert_detached(second);
    // Said last, so that what is above is tried in any case.
    assert!(events.contains("restarted within its lease"), "{events}");
}

/// How often a node has become active since its agent was started.
fn became_active(machine: &Machine) -> u64 {
    let listener: SocketAddr = ([127, 0, 0, 1], 9479).into();
    let mut stream = machine.host().run(|| TcpStream::connect_timeout(&listener, LIMIT)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: metrics\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let line = "etcd_lb_role_transitions_total{to=\"active\"} ";
    let value = page.lines().find_map(|found| found.strip_prefix(line)).unwrap_or_else(|| panic!("{page}"));
    value.parse().unwrap()
}
