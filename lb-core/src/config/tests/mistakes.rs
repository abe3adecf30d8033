//! The exact message of each mistake: a good config, in which some lines are replaced.

use super::super::parse;

/// A config without mistakes, errors or warnings.
const GOOD: &str = r#"interface = "eth0"
max_flows = 131072

[[service]]
name = "etcd"
vip = "10.0.1.100"
port = 2379
algorithm = "maglev"
on_backend_down = "keep"
drain_timeout = "30s"

  [service.health]
  kind = "http"
  interval = "1s"

  [[service.backend]]
  name = "etcd-1"
  address = "10.0.1.10:2379"
  weight = 1

  [[service.backend]]
  name = "etcd-2"
  address = "10.0.1.11:2379"

[api]
"#;

fn messages(text: &str) -> Vec<String> {
    match parse(text, "F") {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(|e| format!("{}:{}: {}", e.line, e.column, e.message)).collect(),
    }
}

/// [`GOOD`] with whole lines replaced.
fn edited(lines: &str, by: &str) -> String {
    let framed = format!("\n{GOOD}");
    assert!(framed.contains(&format!("\n{lines}")), "the good config has no line {lines}");
    framed.replacen(&format!("\n{lines}"), &format!("\n{by}"), 1)[1..].to_owned()
}

#[test]
fn mistakes_have_their_messages() {
    let mut count = 0;
    for case in include_str!("mistakes.txt").split("\n\n").filter(|case| case.starts_with("- ")) {
        let marked = |mark: &str| -> String {
            case.lines().filter_map(|l| l.strip_prefix(mark)).map(|l| format!("{l}\n")).collect()
        };
        let expected: Vec<_> =
            case.lines().filter(|l| !l.starts_with("- ") && !l.starts_with("+ ")).collect();
        assert_eq!(messages(&edited(&marked("- "), &marked("+ "))), expected, "\n{case}");
        count += 1;
    }
    assert!(count > 100, "only {count} cases were found");
}

#[test]
fn no_mistake() {
    assert_eq!(parse(GOOD, "F").unwrap().1, []);
}

#[test]
fn ipv6_needs_ipv6_backends() {
    let vip = GOOD.replace("10.0.1.100", "fd00::100");
    let v6 = vip.replace("10.0.1.10:", "[fd00::10]:").replace("10.0.1.11:", "[fd00::11]:");
    assert_eq!(parse(&v6, "F").unwrap().1, []);
    let errors = parse(&vip, "F").unwrap_err();
    assert!(errors.iter().all(|error| error.message.contains("is not of the VIP's family")), "{errors}");
}

#[test]
fn the_pair_with_ipv6() {
    let v6 = |vrrp: &str| {
        let text = GOOD.replace("10.0.1.100", "fd00::100").replace("10.0.1.10:", "[fd00::10]:") + vrrp;
        let errors = parse(&text, "F").unwrap_err();
        errors.iter().map(|e| format!("{}: {}", e.line, e.message)).find(|e| !e.contains("family"))
    };
    assert_eq!(
        v6("[vrrp]\n").as_deref(),
        Some("26: `link_local` is missing in [vrrp]; the IPv6 VIP \"fd00::100\" needs it")
    );
    assert_eq!(
        v6("[vrrp]\nversion = 2\n").as_deref(),
        Some("27: `version` 2 knows no IPv6 VIP: \"fd00::100\"; write 3")
    );
    assert_eq!(v6("[vrrp]\nlink_local = \"fe80::1\"\n"), None);
}

#[test]
fn vrrp_needs_an_interface_of_several() {
    let by = "interface = [\"eth0\", \"eth1\"]\n[vrrp]\n[x]\n";
    let found = messages(&edited("interface = \"eth0\"\n", by));
    assert!(
        found.contains(
            &"2:1: `interface` is needed with several interfaces: [vrrp]; say where to advertise".into()
        ),
        "{found:?}"
    );
}

#[test]
fn too_many() {
    let backends: String = (0..1023)
        .map(|i| format!("[[service.backend]]\naddress = \"10.1.{}.{}:2379\"\n", i / 250, 1 + i % 250))
        .collect();
    let services: String = (0..64)
        .map(|i| {
            format!("[[service]]\nname = \"s{i}\"\nvip = \"10.2.0.{}\"\nport = 2379\nbackend = []\n", i + 1)
        })
        .collect();
    let allow = format!("allow = [{}]\ndrain_timeout = ", "\"10.0.2.0/24\",".repeat(16_385));
    let cases = [
        ("[api]\n", backends, "1025 backends are too many; at most 1024 are possible altogether"),
        ("[api]\n", services, "65 services are too many; at most 64 are possible altogether"),
        (
            "drain_timeout = ",
            allow,
            "16385 `allow` prefixes are too many; at most 16384 are possible altogether",
        ),
    ];
    for (replace, by, expected) in cases {
        assert_eq!(messages(&GOOD.replacen(replace, &by, 1))[0], format!("1:1: {expected}"));
    }
}

#[test]
fn no_service() {
    let errors = parse("interface = \"eth0\"\n", "F").unwrap_err().to_string();
    assert!(errors.starts_with(
        "F:1:1: no service; add a [[service]] with `name`, `vip`, `port` and a [[service.backend]]"
    ));
}

/// All mistakes of a kind at once, in the file's order, each with its line.
#[test]
fn errors_show_the_line() {
    let text = "interface = \"eth0\"\r\n\tmax_flows = 5\r\n\n\
        [[service]]\nname = \"größe\"  # x\nport = 1\nnme = 2\nvip = 3";
    let errors = parse(text, "/etc/etcd-lb/config.toml").unwrap_err();
    let expected = "\
/etc/etcd-lb/config.toml:2:14: `max_flows` is out of range: 5; write a value from 1024 to 4194304
  |
2 | \tmax_flows = 5
  | \t            ^
/etc/etcd-lb/config.toml:7:1: unknown key `nme` in [[service]]; did you mean `name`?
  |
7 | nme = 2
  | ^^^
/etc/etcd-lb/config.toml:8:7: `vip` is not an IP address: 3; write an address such as \"10.0.1.100\"
  |
8 | vip = 3
  |       ^";
    assert_eq!(errors.to_string(), expected);
}
