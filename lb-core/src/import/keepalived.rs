//! `keepalived.conf` (keepalived.conf(5)): the first `vrrp_instance`, and `virtual_server`s.

use std::net::{IpAddr, SocketAddr};

use super::{Backend, Draft, Service, Vrrp};

pub(super) fn read(text: &str) -> Draft {
    let mut draft = Draft::default();
    // Names of the blocks that are open.
    let mut open: Vec<String> = Vec::new();
    // Its default is 2 (keepalived.conf(5), vrrp_version).
    let (mut version, mut instances, mut vrrp) = (2, 0, Vrrp::default());
    for (number, raw) in (1..).zip(text.lines()) {
        let code = raw.split(['#', '!']).next().unwrap_or_default();
        let spaced = code.replace('{', " { ").replace('}', " } ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        let closes = words.contains(&"}");
        let opens = words.contains(&"{");
        let bare: Vec<&str> = words.iter().copied().filter(|word| !["{", "}"].contains(word)).collect();
        if opens {
            let name = bare.first().copied().unwrap_or_default();
            if name == "vrrp_instance" {
                instances += 1;
                if instances > 1 {
                    draft.note(
                        number,
                        code,
                        "one instance is imported, the first: a pair has one VRID for all its VIPs",
                    );
                }
            }
            if name == "virtual_server" {
                virtual_server(&mut draft, number, code, &bare);
            }
            if name == "real_server" {
                real_server(&mut draft, number, code, &bare);
            }
            if name == "vrrp_script" || name == "track_script" {
                draft.note(
                    number,
                    code,
                    "is not needed: a node whose agent or data plane fails gives the VIPs up; for members see \
                     track_healthy_backends",
                );
            } else if ![
                "vrrp_instance",
                "virtual_server",
                "real_server",
                "global_defs",
                "authentication",
                "virtual_ipaddress",
                "unicast_peer",
                "TCP_CHECK",
            ]
            .contains(&name)
            {
                draft.unknown(number, code);
            }
            open.push(name.to_owned());
        } else if !bare.is_empty() {
            let inner = open.last().map_or("", String::as_str);
            let first_instance = instances <= 1;
            let known = match inner {
                "global_defs" => global(&bare, &mut version),
                "vrrp_instance" if first_instance => instance(&mut vrrp, &bare),
                "authentication" if first_instance => authentication(&mut vrrp, &bare),
                "virtual_ipaddress" if first_instance => {
                    let address: Option<IpAddr> =
                        bare[0].split('/').next().and_then(|text| text.parse().ok());
                    vrrp.addresses.extend(address);
                    address.is_some()
                }
                "unicast_peer" if first_instance => {
                    vrrp.unicast_peers.extend(bare[0].parse::<IpAddr>());
                    true
                }
                "virtual_server" => of_virtual_server(&mut draft, &bare),
                "real_server" => of_real_server(&mut draft, &bare),
                "TCP_CHECK" => true,
                // Of the others it has been said above.
                _ => open.iter().any(|name| !["vrrp_instance"].contains(&name.as_str())) || !first_instance,
            };
            if !known {
                draft.unknown(number, code);
            }
        }
        if closes {
            open.pop();
        }
    }
    if instances > 0 {
        vrrp.version = Some(version);
        draft.interface.clone_from(&vrrp.interface);
        draft.vrrp = Some(vrrp);
    }
    draft
}

fn global(words: &[&str], version: &mut u64) -> bool {
    match words {
        ["vrrp_version", number] => {
            *version = number.parse().unwrap_or(2);
            true
        }
        ["router_id" | "script_user" | "enable_script_security", ..] => true,
        _ => false,
    }
}

fn instance(vrrp: &mut Vrrp, words: &[&str]) -> bool {
    match words {
        ["interface", name] => vrrp.interface = Some((*name).to_owned()),
        ["virtual_router_id", number] => vrrp.router_id = number.parse().ok(),
        ["priority", number] => vrrp.priority = number.parse().ok(),
        ["advert_int", seconds] => {
            vrrp.advert_interval =
                seconds.parse::<f64>().ok().map(|seconds| (seconds * 1000.0).round() as u64);
        }
        ["nopreempt"] => vrrp.nopreempt = true,
        ["unicast_src_ip" | "mcast_src_ip", address] => vrrp.source = address.parse().ok(),
        // Who begins as what is decided by priority here.
        ["state", _] => {}
        _ => return false,
    }
    true
}

fn authentication(vrrp: &mut Vrrp, words: &[&str]) -> bool {
    match words {
        ["auth_type", "PASS"] => true,
        ["auth_pass", pass] => {
            // keepalived uses the first eight.
            vrrp.auth_pass = Some(pass.chars().take(8).collect());
            true
        }
        _ => false,
    }
}

fn virtual_server(draft: &mut Draft, number: usize, code: &str, words: &[&str]) {
    let place =
        (words.get(1).and_then(|text| text.parse().ok()), words.get(2).and_then(|text| text.parse().ok()));
    match place {
        (Some(vip), Some(port)) => draft.services.push(Service {
            name: format!("{vip}-{port}").replace(':', "-"),
            vip: Some(vip),
            port,
            ..Service::default()
        }),
        _ => draft.note(number, code, "is not an address and port"),
    }
}

fn real_server(draft: &mut Draft, number: usize, code: &str, words: &[&str]) {
    let address: Option<IpAddr> = words.get(1).and_then(|text| text.parse().ok());
    let port: Option<u16> = words.get(2).and_then(|text| text.parse().ok());
    match (draft.services.last_mut(), address.zip(port)) {
        (Some(service), Some(place)) => {
            service.backends.push(Backend { address: Some(SocketAddr::from(place)), ..Backend::default() });
        }
        _ => draft.note(number, code, "is not an address and port of a virtual_server"),
    }
}

fn of_virtual_server(draft: &mut Draft, words: &[&str]) -> bool {
    let Some(service) = draft.services.last_mut() else { return false };
    match words {
        ["lb_algo" | "lvs_sched", "rr" | "wrr"] => service.algorithm = Some("round-robin"),
        ["lb_algo" | "lvs_sched", "lc" | "wlc"] => service.algorithm = Some("least-conn"),
        ["lb_algo" | "lvs_sched", "sh"] => service.by_client = true,
        ["lb_algo" | "lvs_sched", "mh"] => service.algorithm = Some("maglev"),
        ["protocol", "TCP"] | ["lb_kind" | "lvs_method", "NAT"] => {}
        ["delay_loop", seconds] => {
            service.health.interval = super::milliseconds(seconds, 1000).map(super::in_range);
        }
        _ => return false,
    }
    true
}

fn of_real_server(draft: &mut Draft, words: &[&str]) -> bool {
    let backend = draft.services.last_mut().and_then(|service| service.backends.last_mut());
    match (backend, words) {
        (Some(backend), ["weight", number]) => {
            backend.weight = number.parse().ok().filter(|weight| *weight > 0);
            true
        }
        _ => false,
    }
}
