//! Every section and key of the config, with its default: the reader, the error messages and the
//! documentation all take them from here.

/// One section of the file.
#[derive(Debug)]
pub struct Schema {
    /// As the section is written, `[service.health]`; empty for the keys above all sections.
    pub title: &'static str,
    pub keys: &'static [KeyDoc],
}

/// One key of a section.
#[derive(Debug)]
pub struct KeyDoc {
    pub key: &'static str,
    pub need: Need,
    pub doc: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Required,
    /// Off when absent.
    Optional,
    /// What an unwritten key means, in TOML.
    Default(&'static str),
    /// Not a value but a section of its own.
    Section(&'static Schema),
}

impl PartialEq for Schema {
    fn eq(&self, other: &Self) -> bool {
        self.title == other.title
    }
}

impl Eq for Schema {}

impl Schema {
    pub fn key(&self, key: &str) -> Option<&'static KeyDoc> {
        self.keys.iter().find(|doc| doc.key == key)
    }
}

/// All sections, in the order of the file.
pub const SECTIONS: [&Schema; 8] = [&TOP, &SERVICE, &HEALTH, &BACKEND, &DISCOVERY, &VRRP, &SYNC, &API];

const fn required(key: &'static str, doc: &'static str) -> KeyDoc {
    KeyDoc { key, need: Need::Required, doc }
}

const fn optional(key: &'static str, doc: &'static str) -> KeyDoc {
    KeyDoc { key, need: Need::Optional, doc }
}

const fn default(key: &'static str, toml: &'static str, doc: &'static str) -> KeyDoc {
    KeyDoc { key, need: Need::Default(toml), doc }
}

const fn section(key: &'static str, schema: &'static Schema, doc: &'static str) -> KeyDoc {
    KeyDoc { key, need: Need::Section(schema), doc }
}

pub static TOP: Schema = Schema {
    title: "",
    keys: &[
        required("interface", "the interface clients and backends are reached by, or a list of them"),
        default(
            "node_interface",
            "\"etcdlb0\"",
            "the veth pair that the agent makes for clients and members on the node itself, or none",
        ),
        default("xdp_mode", "\"auto\"", "auto, native or generic; auto tries native first"),
        default("max_flows", "131072", "flows at once; a backend carries at most 64,512 per source address"),
        optional("hash_seed_file", "a secret, the same on both nodes, that seeds the choice of backends"),
        optional("flow_log", "a file that records which client used which NAT port toward which backend"),
        section("service", &SERVICE, "a VIP and port, with its backends and policies"),
        section("vrrp", &VRRP, "a second node takes over when this one fails"),
        section("sync", &SYNC, "flows are shared with the second node"),
        section("api", &API, "how operators and monitoring reach the agent"),
    ],
};

pub static SERVICE: Schema = Schema {
    title: "[[service]]",
    keys: &[
        required("name", "its name in commands, metrics and logs"),
        required("vip", "the address clients connect to"),
        required("port", "the port clients connect to"),
        default("mode", "\"nat\"", "nat, or dsr where backends hold the VIP and answer clients directly"),
        default("algorithm", "\"bounded\"", "bounded, maglev, least-conn or round-robin"),
        default(
            "affinity",
            "\"none\"",
            "none, or client-ip: all connections of an address go to one backend",
        ),
        optional("source_address", "the address backends see, where the VIP is not in their subnet"),
        optional("allow", "the prefixes that may connect; everyone if unwritten"),
        default("drain_timeout", "\"30s\"", "how long the flows of a drained backend may go on"),
        default("idle_timeout", "\"124m\"", "how long an established flow may be silent (RFC 5382, REQ-5)"),
        default("max_flows_per_client", "0", "flows one client address may have; 0 is no limit"),
        default(
            "on_backend_down",
            "\"reset\"",
            "reset a down backend's flows while another is healthy, or keep",
        ),
        default("fail_open", "true", "use backends that still accept connections when none is healthy"),
        default(
            "no_backend",
            "\"reset\"",
            "answer new connections by reset, or drop, where no backend is left",
        ),
        default(
            "prefer_local",
            "false",
            "a node's own clients use the node's own backend while it is healthy",
        ),
        section("health", &HEALTH, "how backends are checked"),
        section("backend", &BACKEND, "an address and port to balance to"),
        section("discovery", &DISCOVERY, "backends that are found beside or instead of those written"),
    ],
};

pub static HEALTH: Schema = Schema {
    title: "[service.health]",
    keys: &[
        default("kind", "\"etcd\"", "etcd, http, grpc or tcp"),
        default("interval", "\"1s\"", "from one probe's start to the next one's"),
        default("fast_interval", "\"200ms\"", "the same while going up or down; at most `interval`"),
        default("timeout", "\"1s\"", "what a whole probe may take"),
        default("rise", "2", "successes in a row that bring a backend up"),
        default("fall", "2", "failures in a row that take it down"),
        default("path", "\"/health?exclude=NOSPACE\"", "http: what is asked for"),
        default("expect_status", "200", "http: the status of a healthy answer"),
        optional("expect_body", "http: a text that a healthy answer contains"),
        optional("port", "the port to check, where it differs from the backend's"),
        optional("ca_file", "certificates to trust, PEM; turns TLS on"),
        optional("cert_file", "the client certificate, PEM"),
        optional("key_file", "the client certificate's key, PEM"),
        optional("server_name", "the name in the backend's certificate; unwritten, its address"),
        optional("max_raft_lag", "etcd: entries a member may be behind"),
    ],
};

pub static BACKEND: Schema = Schema {
    title: "[[service.backend]]",
    keys: &[
        optional("name", "its name in commands, metrics and logs; unwritten, its address"),
        required("address", "address and port, for etcd those of the member's client URL"),
        default("weight", "1", "its share of new connections relative to the others', 1 to 1000"),
        default("max_connections", "0", "flows at once, past which it is passed over; 0 is no limit"),
    ],
};

pub static DISCOVERY: Schema = Schema {
    title: "[service.discovery]",
    keys: &[
        default("kind", "\"etcd\"", "etcd, dns or kubernetes"),
        default("interval", "\"30s\"", "how often to look"),
        optional("domain", "dns: where the SRV records are"),
        optional("srv_name", "dns: the suffix in _etcd-client-ssl-NAME._tcp"),
        optional(
            "nameserver",
            "dns: address and port of the name server; unwritten, those of /etc/resolv.conf",
        ),
        optional("namespace", "kubernetes: the namespace of the service"),
        optional("service", "kubernetes: the service whose EndpointSlices are followed"),
        optional("kubeconfig", "kubernetes: how to reach the API; unwritten, as a pod does"),
    ],
};

pub static VRRP: Schema = Schema {
    title: "[vrrp]",
    keys: &[
        default("router_id", "51", "VRID, the same on both nodes, 1 to 255"),
        default("priority", "110", "the higher one is active, 1 to 254"),
        default("version", "3", "3, or 2 for old peers"),
        optional(
            "advert_interval",
            "between advertisements; unwritten, 100ms for version 3 and 1s for version 2",
        ),
        default("preempt", "true", "a node of higher priority takes over from an active one"),
        default("preempt_delay", "\"0s\"", "how long it waits before"),
        optional("unicast_peers", "the other nodes' addresses, where multicast does not reach them"),
        optional("source", "the address to advertise from; unwritten, the interface's first"),
        optional("interface", "where to advertise; needed with several interfaces"),
        optional("link_local", "needed with IPv6 VIPs: the link-local address that moves with them"),
        default(
            "checksum",
            "\"pseudo-header\"",
            "version 3 over IPv4: pseudo-header, or message for old peers",
        ),
        optional("auth_pass", "version 2: the peer's simple password, 1 to 8 characters"),
        default("track_healthy_backends", "0", "taken off the priority while no backend is healthy"),
        optional("notify", "a program run at each change of role, with the role as argument"),
    ],
};

pub static SYNC: Schema = Schema {
    title: "[sync]",
    keys: &[
        required("listen", "address and port for the other nodes"),
        required("peer", "address and port of the other node, or a list of them"),
        required("key_file", "a secret of at least 32 bytes, the same on all nodes"),
        default(
            "takeover_grace",
            "\"10s\"",
            "how long after a takeover unknown connections are adopted or left unanswered",
        ),
    ],
};

pub static API: Schema = Schema {
    title: "[api]",
    keys: &[
        default("socket", "\"/run/etcd-lb/api.sock\"", "the unix socket of the commands"),
        optional(
            "http_listen",
            "address and port of /metrics, /healthz, /readyz, /status.json and the status page",
        ),
        default("pin_dir", "\"/sys/fs/bpf/etcd-lb\"", "where maps, program and links are pinned"),
    ],
};
