//! What is deployed, by the programs that will read it: BIRD, Ansible, and those that build and run images. What needs no
//! other program is in `artefacts.rs`.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use etcd_lb_tests::{
    Balancer, Config, Host, Lab, Topology, VIP,
    balancer::binary,
    echo::{BusyClients, EchoServer},
    eventually,
    tls::Authority,
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const LIMIT: Duration = Duration::from_secs(15);

/// What setup.sh installed from PyPI.
fn tool(name: &str) -> PathBuf {
    let target = binary().unwrap().ancestors().nth(2).unwrap().to_path_buf();
    let path = target.join("tools/deploy-checks/bin").join(name);
    assert!(path.exists(), "no {}: scripts/setup.sh --long", path.display());
    path
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = said(&output);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A directory of this test's own, which goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn bird_reads_its_files() {
    for file in ["node.conf", "router.conf"] {
        succeeds(Command::new("bird").args(["-p", "-c"]).arg(format!("{ROOT}/deploy/bird/{file}")));
    }
}

#[test]
fn kubernetes_schemas_hold_from_the_oldest_on() {
    for version in ["1.30", "1.33", "1.37"] {
        let mut validate = Command::new(tool("kubernetes-validate"));
        validate.args(["--strict", "--kubernetes-version", version, "static-pod.yaml", "daemonset.yaml"]);
        succeeds(validate.current_dir(format!("{ROOT}/deploy/kubernetes")));
    }
}

#[test]
fn linters_find_nothing() {
    let container = format!("{ROOT}/deploy/container");
    succeeds(Command::new(tool("hadolint")).arg("Containerfile").current_dir(&container));
    succeeds(Command::new("shellcheck").arg("fill.sh").current_dir(&container));
    let bin = tool("ansible-lint").parent().unwrap().to_path_buf();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut lint = Command::new(tool("ansible-lint"));
    lint.args(["--offline", "--profile", "production"]).env("PATH", path);
    succeeds(lint.current_dir(format!("{ROOT}/deploy/ansible")));
}

/// Two nodes on this machine: their files are real, and checked by the real program; systemd and the agent are stand-ins
/// that note what is asked of them.
struct Nodes {
    scratch: Scratch,
    variables: PathBuf,
}

impl Nodes {
    fn new() -> Self {
        let scratch = Scratch::new("ansible");
        let dir = scratch.0.display().to_string();
        // systemctl(1) as the module of Ansible asks it.
        let systemctl = format!(
            "#!/bin/sh\ncase \"$*\" in\n\
             *show*) printf 'Id=etcd-lb.service\\nLoadState=loaded\\nActiveState=active\\nSubState=running\\n';;\n\
             *is-enabled*) echo enabled;;\n*) echo \"systemctl $*\" >> {dir}/log;;\nesac\n"
        );
        scratch.program("bin/systemctl", &systemctl);
        let etcd_lb = binary().unwrap();
        for (node, role) in [("lb-1", "active"), ("lb-2", "backup")] {
            let agent = format!(
                "#!/bin/sh\ncase $1 in\n\
                 status) echo '{{\"role\": \"{role}\", \"peer\": {{\"synced\": true}}}}';;\n\
                 reload) echo '{node} reload' >> {dir}/log\n\
                 if [ -e {dir}/refusal ]; then cat {dir}/refusal >&2; exit 1; fi;;\n\
                 check-config) exec {} \"$@\";;\nesac\n",
                etcd_lb.display()
            );
            scratch.program(&format!("bin/{node}/etcd-lb"), &agent);
        }

        let pki = Authority::create(&scratch.0).and_then(|authority| authority.pki()).unwrap();
        let files = [(&pki.ca, "ca.crt"), (&pki.client.cert, "client.crt"), (&pki.client.key, "client.key")]
            .map(|(from, to)| format!("  - {{src: {}, dest: {to}}}\n", from.display()));
        let variables = scratch.0.join("variables.yml");
        let text = format!(
            "ansible_connection: local\nansible_become: false\n\
             ansible_python_interpreter: \"{{{{ ansible_playbook_python }}}}\"\n\
             etcd_lb_config_dir: \"{dir}/{{{{ inventory_hostname }}}}\"\n\
             etcd_lb_binary: \"{dir}/bin/{{{{ inventory_hostname }}}}/etcd-lb\"\n\
             etcd_lb_manage_package: false\netcd_lb_patience: 5\n\
             etcd_lb_api:\n  http_listen: {}\netcd_lb_files:\n{}",
            always_ready(),
            files.concat()
        );
        fs::write(&variables, text).unwrap();
        Self { scratch, variables }
    }

    /// Runs the playbook; whether it succeeded, what it said, and what was asked of systemd and the agents.
    fn play(&self, args: &[&str]) -> (bool, String, Vec<String>) {
        let log = self.scratch.0.join("log");
        fs::write(&log, "").unwrap();
        let path = format!("{}/bin:{}", self.scratch.0.display(), std::env::var("PATH").unwrap());
        let mut play = Command::new(tool("ansible-playbook"));
        play.arg("site.yml").arg("-e").arg(format!("@{}", self.variables.display())).args(args);
        play.env("PATH", path).env("ANSIBLE_NOCOLOR", "1").env("HOME", &self.scratch.0);
        let output = play.current_dir(format!("{ROOT}/deploy/ansible")).output().unwrap();
        let asked = fs::read_to_string(log).unwrap().lines().map(str::to_owned).collect();
        (output.status.success(), said(&output), asked)
    }

