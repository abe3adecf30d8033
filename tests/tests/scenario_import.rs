//! A config that was HAProxy's and keepalived's serves as it stands.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::{fs, net::TcpStream, process::Command};

use anyhow::ensure;
use etcd_lb_tests::{
    Balancer, CLIENT_PORT, Lab, Topology, VIP,
    balancer::binary,
    echo::EchoServer,
    eventually,
    pair::{LIMIT, exchange},
};

const RECIPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../lb-core/src/import/tests");

/// What `import` prints.
fn import(args: &[&str]) -> String {
    let output = Command::new(binary().unwrap()).arg("import").args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_usual_recipe_serves_as_it_is_imported() {
    let lab = Lab::start("import", &Topology::standard().without("lb2").without("client-2")).unwrap();
    let _servers =
        ["etcd-1", "etcd-2", "etcd-3"].map(|name| EchoServer::start(lab.host(name), CLIENT_PORT).unwrap());
    let vip = VIP.to_string();
    let proxy = import(&["haproxy", &format!("{RECIPES}/haproxy.cfg"), "--vip", &vip, "--interface", "eth0"]);
    let vrrp = import(&["keepalived", &format!("{RECIPES}/keepalived.conf")]);
    let nginx = import(&["nginx", &format!("{RECIPES}/nginx.conf"), "--vip", &vip]);
    let notes =
        [&proxy, &vrrp, &nginx].map(|text| text.lines().filter(|line| line.starts_with("# line ")).count());
    println!("notes on what has no counterpart: {notes:?}\n{proxy}{vrrp}");
    for (what, text) in [("haproxy and keepalived", proxy + &vrrp), ("nginx", nginx)] {
        let mut balancer = Balancer::start(lab.host("lb1"), &text).unwrap();
        let check = balancer.host().output(
            binary().unwrap().to_str().unwrap(),
            &["check-config", balancer.config().to_str().unwrap()],
        );
        println!("{what}: {}", check.unwrap().trim());
        let mut stream = eventually(LIMIT, "a connection", || {
            let status = balancer.status()?;
            ensure!(status["role"] != "backup", "it is {}", status["role"]);
            let to = (VIP, CLIENT_PORT).into();
            Ok(lab
                .host("client-1")
                .run(|| TcpStream::connect_timeout(&to, std::time::Duration::from_millis(300)))?)
        })
        .unwrap();
        exchange(&mut stream);
        balancer.stop().unwrap();
        balancer.cli(&["detach", "--config", balancer.config().to_str().unwrap()]).unwrap();
        fs::remove_file(balancer.config()).unwrap();
    }
}
