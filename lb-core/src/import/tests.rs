use super::*;
use crate::config::{self, Algorithm, HealthKind};

const HAPROXY: &str = include_str!("tests/haproxy.cfg");
const KEEPALIVED: &str = include_str!("tests/keepalived.conf");
const NGINX: &str = include_str!("tests/nginx.conf");

fn given(vip: Option<&str>) -> Given {
    Given { vip: vip.map(|vip| vip.parse().unwrap()), interface: None }
}

fn config(text: &str) -> config::Config {
    match config::parse(text, "imported") {
        Ok((config, _)) => config,
        Err(errors) => panic!("{errors}\n{text}"),
    }
}

#[test]
fn the_usual_pair_of_haproxy_and_keepalived() {
    let text = import(Kind::Haproxy, HAPROXY, &given(Some("10.0.1.100"))).unwrap()
        + &import(Kind::Keepalived, KEEPALIVED, &given(None)).unwrap();
    let config = config(&text);
    let service = &config.services[0];
    assert_eq!(
        (service.name.as_str(), service.port, service.algorithm),
        ("etcd", 2379, Algorithm::RoundRobin)
    );
    assert_eq!((service.health.probe.kind(), service.health.timing.fall), (HealthKind::Tcp, 3));
    assert_eq!(service.health.timing.interval.as_secs(), 2);
    assert_eq!(service.backends.len(), 3);
    let vrrp = config.vrrp.unwrap();
    assert_eq!((vrrp.router_id, vrrp.priority, vrrp.advert_interval.as_secs()), (51, 110, 1));
    assert_eq!(vrrp.auth_pass.as_deref(), Some("1111"));
    for words in [
        "`timeout client 5m`: has no counterpart",
        "`maxconn 20000`: has no counterpart",
        "vrrp_script",
        "track_script",
    ] {
        assert!(text.contains(words), "{words} is not in\n{text}");
    }
}

#[test]
fn haproxy_with_checks_over_tls() {
    let text = HAPROXY
        .replace("option tcp-check", "option httpchk GET /health\n    http-check expect status 200")
        .replace(
            "check inter 2s",
            "check check-ssl verify required ca-file /ca.crt crt /client.pem inter 500ms",
        );
    let text = import(Kind::Haproxy, &text, &given(Some("10.0.1.100"))).unwrap();
    let config = config(&text);
    assert_eq!(config.services[0].health.probe.kind(), HealthKind::Etcd);
    let tls = config.services[0].health.probe.tls().unwrap();
    assert_eq!(
        (tls.ca_file.to_str(), tls.client.as_ref().unwrap().key_file.to_str()),
        (Some("/ca.crt"), Some("/client.pem"))
    );
}

#[test]
fn haproxy_with_checks_of_the_metrics_port() {
    let text = HAPROXY
        .replace(
            "option tcp-check",
            "option httpchk\n    http-check send meth GET uri /health\n    http-check expect string true",
        )
        .replace("check inter 2s", "check port 2381 inter 2s");
    let text = import(Kind::Haproxy, &text, &given(Some("10.0.1.100"))).unwrap();
    for key in ["kind = \"http\"", "path = \"/health\"", "expect_body = \"true\"", "port = 2381"] {
        assert!(text.contains(key), "{key} is not in\n{text}");
    }
    assert!(!text.contains("http-check") && !text.contains("2381`"), "{text}");
    config(&text);
}

/// `verify none` is what most recipes have.
#[test]
fn haproxy_that_trusts_everyone() {
    let text = HAPROXY
        .replace("option tcp-check", "option httpchk GET /health")
        .replace("check inter 2s", "check check-ssl verify none inter 2s");
    let text = import(Kind::Haproxy, &text, &given(Some("10.0.1.100"))).unwrap();
    assert!(text.contains("# Without ca_file") && text.contains("`verify none`: "), "{text}");
    assert_eq!(config(&text).services[0].health.probe.kind(), HealthKind::Etcd);
}

#[test]
fn a_proxy_that_ends_tls() {
    let haproxy = HAPROXY
        .replace("bind *:2379", "bind *:2379 ssl crt /vip.pem")
        .replace("check inter", "ssl verify required ca-file /ca.crt crt /client.pem check inter");
    let nginx = NGINX.replace("listen 2379;", "listen 2379 ssl;\n        proxy_ssl on;");
    for (kind, text, lines) in [(Kind::Haproxy, haproxy, 4), (Kind::Nginx, nginx, 1)] {
        let text = import(kind, &text, &given(Some("10.0.1.100"))).unwrap();
        let said = text.lines().filter(|line| line.contains("`ssl` has no counterpart")).count();
        assert_eq!(said, lines, "{text}");
        config(&text);
    }
}

#[test]
fn checks_that_go_elsewhere_speak_tls_only_if_it_says_so() {
    let server = |options: &str| {
        let text = HAPROXY.replace("option tcp-check", "option httpchk GET /health");
        let text =
            text.replace("check inter", &format!("check ssl ca-file /ca.crt port 2381 {options} inter"));
        let text = import(Kind::Haproxy, &text, &given(Some("10.0.1.100"))).unwrap();
        config(&text);
        text
    };
    let (plain, by_tls) = (server(""), server("check-ssl"));
    assert!(plain.contains("kind = \"http\"") && !plain.contains("ca_file = "), "{plain}");
    assert!(by_tls.contains("kind = \"http\"") && by_tls.contains("ca_file = \"/ca.crt\""), "{by_tls}");
}

#[test]
fn nginx_as_a_stream_proxy() {
    let text = import(Kind::Nginx, NGINX, &given(Some("10.0.1.100"))).unwrap();
    let config = config(&text);
    let service = &config.services[0];
    assert_eq!(
        (service.algorithm, service.backends.len(), service.health.timing.fall),
        (Algorithm::LeastConn, 3, 3)
    );
    assert!(text.contains("fail_timeout") && text.contains("proxy_timeout"), "{text}");
}

#[test]
fn a_virtual_server_of_keepalived() {
    let text = KEEPALIVED.to_owned()
        + "virtual_server 10.0.1.100 2379 {\n  lb_algo wlc\n  lb_kind NAT\n  protocol TCP\n  delay_loop 6\n\
           real_server 10.0.1.11 2379 {\n    weight 2\n    TCP_CHECK {\n      connect_timeout 3\n    }\n  }\n}\n";
    let text = import(Kind::Keepalived, &text, &given(None)).unwrap();
    let config = config(&text);
    assert_eq!((config.interfaces, config.services[0].backends[0].weight), (vec!["eth0".to_owned()], 2));
    assert_eq!(config.services[0].algorithm, Algorithm::LeastConn);
}

#[test]
fn what_is_missing_is_asked_for() {
    let error = import(Kind::Haproxy, HAPROXY, &given(None)).unwrap_err();
    assert!(error.contains("--vip"), "{error}");
    let error = import(Kind::Nginx, "http { server { listen 80; } }", &given(None)).unwrap_err();
    assert!(error.contains("nothing to import"), "{error}");
}

#[test]
fn nothing_makes_it_fall_over() {
    for text in [HAPROXY, KEEPALIVED, NGINX] {
        for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
            for kind in [Kind::Haproxy, Kind::Keepalived, Kind::Nginx] {
                let _ = import(kind, &text[..end], &given(Some("10.0.1.100")));
            }
        }
    }
}
