//! Fixed-size values that travel in evidence, each its own type so that one cannot be passed for another.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why bytes or text are not one of the fixed-size values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The number of bytes is wrong.
    #[error("{what} has {found} bytes, expected {expected}")]
    Length {
        /// Which value.
        what: &'static str,
        /// How many bytes it has.
        expected: usize,
        /// How many were given.
        found: usize,
    },
    /// The text is not hexadecimal.
    #[error("{what} is not hexadecimal text of {expected} bytes")]
    NotHex {
        /// Which value.
        what: &'static str,
        /// How many bytes it has.
        expected: usize,
    },
}

macro_rules! fixed_value {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Size in bytes.
            pub const LEN: usize = $len;
            /// All bytes zero.
            pub const ZERO: Self = Self([0; $len]);

            /// The bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl From<[u8; $len]> for $name {
            fn from(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = ValueError;

            fn try_from(bytes: &[u8]) -> Result<Self, ValueError> {
                bytes.try_into().map(Self).map_err(|_| ValueError::Length { what: $what, expected: $len, found: bytes.len() })
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| ValueError::NotHex { what: $what, expected: $len })?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

fixed_value!(
    /// The 64 bytes the guest chose when it asked for the report (REPORT_DATA). As text: lower-case hexadecimal.
    ReportData,
    64,
    "report data"
);
fixed_value!(
    /// The 32 bytes the host gave at launch (HOST_DATA), where the initdata digest goes. As text: lower-case hexadecimal.
    HostData,
    32,
    "host data"
);
fixed_value!(
    /// The SHA-384 launch digest (MEASUREMENT). As text: lower-case hexadecimal.
    LaunchDigest,
    48,
    "launch digest"
);

fixed_value!(
    /// A SHA-384 value of a TD report: MRTD, an RTMR, MROWNER, MRSEAM and the like. As text: lower-case hexadecimal.
    TdMeasurement,
    48,
    "TD measurement"
);
fixed_value!(
    /// The 48 bytes the host gave when it made the TD (MRCONFIGID), where the initdata digest goes. As text: lower-case hexadecimal.
    MrConfigId,
    48,
    "MRCONFIGID"
);

impl MrConfigId {
    /// The MRCONFIGID an initdata digest must appear as: the first 48 bytes, zero padded.
    #[must_use]
    pub fn from_digest(digest: &[u8]) -> Self {
        let mut bytes = [0; Self::LEN];
        bytes.iter_mut().zip(digest).for_each(|(to, from)| *to = *from);
        Self(bytes)
    }
}

impl ReportData {
    /// Places a digest of at most 64 bytes at the start and fills with zeros, as the RCAR exchange does. Longer input is cut.
    #[must_use]
    pub fn from_digest(digest: &[u8]) -> Self {
        let mut bytes = [0; Self::LEN];
        bytes.iter_mut().zip(digest).for_each(|(to, from)| *to = *from);
        Self(bytes)
    }
}

impl HostData {
    /// The HOST_DATA an initdata digest must appear as: the first 32 bytes, zero padded.
    #[must_use]
    pub fn from_digest(digest: &[u8]) -> Self {
        let mut bytes = [0; Self::LEN];
        bytes.iter_mut().zip(digest).for_each(|(to, from)| *to = *from);
        Self(bytes)
    }
}

/// A broker's 32-byte challenge. On the wire it is standard base64, and what is compared is that string.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce(pub [u8; 32]);

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nonce({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_text_round_trips() {
        let digest = LaunchDigest(std::array::from_fn(|i| i as u8));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(serde_json::from_str::<LaunchDigest>(&serde_json::to_string(&digest).expect("serialises")).expect("parses"), digest);
    }

    #[test]
    fn refuses_values_of_wrong_length() {
        assert!(ReportData::try_from([0_u8; 63].as_slice()).is_err());
        assert!(HostData::try_from([0_u8; 33].as_slice()).is_err());
        assert!("00".parse::<HostData>().is_err());
        assert!("zz".repeat(32).parse::<HostData>().is_err());
    }

    #[test]
    fn digests_are_padded_with_zeros_or_cut() {
        assert_eq!(ReportData::from_digest(&[7; 48]).0[47..50], [7, 0, 0]);
        assert_eq!(HostData::from_digest(&[7; 48]).0, [7; 32]);
        assert_eq!(HostData::from_digest(&[7; 20]).0[19..21], [7, 0]);
        assert_eq!(MrConfigId::from_digest(&[7; 64]).0, [7; 48]);
        assert_eq!(MrConfigId::from_digest(&[7; 32]).0[31..33], [7, 0]);
    }
}
