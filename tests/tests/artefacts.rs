//! What is deployed, by the types that will read it: Kubernetes manifests by the API's own, configs by the parser, and what
//! stands in several places by comparison. What needs other programs is in `long_artefacts.rs`.
#![allow(clippy::unwrap_used, reason = "also in the helpers a failure is the test's")]

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Container, Namespace, Pod, PodSpec, Probe, ServiceAccount},
    rbac::v1::{Role, RoleBinding},
};
use lb_core::config::{self, Config};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

fn read(path: &str) -> String {
    let full = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path);
    fs::read_to_string(&full).unwrap_or_else(|error| panic!("{}: {error}", full.display()))
}

fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap()
}

/// The blocks of one language in a guide.
fn blocks(guide: &str, language: &str) -> Vec<String> {
    let start = format!("```{language}\n");
    let after = guide.split(&start).skip(1);
    after.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

fn good_config(text: &str, name: &str) -> Config {
    let (config, warnings) = config::parse(text, name).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(warnings.is_empty(), "{name}: {warnings:?}");
    config
}

/// Reads a document as a type of the API's. The types ignore what they do not know, so what comes back is compared.
fn known<T: DeserializeOwned + Serialize>(document: &Value) -> Result<T, String> {
    let typed: T = serde_json::from_value(document.clone()).map_err(|error| error.to_string())?;
    let back = serde_json::to_value(&typed).unwrap();
    let mut dropped = Vec::new();
    differences("", document, &back, &mut dropped);
    if dropped.is_empty() { Ok(typed) } else { Err(dropped.join(", ")) }
}

/// Paths at which two values are not the same.
fn differences(path: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            for key in one.keys().chain(other.keys()).collect::<BTreeSet<_>>() {
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                differences(&format!("{path}/{key}"), &of(one), &of(other), found);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (one, other)) in one.iter().zip(other).enumerate() {
                differences(&format!("{path}/{index}"), one, other, found);
            }
        }
        _ if one != other => found.push(path.to_owned()),
        _ => {}
    }
}

fn known_by_its_kind(document: &Value) -> Result<(), String> {
    match (document["apiVersion"].as_str(), document["kind"].as_str()) {
        (Some("v1"), Some("Pod")) => known::<Pod>(document).map(drop),
        (Some("v1"), Some("Namespace")) => known::<Namespace>(document).map(drop),
        (Some("v1"), Some("ServiceAccount")) => known::<ServiceAccount>(document).map(drop),
        (Some("v1"), Some("ConfigMap")) => known::<ConfigMap>(document).map(drop),
        (Some("apps/v1"), Some("DaemonSet")) => known::<DaemonSet>(document).map(drop),
        (Some("rbac.authorization.k8s.io/v1"), Some("Role")) => known::<Role>(document).map(drop),
        (Some("rbac.authorization.k8s.io/v1"), Some("RoleBinding")) => {
            known::<RoleBinding>(document).map(drop)
        }
        other => Err(format!("no type for {other:?}")),
    }
}

fn static_pod() -> PodSpec {
    let [document] = &documents(&read("deploy/kubernetes/static-pod.yaml"))[..] else {
        panic!("one document")
    };
    known::<Pod>(document).unwrap().spec.unwrap()
}

fn of_kind<T: DeserializeOwned + Serialize>(kind: &str) -> T {
    let documents = documents(&read("deploy/kubernetes/daemonset.yaml"));
    known(documents.iter().find(|document| document["kind"] == kind).unwrap()).unwrap()
}

fn daemonset_pod() -> PodSpec {
    of_kind::<DaemonSet>("DaemonSet").spec.unwrap().template.spec.unwrap()
}

fn container(pod: &PodSpec) -> &Container {
    let [container] = &pod.containers[..] else { panic!("one container") };
    container
}

#[test]
fn kubernetes_knows_every_field() {
    for path in ["deploy/kubernetes/static-pod.yaml", "deploy/kubernetes/daemonset.yaml"] {
        for document in documents(&read(path)) {
            known_by_its_kind(&document).unwrap_or_else(|why| panic!("{path}, {}: {why}", document["kind"]));
        }
    }
    for block in blocks(&read("docs/kubernetes.md"), "yaml") {
        for document in documents(&block) {
            known_by_its_kind(&document).unwrap_or_else(|why| panic!("docs/kubernetes.md: {why} in {block}"));
        }
    }
}

