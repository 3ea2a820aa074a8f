//! Reads the fields of a quote one after the other, each length checked.

use super::quote::QuoteError;

/// What is left of the bytes, and what they are, for messages.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Cursor<'a> {
    pub(super) const fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], QuoteError> {
        let truncated = QuoteError::Truncated { what: self.what, expected: len, found: self.rest.len() };
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], QuoteError> {
        let truncated = QuoteError::Truncated { what: self.what, expected: N, found: self.rest.len() };
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, QuoteError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, QuoteError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, QuoteError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Bytes behind a 32-bit length.
    pub(super) fn sized(&mut self) -> Result<&'a [u8], QuoteError> {
        let len = self.u32()?;
        // Where a length does not even fit the machine's word, so does not the quote.
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    pub(super) const fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// That nothing is left.
    pub(super) const fn end(self) -> Result<(), QuoteError> {
        if self.rest.is_empty() { Ok(()) } else { Err(QuoteError::Excess { what: self.what, found: self.rest.len() }) }
    }
}
