//! Reading the flow log that a balancer writes.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::eventually;

/// Its whole lines, if there is a log.
///
/// # Errors
///
/// If a line is not JSON.
pub fn lines(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last one may be under way.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Waits until so many of its lines match, and returns these.
///
/// # Errors
///
/// If there are fewer within `limit`.
pub fn wait(
    path: &Path,
    count: usize,
    limit: Duration,
    matches: impl Fn(&Value) -> bool,
) -> Result<Vec<Value>> {
    eventually(limit, "lines of the flow log", || {
        let found: Vec<Value> = lines(path)?.into_iter().filter(&matches).collect();
        ensure!(found.len() >= count, "{} of {count}", found.len());
        Ok(found)
    })
}
