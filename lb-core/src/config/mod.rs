//! The config file: from text to types that are valid, or to errors that point at the line.
//!
//! ```text
//! text ── toml ──▶ tables with places ── section, value ──▶ Config ── check ──▶ Config, warnings
//! ```
//!
//! [`schema`] holds every key and its default. Reading goes on after a mistake, so that one run shows all
//! mistakes of a kind: first those of syntax, then those of single values, then those of values that do not
//! fit together.

mod check;
mod diagnostic;
pub mod limits;
mod model;
mod pair;
mod place;
mod prefix;
pub mod schema;
mod section;
mod service;
mod value;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use toml::de::DeTable;

pub use diagnostic::{ConfigErrors, Diagnostic, Warning};
pub use model::*;
pub use prefix::Prefix;

use diagnostic::Sink as Remarks;
use place::Document;
use section::Section;
use value::{InterfaceName, OneOrMore};

/// Reads a config. `file_name` is only used in messages.
///
/// # Errors
///
/// Everything that is wrong with the text, as far as it can be seen in one go.
pub fn parse(text: &str, file_name: &str) -> Result<(Config, Vec<Warning>), ConfigErrors> {
    let remarks = Remarks::new(text, file_name);
    let (root, syntax_errors) = DeTable::parse_recoverable(text);
    for error in syntax_errors {
        let place = error.span().unwrap_or(0..0);
        remarks.error(&place, syntax_error(error.message(), &remarks.quote(&place)));
    }
    if remarks.has_errors() {
        return Err(remarks.finish_with_errors());
    }
    let config = read_top(&Section::new(&remarks, root.get_ref(), &schema::TOP, 0..0));
    let Some(config) = config.filter(|_| !remarks.has_errors()) else {
        return Err(remarks.finish_with_errors());
    };
    let document = Document(root.get_ref());
    check::check(&config, &document, &remarks);
    remarks.finish().map(|warnings| (config, warnings))
}

fn syntax_error(message: &str, quote: &str) -> String {
    match (message, quote) {
        ("duplicate key", key) => {
            format!("`{key}` is written twice; remove one, or write sections that repeat as [[section]]")
        }
        (message, "") => format!("not valid TOML: {message}"),
        (message, quote) => format!("not valid TOML: {message}: {quote}"),
    }
}

fn read_top(top: &Section<'_>) -> Option<Config> {
    let interfaces = read_interfaces(top);
    let node_link = read_node_link(top, interfaces.as_deref());
    let xdp_mode = top.get("xdp_mode");
    let max_flows = top.within("max_flows", &limits::MAX_FLOWS);
    let hash_seed_file = top.optional("hash_seed_file");
    let flow_log = top.optional("flow_log");
    let services: Vec<_> = top.sections("service", &schema::SERVICE).iter().map(service::read).collect();
    let vrrp = top.section("vrrp", &schema::VRRP).map(|s| pair::read_vrrp(&s, interfaces.as_deref()));
    let sync = top.section("sync", &schema::SYNC).map(|s| {
        if vrrp.is_none() {
            s.warn("listen", "`[sync]` without `[vrrp]` shares no flow: only a node that has the VIPs in a pair sends its own");
        }
        pair::read_sync(&s)
    });
    let api = top.section_or_defaults("api", &schema::API).and_then(|s| read_api(&s));
    Some(Config {
        interfaces: interfaces?,
        node_link: node_link?,
        xdp_mode: xdp_mode?,
        max_flows: u32::try_from(max_flows?).ok()?,
        hash_seed_file: hash_seed_file?,
        flow_log: flow_log?,
        services: services.into_iter().collect::<Option<_>>()?,
        vrrp: vrrp.map_or(Some(None), |v| v.map(Some))?,
        sync: sync.map_or(Some(None), |s| s.map(Some))?,
        api: api?,
    })
}

fn read_interfaces(top: &Section<'_>) -> Option<Vec<String>> {
    let OneOrMore(names) = top.get::<OneOrMore<InterfaceName>>("interface")?;
    let names: Vec<String> = names.into_iter().map(|InterfaceName(name)| name).collect();
    if names.iter().collect::<HashSet<_>>().len() < names.len() {
        top.error("interface", "names an interface twice", "remove one");
        return None;
    }
    Some(names)
}

fn read_node_link(top: &Section<'_>, interfaces: Option<&[String]>) -> Option<Option<NodeLink>> {
    let InterfaceName(name) = top.get::<InterfaceName>("node_interface")?;
    if name == NodeLink::NONE {
        return Some(None);
    }
    let link = NodeLink::new(name);
    if link.far.len() > limits::MAX_INTERFACE_NAME {
        let fix = format!("write at most {} characters", limits::MAX_INTERFACE_NAME - NodeLink::FAR.len());
        top.error("node_interface", "is too long, since the other end's name is longer", &fix);
        return None;
    }
    if interfaces.is_some_and(|names| names.contains(&link.near) || names.contains(&link.far)) {
        top.error("node_interface", "is among `interface`", "write a name that no interface has");
        return None;
    }
    Some(Some(link))
}

fn read_api(section: &Section<'_>) -> Option<Api> {
    let socket = section.get::<PathBuf>("socket").filter(|path| {
        let fits = path.as_os_str().len() <= limits::MAX_SOCKET_PATH;
        if !fits {
            let what =
                format!("is longer than {} bytes, the most a unix socket can have", limits::MAX_SOCKET_PATH);
            section.error("socket", &what, "write a shorter path");
        }
        fits
    });
    let http_listen = section.optional::<SocketAddr>("http_listen");
    let pin_dir = section.get("pin_dir");
    Some(Api { socket: socket?, http_listen: http_listen?, pin_dir: pin_dir? })
}

#[cfg(test)]
mod tests;
