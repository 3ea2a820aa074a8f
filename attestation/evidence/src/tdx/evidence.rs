//! TDX evidence as it travels to the broker: a quote and the event log beside it, in CoCo's JSON form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::quote::{Quote, QuoteError};

/// Why evidence is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// The quote is malformed.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// Text that is not standard base64 with padding.
    #[error("{what} is not standard base64")]
    Base64 {
        /// `quote` or `cc_eventlog`.
        what: &'static str,
    },
    /// The event log is too large.
    #[error("cc_eventlog has {found} bytes, at most {limit} are accepted", limit = Evidence::MAX_EVENT_LOG)]
    EventLogTooLarge {
        /// Its size.
        found: usize,
    },
}

/// A quote with the event log the guest sent beside it. Parsed, **not verified**.
///
/// Serialises to and from CoCo's `{"quote":"<base64>","cc_eventlog":"<base64>"|null}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    quote: Quote,
    trailing: Vec<u8>,
    cc_eventlog: Option<Vec<u8>>,
}

/// Unknown fields are ignored: they are the client's words about itself, and no check rests on them.
#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(default)]
    cc_eventlog: Option<String>,
    quote: String,
}

impl Evidence {
    /// Largest event log: the kernel shows the whole area that firmware set aside for it, of which 1 MiB is known.
    pub const MAX_EVENT_LOG: usize = 2 * 1024 * 1024;

    /// From raw quote and event log.
    ///
    /// # Errors
    /// When the quote is malformed or the log too large.
    pub fn from_raw(quote: &[u8], cc_eventlog: Option<&[u8]>) -> Result<Self, EvidenceError> {
        if let Some(found) = cc_eventlog.map(<[u8]>::len).filter(|len| *len > Self::MAX_EVENT_LOG) {
            return Err(EvidenceError::EventLogTooLarge { found });
        }
        let (quote, trailing) = Quote::parse(quote)?;
        Ok(Self { quote, trailing: trailing.to_vec(), cc_eventlog: cc_eventlog.map(<[u8]>::to_vec) })
    }

    /// The quote.
    #[must_use]
    pub const fn quote(&self) -> &Quote {
        &self.quote
    }

    /// What followed the quote: padding in practice, signed by nobody.
    #[must_use]
    pub fn trailing(&self) -> &[u8] {
        &self.trailing
    }

    /// The event log: raw, believed only as far as it replays to the quote's RTMRs.
    #[must_use]
    pub fn cc_eventlog(&self) -> Option<&[u8]> {
        self.cc_eventlog.as_deref()
    }

    /// The raw quote with what followed it.
    #[must_use]
    pub fn quote_bytes(&self) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "the quote was parsed from such bytes, and is not changed")]
        let mut bytes = self.quote.to_bytes().expect("an Evidence holds only quotes that were parsed");
        bytes.extend(&self.trailing);
        bytes
    }
}

impl Serialize for Evidence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Wire { cc_eventlog: self.cc_eventlog.as_ref().map(|log| STANDARD.encode(log)), quote: STANDARD.encode(self.quote_bytes()) }
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Evidence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        let decode = |text: &str, what| STANDARD.decode(text).map_err(|_| EvidenceError::Base64 { what });
        let parse = || {
            let log = wire.cc_eventlog.as_deref().map(|text| decode(text, "cc_eventlog")).transpose()?;
            Self::from_raw(&decode(&wire.quote, "quote")?, log.as_deref())
        };
        parse().map_err(serde::de::Error::custom)
    }
}