    fn config(&self, node: &str) -> lb_core::config::Config {
        let text = fs::read_to_string(self.scratch.0.join(node).join("config.toml")).unwrap();
        let (config, warnings) =
            lb_core::config::parse(&text, node).unwrap_or_else(|error| panic!("{error}"));
        assert!(warnings.is_empty(), "{warnings:?}");
        config
    }

    fn refuse(&self, why: &str) {
        fs::write(self.scratch.0.join("refusal"), why).unwrap();
    }
}

/// Where each request is answered with 200, for as long as this process lives.
fn always_ready() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nready\n");
        }
    });
    address
}

#[test]
fn the_playbook_makes_a_pair_and_changes_it() {
    succeeds(
        Command::new(tool("ansible-playbook"))
            .args(["--syntax-check", "site.yml"])
            .current_dir(format!("{ROOT}/deploy/ansible")),
    );
    let nodes = Nodes::new();

    let (ok, text, asked) = nodes.play(&[]);
    assert!(ok, "{text}");
    // A new key: restarted, the active one last.
    assert_eq!(asked, ["systemctl restart etcd-lb", "systemctl restart etcd-lb"], "{text}");
    let (first, second) = (text.find("changed: [lb-2]").unwrap(), text.find("changed: [lb-1]").unwrap());
    assert!(first < second, "{text}");
    let (one, other) = (nodes.config("lb-1"), nodes.config("lb-2"));
    assert_eq!(one.services[0].backends, other.services[0].backends);
    assert_eq!(one.sync.as_ref().unwrap().peers, [other.sync.as_ref().unwrap().listen]);
    assert!(one.vrrp.unwrap().priority > other.vrrp.unwrap().priority);
    for file in [one.sync.unwrap().key_file, one.hash_seed_file.unwrap()] {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }

    let (ok, text, asked) = nodes.play(&[]);
    assert!(ok && !text.contains("changed: ["), "{text}");
    assert_eq!(asked, ["lb-2 reload", "lb-1 reload"]);

    // What is not good is not written.
    let (ok, text, asked) = nodes.play(&["-e", "{\"etcd_lb_settings\": {\"max_flow\": 65536}}"]);
    assert!(!ok && text.contains("did you mean `max_flows`?") && asked.is_empty(), "{text}");
    assert_eq!(nodes.config("lb-2").max_flows, 131_072);

    // What a restart changes gets one; what ends flows is taken back.
    nodes.refuse("`node_interface` cannot be changed while the agent runs: restart the agent (`systemctl restart etcd-lb`)");
    let (ok, text, asked) = nodes.play(&["-e", "{\"etcd_lb_settings\": {\"node_interface\": \"lb0\"}}"]);
    assert!(ok, "{text}");
    let restart = "systemctl restart etcd-lb";
    assert_eq!(asked, ["lb-2 reload", restart, "lb-1 reload", restart]);
    nodes.refuse("`max_flows` cannot be changed while the agent runs: stop the agent, run `etcd-lb detach`");
    let (ok, text, asked) = nodes.play(&["-e", "{\"etcd_lb_settings\": {\"max_flows\": 65536}}"]);
    assert!(!ok && text.contains("that of before is in place"), "{text}");
    assert_eq!(asked, ["lb-2 reload"], "the active node is left as it is");
    let (one, other) = (nodes.config("lb-1"), nodes.config("lb-2"));
    assert_eq!((one.max_flows, other.max_flows), (131_072, 131_072));
    assert_eq!(other.node_link.unwrap().near, "lb0");
}

/// Podman with a store of its own.
struct Podman {
    scratch: Scratch,
}

const BASE: &str = "localhost/etcd-lb-test-base:bookworm";
const IMAGE: &str = "localhost/etcd-lb:test";
/// Its name in docs/container.md.
const CONTAINER: &str = "etcd-lb";

