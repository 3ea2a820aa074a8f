//! Reads fields one after the other, each length checked; and what can be wrong with bytes. Integers are big-endian unless their name says
//! otherwise.

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// They end too early.
    #[error("{what} is cut off: {expected} more bytes expected, {found} left")]
    Truncated {
        /// What was read.
        what: &'static str,
        /// How many bytes its next field has.
        expected: usize,
        /// How many are left.
        found: usize,
    },
    /// They go on after the end.
    #[error("{what} is followed by {found} bytes that are not part of it")]
    Excess {
        /// What was read.
        what: &'static str,
        /// How many.
        found: usize,
    },
    /// A field has a value it cannot have, or none that is known here.
    #[error("{field} is {found:#x}, expected {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What it may be.
        expected: &'static str,
    },
    /// Larger than accepted.
    #[error("{what} has {found} bytes, at most {limit} are accepted")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its size.
        found: usize,
        /// The most.
        limit: usize,
    },
}

/// What is left of the bytes, and what they are, for messages.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], FormError> {
        let truncated = FormError::Truncated { what: self.what, expected: len, found: self.rest.len() };
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormError> {
        let truncated = FormError::Truncated { what: self.what, expected: N, found: self.rest.len() };
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Of the formats that have the least significant byte first.
    pub(crate) fn u32_le(&mut self) -> Result<u32, FormError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Bytes behind a 16-bit length, of which at most `limit` are accepted.
    pub(crate) fn sized_u16(&mut self, limit: usize) -> Result<&'a [u8], FormError> {
        let found = usize::from(self.u16()?);
        if found > limit {
            return Err(FormError::TooLarge { what: self.what, found, limit });
        }
        self.take(found)
    }

    /// A field without meaning, which must be zero: otherwise bytes would be lost that somebody gave one.
    pub(crate) fn zeros<const N: usize>(&mut self, field: &'static str) -> Result<(), FormError> {
        let bytes = self.array::<N>()?;
        match bytes.into_iter().find(|byte| *byte != 0) {
            Some(found) => Err(FormError::Field { field, found: found.into(), expected: "zero" }),
            None => Ok(()),
        }
    }

    pub(crate) const fn left(&self) -> usize {
        self.rest.len()
    }

    /// That nothing is left.
    pub(crate) const fn end(self) -> Result<(), FormError> {
        if self.rest.is_empty() { Ok(()) } else { Err(FormError::Excess { what: self.what, found: self.rest.len() }) }
    }
}
