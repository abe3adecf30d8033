//! From one version's layouts to another's: fields by their names.
//!
//! The text is a line for each layout: its name, its size, then each field as `name:offset:size`, in octets. Maps whose layouts
//! differ in nothing else than where fields stand, and which there are, can be carried over in both directions: what a version does
//! not know is left out, what it knows alone begins as 0. A change of meaning is another `LAYOUT_VERSION`, over which nothing is
//! carried.

use std::{collections::BTreeMap, fmt::Write as _};

use lb_common::maps::fields::{FIELDS_LEN, SHAPES};

/// Octets of a layout at most: a bound for what another version wrote.
const MAX_SIZE: usize = 4096;
/// Fields by which an entry is found or whose flow it is. One that lacks any of them cannot be carried over.
const NEEDED: &[(&str, &[&str])] = &[
    ("Service", &["seed", "vip", "port", "flags"]),
    ("Backend", &["address", "source", "port", "service", "epoch", "flags"]),
    ("FlowKey", &["client", "port", "service"]),
    ("Flow", &["generation", "backend", "nat_port"]),
    ("Forward", &["gate", "client", "client_port", "service", "epoch", "flags"]),
    ("Record", &["claim", "client", "client_port", "epoch", "ifindex", "client_mac"]),
    ("Load", &["established"]),
    ("ClientKey", &["client", "service"]),
    ("ClientLoad", &["established"]),
    ("Lease", &["granted_at", "deadline", "revoked_at"]),
];

/// Layouts, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layouts(BTreeMap<String, Layout>);

/// A layout: its octets, and of each field the offset and the octets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    size: usize,
    fields: BTreeMap<String, (usize, usize)>,
}

/// How an entry of one layout becomes one of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    from: usize,
    to: usize,
    /// From, to, octets.
    moves: Vec<(usize, usize, usize)>,
}

impl Layouts {
    /// This version's.
    pub fn current() -> Self {
        let of = |shape: &lb_common::maps::fields::Shape| {
            let fields = shape.fields.iter().map(|field| (field.name.to_owned(), (field.offset, field.size)));
            (shape.name.to_owned(), Layout { size: shape.size, fields: fields.collect() })
        };
        Self(SHAPES.iter().map(of).collect())
    }

    /// As it is pinned, at most [`FIELDS_LEN`] octets.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, layout) in &self.0 {
            let _ = write!(text, "{name} {}", layout.size);
            for (field, (offset, size)) in &layout.fields {
                let _ = write!(text, " {field}:{offset}:{size}");
            }
            text.push('\n');
        }
        debug_assert!(text.len() <= FIELDS_LEN);
        text
    }

    /// Reads what is pinned; zeros at the end are not part of it. `None`: it is not of this form.
    pub fn parse(octets: &[u8]) -> Option<Self> {
        let end = octets.iter().rposition(|&octet| octet != 0).map_or(0, |last| last + 1);
        let text = std::str::from_utf8(octets.get(..end)?).ok()?;
        let mut layouts = BTreeMap::new();
        for line in text.lines() {
            let mut words = line.split(' ');
            let (name, size) = (words.next()?, words.next()?.parse().ok()?);
            let mut fields = BTreeMap::new();
            for word in words {
                let mut parts = word.split(':');
                let (field, offset, octets) = (parts.next()?, parts.next()?, parts.next()?);
                let (offset, octets): (usize, usize) = (offset.parse().ok()?, octets.parse().ok()?);
                if parts.next().is_some() || octets == 0 || offset.checked_add(octets)? > size {
                    return None;
                }
                fields.insert(field.to_owned(), (offset, octets));
            }
            if size > MAX_SIZE || fields.is_empty() {
                return None;
            }
            layouts.insert(name.to_owned(), Layout { size, fields });
        }
        (!layouts.is_empty()).then_some(Self(layouts))
    }

    /// Octets of a layout.
    pub fn size(&self, layout: &str) -> Option<usize> {
        Some(self.0.get(layout)?.size)
    }

    /// How entries of another version's layout become this one's.
    ///
    /// # Errors
    ///
    /// The layout or field that the other version lacks, or has in another size.
    pub fn mapping_from(&self, other: &Self, layout: &str) -> Result<Mapping, String> {
        let missing = || format!("there is no layout {layout}");
        let (from, to) = (other.0.get(layout).ok_or_else(missing)?, self.0.get(layout).ok_or_else(missing)?);
        let mut moves = Vec::new();
        for (field, &(target, size)) in &to.fields {
            match from.fields.get(field) {
                Some(&(source, octets)) if octets == size => moves.push((source, target, size)),
                _ if needed(layout).contains(&field.as_str()) => {
                    return Err(format!("{layout}.{field} is not there, or not of {size} octets"));
                }
                // What cannot be known begins as 0.
                _ => {}
            }
        }
        Ok(Mapping { from: from.size, to: to.size, moves })
    }
}

