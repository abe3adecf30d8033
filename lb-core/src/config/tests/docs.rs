//! Holds the operator's documentation to what the reader does.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::super::schema::{Need, SECTIONS, Schema, TOP};
use super::super::value::Show;
use super::super::{limits, parse};

const README: &str = include_str!("../../../../README.md");
const NODE: &str = include_str!("../../../../docs/node.md");
const CONFIGURATION: &str = include_str!("../../../../docs/configuration.md");

/// A row of a section's table.
#[derive(Debug)]
struct Row {
    key: String,
    default: String,
    values: String,
    effect: String,
}

/// The heading over a section's table.
fn heading(schema: &Schema) -> String {
    if schema.title.is_empty() {
        "## Above all sections".to_owned()
    } else {
        format!("## `{}`", schema.title)
    }
}

/// The rows under a heading, up to the next one. Their first cell is a key in backticks.
fn rows(heading: &str) -> Vec<Row> {
    let lines = CONFIGURATION.lines().skip_while(|line| *line != heading).skip(1);
    lines
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<_> =
                line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
            let [key, default, values, effect] = &cells[..] else {
                panic!("not four cells under {heading}: {line}")
            };
            Row {
                key: key.trim_matches('`').to_owned(),
                default: default.clone(),
                values: values.clone(),
                effect: effect.clone(),
            }
        })
        .collect()
}

/// The code blocks in TOML, each with the line its fence stands on.
fn examples(text: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        if line == "```toml" {
            let block = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```");
            blocks.push((number, block.map(|line| format!("{line}\n")).collect()));
        }
    }
    blocks
}

/// Both ways: a key that is missing in the table, and one that the schema lacks.
#[test]
fn docs_in_step_every_key_stands_in_the_table_of_its_section() {
    for schema in SECTIONS {
        let documented: Vec<_> = rows(&heading(schema)).into_iter().map(|row| row.key).collect();
        let known: Vec<_> = schema.keys.iter().map(|doc| doc.key).collect();
        assert_eq!(documented, known, "{}", heading(schema));
    }
    let sections: BTreeSet<_> = CONFIGURATION.lines().filter(|line| line.starts_with("## `")).collect();
    let known: Vec<_> = SECTIONS.into_iter().filter(|schema| **schema != TOP).map(heading).collect();
    assert_eq!(sections, known.iter().map(String::as_str).collect(), "sections");
    let all = CONFIGURATION.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(all, SECTIONS.iter().map(|schema| schema.keys.len()).sum::<usize>(), "rows outside a section");
}

#[test]
fn docs_in_step_defaults_are_the_schemas() {
    for schema in SECTIONS {
        for (row, doc) in rows(&heading(schema)).iter().zip(schema.keys) {
            let place = format!("{} in {}", row.key, heading(schema));
            match doc.need {
                Need::Default(toml) => assert_eq!(row.default, format!("`{toml}`"), "{place}"),
                Need::Required => assert_eq!(row.default, "required", "{place}"),
                Need::Section(_) => assert_eq!(row.default, "section", "{place}"),
                // In words what its absence means, which is no value that could be written.
                Need::Optional => {
                    assert!(!row.default.contains('`') && !row.default.is_empty(), "{place}");
                    assert!(!["required", "section"].contains(&row.default.as_str()), "{place}");
                }
            }
            assert!(!row.effect.is_empty(), "{place}");
        }
    }
}

#[test]
fn docs_in_step_ranges_are_the_readers() {
    fn range<T: Show>(range: &RangeInclusive<T>) -> String {
        format!("{} to {}", range.start().show(), range.end().show())
    }
    let documented = [
        ("", "max_flows", range(&limits::MAX_FLOWS)),
        ("[[service]]", "port", range(&limits::PORT)),
        ("[[service]]", "drain_timeout", range(&limits::DRAIN_TIMEOUT)),
        ("[[service]]", "idle_timeout", range(&limits::IDLE_TIMEOUT)),
        ("[[service]]", "max_flows_per_client", range(&limits::COUNT)),
        ("[service.health]", "interval", range(&limits::HEALTH_INTERVAL)),
        ("[service.health]", "fast_interval", range(&limits::HEALTH_FAST_INTERVAL)),
        ("[service.health]", "timeout", range(&limits::HEALTH_TIMEOUT)),
        ("[service.health]", "rise", range(&limits::RISE_FALL)),
        ("[service.health]", "fall", range(&limits::RISE_FALL)),
        ("[service.health]", "expect_status", range(&limits::HTTP_STATUS)),
        ("[service.health]", "port", range(&limits::PORT)),
        ("[service.health]", "max_raft_lag", range(&limits::COUNT)),
        ("[[service.backend]]", "weight", range(&limits::WEIGHT)),
        ("[[service.backend]]", "max_connections", range(&limits::COUNT)),
        ("[service.discovery]", "interval", range(&limits::DISCOVERY_INTERVAL)),
        ("[vrrp]", "router_id", range(&limits::ROUTER_ID)),
        ("[vrrp]", "priority", range(&limits::PRIORITY)),
        ("[vrrp]", "advert_interval", range(&limits::ADVERT_INTERVAL_V3)),
        ("[vrrp]", "advert_interval", range(&limits::ADVERT_INTERVAL_V2)),
        ("[vrrp]", "preempt_delay", range(&limits::PREEMPT_DELAY)),
        ("[vrrp]", "track_healthy_backends", range(&limits::TRACK)),
        ("[sync]", "takeover_grace", range(&limits::TAKEOVER_GRACE)),
    ];
    for (title, key, range) in documented {
        let schema = SECTIONS.into_iter().find(|schema| schema.title == title).unwrap();
        let rows = rows(&heading(schema));
        let row = rows.iter().find(|row| row.key == key).unwrap();
        assert!(row.values.contains(&range), "{key} in {}: {}, not {range}", heading(schema), row.values);
    }
    let amounts = [
        format!("{} services", limits::MAX_SERVICES),
        format!("{} backends", limits::MAX_BACKENDS),
        format!("{} `allow` prefixes", limits::MAX_ALLOW),
    ];
    for amount in amounts {
        assert!(CONFIGURATION.contains(&amount), "{amount}");
    }
}

/// The schema holds TOML, so it cannot name the data plane's constant.
#[test]
fn docs_in_step_max_flows_has_the_data_planes_default() {
    let doc = TOP.key("max_flows").unwrap();
    let Need::Default(toml) = doc.need else { panic!("{:?}", doc.need) };
    assert_eq!(toml, lb_common::maps::DEFAULT_MAX_FLOWS.to_string());
}

/// What an operator copies works as it stands, and has nothing to remark on.
#[test]
fn docs_in_step_examples_are_good_configs() {
    for (file, text, least) in
        [("README.md", README, 1), ("docs/configuration.md", CONFIGURATION, 3), ("docs/node.md", NODE, 1)]
    {
        let examples = examples(text);
        assert!(examples.len() >= least, "{file} has {} examples", examples.len());
        for (line, example) in examples {
            match parse(&example, file) {
                Ok((_, warnings)) => assert_eq!(warnings, [], "{file}, the example in line {line}"),
                Err(errors) => panic!("{file}, the example in line {line}:\n{errors}"),
            }
        }
    }
}
