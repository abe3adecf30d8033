//! What every command prints in each state: tables that fit, JSON that keeps its schema, and refusals word by word. All of it is
//! left in `target/outputs`, to be looked at.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Cluster, Config, Fleet, Lab, Topology, VIP, config::secret_file, eventually,
    fleet::Options, hang::Hung, pair::LIMIT,
};
use serde_json::Value;

/// What a table may take of a line.
const WIDTH: usize = 100;

struct Scene {
    fleet: Option<Fleet>,
    nodes: [Balancer; 2],
    cluster: Cluster,
    lab: Lab,
}

impl Scene {
    fn start() -> Self {
        let lab = Lab::start("outputs", &Topology::standard().without("client-2")).unwrap();
        let cluster = Cluster::start(&lab).unwrap();
        let key = lab.dir().join("run").join("sync.key");
        secret_file(&key, &[7; 32]).unwrap();
        let nodes = [("lb1", "lb2", 200), ("lb2", "lb1", 100)].map(|(node, other, priority)| {
            let (node, other) = (lab.host(node), lab.host(other));
            let config = Config::etcd(node, &cluster).default_algorithm().service("drain_timeout = \"1m\"");
            Balancer::start(node, &config.pair_text((node, other), priority, "100ms", &key)).unwrap()
        });
        let scene = Self { fleet: None, nodes, cluster, lab };
        scene.wait("both have their roles", |nodes| {
            ensure!(nodes[0]["role"] == "active" && nodes[1]["role"] == "backup");
            ensure!(nodes[0]["peer"]["synced"] == true && nodes[1]["peer"]["synced"] == true);
            Ok(())
        });
        scene
    }

    fn wait(&self, what: &str, is: impl Fn(&[Value; 2]) -> anyhow::Result<()>) {
        eventually(LIMIT, what, || {
            let nodes = [self.nodes[0].status()?, self.nodes[1].status()?];
            is(&nodes).map_err(|error| error.context(format!("{nodes:#?}")))
        })
        .unwrap();
    }

    /// What the agent refuses, word by word, in the state all-well.
    fn refusals(&self) -> String {
        let asked: [(usize, &[&str]); 10] = [
            (0, &["drain", "etcd-9"]),
            (0, &["undrain", "10.0.1.99:2379"]),
            (0, &["drain", "etcd-1", "--service", "postgres"]),
            (0, &["flows", "--backend", "etcd-9"]),
            (0, &["explain", "10.0.2.7", "--service", "postgres"]),
            (0, &["explain", "fd00::7"]),
            (0, &["reset", "--backend", "etcd-9"]),
            (0, &["capture", "--backend", "etcd-9"]),
            (1, &["failover"]),
            (1, &["hold"]),
        ];
        let mut text = String::new();
        for (node, args) in asked {
            self.refused(&mut text, node, args);
        }
        // A config that is wrong, one that does not fit the host, and one that needs another start.
        let config = fs::read_to_string(self.nodes[0].config()).unwrap();
        for (from, to) in [
            ("interface = ", "interfase = "),
            ("interface = \"eth0\"", "interface = \"eth9\""),
            ("interface = ", "max_flows = 262144\ninterface = "),
            ("vip = \"10.0.1.100\"", "vip = \"10.0.1.2\""),
        ] {
            let changed = config.replacen(from, to, 1);
            assert_ne!(changed, config, "{from}");
            self.nodes[0].write_config(&changed).unwrap();
            writeln!(text, "# {to}").unwrap();
            self.refused(&mut text, 0, &["reload"]);
        }
        self.nodes[0].write_config(&config).unwrap();
        self.nodes[0].reload().unwrap();
        text
    }

    fn refused(&self, text: &mut String, node: usize, args: &[&str]) {
        let output = self.nodes[node].cli_output(args).unwrap();
        let said = [&output.stderr, &output.stdout].map(|said| String::from_utf8_lossy(said).into_owned());
        let status = output.status.code().unwrap();
        writeln!(text, "$ etcd-lb {}\n[{status}]\n{}", args.join(" "), said.concat()).unwrap();
    }

