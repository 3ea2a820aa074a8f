//! Collateral from bytes to something that may be believed: signed under the quote's root, in its time, not rolled back.

use serde::Deserialize;

use super::TdxRules;
use super::cert::{Cert, RevocationList};
use super::chain::{PckChain, verify_tcb_signer};
use super::error::{Part, Piece, TdxError};
use super::needs::Pieces;
use super::qe_identity::QeIdentity;
use super::signed_json::{SignedJson, Time};
use super::tcb_info::TcbInfo;
use crate::checks::Checks;
use crate::collateral::Item;

/// Larger than this is no piece of Intel's collateral.
const MAX_PIECE: usize = 1024 * 1024;

/// TCB info and QE identity that were verified.
#[derive(Clone, Debug)]
pub(super) struct Verified {
    pub(super) tcb_info: TcbInfo,
    pub(super) qe_identity: QeIdentity,
    /// When the first of all pieces runs out, seconds since the epoch.
    pub(super) valid_until: u64,
}

/// Verifies all of it, and holds the certificates against the revocation lists.
pub(super) fn verify(
    pieces: &Pieces<'_>,
    chain: &PckChain<'_>,
    rules: &TdxRules,
    now: u64,
    checks: &mut Checks,
) -> Result<Verified, TdxError> {
    let root = &chain.root.cert;
    let list = read_list(Piece::RootCrl, pieces.root_crl, root, now);
    let root_crl = checks.record("root CRL", validity(list.as_ref().map(list_time)), "signed by the root, in its time", list)?;
    let list = read_list(Piece::PckCrl, pieces.pck_crl, &chain.intermediate, now);
    let pck_crl = checks.record("PCK CRL", validity(list.as_ref().map(list_time)), "signed by the PCK CA, in its time", list)?;
    let outcome = not_revoked(&root_crl, &chain.intermediate, Part::PckCa).and_then(|()| not_revoked(&pck_crl, &chain.leaf, Part::Pck));
    let serials = format!("serials {} and {}", hex::encode(chain.intermediate.serial()), hex::encode(chain.leaf.serial()));
    checks.record("PCK revocation", serials, "not revoked", outcome)?;

    let read = read_tcb_info(pieces.tcb_info, chain, &root_crl, now);
    let found = validity(read.as_ref().map(|info| (info.issue_date.unix, info.next_update.unix)));
    let tcb_info = checks.record("TCB info", found, "signed by TCB Signing, in its time", read)?;
    let read = read_qe_identity(pieces.qe_identity, chain, &root_crl, now);
    let found = validity(read.as_ref().map(|identity| (identity.issue_date.unix, identity.next_update.unix)));
    let qe_identity = checks.record("QE identity", found, "signed by TCB Signing, in its time", read)?;

    let (of_info, of_identity) = (tcb_info.tcb_evaluation_data_number, qe_identity.tcb_evaluation_data_number);
    let minimum = rules.minimum_tcb_evaluation_data_number;
    let outcome = not_rolled_back(Piece::TcbInfo, of_info, minimum).and_then(|()| not_rolled_back(Piece::QeIdentity, of_identity, minimum));
    let found = format!("{of_info} and {of_identity}");
    checks.record("TCB evaluation", found, format_args!("at least {minimum}"), outcome)?;

    let valid_until = [root_crl.next_update(), pck_crl.next_update(), tcb_info.next_update.unix, qe_identity.next_update.unix];
    Ok(Verified { valid_until: valid_until.into_iter().min().unwrap_or_default(), tcb_info, qe_identity })
}

/// What to show of a piece's time.
fn validity<E>(time: Result<(u64, u64), E>) -> String {
    time.map_or_else(|_| "not usable".into(), |(from, until)| format!("valid from {from} to {until}"))
}

fn list_time(list: &RevocationList) -> (u64, u64) {
    (list.this_update(), list.next_update())
}

fn read_list(piece: Piece, item: &Item, issuer: &Cert, now: u64) -> Result<RevocationList, TdxError> {
    let body = bounded(piece, &item.body)?;
    let list = RevocationList::parse(body).map_err(|error| TdxError::Malformed { piece, reason: error.to_string() })?;
    if !list.is_signed_by(issuer) {
        return Err(TdxError::CollateralSignature { piece });
    }
    let (from, until) = list_time(&list);
    check_time(piece, from, until, now)?;
    Ok(list)
}

fn read_tcb_info(item: &Item, chain: &PckChain<'_>, root_crl: &RevocationList, now: u64) -> Result<TcbInfo, TdxError> {
    let piece = Piece::TcbInfo;
    let signer = signer(Part::TcbInfoSigner, item, chain, root_crl, now)?;
    let document = SignedJson::tcb_info(bounded(piece, &item.body)?).map_err(|error| malformed(piece, &error))?;
    let info: TcbInfo = read_body(piece, &document, &signer)?;
    check_dates(piece, &info.issue_date, &info.next_update, now)?;
    Ok(info)
}

fn read_qe_identity(item: &Item, chain: &PckChain<'_>, root_crl: &RevocationList, now: u64) -> Result<QeIdentity, TdxError> {
    let piece = Piece::QeIdentity;
    let signer = signer(Part::QeIdentitySigner, item, chain, root_crl, now)?;
    let document = SignedJson::enclave_identity(bounded(piece, &item.body)?).map_err(|error| malformed(piece, &error))?;
    let identity: QeIdentity = read_body(piece, &document, &signer)?;
    check_dates(piece, &identity.issue_date, &identity.next_update, now)?;
    identity.check_form()?;
    Ok(identity)
}

fn signer(part: Part, item: &Item, chain: &PckChain<'_>, root_crl: &RevocationList, now: u64) -> Result<Cert, TdxError> {
    let signer = verify_tcb_signer(part, &item.issuer_chain, chain.root, now)?;
    not_revoked(root_crl, &signer, part)?;
    Ok(signer)
}

/// The body, read only once its signature holds.
fn read_body<'a, T: Deserialize<'a>>(piece: Piece, document: &SignedJson<'a>, signer: &Cert) -> Result<T, TdxError> {
    if !signer.verify_fixed(document.body.as_bytes(), &document.signature) {
        return Err(TdxError::CollateralSignature { piece });
    }
    serde_json::from_str(document.body).map_err(|error| malformed(piece, &error))
}

fn malformed(piece: Piece, error: &serde_json::Error) -> TdxError {
    TdxError::Malformed { piece, reason: error.to_string() }
}

fn bounded(piece: Piece, body: &[u8]) -> Result<&[u8], TdxError> {
    if body.len() > MAX_PIECE {
        let reason = format!("it has {} bytes, expected at most {MAX_PIECE}", body.len());
        return Err(TdxError::Malformed { piece, reason });
    }
    Ok(body)
}

fn check_dates(piece: Piece, from: &Time, until: &Time, now: u64) -> Result<(), TdxError> {
    check_time(piece, from.unix, until.unix, now)
}

fn check_time(piece: Piece, from: u64, until: u64, now: u64) -> Result<(), TdxError> {
    if (from..=until).contains(&now) { Ok(()) } else { Err(TdxError::CollateralTime { piece, from, until, now }) }
}

fn not_revoked(list: &RevocationList, cert: &Cert, part: Part) -> Result<(), TdxError> {
    if list.revokes(cert) { Err(TdxError::Revoked { part }) } else { Ok(()) }
}

const fn not_rolled_back(piece: Piece, found: u32, minimum: u32) -> Result<(), TdxError> {
    if found < minimum { Err(TdxError::Evaluation { piece, found, minimum }) } else { Ok(()) }
}
