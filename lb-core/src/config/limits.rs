//! How much a config may ask for, and the ranges of its values.

use std::ops::RangeInclusive;
use std::time::Duration;

/// How many services, backends of all services together, and `allow` prefixes of all services together the
/// pinned maps hold.
pub use lb_common::maps::{MAX_ALLOW, MAX_BACKENDS, MAX_SERVICES};

/// etcd's registered peer port (IANA), which must stay direct.
pub const ETCD_PEER_PORT: u16 = 2380;
/// The longest name of an interface: `IFNAMSIZ` less its final NUL (netdevice(7)).
pub const MAX_INTERFACE_NAME: usize = 15;
/// The longest path of a unix socket: `sun_path` less its final NUL (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// Upper end: 64 backends' worth of NAT ports of one source address.
pub const MAX_FLOWS: RangeInclusive<u64> = 1024..=4_194_304;
pub const WEIGHT: RangeInclusive<u64> = 1..=1000;
pub const RISE_FALL: RangeInclusive<u64> = 1..=100;
pub const PORT: RangeInclusive<u64> = 1..=65_535;
/// Status codes that HTTP can carry (RFC 9110, section 15).
pub const HTTP_STATUS: RangeInclusive<u64> = 100..=599;
/// VRID of RFC 9568, section 5.2.3.
pub const ROUTER_ID: RangeInclusive<u64> = 1..=255;
/// 255 means the address's owner and 0 a resignation (RFC 9568, section 5.2.4).
pub const PRIORITY: RangeInclusive<u64> = 1..=254;
pub const TRACK: RangeInclusive<u64> = 0..=253;
/// Fits the data plane's 32-bit counts.
pub const COUNT: RangeInclusive<u64> = 0..=u32::MAX as u64;

pub const HEALTH_INTERVAL: RangeInclusive<Duration> = ms(50)..=hours(1);
pub const HEALTH_FAST_INTERVAL: RangeInclusive<Duration> = ms(10)..=hours(1);
pub const HEALTH_TIMEOUT: RangeInclusive<Duration> = ms(1)..=hours(1);
pub const DRAIN_TIMEOUT: RangeInclusive<Duration> = ms(0)..=hours(24 * 7);
pub const IDLE_TIMEOUT: RangeInclusive<Duration> = ms(1000)..=hours(24 * 7);
pub const DISCOVERY_INTERVAL: RangeInclusive<Duration> = ms(1000)..=hours(24);
/// v3: 12 bits of centiseconds (RFC 9568, section 5.2.7).
pub const ADVERT_INTERVAL_V3: RangeInclusive<Duration> = ms(10)..=ms(40_950);
/// v2: 8 bits of seconds (RFC 3768, section 5.3.7).
pub const ADVERT_INTERVAL_V2: RangeInclusive<Duration> = ms(1000)..=ms(255_000);
pub const PREEMPT_DELAY: RangeInclusive<Duration> = ms(0)..=hours(1);
pub const TAKEOVER_GRACE: RangeInclusive<Duration> = ms(0)..=hours(1);

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 3600)
}
