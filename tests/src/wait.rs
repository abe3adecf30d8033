//! Waiting for real state, bounded.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Time between two looks. Short beside what is measured, long beside what a look costs.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks until the answer is `Ok`, and returns it.
///
/// # Errors
///
/// The last answer's error, if none was `Ok` within `limit`.
pub fn eventually<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if start.elapsed() >= limit => bail!("{what}: not within {limit:?}: {error:#}"),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
