//! Values of arguments, and what is said of those that are none: how to write them.

use std::net::{IpAddr, SocketAddr};

/// An address, IPv4 or IPv6.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "write an address: 10.0.2.7, 2001:db8::7".to_owned())
}

/// An address, and a port if one is given.
pub(super) fn end(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    match (text.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
        (Ok(address), _) => Ok((address, None)),
        (_, Ok(end)) => Ok((end.ip(), Some(end.port()))),
        _ => {
            Err("write an address, with a port or without: 10.0.2.7, 10.0.2.7:40123, [2001:db8::7]:40123"
                .into())
        }
    }
}

/// A whole number within bounds.
pub(super) fn whole<const LEAST: u64, const MOST: u64>(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(number) if (LEAST..=MOST).contains(&number) => Ok(number),
        _ if MOST == u64::MAX => Err(format!("write a whole number, {LEAST} or more")),
        _ => Err(format!("write a whole number, {LEAST} to {MOST}")),
    }
}

/// Seconds within bounds, in tenths.
pub(super) fn seconds<const LEAST: u64, const MOST: u64>(text: &str) -> Result<f64, String> {
    let (least, most) = (LEAST as f64 / 10.0, MOST as f64 / 10.0);
    match text.parse::<f64>() {
        Ok(seconds) if (least..=most).contains(&seconds) => Ok(seconds),
        _ => Err(format!("write seconds, {least} to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_with_a_port_or_without() {
        let v4 = "10.0.2.7".parse::<IpAddr>().unwrap();
        assert_eq!(end("10.0.2.7"), Ok((v4, None)));
        assert_eq!(end("10.0.2.7:80"), Ok((v4, Some(80))));
        assert_eq!(end("[2001:db8::7]:80").unwrap().1, Some(80));
        for wrong in ["", "etcd-1", "10.0.2.7:", "10.0.2.7:99999"] {
            assert!(end(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_are_within_their_bounds() {
        assert_eq!((whole::<1, 120>("120"), whole::<1, 120>("121").is_err()), (Ok(120), true));
        assert_eq!((seconds::<1, 36_000>("0.1"), seconds::<1, 36_000>("0.05").is_err()), (Ok(0.1), true));
        assert!(["nan", "inf", "-1", ""].iter().all(|text| seconds::<0, 10>(text).is_err()));
    }
}
