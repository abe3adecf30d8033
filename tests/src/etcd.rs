//! A real etcd cluster of a lab's members, with TLS and client certificates on the client port.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    CLIENT_PORT, Host, Lab, Process, Role, VIP, VIP6, eventually,
    https::Connection,
    netns,
    tls::{Authority, Identity, Pki, ServerUse},
};

/// Port of peer traffic, plain HTTP: it never passes the balancer.
const PEER_PORT: u16 = 2380;
/// Port of the metrics listener, plain HTTP, as many clusters have one for health checks.
pub const METRICS_PORT: u16 = 2381;
/// Raft's heartbeat and election timeout in ms: half of etcd's defaults, so that a lost leader costs a test less.
const HEARTBEAT_MS: &str = "50";
const ELECTION_MS: &str = "500";
/// Time for a cluster or a member to become healthy; it takes about one second alone on a machine.
const HEALTHY_LIMIT: Duration = Duration::from_secs(30);
/// Time for one request of a health look.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);

/// A cluster; dropping it kills its members.
#[derive(Debug)]
pub struct Cluster {
    /// Certificates of the run.
    pub pki: Pki,
    authority: Authority,
    setup: Setup,
    members: Vec<Member>,
}

/// How members are run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The server's program.
    pub program: PathBuf,
    /// What its certificates are good for.
    pub usage: ServerUse,
    /// Arguments more.
    pub args: Vec<String>,
}

impl Default for Setup {
    /// The etcd that is installed, its JSON gateway usable.
    fn default() -> Self {
        Self { program: "etcd".into(), usage: ServerUse::WithGateway, args: Vec::new() }
    }
}

impl Setup {
    /// The etcd of Debian's next suite, 3.5, which `scripts/setup.sh` fetches.
    ///
    /// # Errors
    ///
    /// If it was not fetched.
    pub fn newer() -> Result<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")), PathBuf::from);
        let program = target.join("tools/etcd-trixie/usr/bin/etcd");
        ensure!(program.is_file(), "there is no {}: run scripts/setup.sh", program.display());
        Ok(Self { program, ..Self::default() })
    }
}

/// A member: its host, its files, and its process while it runs.
#[derive(Debug)]
pub struct Member {
    host: Host,
    identity: Identity,
    pki: Pki,
    setup: Setup,
    initial_cluster: String,
    /// It joins a cluster that is there.
    joins: bool,
    data_dir: PathBuf,
    id: u64,
    process: Option<Process>,
}

