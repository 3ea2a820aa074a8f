//! Fractions of processors, summed exactly.
//!
//! CPU limits come as quota and period; a class may add a fraction of its own. They are added as fractions over a common denominator and rounded
//! up once at the end. Floating point would make ten limits of 0.1 need two processors.

use std::fmt;
use std::str::FromStr;

/// More digits than any sane fraction has; keeps the denominators far from overflow.
const MAX_DECIMALS: usize = 6;

/// A non-negative number of processors as a reduced fraction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Vcpus {
    numerator: u64,
    denominator: u64,
}

/// Why a number of processors is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VcpusError {
    /// Neither a whole number nor a decimal fraction.
    #[error("expected a number of processors such as 1 or \"0.25\" (at most {MAX_DECIMALS} decimals), found {0:?}")]
    Syntax(String),
    /// A quota without a period, or the other way round.
    #[error("expected a CPU quota of at least 0 and a period above 0, found quota {quota} and period {period}")]
    QuotaPeriod {
        /// The quota given.
        quota: i64,
        /// The period given.
        period: u64,
    },
    /// The sum does not fit.
    #[error("the CPU limits of this pod add up to more than can be represented")]
    Overflow,
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl Vcpus {
    /// No processor at all.
    pub const ZERO: Self = Self { numerator: 0, denominator: 1 };

    fn reduced(numerator: u64, denominator: u64) -> Self {
        let divisor = gcd(numerator, denominator).max(1);
        Self { numerator: numerator / divisor, denominator: denominator / divisor }
    }

    /// A whole number of processors.
    #[must_use]
    pub fn whole(count: u32) -> Self {
        Self { numerator: u64::from(count), denominator: 1 }
    }

    /// A CPU limit in the kernel's terms: `quota` microseconds in each `period`.
    pub fn from_quota(quota: i64, period: u64) -> Result<Self, VcpusError> {
        match u64::try_from(quota) {
            Ok(quota) if period > 0 => Ok(Self::reduced(quota, period)),
            _ => Err(VcpusError::QuotaPeriod { quota, period }),
        }
    }

    /// The exact sum.
    pub fn checked_add(self, other: Self) -> Result<Self, VcpusError> {
        let wide = |value: u64| u128::from(value);
        // Each product of two 64-bit numbers fits 128 bits; their sum may not.
        let numerator = (wide(self.numerator) * wide(other.denominator))
            .checked_add(wide(other.numerator) * wide(self.denominator))
            .ok_or(VcpusError::Overflow)?;
        let denominator = wide(self.denominator) * wide(other.denominator);
        let (mut a, mut b) = (numerator, denominator);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        let divisor = a.max(1);
        Ok(Self {
            numerator: u64::try_from(numerator / divisor).map_err(|_| VcpusError::Overflow)?,
            denominator: u64::try_from(denominator / divisor).map_err(|_| VcpusError::Overflow)?,
        })
    }

    /// Whole processors needed: rounded up, and never none.
    pub fn round_up(self) -> Result<u32, VcpusError> {
        u32::try_from(self.numerator.div_ceil(self.denominator).max(1)).map_err(|_| VcpusError::Overflow)
    }
}

impl FromStr for Vcpus {
    type Err = VcpusError;

    fn from_str(text: &str) -> Result<Self, VcpusError> {
        let syntax = || VcpusError::Syntax(text.chars().take(32).collect());
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > MAX_DECIMALS {
            return Err(syntax());
        }
        let scale = 10_u64.pow(u32::try_from(decimals.len()).map_err(|_| syntax())?);
        let whole: u32 = whole.parse().map_err(|_| syntax())?;
        let decimals: u64 = decimals.parse().map_err(|_| syntax())?;
        Ok(Self::reduced(u64::from(whole) * scale + decimals, scale))
    }
}

impl fmt::Display for Vcpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.denominator == 1 { write!(f, "{}", self.numerator) } else { write!(f, "{}/{}", self.numerator, self.denominator) }
    }
}

impl fmt::Debug for Vcpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vcpus({self})")
    }
}

impl<'de> serde::Deserialize<'de> for Vcpus {
    /// Takes a whole number or a string. A TOML float is refused on purpose: 0.1 is not one tenth there.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Vcpus;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number of processors or a decimal fraction in quotes, such as 1 or \"0.25\"")
            }
            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Vcpus, E> {
                u32::try_from(value).map(Vcpus::whole).map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(value), &self))
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Vcpus, E> {
                u32::try_from(value).map(Vcpus::whole).map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(value), &self))
            }
            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Vcpus, E> {
                value.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(default: &str, limits: &[(i64, u64)]) -> u32 {
        let mut total: Vcpus = default.parse().unwrap();
        for &(quota, period) in limits {
            total = total.checked_add(Vcpus::from_quota(quota, period).unwrap()).unwrap();
        }
        total.round_up().unwrap()
    }

    #[test]
    fn sums_limits_exactly_and_rounds_up_once() {
        assert_eq!(sum("0", &[]), 1);
        assert_eq!(sum("0", &[(75_000, 100_000), (25_000, 100_000)]), 1);
        assert_eq!(sum("0", &[(75_000, 100_000), (120_000, 100_000)]), 2);
        assert_eq!(sum("0", &[(10_000, 100_000); 10]), 1);
        assert_eq!(sum("0.4", &[(60_000, 100_000)]), 1);
        assert_eq!(sum("0.4", &[(60_001, 100_000)]), 2);
        assert_eq!(sum("0", &[(1, 3), (1, 3), (1, 3)]), 1);
        assert_eq!(sum("1", &[(1, 1_000_000)]), 2);
    }

    #[test]
    fn refuses_what_is_not_a_number_of_processors() {
        for text in ["", ".", "1.", ".5", "-1", "1e3", "0.1234567", "99999999999", " 1"] {
            assert!(text.parse::<Vcpus>().is_err(), "{text:?}");
        }
        assert!(Vcpus::from_quota(-1, 100_000).is_err());
        assert!(Vcpus::from_quota(1, 0).is_err());
    }

    #[test]
    fn sums_of_hostile_denominators_are_an_error_not_a_panic() {
        let a = Vcpus::from_quota(i64::MAX, u64::MAX - 58).unwrap();
        let b = Vcpus::from_quota(i64::MAX - 1, u64::MAX).unwrap();
        assert_eq!(a.checked_add(b), Err(VcpusError::Overflow));
    }
}
