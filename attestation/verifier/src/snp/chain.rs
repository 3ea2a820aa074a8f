//! The certificate chain of a report: which endorsement certificate, which trusted root, and every step between.

use kata_cc_evidence::snp::{CertKind, Evidence, Report, SigningKey};

use super::cert::{Cert, common_name, utc};
use super::error::{ChainPart, SnpError};
use super::roots::Root;
use super::{SnpTrust, check_leaf_is_for, crl, kds};
use crate::checks::Checks;
use crate::collateral::Collateral;

/// Which endorsement key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LeafKind {
    Vcek,
    Vlek,
}

impl LeafKind {
    /// The one a report says it was signed with.
    pub(super) fn of(report: &Report) -> Result<Self, SnpError> {
        if report.key_info.mask_chip_key() {
            return Err(SnpError::Unsigned);
        }
        match report.key_info.signing_key() {
            SigningKey::Vcek => Ok(Self::Vcek),
            SigningKey::Vlek => Ok(Self::Vlek),
            found => Err(SnpError::SigningKey { found }),
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Vcek => "VCEK",
            Self::Vlek => "VLEK",
        }
    }

    const fn slot(self) -> CertKind {
        match self {
            Self::Vcek => CertKind::Vcek,
            Self::Vlek => CertKind::Vlek,
        }
    }
}

/// What a report says of who signed it, for people.
pub(super) fn signer(report: &Report) -> String {
    let masked = if report.key_info.mask_chip_key() { ", masked" } else { "" };
    match report.key_info.signing_key() {
        SigningKey::Vcek => format!("VCEK{masked}"),
        SigningKey::Vlek => format!("VLEK{masked}"),
        other => format!("{other:?}{masked}"),
    }
}

/// The endorsement certificate: from the evidence, else from collateral, else the one among those known beforehand that is for this report.
pub(super) fn endorsement(
    evidence: &Evidence,
    kind: LeafKind,
    trust: &SnpTrust,
    collateral: &Collateral,
    checks: &mut Checks,
) -> Result<Cert, SnpError> {
    let brought = evidence.certs().and_then(|table| table.get(kind.slot())).map(|bytes| (bytes, "in the evidence"));
    let fetched = || {
        let needs = if kind == LeafKind::Vcek { kds::vceks(evidence.report()) } else { Vec::new() };
        needs.iter().find_map(|need| collateral.get(need)).map(|item| (item.body.as_slice(), "from AMD's key distribution service"))
    };
    let (found, outcome) = match brought.or_else(fetched) {
        Some((bytes, from)) => match Cert::parse(bytes) {
            Ok(cert) => (format!("{}, {from}", common_name(cert.subject())), Ok(cert)),
            Err(source) => (format!("unusable bytes, {from}"), Err(SnpError::Certificate { part: ChainPart::Leaf, source })),
        },
        None => match known(evidence, kind, trust) {
            Some(cert) => (format!("{}, known beforehand", common_name(cert.subject())), Ok(cert)),
            None => {
                let report = evidence.report();
                let fetch = report.generation().filter(|_| kind == LeafKind::Vcek).map(|generation| kds::vcek_url(report, generation));
                ("none".to_owned(), Err(SnpError::NoEndorsement { kind: kind.name(), fetch }))
            }
        },
    };
    checks.record("endorsement", found, format_args!("a {} certificate", kind.name()), outcome)
}

fn known(evidence: &Evidence, kind: LeafKind, trust: &SnpTrust) -> Option<Cert> {
    let parsed = trust.endorsements.iter().filter_map(|bytes| Cert::parse(bytes).ok());
    parsed.filter(|cert| is_named(cert, kind)).find(|cert| check_leaf_is_for(cert, kind, evidence.report()).is_ok())
}

/// AMD names leaves `SEV-VCEK` and `SEV-VLEK`; a simulated hierarchy has its own prefix.
fn is_named(leaf: &Cert, kind: LeafKind) -> bool {
    common_name(leaf.subject()).ends_with(kind.name())
}