impl Cluster {
    /// Starts a member on each member host of the lab, and waits until all are healthy.
    ///
    /// # Errors
    ///
    /// If one cannot be started, or they are not healthy within 30 s.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::start_as(lab, &Setup::default())
    }

    /// The same with members that are run so.
    ///
    /// # Errors
    ///
    /// If one cannot be started, or they are not healthy within 30 s.
    pub fn start_as(lab: &Lab, setup: &Setup) -> Result<Self> {
        let authority = Authority::create(&lab.dir().join("tls"))?;
        let pki = authority.pki()?;
        let initial_cluster: Vec<String> = lab.hosts(Role::Member).map(peer).collect();
        ensure!(!initial_cluster.is_empty(), "the lab has no member hosts");

        let mut members = Vec::new();
        for host in lab.hosts(Role::Member) {
            let mut member = Member::new(host, &authority, &pki, setup, initial_cluster.join(","))?;
            member.start()?;
            members.push(member);
        }
        for member in &mut members {
            member.wait_healthy()?;
            member.id = member.status()?.member_id;
        }
        Ok(Self { pki, authority, setup: setup.clone(), members })
    }

    /// Adds a member as a learner, and starts it on this host. It is healthy once it is promoted.
    ///
    /// # Errors
    ///
    /// If the cluster refuses it, or it cannot be started.
    pub fn add_learner(&mut self, host: &Host) -> Result<()> {
        let url = format!("--peer-urls=http://{}:{PEER_PORT}", host.address());
        eventually(HEALTHY_LIMIT, "adding a learner", || {
            // Refused as unhealthy until the members have been connected for 5 s.
            self.etcdctl(host, &self.endpoints(), &["member", "add", host.name(), "--learner", &url])
        })?;
        self.start_added(host)
    }

    /// Starts a member on this host that the cluster was told of.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start_added(&mut self, host: &Host) -> Result<()> {
        let peers: Vec<String> = self.members.iter().map(Member::host).chain([host]).map(peer).collect();
        let mut member = Member::new(host, &self.authority, &self.pki, &self.setup, peers.join(","))?;
        member.joins = true;
        member.start()?;
        self.members.push(member);
        Ok(())
    }

    /// A member of another cluster on this host, with certificates of the same authority.
    ///
    /// # Errors
    ///
    /// If it cannot be started, or is not healthy within 30 s.
    pub fn foreign(&self, host: &Host) -> Result<Member> {
        let mut member = Member::new(host, &self.authority, &self.pki, &self.setup, peer(host))?;
        member.start()?;
        member.wait_healthy()?;
        Ok(member)
    }

    /// Issues a member's certificate anew, which it uses from the next connection on.
    ///
    /// # Errors
    ///
    /// If a file cannot be written.
    pub fn reissue(&self, name: &str, usage: ServerUse) -> Result<()> {
        self.authority.server(name, &addresses_of(self.member(name).host()), usage).map(drop)
    }

    /// A client certificate of its authority for this user, as etcd's auth takes it from the common name.
    ///
    /// # Errors
    ///
    /// If a file cannot be written.
    pub fn client(&self, user: &str) -> Result<Identity> {
        self.authority.client(user)
    }

    /// The members, in the order of their names.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// A member.
    ///
    /// # Panics
    ///
    /// If there is none of that name.
    pub fn member(&self, name: &str) -> &Member {
        self.members.iter().find(|member| member.name() == name).unwrap_or_else(|| panic!("no member {name}"))
    }

    /// A member, to do something to it.
    ///
    /// # Panics
    ///
    /// If there is none of that name.
    pub fn member_mut(&mut self, name: &str) -> &mut Member {
        self.members
            .iter_mut()
            .find(|member| member.name() == name)
            .unwrap_or_else(|| panic!("no member {name}"))
    }

    /// The name of the member with this id.
    pub fn name_of(&self, member_id: u64) -> Option<&str> {
        self.members.iter().find(|member| member.id == member_id).map(Member::name)
    }

    /// The name of the leader, as the first member that answers sees it.
    ///
    /// # Errors
    ///
    /// If none answers, or there is no leader.
    pub fn leader(&self) -> Result<&str> {
        let running = self.members.iter().filter(|member| member.is_running());
        let status = running.filter_map(|member| member.status().ok()).next().context("no member answers")?;
        self.name_of(status.leader).context("the cluster has no leader")
    }

    /// Runs `etcdctl` (API 3) on a host, with the client certificate, against these endpoints, e.g. `https://VIP:2379`.
    ///
    /// # Errors
    ///
    /// If it fails: with what it said.
    pub fn etcdctl(&self, host: &Host, endpoints: &str, args: &[&str]) -> Result<String> {
        netns::output(self.etcdctl_command(host, endpoints).args(args))
    }

    /// `etcdctl` without its subcommand, for one that runs on, as `watch`.
    pub fn etcdctl_command(&self, host: &Host, endpoints: &str) -> Command {
        let mut command = host.command("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_ENDPOINTS", endpoints)
            .env("ETCDCTL_CACERT", &self.pki.ca)
            .env("ETCDCTL_CERT", &self.pki.client.cert)
            .env("ETCDCTL_KEY", &self.pki.client.key);
        command
    }

    /// The members' own client URLs, for `etcdctl`.
    pub fn endpoints(&self) -> String {
        let urls: Vec<String> =
            self.members.iter().map(|member| format!("https://{}", member.client_address())).collect();
        urls.join(",")
    }

    /// Leaves the members running.
    pub fn keep(self) {
        self.members.into_iter().filter_map(|member| member.process).for_each(Process::keep);
    }
}

/// A member as `--initial-cluster` names it.
fn peer(host: &Host) -> String {
    format!("{}=http://{}:{PEER_PORT}", host.name(), host.address())
}

/// What a member is reached by.
fn addresses_of(host: &Host) -> [IpAddr; 4] {
    [host.address().into(), host.address_v6().into(), VIP.into(), VIP6.into()]
}

/// What a member says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The id of the member that answered.
    pub member_id: u64,
    /// The id of the leader it sees; 0 if none.
    pub leader: u64,
}

impl Status {
    /// Asks over a connection which member is at its other end.
    ///
    /// # Errors
    ///
    /// If the connection breaks, or the answer lacks it.
    pub fn over(connection: &mut Connection) -> Result<Self> {
        let answer = connection.post("/v3/maintenance/status", &json!({}))?;
        // The gateway writes 64-bit numbers as strings, and leaves zeros out.
        let number = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
        let member_id =
            number(&answer["header"]["member_id"]).with_context(|| format!("no member_id in {answer}"))?;
        Ok(Self { member_id, leader: number(&answer["leader"]).unwrap_or(0) })
    }
}

impl Member {
    fn new(
        host: &Host,
        authority: &Authority,
        pki: &Pki,
        setup: &Setup,
        initial_cluster: String,
    ) -> Result<Self> {
        let addresses = addresses_of(host);
        Ok(Self {
            host: host.clone(),
            identity: authority.server(host.name(), &addresses, setup.usage)?,
            pki: pki.clone(),
            setup: setup.clone(),
            initial_cluster,
            joins: false,
            data_dir: host.lab_dir().join("data").join(host.name()),
            id: 0,
            process: None,
        })
    }

