//! A quote with its signature and the values of the PCRs.

use ring::digest::{Context, SHA256};

use super::attest::Attest;
use super::signature::RsaSignature;

/// How many PCRs travel beside a quote.
pub const PCRS: usize = 24;

/// Values of PCR 0 to 23 of the SHA-256 bank. Signed by nobody: see [`Quote::pcr`].
pub type Pcrs = [[u8; 32]; PCRS];

/// What the TPM signed, and what came beside it. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// What was signed.
    pub attest: Attest,
    /// The signature.
    pub signature: RsaSignature,
    /// Values of all PCRs, whether the quote is over them or not.
    pub pcrs: Box<Pcrs>,
}

impl Quote {
    /// The value of a PCR that the quote is over; nothing for others, whose values anybody may have written there.
    #[must_use]
    pub fn pcr(&self, index: usize) -> Option<&[u8; 32]> {
        self.attest.selection().contains(index).then(|| self.pcrs.get(index)).flatten()
    }

    /// The digest that the selected PCRs have, which must be the one that was signed.
    #[must_use]
    pub fn pcr_digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        (0..PCRS).filter_map(|index| self.pcr(index)).for_each(|value| context.update(value));
        context.finish().as_ref().try_into().unwrap_or([0; 32])
    }
}