/// Finds the trusted root of the leaf and checks every step to it.
pub(super) fn verify<'a>(
    leaf: &Cert,
    kind: LeafKind,
    evidence: &Evidence,
    trust: &'a SnpTrust,
    collateral: &Collateral,
    now: u64,
    checks: &mut Checks,
) -> Result<&'a Root, SnpError> {
    let trusted = trust.roots.names().join(", ");
    let outcome = find_root(leaf, evidence, trust);
    let found = match &outcome {
        Ok((root, _)) => root.name.clone(),
        Err(SnpError::UnknownRoot { found, .. }) => found.clone(),
        Err(_) => "a certificate that cannot be used".to_owned(),
    };
    let (root, intermediate) = checks.record("root", found, format_args!("one of {trusted}"), outcome)?;

    let found = [leaf.subject(), intermediate.subject(), root.ark.subject()].map(common_name).join(" < ");
    let steps = check_steps(leaf, kind, &intermediate, root);
    checks.record("chain", found, format_args!("each signed by the next, a {} under its own authority", kind.name()), steps)?;

    let certs = [(ChainPart::Root, &root.ark), (ChainPart::Intermediate, &intermediate), (ChainPart::Leaf, leaf)];
    let from = certs.iter().map(|(_, cert)| cert.not_before()).max().unwrap_or(u64::MAX);
    let to = certs.iter().map(|(_, cert)| cert.not_after()).min().unwrap_or_default();
    let times = certs.into_iter().try_for_each(|(part, cert)| check_time(part, cert, now));
    checks.record("validity", format_args!("{} to {}", utc(from), utc(to)), format_args!("covers {}", utc(now)), times)?;

    crl::check(root, &intermediate, evidence, collateral, &trust.rules, now, checks)?;
    Ok(root)
}

/// The trusted root and the intermediate below it that issued the leaf.
fn find_root<'a>(leaf: &Cert, evidence: &Evidence, trust: &'a SnpTrust) -> Result<(&'a Root, Cert), SnpError> {
    let bad = |part| move |source| SnpError::Certificate { part, source };
    let table = evidence.certs();
    let offered = table.and_then(|table| table.get(CertKind::Ask)).map(Cert::parse).transpose().map_err(bad(ChainPart::Intermediate))?;
    let unknown = |name: &x509_cert::name::Name| SnpError::UnknownRoot {
        found: common_name(name),
        trusted: trust.roots.names().iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", "),
    };

    // Known intermediates come first: what the host offers is looked at only where we have none of that name.
    let known = trust
        .roots
        .iter()
        .find_map(|root| root.intermediates.iter().find(|cert| cert.subject() == leaf.issuer()).map(|cert| (root, cert.clone())));
    let (root, intermediate) = match (known, offered) {
        (Some(found), _) => found,
        (None, Some(cert)) if cert.subject() == leaf.issuer() => {
            let root = trust.roots.iter().find(|root| root.ark.subject() == cert.issuer()).ok_or_else(|| unknown(cert.issuer()))?;
            (root, cert)
        }
        _ => return Err(unknown(leaf.issuer())),
    };
    // A root the evidence brings along is no reason for trust, but if it is another than ours of the same name, say so.
    if let Some(bytes) = table.and_then(|table| table.get(CertKind::Ark)) {
        let brought = Cert::parse(bytes).map_err(bad(ChainPart::Root))?;
        if !brought.is_same_issuer_as(&root.ark) {
            return Err(unknown(brought.subject()));
        }
    }
    Ok((root, intermediate))
}

fn check_steps(leaf: &Cert, kind: LeafKind, intermediate: &Cert, root: &Root) -> Result<(), SnpError> {
    for (part, cert) in [(ChainPart::Root, &root.ark), (ChainPart::Intermediate, intermediate)] {
        if !cert.is_authority() {
            return Err(SnpError::NotAnAuthority { part });
        }
        if !cert.is_signed_by(&root.ark) {
            return Err(SnpError::ChainSignature { part });
        }
    }
    if !leaf.is_signed_by(intermediate) {
        return Err(SnpError::ChainSignature { part: ChainPart::Leaf });
    }
    // An ASVK signs VLEKs only, an ASK VCEKs only: a key of one kind must not pass as one of the other.
    let issuer = common_name(intermediate.subject());
    if !is_named(leaf, kind) || issuer.contains("VLEK") != (kind == LeafKind::Vlek) {
        return Err(SnpError::LeafKind { expected: kind.name(), found: common_name(leaf.subject()), issuer });
    }
    Ok(())
}

fn check_time(part: ChainPart, cert: &Cert, now: u64) -> Result<(), SnpError> {
    if now < cert.not_before() {
        return Err(SnpError::NotYetValid { part, not_before: cert.not_before(), now });
    }
    if now > cert.not_after() {
        return Err(SnpError::Expired { part, not_after: cert.not_after(), now });
    }
    Ok(())
}
