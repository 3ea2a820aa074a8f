//! Chains from what signs to a trusted root.
//!
//! ```text
//! root -> PCK Platform CA | PCK Processor CA -> PCK certificate   (in the quote)
//! root -> TCB signing certificate                                 (beside TCB info and QE identity)
//! ```

use super::cert::{Cert, CertError, common_name};
use super::error::{Part, TdxError};
use super::needs::PckCa;
use super::roots::{Root, RootSet};

/// A verified chain of a PCK certificate, but for revocation.
#[derive(Clone, Debug)]
pub(super) struct PckChain<'a> {
    pub(super) leaf: Cert,
    pub(super) intermediate: Cert,
    pub(super) ca: PckCa,
    pub(super) root: &'a Root,
}

/// The first two certificates of a quote's chain, leaf first, and which intermediate it is. Nothing is verified.
pub(super) fn read_pck(pem: &[u8]) -> Result<(Cert, Cert, PckCa, Option<Cert>), TdxError> {
    let certs = Cert::parse_pem(pem).map_err(|source| TdxError::Certificate { part: Part::Pck, source })?;
    let found = certs.len();
    let length = TdxError::ChainLength { part: Part::Pck, found, expected: "3 (or 2, without the root)" };
    let mut certs = certs.into_iter();
    let (Some(leaf), Some(intermediate), root, None) = (certs.next(), certs.next(), certs.next(), certs.next()) else {
        return Err(length);
    };
    let name = common_name(intermediate.subject());
    let ca = PckCa::by_name(&name).ok_or(TdxError::Role {
        part: Part::PckCa,
        found: name,
        reason: "its name is neither PCK Platform CA nor PCK Processor CA",
    })?;
    Ok((leaf, intermediate, ca, root))
}

/// Verifies the chain in a quote.
pub(super) fn verify_pck<'a>(pem: &[u8], roots: &'a RootSet, now: u64) -> Result<PckChain<'a>, TdxError> {
    let (leaf, intermediate, ca, brought) = read_pck(pem)?;
    let root = find_root(Part::Pck, &intermediate, brought.as_ref(), roots)?;
    check_time(Part::Root, &root.cert, now)?;
    if !intermediate.is_signed_by(&root.cert) {
        return Err(TdxError::ChainSignature { part: Part::PckCa });
    }
    if !intermediate.is_authority() {
        let found = common_name(intermediate.subject());
        return Err(TdxError::Role { part: Part::PckCa, found, reason: "it may not sign certificates and revocation lists" });
    }
    check_time(Part::PckCa, &intermediate, now)?;
    if !leaf.is_signed_by(&intermediate) {
        return Err(TdxError::ChainSignature { part: Part::Pck });
    }
    if leaf.claims_authority() {
        return Err(TdxError::Role { part: Part::Pck, found: common_name(leaf.subject()), reason: "it is an authority" });
    }
    check_time(Part::Pck, &leaf, now)?;
    Ok(PckChain { leaf, intermediate, ca, root })
}

/// Verifies the chain beside a piece of collateral; it must hang from the same root as the quote.
pub(super) fn verify_tcb_signer(part: Part, pem: &[u8], root: &Root, now: u64) -> Result<Cert, TdxError> {
    let certs = Cert::parse_pem(pem).map_err(|source| TdxError::Certificate { part, source })?;
    let found = certs.len();
    let mut certs = certs.into_iter();
    let (Some(leaf), brought, None) = (certs.next(), certs.next(), certs.next()) else {
        return Err(TdxError::ChainLength { part, found, expected: "2 (or 1, without the root)" });
    };
    if leaf.issuer() != root.cert.subject() || brought.as_ref().is_some_and(|brought| !brought.is_same_issuer_as(&root.cert)) {
        let found = common_name(brought.as_ref().map_or(leaf.issuer(), Cert::subject));
        return Err(TdxError::OtherRoot { part, found, expected: common_name(root.cert.subject()) });
    }
    if !leaf.is_signed_by(&root.cert) {
        return Err(TdxError::ChainSignature { part });
    }
    // The root signs the PCK CAs as well: their keys have no say in what is up to date.
    let name = common_name(leaf.subject());
    if leaf.claims_authority() {
        return Err(TdxError::Role { part, found: name, reason: "it is an authority" });
    }
    if !name.ends_with("TCB Signing") {
        return Err(TdxError::Role { part, found: name, reason: "its name is not TCB Signing" });
    }
    check_time(part, &leaf, now)?;
    Ok(leaf)
}

/// The trusted root of that name. One that was brought along is no reason for trust, but if it is another of the same name, that is said.
fn find_root<'a>(part: Part, below: &Cert, brought: Option<&Cert>, roots: &'a RootSet) -> Result<&'a Root, TdxError> {
    let unknown = |name| TdxError::UnknownRoot {
        part,
        found: common_name(name),
        trusted: roots.names().iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", "),
    };
    let root = roots.issuer_of(below).ok_or_else(|| unknown(below.issuer()))?;
    match brought {
        Some(brought) if !brought.is_same_issuer_as(&root.cert) => Err(unknown(brought.subject())),
        _ => Ok(root),
    }
}

fn check_time(part: Part, cert: &Cert, now: u64) -> Result<(), TdxError> {
    let (not_before, not_after) = (cert.not_before(), cert.not_after());
    if (not_before..=not_after).contains(&now) { Ok(()) } else { Err(TdxError::Time { part, not_before, not_after, now }) }
}

/// For errors of a PCK certificate's extensions.
pub(super) const fn bad_pck(source: CertError) -> TdxError {
    TdxError::Certificate { part: Part::Pck, source }
}
