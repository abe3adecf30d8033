//! Choosing tests by name.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// A pattern in which `*` stands for any characters. Without one it matches names that contain it.
pub(crate) struct Glob(Vec<String>);

impl Glob {
    pub(crate) fn new(pattern: &str) -> Self {
        let pattern = if pattern.contains('*') { pattern.to_owned() } else { format!("*{pattern}*") };
        Self(pattern.split('*').map(str::to_owned).collect())
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        let [first, middle @ .., last] = self.0.as_slice() else { return false };
        let Some(mut rest) = name.strip_prefix(first.as_str()) else { return false };
        for part in middle {
            match rest.find(part.as_str()) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last.as_str())
    }
}

/// Names of the tests of a `cargo test … --` command that match.
pub(crate) fn matching_tests(command: &mut Command, glob: &Glob) -> Result<Vec<String>> {
    let output = command.arg("--list").output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("listing the tests failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let list = String::from_utf8_lossy(&output.stdout);
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.filter(|name| glob.matches(name)).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("vip", "etcd_through_the_vip_works", true),
            ("vip*", "etcd_through_the_vip_works", false),
            ("etcd*works", "etcd_through_the_vip_works", true),
            ("*vip*", "vip", true),
            ("a*b*c", "a_b_c", true),
            ("a*b*c", "a_c_b", false),
            ("*", "anything", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(name), expected, "{pattern} {name}");
        }
    }
}