impl Podman {
    /// With Debian 12 as an image.
    fn new() -> Self {
        let podman = Self { scratch: Scratch::new("image") };
        let root = podman.scratch.0.join("root");
        succeeds(Command::new("debootstrap").args(["--variant=minbase", "bookworm"]).arg(&root));
        let archive = podman.scratch.0.join("base.tar");
        succeeds(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."));
        podman.succeeds(None, &["import", "--quiet", archive.to_str().unwrap(), BASE]);
        fs::remove_dir_all(root).unwrap();
        podman
    }

    fn store(&self, command: &mut Command) {
        let at = |name: &str| self.scratch.0.join(name);
        command.arg("--root").arg(at("store")).arg("--runroot").arg(at("run"));
        command.args(["--storage-driver", "vfs"]);
    }

    fn succeeds(&self, host: Option<&Host>, args: &[&str]) -> String {
        let mut command = host.map_or_else(|| Command::new("podman"), |host| host.command("podman"));
        self.store(&mut command);
        succeeds(command.args(["--cgroup-manager", "cgroupfs", "--runtime", "runc"]).args(args))
    }

    /// The container as docs/container.md has it, on a host of the lab.
    fn run(&self, lab: &Lab, host: &Host, options: &[&str], args: &[&str]) -> String {
        let guide = fs::read_to_string(format!("{ROOT}/docs/container.md")).unwrap();
        let block = guide.split("# podman run -d").nth(1).unwrap().split("```").next().unwrap();
        let words: Vec<&str> = block.split_whitespace().filter(|word| *word != "\\").collect();
        // Volumes and the image are the lab's.
        let until = words.iter().position(|word| *word == "-v").unwrap();
        // The machines that tests run on may not have what podman would set by itself.
        let mut all = vec!["run", "-d", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"];
        all.extend(words[..until].iter().filter(|word| !["--restart", "always"].contains(word)));
        let dir = format!("{0}:{0}", lab.dir().display());
        all.extend(["-v", &dir]);
        all.extend(options);
        all.push(IMAGE);
        all.extend(args);
        self.succeeds(Some(host), &all)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let mut command = Command::new("podman");
        self.store(&mut command);
        let _ = command.args(["--runtime", "runc", "rm", "--force", "--time", "0", CONTAINER]).output();
    }
}

#[test]
fn the_image_runs_and_outlives_its_container() {
    let podman = Podman::new();
    let root = fs::canonicalize(ROOT).unwrap();
    let built = fs::canonicalize(binary().unwrap()).unwrap();
    let built = built.strip_prefix(&root).expect("the target directory is in the checkout");
    let mut build = Command::new("buildah");
    podman.store(&mut build);
    build.args(["build", "--quiet", "--isolation", "chroot", "-f", "deploy/container/Containerfile"]);
    build.args([
        "--build-arg",
        &format!("BASE={BASE}"),
        "--build-arg",
        &format!("BINARY={}", built.display()),
    ]);
    succeeds(build.args(["-t", IMAGE, "."]).current_dir(&root));
    let inspected = podman.succeeds(None, &["image", "inspect", IMAGE]);
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let entrypoint = &inspected[0]["Config"]["Entrypoint"];
    let wanted = ["/usr/bin/etcd-lb", "run", "--config", "/etc/etcd-lb/config.toml"];
    assert_eq!(*entrypoint, serde_json::json!(wanted));

    let lab = Lab::start("image", &Topology::standard().without("lb2").without("client-2")).unwrap();
    let host = lab.host("lb1");
    let servers = ["etcd-1", "etcd-2", "etcd-3"].map(|name| EchoServer::start(lab.host(name), 2379).unwrap());
    let config = Config::echo(host).addresses(servers.iter().map(EchoServer::address)).text();
    // The balancer's files and commands; the agent is the container's.
    let balancer = Balancer::prepare(host, &config).unwrap();
    let file = format!("{}/run/lb1.toml:/etc/etcd-lb/config.toml:ro", lab.dir().display());
    let start = || podman.run(&lab, host, &["-v", &file], &[]);
    let serves = || {
        for server in &servers {
            balancer.wait_backend(&server.address().to_string(), "healthy", LIMIT).unwrap();
        }
    };
    start();
    serves();
    let client = lab.host("client-1");
    let busy = BusyClients::start(client, (VIP, 2379).into(), 20, Duration::from_millis(5)).unwrap();
    busy.wait_progress(9, LIMIT).unwrap();

    podman.succeeds(None, &["stop", CONTAINER]);
    busy.wait_progress(50, LIMIT).unwrap();
    start();
    serves();
    podman.succeeds(None, &["kill", "--signal", "KILL", CONTAINER]);
    busy.wait_progress(50, LIMIT).unwrap();
    start();
    serves();
    busy.wait_progress(50, LIMIT).unwrap();
    let within = podman.succeeds(None, &["exec", CONTAINER, "/usr/bin/etcd-lb", "--version"]);
    assert!(within.starts_with("etcd-lb "), "{within}");
    let outcomes = busy.finish();
    let longest = outcomes.iter().map(|outcome| outcome.longest_gap).max().unwrap();
    let broken = outcomes.iter().filter(|outcome| outcome.broken.is_some()).count();
    println!(
        "container stopped, killed and started: {broken} of 20 connections broken, longest gap {longest:?}"
    );
    assert_eq!(broken, 0);

    podman.succeeds(None, &["stop", CONTAINER]);
    let pins = lab.bpffs().join("lb1");
    podman.run(
        &lab,
        host,
        &["-v", &file, "--entrypoint", "/usr/bin/etcd-lb"],
        &["detach", "--pin-dir", pins.to_str().unwrap()],
    );
    eventually(LIMIT, "nothing is pinned any more", || {
        anyhow::ensure!(!pins.exists(), "{} is still there", pins.display());
        Ok(())
    })
    .unwrap();
}
