//! A real etcd of one member on loopback, its data in a directory of its own.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use etcd_lb_load::{Endpoint, Plan, TlsFiles, run};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Time for etcd to answer; it takes about a second.
const HEALTHY_LIMIT: Duration = Duration::from_secs(30);

/// Tests measure times: one after the other, so that none measures another.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A member; dropping it kills it and removes its files.
pub struct Etcd {
    dir: PathBuf,
    tls: bool,
    client_port: u16,
    peer_port: u16,
    child: Child,
}

impl Etcd {
    /// One that speaks plain text.
    pub fn start() -> Self {
        Self::start_on(directory(), false)
    }

    /// One that speaks TLS, and wants client certificates.
    pub fn start_with_tls() -> Self {
        let dir = directory();
        certificates(&dir);
        Self::start_on(dir, true)
    }

    fn start_on(dir: PathBuf, tls: bool) -> Self {
        let (client_port, peer_port) = (free_port(), free_port());
        let child = spawn(&dir, tls, client_port, peer_port);
        let etcd = Self { dir, tls, client_port, peer_port, child };
        etcd.wait_healthy();
        etcd
    }

    /// A plan for it, with few keys, so that it begins at once.
    pub fn plan(&self) -> Plan {
        let mut plan = Plan::new(vec![self.endpoint()]);
        plan.keys = 50;
        plan.warmup = Duration::from_millis(200);
        plan.tls = self.tls.then(|| TlsFiles {
            ca: self.dir.join("ca.pem"),
            client: Some((self.dir.join("client.pem"), self.dir.join("client-key.pem"))),
            server_name: None,
        });
        plan
    }

    /// Its client URL.
    pub fn endpoint(&self) -> Endpoint {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port).parse().unwrap()
    }

    /// What `etcdctl` prints; not for TLS.
    pub fn etcdctl(&self, args: &[&str]) -> String {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_ENDPOINTS", self.endpoint().to_string())
            .args(args)
            .output()
            .expect("is etcdctl installed?");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until a run of another process has written its keys: one of them.
    pub fn key_of_a_run(&self) -> String {
        let start = Instant::now();
        loop {
            let key = self.etcdctl(&["get", "load/", "--prefix", "--keys-only", "--limit=1"]);
            if !key.trim().is_empty() {
                return key.trim().to_owned();
            }
            assert!(start.elapsed() < HEALTHY_LIMIT, "no run has begun");
        }
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Starts it again on the data it had; it takes a second to answer.
    pub fn restart(&mut self) {
        self.child = spawn(&self.dir, self.tls, self.client_port, self.peer_port);
    }

    fn wait_healthy(&self) {
        let mut look = self.plan();
        (look.keys, look.duration, look.warmup) = (1, Duration::from_millis(1), Duration::ZERO);
        let start = Instant::now();
        while let Err(error) = run(&look) {
            if start.elapsed() > HEALTHY_LIMIT {
                let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                panic!("etcd does not answer: {error:#}\n{log}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn spawn(dir: &Path, tls: bool, client_port: u16, peer_port: u16) -> Child {
    let scheme = if tls { "https" } else { "http" };
    let client = format!("{scheme}://127.0.0.1:{client_port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let mut command = Command::new("etcd");
    // Whatever the caller's environment says of etcd is not meant for this one.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
        command.env_remove(name);
    }
    command
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
    if tls {
        command.arg("--client-cert-auth");
        for (flag, file) in
            [("--trusted-ca-file", "ca.pem"), ("--cert-file", "server.pem"), ("--key-file", "server-key.pem")]
        {
            command.arg(flag).arg(dir.join(file));
        }
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("is etcd installed?")
}

fn directory() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("etcd-lb-load-{}-{number}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// A port that nobody has, and that the kernel gives nobody by itself: a client that looks for a server which is down could
/// get the server's own port, and connect to itself.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(7);
    loop {
        let number = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + (number % 20_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A CA, a server's certificate for 127.0.0.1, and a client's.
fn certificates(dir: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "test CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    fs::write(dir.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    for name in ["server", "client"] {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        // etcd's own gateway is a client with the server's certificate.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        fs::write(dir.join(format!("{name}.pem")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        fs::write(dir.join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
    }
}
