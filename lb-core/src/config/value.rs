//! How each kind of value is written in TOML.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::diagnostic::Span;

/// Why a value cannot be used. The reader adds the key before and the value after `what`.
pub(super) struct Problem {
    /// `is not an IP address`
    pub(super) what: String,
    /// `write an address such as "10.0.1.100"`
    pub(super) fix: String,
    /// The part of the value that is meant, if not the whole.
    pub(super) at: Option<Span>,
}

impl Problem {
    pub(super) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into(), at: None }
    }
}

pub(super) trait FromToml: Sized {
    fn read(value: &DeValue<'_>) -> Result<Self, Problem>;
}

/// A string that is not empty and holds no control characters.
impl FromToml for String {
    fn read(value: &DeValue<'_>) -> Result<Self, Problem> {
        let text = value.as_str().ok_or_else(|| Problem::new("is not a string", "write it in quotes"))?;
        if text.trim().is_empty() {
            return Err(Problem::new("is empty", "write a value or remove the key"));
        }
        if text.chars().any(char::is_control) {
            return Err(Problem::new("holds a control character", "remove it"));
        }
        Ok(text.to_owned())
    }
}

impl FromToml for PathBuf {
    fn read(value: &DeValue<'_>) -> Result<Self, Problem> {
        String::read(value).map(PathBuf::from)
    }
}

impl FromToml for bool {
    fn read(value: &DeValue<'_>) -> Result<Self, Problem> {
        value.as_bool().ok_or_else(|| Problem::new("is not a boolean", "write true or false, without quotes"))
    }
}

/// To be used with a range, since what does not fit becomes the largest number.
impl FromToml for u64 {
    fn read(value: &DeValue<'_>) -> Result<Self, Problem> {
        let integer = value
            .as_integer()
            .ok_or_else(|| Problem::new("is not a whole number", "write a number without quotes"))?;
        if integer.as_str().starts_with('-') {
            return Err(Problem::new("is negative", "write a positive number"));
        }
        // One too large for 64 bits is out of every range, and that message names the range.
        Ok(u64::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(u64::MAX))
    }
}

impl FromToml for IpAddr {
    fn read(value: &DeValue<'_>) -> Result<Self, Problem> {
        let written = value.as_str().unwrap_or_default();
        let fix = match written.split_once('/').map(|(address, _)| address) {
            Some(address) if address.parse::<IpAddr>().is_ok() => {
                format!("write \"{address}\", without the prefix")
            }
            _ => r#"write an address such as "10.0.1.100""#.to_owned(),
        };
        written.parse().map_err(|_| Problem::new("is not an IP address", fix))
    }
}

impl FromToml for Ipv6Addr {
    fn read(value: &DeValue<'_>) -> Result<Self, Problem> {
        let problem = || Problem::new("is not an IPv6 address", r#"write an address such as "fe80::100""#);
        value.as_str().and_then(|s| s.parse().ok()).ok_or_else(problem)
    }
}

impl FromToml for SocketAddr {
    fn read(value: &DeValue<'_>) -> Result<Self, Problem> {
        let written = value.as_str().unwrap_or_default();
        let fix = match written.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => format!("add the port: \"{written}:PORT\""),
            Ok(IpAddr::V6(_)) => format!("add the port: \"[{written}]:PORT\""),
            Err(_) => r#"write it as "IP:PORT" or "[IPv6]:PORT", not as a name"#.to_owned(),
        };
        written.parse().map_err(|_| Problem::new("is not an IP address and port", fix))
    }
}

/// Units and their nanoseconds, longest first: the order in which a duration names them.
const UNITS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

impl FromToml for Duration {
    fn read(value: &DeValue<'_>) -> Result<Self, Problem> {
        if value.is_integer() || value.is_float() {
            return Err(Problem::new("has no unit", r#"write a string such as "200ms", "30s" or "2h""#));
        }
        let problem =
            || Problem::new("is not a duration", r#"write a string such as "200ms", "30s" or "1h30m""#);
        value.as_str().and_then(parse_duration).ok_or_else(problem)
    }
}

/// Whole numbers with units, the longest first, each once: `1h30m`. Exact; at most what 64 bits of
/// nanoseconds hold, which is 584 years.
fn parse_duration(mut text: &str) -> Option<Duration> {
    let mut units = UNITS.iter();
    let mut sum = 0_u64;
    if text.is_empty() {
        return None;
    }
    while !text.is_empty() {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = text.split_at(digits);
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, rest) = rest.split_at(letters);
        // Units once passed are used up, which makes their order and uniqueness a rule.
        let (_, nanos) = units.find(|(name, _)| *name == unit)?;
        sum = sum.checked_add(number.parse::<u64>().ok()?.checked_mul(*nanos)?)?;
        text = rest;
    }
    Some(Duration::from_nanos(sum))
}

/// A list of at least one value.
impl<T: FromToml> FromToml for Vec<T> {
    fn read(value: &DeValue<'_>) -> Result<Self, Problem> {
        let list = value.as_array().ok_or_else(|| Problem::new("is not a list", "write it in brackets"))?;
        if list.is_empty() {
            return Err(Problem::new("is an empty list", "write a value or remove the key"));
        }
        let element = |v: &toml::Spanned<DeValue<'_>>| {
            T::read(v.get_ref()).map_err(|p| Problem { at: Some(p.at.unwrap_or(v.span())), ..p })
        };
        list.iter().map(element).collect()
    }
}

/// One value, or a list of at least one.
pub(super) struct OneOrMore<T>(pub(super) Vec<T>);

impl<T: FromToml> FromToml for OneOrMore<T> {
    fn read(value: &DeValue<'_>) -> Result<Self, Problem> {
        match value {
            DeValue::Array(_) => Vec::read(value).map(Self),
            one => T::read(one).map(|v| Self(vec![v])),
        }
    }
}

/// A name the kernel takes for an interface (`dev_valid_name`): at most 15 bytes, no `/`, no `:`, no space.
pub(super) struct InterfaceName(pub(super) String);

impl FromToml for InterfaceName {
    fn read(value: &DeValue<'_>) -> Result<Self, Problem> {
        let name = String::read(value)?;
        let is_bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
        if name.len() > super::limits::MAX_INTERFACE_NAME
            || name.contains(is_bad)
            || name == "."
            || name == ".."
        {
            let fix = "write a name as `ip link` shows it: 1 to 15 characters, without spaces, `/` and `:`";
            return Err(Problem::new("is not an interface name", fix));
        }
        Ok(Self(name))
    }
}

/// Prints a value the way it is written in a config.
pub(super) trait Show {
    fn show(&self) -> String;
}

impl Show for u64 {
    fn show(&self) -> String {
        self.to_string()
    }
}

/// In the longest unit that fits, zero as `0s`.
impl Show for Duration {
    fn show(&self) -> String {
        let nanos = self.as_nanos();
        let fits = |(_, unit): &&(&str, u64)| nanos > 0 && nanos.is_multiple_of(u128::from(*unit));
        let (name, unit) = UNITS.iter().skip(1).find(fits).unwrap_or(&("s", 1));
        format!("{}{name}", nanos / u128::from(*unit))
    }
}

/// An enum whose values are words in the config.
macro_rules! words {
    ($($(#[$meta:meta])* pub enum $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ })+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// As written in the config and shown by `status`.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::config::value::FromToml for $name {
            fn read(value: &toml::de::DeValue<'_>) -> Result<Self, $crate::config::value::Problem> {
                match value.as_str() {
                    $(Some($word) => Ok($name::$variant),)+
                    written => Err($crate::config::value::not_a_word(written, &[$($word),+])),
                }
            }
        }
    )+};
}
pub(super) use words;

pub(super) fn not_a_word(written: Option<&str>, words: &[&str]) -> Problem {
    let list = words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(", ");
    match written.and_then(|w| nearest(w, words.iter().copied())) {
        Some(near) => Problem::new(format!("is not one of {list}"), format!("did you mean \"{near}\"?")),
        None => Problem::new("is unknown", format!("write one of {list}")),
    }
}

/// The candidate that `word` is probably a slip of: at most a third of its letters differ, and never more
/// than three.
pub(super) fn nearest<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let word = word.to_lowercase();
    let (distance, near) = candidates
        .map(|c| (strsim::damerau_levenshtein(&word, c), c))
        .min_by_key(|(distance, _)| *distance)?;
    let length = word.chars().count().max(near.len());
    (distance <= length.div_ceil(3).min(3)).then_some(near)
}
