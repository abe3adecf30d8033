//! Address prefixes, `10.0.2.0/24`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use toml::de::DeValue;

use super::value::{FromToml, Problem};

/// A prefix whose host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// `length` in bits. `None` if it is longer than the address, or host bits are set.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        (network(address, length)? == address).then_some(Self { address, length })
    }

    pub fn address(self) -> IpAddr {
        self.address
    }

    /// In bits.
    pub fn length(self) -> u8 {
        self.length
    }

    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && network(address, self.length) == Some(self.address)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// An address alone stands for itself.
impl FromToml for Prefix {
    fn read(value: &DeValue<'_>) -> Result<Self, Problem> {
        let problem = || Problem::new("is not a prefix", r#"write one such as "10.0.2.0/24""#);
        let text = value.as_str().ok_or_else(problem)?;
        let (address, length) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address.parse().map_err(|_| problem())?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            "" if !text.contains('/') => whole,
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| problem())?,
            _ => return Err(problem()),
        };
        let Some(network) = network(address, length) else {
            return Err(Problem::new("is not a prefix", format!("write a length of 0 to {whole}")));
        };
        Self::new(address, length).ok_or_else(|| {
            Problem::new(
                "is not a prefix: bits are set past its length",
                format!("did you mean \"{network}/{length}\"?"),
            )
        })
    }
}

fn network(address: IpAddr, length: u8) -> Option<IpAddr> {
    // Shifting by the full width gives no mask at all, which is what length 0 means.
    Some(match address {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shl(32_u32.checked_sub(length.into())?).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() & mask))
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(128_u32.checked_sub(length.into())?).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() & mask))
        }
    })
}