    /// What a terminal of so many columns shows, without its colours.
    fn on_terminal(&self, node: usize, args: &[&str], columns: usize) -> String {
        let balancer = &self.nodes[node];
        let command = format!(
            "stty cols {columns}; exec {} --socket {} {}",
            etcd_lb_tests::balancer::binary().unwrap().display(),
            balancer.socket().display(),
            args.join(" ")
        );
        let output =
            balancer.host().command("script").args(["-qec", &command, "/dev/null"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        // A colour is ESC [ digits m.
        let mut parts = said.split('\x1b');
        let first = parts.next().unwrap_or_default().to_owned();
        first + &parts.map(|part| part.split_once('m').map_or(part, |(_, rest)| rest)).collect::<String>()
    }

    /// Asks everything that prints something, and changes nothing; keeps it under the state's name.
    fn look(&self, state: &str, node: usize) {
        let client = self.lab.host("client-1").address().to_string();
        let config = self.nodes[node].config().to_str().unwrap().to_owned();
        let commands: [(&str, &[&str]); 7] = [
            ("status", &["status"]),
            ("flows", &["flows"]),
            ("explain", &["explain", &client]),
            ("events", &["events"]),
            ("rebalance", &["rebalance", "--dry-run"]),
            ("doctor", &["doctor", &config]),
            ("check-config", &["check-config", &config]),
        ];
        let mut text = String::new();
        for (schema, args) in commands {
            // It takes seconds, and looks at the host and the members: their states are few.
            if schema == "doctor" && !["all-well", "backup", "fail-open"].contains(&state) {
                continue;
            }
            let output = self.nodes[node].cli_output(args).unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            writeln!(text, "$ etcd-lb {}\n{said}{}", args.join(" "), String::from_utf8_lossy(&output.stderr))
                .unwrap();
            // Words may be as long as they are: a reason, an event, a path.
            if ["status", "flows", "explain", "rebalance"].contains(&schema) {
                for line in said.lines() {
                    assert!(line.chars().count() <= WIDTH, "{state}: {args:?}: wider than {WIDTH}: {line}");
                }
            }
            for columns in [80, 160] {
                let shown = self.on_terminal(node, args, columns);
                writeln!(
                    text,
                    "$ etcd-lb {}    # on a terminal of {columns} columns\n{shown}",
                    args.join(" ")
                )
                .unwrap();
                if ["status", "flows", "explain", "rebalance"].contains(&schema) {
                    // Sentences may be broken by the terminal; tables may not.
                    for line in shown.lines().filter(|line| !line.contains("; ")) {
                        assert!(
                            line.chars().count() <= columns.min(WIDTH),
                            "{state}: {args:?} on {columns}: {line}"
                        );
                    }
                }
            }
            let output = self.nodes[node].cli_output(&[args, &["--json"]].concat()).unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let document: Value =
                serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
            assert_valid(schema, &document, state);
        }
        let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/outputs"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("{state}.txt")), text).unwrap();
    }
}

/// The document is what its schema says, and has no field that the schema does not know.
fn assert_valid(name: &str, document: &Value, state: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/schema/{name}.json"));
    let mut schema: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    forbid_others(&mut schema);
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{state}: {name}: {errors:#?}");
}

fn forbid_others(schema: &mut Value) {
    if let Value::Object(fields) = schema {
        // A part that is built of others says so itself.
        if fields.contains_key("properties") {
            fields.insert("additionalProperties".into(), false.into());
        }
        fields.values_mut().for_each(forbid_others);
    } else if let Value::Array(parts) = schema {
        parts.iter_mut().for_each(forbid_others);
    }
}

#[test]
fn every_command_in_each_state() {
    let mut scene = Scene::start();
    let vip = SocketAddr::from((VIP, CLIENT_PORT));
    let options = Options { reconnect: true, ..Options::default() };
    let client = scene.lab.host("client-1");
    scene.fleet = Some(Fleet::start(client, vip, &scene.cluster.pki, options).unwrap());
    scene.wait("flows", |nodes| {
        ensure!(nodes[0]["flow_table"]["used"].as_u64() >= Some(12));
        Ok(())
    });
    scene.look("all-well", 0);
    let dir = scene.lab.dir().join("run").display().to_string();
    insta::assert_snapshot!(scene.refusals().replace(&dir, "DIR"));
    scene.look("backup", 1);

    scene.nodes[0].cli(&["drain", "etcd-2"]).unwrap();
    scene.look("draining", 0);
    scene.nodes[0].cli(&["undrain", "etcd-2"]).unwrap();

    scene.cluster.member_mut("etcd-3").kill().unwrap();
    scene.nodes[0].wait_backend("etcd-3", "down", LIMIT).unwrap();
    scene.look("member-down", 0);

    for member in ["etcd-1", "etcd-2"] {
        scene.cluster.member(member).freeze().unwrap();
    }
    scene.wait("failing open", |nodes| {
        ensure!(nodes[0]["services"][0]["fail_open"] == true);
        Ok(())
    });
    scene.look("fail-open", 0);
    for member in ["etcd-1", "etcd-2"] {
        scene.cluster.member(member).thaw().unwrap();
    }

    // The thread that keeps the lease hangs, and the agent does not: it can tell.
    let pid = scene.nodes[0].process().unwrap().pid();
    let hung = Hung::thread(pid, "vrrp", LIMIT).unwrap();
    scene.wait("fenced", |nodes| {
        ensure!(nodes[0]["fenced"] == true && nodes[1]["role"] == "active");
        Ok(())
    });
    eventually(LIMIT, "the fencing is told", || {
        let events = scene.nodes[0].cli(&["events"])?;
        ensure!(events.contains("fenced: the lease is over"), "{events}");
        Ok(())
    })
    .unwrap();
    scene.look("fenced", 0);
    drop(hung);
}
