//! Arm CCA: evidence in CoCo's JSON form, a token that is opaque here.
//!
//! The token is CBOR signed by COSE (Arm, "Realm Management Monitor specification", section on attestation). Only who verifies reads it,
//! so the parser is in the verifier, and no CBOR library in the guest.

use serde::{Deserialize, Deserializer, Serialize};

use crate::cursor::FormError;

/// A CCA token. **Neither parsed nor verified.**
///
/// Serialises to and from CoCo's `{"token":[…]}`, an array of integers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    token: Vec<u8>,
}

#[derive(Deserialize)]
struct Wire {
    token: Vec<u8>,
}

impl Evidence {
    /// Largest token, in bytes. Known ones have about 2300.
    pub const MAX: usize = 16 * 1024;

    /// From the token's bytes.
    ///
    /// # Errors
    /// When it is too large.
    pub fn new(token: Vec<u8>) -> Result<Self, FormError> {
        let found = token.len();
        if found > Self::MAX { Err(FormError::TooLarge { what: "CCA token", found, limit: Self::MAX }) } else { Ok(Self { token }) }
    }

    /// The token's bytes.
    #[must_use]
    pub fn token(&self) -> &[u8] {
        &self.token
    }
}

impl<'de> Deserialize<'de> for Evidence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Wire::deserialize(deserializer)?.token).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_round_trips_and_is_bounded() {
        let evidence = Evidence::new(vec![1, 2]).expect("short");
        assert_eq!(serde_json::to_string(&evidence).expect("serialises"), r#"{"token":[1,2]}"#);
        assert_eq!(serde_json::from_str::<Evidence>(r#"{"token":[1,2]}"#).expect("reads"), evidence);
        let long = serde_json::json!({"token": vec![0; Evidence::MAX + 1]});
        assert!(serde_json::from_value::<Evidence>(long).is_err());
    }
}
