//! HAProxy's config, as its manual advises for TCP.

use std::{fmt::Write as _, fs, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use etcd_lb_tests::{Host, Process, config::secret_file};

use crate::peers::Behind;

/// Starts it on an address of its host's, or of the host that it will be (`transparent`).
pub fn start(host: &Host, address: Ipv4Addr, behind: &Behind<'_>, closing: bool) -> Result<Process> {
    let run = host.lab_dir().join("run");
    let config = run.join(format!("{}-haproxy.cfg", host.name()));
    fs::write(&config, text(host, address, behind, closing)?)
        .with_context(|| format!("{}", config.display()))?;
    let mut command = host.command("haproxy");
    command.args(["-db", "-f"]).arg(&config);
    host.spawn("haproxy", command)
}

/// One thread (the machine's cores are for the client and the server too), splicing where it pays, no logs. Checks come as
/// often as ours.
fn text(host: &Host, address: Ipv4Addr, behind: &Behind<'_>, closing: bool) -> Result<String> {
    let mut text = String::from(
        "global\n  maxconn 4000\n  nbthread 1\n  tune.bufsize 16384\n  tune.maxaccept 100\ndefaults\n  mode tcp\n  option \
         splice-auto\n  option redispatch\n  option clitcpka\n  option srvtcpka\n  timeout connect 1s\n  timeout client 2h\n  \
         timeout server 2h\n  timeout check 1s\n",
    );
    let check = match behind.cluster {
        None => format!("port {} inter 1s fastinter 200ms", behind.checked),
        Some(cluster) => {
            let pki = &cluster.pki;
            let pem = host.lab_dir().join("run").join(format!("{}-client.pem", host.name()));
            if !pem.exists() {
                let both = [fs::read(&pki.client.cert)?, fs::read(&pki.client.key)?].concat();
                secret_file(&pem, &both)?;
            }
            text += "  option httpchk GET /health\n  http-check expect status 200\n";
            format!(
                "check-ssl verify required ca-file {} crt {} inter 500ms fastinter 100ms fall 2 rise 2",
                pki.ca.display(),
                pem.display()
            )
        }
    };
    let closing = if closing { " on-marked-down shutdown-sessions" } else { "" };
    for port in &behind.ports {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "listen port{port}\n  bind {address}:{port} transparent\n  balance leastconn\n  default-server check {check}{closing}\n"
        );
        for (number, member) in behind.members.iter().enumerate() {
            let _ = writeln!(text, "  server m{number} {member}:{port}");
        }
    }
    Ok(text)
}