    /// Its name, which is its host's.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its id in the cluster.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Runs from the next start on another program.
    pub fn use_program(&mut self, program: &Path) {
        self.setup.program = program.to_path_buf();
    }

    /// Where clients reach it directly.
    pub fn client_address(&self) -> SocketAddr {
        (self.host.address(), CLIENT_PORT).into()
    }

    /// The same as a URL, for `etcdctl`.
    pub fn client_url(&self) -> String {
        format!("https://{}", self.client_address())
    }

    /// The same over IPv6.
    pub fn client_address_v6(&self) -> SocketAddr {
        (self.host.address_v6(), CLIENT_PORT).into()
    }

    /// Whether its process was started and not stopped (it may be frozen).
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Its process, while it was not stopped.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Starts its process, on the data it had.
    ///
    /// # Errors
    ///
    /// If it runs already, or cannot be started.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "{} runs already", self.name());
        self.process = Some(self.host.spawn("etcd", self.command())?);
        Ok(())
    }

    /// Kills its process as `kill -9` does.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().with_context(|| format!("{} does not run", self.host.name()))?.kill()
    }

    /// Stops its process as systemd does, and waits for its end.
    ///
    /// # Errors
    ///
    /// If it does not run, or not end within 10 s.
    pub fn stop(&mut self) -> Result<()> {
        let mut process =
            self.process.take().with_context(|| format!("{} does not run", self.host.name()))?;
        process.signal(Signal::SIGTERM)?;
        process.wait(Duration::from_secs(10)).map(drop)
    }

    /// Freezes its process: TCP goes on, etcd does not.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn freeze(&self) -> Result<()> {
        self.running()?.freeze()
    }

    /// Lets a frozen process go on.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn thaw(&self) -> Result<()> {
        self.running()?.signal(Signal::SIGCONT)
    }

    /// Waits until `/health` says so, which takes a leader and a quorum.
    ///
    /// # Errors
    ///
    /// If it does not within 30 s, or the process ends.
    pub fn wait_healthy(&mut self) -> Result<()> {
        let what = format!("health of {}", self.name());
        eventually(HEALTHY_LIMIT, &what, || {
            let response = self.connect()?.request("GET", "/health", "")?;
            ensure!(response.status == 200, "status {}", response.status);
            Ok(())
        })
        .or_else(|error| {
            if let Some(process) = &mut self.process {
                process.check_alive()?;
            }
            Err(error)
        })
    }

    /// Asks it directly.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub fn status(&self) -> Result<Status> {
        if self.setup.usage == ServerUse::WithGateway {
            return Status::over(&mut self.connect()?);
        }
        let mut command = self.host.command("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints=https://{}", self.client_address())).args([
            "--command-timeout=2s",
            "endpoint",
            "status",
            "-w",
            "json",
        ]);
        for (flag, path) in
            [("--cacert", &self.pki.ca), ("--cert", &self.pki.client.cert), ("--key", &self.pki.client.key)]
        {
            command.arg(flag).arg(path);
        }
        let answer: Value = serde_json::from_str(&netns::output(&mut command)?)?;
        let status = &answer[0]["Status"];
        let member_id = status["header"]["member_id"].as_u64();
        let member_id = member_id.with_context(|| format!("no member_id in {answer}"))?;
        Ok(Status { member_id, leader: status["leader"].as_u64().unwrap_or(0) })
    }

    fn connect(&self) -> Result<Connection> {
        Connection::open(&self.host, self.client_address(), &self.pki, REQUEST_LIMIT)
    }

    fn running(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("{} does not run", self.name()))
    }

    fn command(&self) -> Command {
        let address = self.host.address();
        let client = format!("https://{address}:{CLIENT_PORT}");
        let listen = format!("{client},https://{}", self.client_address_v6());
        let peer = format!("http://{address}:{PEER_PORT}");
        let mut command = self.host.command(&self.setup.program);
        // Whatever the caller's environment says of etcd is not meant for this one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
            command.env_remove(name);
        }
        command
            .args(["--name", self.name(), "--initial-cluster", &self.initial_cluster])
            .args(["--initial-advertise-peer-urls", &peer, "--listen-peer-urls", &peer])
            .args(["--advertise-client-urls", &client, "--listen-client-urls", &listen])
            .arg(format!("--listen-metrics-urls=http://{address}:{METRICS_PORT}"))
            .args(["--heartbeat-interval", HEARTBEAT_MS, "--election-timeout", ELECTION_MS])
            .args(["--logger", "zap", "--client-cert-auth"])
            .args(&self.setup.args);
        if self.joins {
            command.args(["--initial-cluster-state", "existing"]);
        }
        for (flag, path) in [
            ("--data-dir", &self.data_dir),
            ("--trusted-ca-file", &self.pki.ca),
            ("--cert-file", &self.identity.cert),
            ("--key-file", &self.identity.key),
        ] {
            command.arg(flag).arg(path);
        }
        command
    }
}