#[test]
fn what_the_manifests_refer_to_is_there() {
    for pod in [static_pod(), daemonset_pod()] {
        let volumes: BTreeSet<_> = pod.volumes.iter().flatten().map(|volume| volume.name.clone()).collect();
        let mounts = container(&pod).volume_mounts.iter().flatten();
        assert_eq!(mounts.map(|mount| mount.name.clone()).collect::<BTreeSet<_>>(), volumes);
        let bpffs =
            container(&pod).volume_mounts.iter().flatten().find(|mount| mount.name == "bpffs").unwrap();
        assert_eq!((&*bpffs.mount_path, bpffs.read_only), ("/sys/fs/bpf", None));
        // A container that is not privileged may have this or none.
        assert_eq!(bpffs.mount_propagation.as_deref(), Some("HostToContainer"));
    }
    let spec = of_kind::<DaemonSet>("DaemonSet").spec.unwrap();
    assert_eq!(spec.selector.match_labels, spec.template.metadata.unwrap().labels);
    let pod = daemonset_pod();
    let config_map = pod.volumes.iter().flatten().find_map(|volume| volume.config_map.clone()).unwrap();
    assert_eq!(Some(config_map.name), of_kind::<ConfigMap>("ConfigMap").metadata.name);
    let secret = pod.volumes.iter().flatten().find_map(|volume| volume.secret.clone()).unwrap();
    assert_eq!(secret.default_mode, Some(0o400), "keys that others can read are refused");
    assert_eq!(pod.service_account_name, of_kind::<ServiceAccount>("ServiceAccount").metadata.name);
}

#[test]
fn an_unknown_field_is_noticed() {
    let text = read("deploy/kubernetes/static-pod.yaml");
    for (right, wrong, place) in [
        ("readOnlyRootFilesystem", "readOnlyRootFileSystem", "securityContext/readOnlyRootFileSystem"),
        ("mountPropagation", "mountPropogation", "volumeMounts/0/mountPropogation"),
        ("terminationGracePeriodSeconds: 10", "terminationGracePeriod: 10", "spec/terminationGracePeriod"),
    ] {
        let why = known_by_its_kind(&documents(&text.replace(right, wrong))[0]).unwrap_err();
        assert!(why.contains(place), "{why}");
    }
}

#[test]
fn the_nodes_of_the_daemonset_are_a_pair() {
    let files = of_kind::<ConfigMap>("ConfigMap").data.unwrap();
    let nodes: Vec<Config> = files.iter().map(|(name, text)| good_config(text, name)).collect();
    let [one, other] = &nodes[..] else { panic!("two nodes") };
    assert_eq!(one.services, other.services);
    let sync = |node: &Config| node.sync.clone().unwrap();
    assert_eq!((sync(one).listen, sync(one).peers), (sync(other).peers[0], vec![sync(other).listen]));
    assert_ne!(one.vrrp.as_ref().unwrap().priority, other.vrrp.as_ref().unwrap().priority);

    // Each node's file has the node's name, and every file that a config names is mounted.
    let pod = daemonset_pod();
    let command = container(&pod).command.clone().unwrap();
    assert_eq!(command[1..], ["run", "--config", "/etc/etcd-lb/$(NODE_NAME).toml"]);
    let mounts = container(&pod).volume_mounts.clone().unwrap();
    let key_files = nodes.iter().map(|node| sync(node).key_file);
    let health = nodes.iter().flat_map(|node| &node.services).filter_map(|s| s.health.probe.tls());
    for file in key_files.chain(health.map(|tls| tls.ca_file.clone())) {
        assert!(mounts.iter().any(|mount| file.starts_with(&mount.mount_path)), "{}", file.display());
    }
}

#[test]
fn the_static_pod_sees_what_the_guide_configures() {
    let guide = read("docs/node.md");
    let config = good_config(&blocks(&guide, "toml")[0], "docs/node.md");
    let pod = static_pod();
    let mounts = container(&pod).volume_mounts.clone().unwrap();
    let tls = config.services[0].health.probe.tls().unwrap();
    let client = tls.client.clone().unwrap();
    for file in [&tls.ca_file, &client.cert_file, &client.key_file, &config.sync.unwrap().key_file] {
        assert!(mounts.iter().any(|mount| file.starts_with(&mount.mount_path)), "{}", file.display());
    }
}