impl Mapping {
    /// Octets of an entry that is read.
    pub const fn from_size(&self) -> usize {
        self.from
    }

    /// Turns an entry into this version's. Both have their layout's size.
    pub fn apply(&self, from: &[u8], to: &mut [u8]) {
        assert!(from.len() == self.from && to.len() == self.to, "entries have their layouts' sizes");
        to.fill(0);
        for &(source, target, size) in &self.moves {
            to[target..target + size].copy_from_slice(&from[source..source + size]);
        }
    }
}

fn needed(layout: &str) -> &'static [&'static str] {
    NEEDED.iter().find(|(name, _)| *name == layout).map_or(&[], |(_, fields)| fields)
}

#[cfg(test)]
mod tests {
    use lb_common::maps::Forward;
    use proptest::prelude::*;
    use zerocopy::{FromBytes as _, IntoBytes as _};

    use super::*;

    fn other() -> Layouts {
        // The fields in another order, with one that nobody knows, and without others.
        let text = Layouts::current().to_text();
        let forward = text.lines().find(|line| line.starts_with("Forward ")).unwrap();
        let other = "Forward 72 flags:0:2 service:2:2 client_port:4:2 client_mac:6:6 colour:12:4 epoch:16:4 last_seen:24:8 \
                     edge:32:4 last_ack:36:4 gate:40:8 client:48:16";
        Layouts::parse(text.replace(forward, other).as_bytes()).unwrap()
    }

    #[test]
    fn the_text_is_read_as_it_was_written_and_has_room() {
        let text = Layouts::current().to_text();
        println!("{text}{} octets", text.len());
        assert!(text.len() <= FIELDS_LEN);
        let padded = [text.as_bytes(), &[0; 100]].concat();
        assert_eq!(Layouts::parse(&padded), Some(Layouts::current()));
    }

    #[test]
    fn every_needed_field_is_one() {
        let current = Layouts::current();
        for (layout, fields) in NEEDED {
            for field in *fields {
                assert!(current.0[*layout].fields.contains_key(*field), "{layout}.{field}");
            }
        }
    }

    #[test]
    fn fields_are_found_by_name_both_ways() {
        let (current, other) = (Layouts::current(), other());
        let there = other.mapping_from(&current, "Forward").unwrap();
        let back = current.mapping_from(&other, "Forward").unwrap();
        let forward = Forward {
            gate: 1,
            last_seen: 2,
            client: lb_common::addr::Addr::new([3; 16]),
            client_port: lb_common::addr::Port::new(4),
            service: 5,
            epoch: 6,
            last_ack: 7,
            edge: 8,
            since: 9,
            client_mac: lb_common::addr::Mac::new([10; 6]),
            flags: 11,
            reserved: 0,
        };
        let mut theirs = [0xff; 72];
        there.apply(forward.as_bytes(), &mut theirs);
        assert_eq!((theirs[0], theirs[12]), (11, 0));
        let mut ours = [0xff; size_of::<Forward>()];
        back.apply(&theirs, &mut ours);
        assert_eq!(Forward::read_from_bytes(&ours), Ok(Forward { since: 0, ..forward }));
    }

    #[test]
    fn what_lacks_a_needed_field_is_refused() {
        let text = Layouts::current().to_text().replace("claim:0:8", "claims:0:8");
        let other = Layouts::parse(text.as_bytes()).unwrap();
        let error = Layouts::current().mapping_from(&other, "Record").unwrap_err();
        assert_eq!(error, "Record.claim is not there, or not of 8 octets");
        assert!(Layouts::current().mapping_from(&other, "Flow").is_ok());
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            Layouts::parse(&octets);
        }

        #[test]
        fn what_is_read_can_be_applied(place in 0usize..700, octet in any::<u8>()) {
            let mut text = Layouts::current().to_text().into_bytes();
            let place = place % text.len();
            text[place] = octet;
            if let Some(other) = Layouts::parse(&text) {
                for (name, layout) in &Layouts::current().0 {
                    if let Ok(mapping) = Layouts::current().mapping_from(&other, name) {
                        mapping.apply(&vec![1; mapping.from_size()], &mut vec![0; layout.size]);
                    }
                }
            }
        }
    }
}
