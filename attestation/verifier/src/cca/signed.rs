//! A part of a CCA token: claims under a COSE_Sign1 (RFC 9052, section 4.2) with ES384 (RFC 9053, section 2.1).

use super::error::CcaError;
use coset::cbor::value::Value;
use coset::iana::Algorithm;
use coset::{CoseSign1, RegisteredLabelWithPrivate, TaggedCborSerializable as _};
use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};

/// Deepest nesting of claims: the list of components is two levels below the top.
const MAX_DEPTH: usize = 8;

/// A public key of P-384: an uncompressed point (SEC 1, section 2.3.3).
pub(super) type Point = [u8; 97];

/// A signed set of claims. Parsed, **not verified**.
pub(super) struct Signed {
    cose: CoseSign1,
    claims: Claims,
}

/// Claims by their numbers, each there at most once.
pub(super) struct Claims {
    what: &'static str,
    entries: Vec<(i128, Value)>,
}

/// One CBOR value and nothing after it.
pub(super) fn read(bytes: &[u8], what: &'static str) -> Result<Value, CcaError> {
    let mut rest = bytes;
    let value = coset::cbor::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH);
    value.ok().filter(|_| rest.is_empty()).ok_or(CcaError::Form { what, expected: "one CBOR value" })
}

impl Signed {
    pub(super) fn parse(bytes: &[u8], what: &'static str) -> Result<Self, CcaError> {
        let refused = |expected| CcaError::Form { what, expected };
        // Looked at before the library does, which has no limit of its own on nesting.
        read(bytes, what)?;
        let cose = CoseSign1::from_tagged_slice(bytes).map_err(|_| refused("a tagged COSE_Sign1"))?;
        let header = &cose.protected.header;
        if header.alg != Some(RegisteredLabelWithPrivate::Assigned(Algorithm::ES384)) {
            return Err(refused("signed with ES384, as its protected header says"));
        }
        if !header.crit.is_empty() {
            return Err(refused("without critical headers"));
        }
        let payload = cose.payload.as_ref().ok_or_else(|| refused("with its payload"))?;
        let claims = Claims::of(read(payload, what)?, what)?;
        Ok(Self { cose, claims })
    }

    pub(super) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Whether this key signed it.
    pub(super) fn is_signed_by(&self, key: &Point) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key);
        self.cose.verify_signature(&[], |signature, signed| key.verify(signed, signature)).is_ok()
    }
}

impl Claims {
    pub(super) fn of(value: Value, what: &'static str) -> Result<Self, CcaError> {
        let refused = |expected| CcaError::Form { what, expected };
        let Value::Map(map) = value else { return Err(refused("a map of claims")) };
        let mut entries: Vec<(i128, Value)> = Vec::with_capacity(map.len());
        for (label, value) in map {
            let Value::Integer(label) = label else { return Err(refused("a map of numbered claims")) };
            if entries.iter().any(|(known, _)| *known == label.into()) {
                return Err(refused("a map with each claim once"));
            }
            entries.push((label.into(), value));
        }
        Ok(Self { what, entries })
    }

    fn get(&self, label: i128) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| *known == label).map(|(_, value)| value)
    }

    const fn refused(&self, expected: &'static str) -> CcaError {
        CcaError::Form { what: self.what, expected }
    }

    pub(super) fn bytes(&self, label: i128, expected: &'static str) -> Result<&[u8], CcaError> {
        self.get(label).and_then(Value::as_bytes).map(Vec::as_slice).ok_or(self.refused(expected))
    }

    pub(super) fn array<const N: usize>(&self, label: i128, expected: &'static str) -> Result<[u8; N], CcaError> {
        self.bytes(label, expected)?.try_into().map_err(|_| self.refused(expected))
    }

    /// A hash, of any of the lengths SHA-2 has.
    pub(super) fn hash(&self, label: i128, expected: &'static str) -> Result<Vec<u8>, CcaError> {
        let bytes = self.bytes(label, expected)?;
        if matches!(bytes.len(), 32 | 48 | 64) { Ok(bytes.to_vec()) } else { Err(self.refused(expected)) }
    }

    pub(super) fn text(&self, label: i128, expected: &'static str) -> Result<String, CcaError> {
        self.get(label).and_then(Value::as_text).map(str::to_owned).ok_or(self.refused(expected))
    }

    /// Text that may be left out.
    pub(super) fn optional_text(&self, label: i128, expected: &'static str) -> Result<Option<String>, CcaError> {
        self.get(label).map(|_| self.text(label, expected)).transpose()
    }

    pub(super) fn u16(&self, label: i128, expected: &'static str) -> Result<u16, CcaError> {
        let number = self.get(label).and_then(Value::as_integer);
        number.and_then(|number| number.try_into().ok()).ok_or(self.refused(expected))
    }

    /// A list of at most `limit` values.
    pub(super) fn list(&self, label: i128, limit: usize, expected: &'static str) -> Result<&[Value], CcaError> {
        let list = self.get(label).and_then(Value::as_array).filter(|list| list.len() <= limit);
        list.map(Vec::as_slice).ok_or(self.refused(expected))
    }
}