#[test]
fn probes_ask_where_the_agent_listens() {
    let files = of_kind::<ConfigMap>("ConfigMap").data.unwrap();
    let listens = files.iter().map(|(name, text)| good_config(text, name).api.http_listen.unwrap());
    let listens: BTreeSet<SocketAddr> = listens.collect();
    for pod in [static_pod(), daemonset_pod()] {
        let container = container(&pod);
        let asks = |probe: &Option<Probe>| {
            let get = probe.clone().unwrap().http_get.unwrap();
            let k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(port) = get.port else {
                panic!("a number")
            };
            let address = format!("{}:{port}", get.host.unwrap());
            assert!(listens.contains(&address.parse().unwrap()), "{address}");
            get.path.unwrap()
        };
        assert_eq!(asks(&container.startup_probe), "/healthz");
        assert_eq!(asks(&container.liveness_probe), "/healthz");
        assert_eq!(asks(&container.readiness_probe), "/readyz");
        // The promise is 2 s.
        let grace = Duration::from_secs(pod.termination_grace_period_seconds.unwrap().try_into().unwrap());
        assert!(grace > Duration::from_secs(2) && grace < Duration::from_secs(30));
    }
}

/// Without `CAP_`, in alphabetical order.
fn capabilities<'a>(words: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    words.into_iter().map(|word| word.trim_start_matches("CAP_").to_owned()).collect()
}

#[test]
fn a_container_has_the_capabilities_of_the_unit() {
    let unit = read("deploy/systemd/etcd-lb.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let wanted = capabilities(line.split_whitespace());
    assert_eq!(wanted.len(), 6);

    for pod in [static_pod(), daemonset_pod()] {
        assert_eq!(pod.host_network, Some(true));
        let context = container(&pod).security_context.clone().unwrap();
        assert_eq!(context.privileged, None);
        let given = context.capabilities.unwrap();
        assert_eq!(capabilities(given.add.as_ref().unwrap().iter().map(String::as_str)), wanted);
        assert_eq!(given.drop.unwrap(), ["ALL"]);
    }
    let guide = read("docs/container.md");
    let given = guide.split("--cap-add").skip(1).map(|rest| rest.split_whitespace().next().unwrap());
    assert_eq!(capabilities(given), wanted, "docs/container.md");
    let containerfile = read("deploy/container/Containerfile");
    for capability in &wanted {
        assert!(containerfile.contains(capability), "{capability} in Containerfile");
    }
}

#[test]
fn routers_and_nodes_announce_the_vips_of_the_config() {
    let config = good_config(&read("deploy/bird/etcd-lb.toml"), "deploy/bird/etcd-lb.toml");
    let mut vips: Vec<IpAddr> = config.services.iter().map(|service| service.vip).collect();
    vips.sort();
    for path in ["deploy/bird/node.conf", "deploy/bird/router.conf"] {
        let text = read(path);
        let sets = text.lines().filter_map(|line| line.strip_prefix("define VIPS"));
        let inside = sets.map(|line| line.split(['[', ']']).nth(1).unwrap().trim());
        let mut announced: Vec<IpAddr> =
            inside.map(|prefix| prefix.split('/').next().unwrap().parse().unwrap()).collect();
        announced.sort();
        assert_eq!(announced, vips, "{path}");
    }
    // What is learned is what the agent leads there.
    let near = config.node_link.unwrap().near;
    assert_eq!(read("deploy/bird/node.conf").matches(&format!("ifname = \"{near}\"")).count(), 2);
}

#[test]
fn examples_in_the_guides_are_good_configs() {
    for path in ["docs/bgp.md", "docs/container.md", "docs/kubernetes.md"] {
        for block in blocks(&read(path), "toml") {
            good_config(&block, path);
        }
    }
}

#[test]
fn every_variable_of_the_role_has_a_default_and_a_type() {
    let of = |path: &str| documents(&read(&format!("deploy/ansible/roles/etcd_lb/{path}"))).remove(0);
    let defaults = of("defaults/main.yml");
    let specified = of("meta/argument_specs.yml");
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&defaults), names(&specified["argument_specs"]["main"]["options"]));
}
