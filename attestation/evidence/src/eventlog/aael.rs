//! CoCo's runtime events (AAEL): an `EV_EVENT_TAG` whose text is `domain operation content`.
//!
//! `TCG_PCClientTaggedEvent` with id 0x4141454C ("AAEL"); the digest is over id, length and text.

/// `taggedEventID` of a runtime event.
pub(super) const TAG: u32 = 0x4141_454c;

/// Longest domain or operation, in bytes.
const MAX_NAME: usize = 256;

/// Longest content, in bytes.
const MAX_CONTENT: usize = 16 << 10;

/// A runtime event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aael {
    domain: String,
    operation: String,
    content: String,
}

/// Why something is no runtime event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AaelError {
    /// Domain or operation.
    #[error("{what} of a runtime event: expected 1 to {MAX_NAME} visible characters without space, found {found} bytes")]
    Name {
        /// Which.
        what: &'static str,
        /// How many bytes it has.
        found: usize,
    },
    /// The content.
    #[error("content of a runtime event: expected at most {MAX_CONTENT} bytes without control characters, found {found} bytes")]
    Content {
        /// How many bytes it has.
        found: usize,
    },
    /// The bytes.
    #[error("not a runtime event: expected the text \"domain operation content\" of the length it says")]
    Form,
}

impl Aael {
    /// A runtime event. Content may hold spaces; domain and operation may not, since they end at one.
    ///
    /// # Errors
    /// When a part is not of its form or longer than its bound. Control characters are refused everywhere: a newline would be another event to a reader of lines.
    pub fn new(domain: &str, operation: &str, content: &str) -> Result<Self, AaelError> {
        for (what, name) in [("domain", domain), ("operation", operation)] {
            if !(1..=MAX_NAME).contains(&name.len()) || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
                return Err(AaelError::Name { what, found: name.len() });
            }
        }
        if content.len() > MAX_CONTENT || content.chars().any(char::is_control) {
            return Err(AaelError::Content { found: content.len() });
        }
        Ok(Self { domain: domain.to_owned(), operation: operation.to_owned(), content: content.to_owned() })
    }

    /// Whose event it is.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// What happened.
    #[must_use]
    pub fn operation(&self) -> &str {
        &self.operation
    }

    /// To what.
    #[must_use]
    pub fn content(&self) -> &str {
        &self.content
    }

    /// As one line.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{} {} {}", self.domain, self.operation, self.content)
    }

    /// The payload of its entry, which is also what its digest is of.
    #[must_use]
    pub fn to_data(&self) -> Vec<u8> {
        let text = self.text();
        let mut data = TAG.to_le_bytes().to_vec();
        // At most 16 KiB and a bit.
        data.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        data.extend(text.as_bytes());
        data
    }

    /// From the text of a tagged event with the id of runtime events.
    pub(super) fn from_text(text: &[u8]) -> Result<Self, AaelError> {
        let text = std::str::from_utf8(text).map_err(|_| AaelError::Form)?;
        let mut parts = text.splitn(3, ' ');
        let (Some(domain), Some(operation), Some(content)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(AaelError::Form);
        };
        Self::new(domain, operation, content)
    }
}
