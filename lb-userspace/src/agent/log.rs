//! Where the log goes: stderr, plainly where systemd's journal adds time and host itself.

use std::{env, io::IsTerminal as _};

use tracing_subscriber::{EnvFilter, filter::ParseError};

/// What libraries say of broken connections is said by discovery too, once and in its own words.
const DEFAULT: &str = "info,kube_client=off,kube_runtime=off,hickory_resolver=off,hickory_net=off";

/// Starts logging. `level` wins over `$RUST_LOG`; the default is `info`.
///
/// # Errors
/// A level or filter that does not parse.
pub fn start(level: Option<&str>) -> Result<(), ParseError> {
    let directives = level.map(str::to_owned).or_else(|| env::var(EnvFilter::DEFAULT_ENV).ok());
    let filter = EnvFilter::try_new(directives.as_deref().unwrap_or(DEFAULT))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none());
    // It can only be refused where a test has set one already; then that one serves.
    let _ = if env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().try_init()
    } else {
        builder.try_init()
    };
    Ok(())
}
