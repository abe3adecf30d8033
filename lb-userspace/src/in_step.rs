//! Docs that must say what the code does. `cargo xtask tidy` runs these and all tests named so: `docs_in_step`.
//!
//! The schemas of all JSON that is printed are made from the types that are printed, and kept in `docs/schema`: a change of a
//! field is a change of a file that others rely on. `ETCD_LB_UPDATE=1 cargo test -p etcd-lb docs_in_step` writes them anew.

use std::{collections::BTreeSet, fs, path::Path};

use lb_common::counters::Counter;
use schemars::{Schema, schema_for};

use crate::{
    api::{
        command::{CheckReport, DrainAnswer, FlowList, RebalanceAnswer, ResetAnswer},
        events::Event,
        explain::ExplainAnswer,
        status::Status,
    },
    dataplane::Reason,
    doctor::Finding,
};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schema");
const GUIDE: &str = include_str!("../../docs/json.md");

fn all() -> [(&'static str, Schema); 9] {
    [
        ("status", schema_for!(Status)),
        ("flows", schema_for!(FlowList)),
        ("explain", schema_for!(ExplainAnswer)),
        ("events", schema_for!(Vec<Event>)),
        ("drain", schema_for!(DrainAnswer)),
        ("reset", schema_for!(ResetAnswer)),
        ("rebalance", schema_for!(RebalanceAnswer)),
        ("doctor", schema_for!(Vec<Finding>)),
        ("check-config", schema_for!(CheckReport)),
    ]
}

#[test]
fn docs_in_step_schemas() {
    let mut files = BTreeSet::new();
    for (name, schema) in all() {
        let path = Path::new(DIR).join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("ETCD_LB_UPDATE").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(written, text, "{}: see the head of in_step.rs", path.display());
        assert!(GUIDE.contains(&format!("(schema/{name}.json)")), "docs/json.md lacks {name}");
        files.insert(format!("{name}.json"));
    }
    let there: BTreeSet<_> = fs::read_dir(DIR)
        .unwrap()
        .map(|file| file.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(there, files);
}

#[test]
fn docs_in_step_fields_say_what_they_are() {
    fn look(name: &str, at: &serde_json::Value) {
        for (field, property) in at.get("properties").and_then(|p| p.as_object()).into_iter().flatten() {
            assert!(property.get("description").is_some(), "{name}: {field} has no description");
        }
        for (part, inner) in at.get("$defs").and_then(|defs| defs.as_object()).into_iter().flatten() {
            look(&format!("{name}/{part}"), inner);
        }
    }
    for (name, schema) in all() {
        look(name, schema.as_value());
    }
}

#[test]
fn docs_in_step_counters() {
    let docs = include_str!("../../docs/counters.md");
    // Which end reset a connection, or why the balancer did.
    let resets = ["backend", "client"].into_iter().chain(Reason::ALL.map(Reason::name));
    let names: Vec<&str> = Counter::ALL.iter().map(|counter| counter.name()).chain(resets).collect();
    for name in &names {
        assert!(docs.contains(&format!("`{name}`")), "docs/counters.md lacks `{name}`");
    }
    for name in docs.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()) {
        assert!(names.contains(&name), "docs/counters.md knows `{name}` alone");
    }
}
