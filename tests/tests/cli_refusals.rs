//! What the command line says where it is used wrongly, or cannot do what it is asked, word by word.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::{fs, path::Path, process::Stdio};

use etcd_lb_tests::balancer::binary;

/// What a command line answers: its exit status, then stderr, then stdout.
fn answers(dir: &Path, lines: &[&[&str]]) -> String {
    let mut text = String::new();
    for args in lines {
        let output = std::process::Command::new(binary().unwrap())
            .args(*args)
            .current_dir(dir)
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said =
            [&output.stderr[..], &output.stdout[..]].map(|said| String::from_utf8_lossy(said).into_owned());
        text += &format!(
            "$ etcd-lb {}\n[{}]\n{}\n",
            args.join(" "),
            output.status.code().unwrap(),
            said.concat()
        );
    }
    // Where the test happens to run.
    text.replace(&dir.parent().unwrap().display().to_string(), "PARENT")
}

fn dir(name: &str) -> std::path::PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _was_there = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn usage() {
    let lines: &[&[&str]] = &[
        &["stauts"],
        &["status", "--jsno"],
        &["status", "extra"],
        &["flows", "--client", "etcd"],
        &["flows", "--nat-port", "70000"],
        &["explain"],
        &["explain", "10.0.2.7:"],
        &["drain"],
        &["reset"],
        &["reset", "--backend", "a", "--client", "10.0.2.7"],
        &["reset", "--client", "here"],
        &["hold", "--for", "0"],
        &["hold", "--for", "an hour"],
        &["top", "--interval", "0"],
        &["capture", "--client", "10.0.2.7:"],
        &["capture", "--snaplen", "9000"],
        &["capture", "--seconds", "-1"],
        &["capture", "--packets", "many"],
        &["import"],
        &["import", "varnish", "a.vcl"],
        &["completions", "powerfish"],
        &["detach", "--config", "a", "--pin-dir", "b"],
        &["run", "--log-level", "shout"],
    ];
    insta::assert_snapshot!(answers(&dir("usage"), lines));
}

#[test]
fn no_agent() {
    let lines: Vec<Vec<&str>> = [
        "status",
        "flows",
        "explain 10.0.2.7",
        "drain etcd-1",
        "undrain etcd-1",
        "reset --backend etcd-1",
        "rebalance",
        "reload",
        "failover",
        "hold",
        "events",
        "capture",
    ]
    .iter()
    .map(|line| line.split(' ').chain(["--socket", "none.sock"]).collect())
    .collect();
    let lines: Vec<&[&str]> = lines.iter().map(Vec::as_slice).collect();
    insta::assert_snapshot!(answers(&dir("no_agent"), &lines));
}

#[test]
fn files() {
    let dir = dir("files");
    fs::write(dir.join("bad.toml"), "interface = \"eth0\"\nport = 1\n").unwrap();
    fs::write(dir.join("empty.cfg"), "").unwrap();
    fs::write(dir.join("file"), "").unwrap();
    fs::write(dir.join("no.sock"), "").unwrap();
    let lines: &[&[&str]] = &[
        &["check-config", "none.toml"],
        &["check-config", "bad.toml"],
        &["check-config", "--json", "bad.toml"],
        &["check-config", "/"],
        &["run", "--config", "none.toml"],
        &["run", "--config", "bad.toml"],
        &["doctor", "none.toml"],
        &["doctor", "bad.toml"],
        &["import", "haproxy", "none.cfg"],
        &["import", "haproxy", "empty.cfg"],
        &["import", "keepalived", "empty.cfg"],
        &["import", "nginx", "empty.cfg"],
        &["detach", "--config", "none.toml"],
        &["detach", "--pin-dir", "."],
        &["man", "file"],
        &["status", "--socket", "no.sock"],
        &["top"],
        &["capture", "--write", "none/a.pcapng", "--socket", "none.sock"],
    ];
    insta::assert_snapshot!(answers(&dir, lines));
}
