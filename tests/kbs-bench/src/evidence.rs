//! Evidence to bench with: made by the simulator, verified as any other.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_evidence::{HostData, LaunchDigest, MrConfigId, ReportData, TeeType, snp, tdx};
use kata_cc_tee_sim::identity::{self, Hierarchy, Identity};
use kata_cc_tee_sim::intel::{self, COLLATERAL_DIR, ROOT_FILE};
use kata_cc_tee_sim::report::{self, Launched};
use kata_cc_tee_sim::td;
use kata_cc_tee_sim::wire::ReportRequest;
use kata_cc_verifier::checks::Checks;
use kata_cc_verifier::collateral::{Collateral, Item, Need, Source};
use kata_cc_verifier::{Expected, Trust, Verifiers, snp as verifier_snp, tdx as verifier_tdx};
use serde_json::{Value, json};

/// As in AMD's roots.
const RSA_BITS: usize = 4096;
/// What the simulated SNP machine was launched with.
const MEASUREMENT: [u8; 48] = [0x4d; 48];
/// What the root is called.
const ROOT: &str = "bench";

/// A kind of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// An SNP report with its chain: P-384 over report and chip's key, RSA-PSS of 4096 bits above.
    Snp,
    /// A TDX quote with its event log, and collateral from files: P-256 over quote, QE report, PCK certificate, PCK CA, both revocation lists,
    /// TCB info, QE identity and their signer.
    Tdx,
    /// CoCo's sample evidence, without any signature: what the broker itself takes, and what Trustee was measured with.
    Sample,
}

impl Kind {
    /// Every kind.
    pub(crate) const ALL: &[Self] = &[Self::Snp, Self::Tdx, Self::Sample];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tee().as_str())
    }
}

impl Kind {
    /// As the protocol names it.
    pub(crate) fn tee(self) -> TeeType {
        match self {
            Self::Snp => TeeType::Snp,
            Self::Tdx => TeeType::Tdx,
            Self::Sample => TeeType::Sample,
        }
    }
}

/// A machine that makes evidence.
pub(crate) enum Machine {
    /// Of SNP.
    Snp { identity: Box<Identity>, launched: Launched },
    /// Of TDX.
    Tdx { machine: Box<intel::Machine>, td: td::Launched },
    /// Anybody.
    Sample,
}

/// A reference value: its name, and values.
pub(crate) type Reference = (&'static str, String);

impl Machine {
    /// Makes its keys: seconds for SNP, since the primes are large.
    pub(crate) fn make(kind: Kind) -> Result<Self> {
        match kind {
            Kind::Snp => Ok(Self::Snp {
                identity: Box::new(Hierarchy::generate(RSA_BITS, now()?)?.identity),
                launched: Launched { measurement: LaunchDigest(MEASUREMENT), host_data: HostData::ZERO, report_id: [1; 32] },
            }),
            Kind::Tdx => Ok(Self::Tdx { machine: Box::new(intel::Machine::generate(now()?)), td: launched_td()? }),
            Kind::Sample => Ok(Self::Sample),
        }
    }

    /// What the broker's configuration says of it: its root, and where its collateral is, in files that are written below `dir`.
    pub(crate) fn trusted(&self, dir: &Path) -> Result<String> {
        let named = |table: &str, root: &Path| format!("[[{table}]]\nname = \"{ROOT}\"\ncertificate = \"{}\"\n", root.display());
        match self {
            Self::Snp { identity, .. } => {
                let root = dir.join("root.pem");
                fs::write(&root, identity::pem(&identity.ark)?)?;
                Ok(named("simulated_roots", &root))
            }
            Self::Tdx { machine, .. } => {
                let keys = dir.join("tdx");
                machine.save(&keys)?;
                let collateral = format!("[collateral]\ndirectory = \"{}\"\n", keys.join(COLLATERAL_DIR).display());
                Ok(named("tdx.simulated_roots", &keys.join(ROOT_FILE)) + &collateral)
            }
            Self::Sample => Ok("[development]\nsample_evidence = true\n".into()),
        }
    }

    /// The attestation policy that affirms it, and asks of everything else what the default policy asks.
    pub(crate) fn policy(&self) -> &'static str {
        match self {
            Self::Snp { .. } | Self::Tdx { .. } => include_str!("../../../attestation/kbs/policies/simulated-attestation.rego"),
            Self::Sample => include_str!("../../../attestation/kbs/policies/sample-attestation.rego"),
        }
    }

    /// What the broker compares with.
    pub(crate) fn references(&self) -> Vec<Reference> {
        match self {
            Self::Snp { .. } => vec![("snp_launch_measurement", hex::encode(MEASUREMENT)), ("init_data", "00".repeat(32))],
            Self::Tdx { td, .. } => {
                let [rtmr0, rtmr1, rtmr2, _] = td.rtmr.map(|register| register.to_string());
                vec![
                    ("mr_td", td.mr_td.to_string()),
                    ("rtmr_0", rtmr0),
                    ("rtmr_1", rtmr1),
                    ("rtmr_2", rtmr2),
                    ("init_data", td.mr_config_id.to_string()),
                ]
            }
            Self::Sample => Vec::new(),
        }
    }

    /// Evidence over report data, in the kind's JSON form.
    pub(crate) fn evidence(&self, report_data: &ReportData) -> Result<Value> {
        match self {
            Self::Snp { identity, launched } => {
                let blobs = report::report(identity, launched, &ReportRequest { report_data: report_data.0, vmpl: 0 })?;
                Ok(serde_json::to_value(snp::Evidence::from_raw(&blobs.outblob, &blobs.auxblob)?)?)
            }
            Self::Tdx { machine, td } => {
                let quote = td.quote(&machine.identity, *report_data)?;
                Ok(serde_json::to_value(tdx::Evidence::from_raw(&quote, Some(&td.event_log))?)?)
            }
            Self::Sample => Ok(json!({"svn": "1", "report_data": STANDARD.encode(report_data.0)})),
        }
    }

    /// What a verifier trusts that takes this machine's evidence.
    fn trust(&self) -> Result<Trust> {
        match self {
            Self::Snp { identity, .. } => {
                let roots = verifier_snp::RootSet::amd().with_simulated(ROOT, identity::pem(&identity.ark)?.as_bytes())?;
                Ok(Trust { snp: roots.into(), ..Trust::hardware() })
            }
            Self::Tdx { machine, .. } => {
                let roots = verifier_tdx::RootSet::intel().with_simulated(ROOT, &machine.root)?;
                Ok(Trust { tdx: roots.into(), ..Trust::hardware() })
            }
            Self::Sample => Ok(Trust { sample: true, ..Trust::hardware() }),
        }
    }

    /// What the evidence does not bring.
    fn collateral(&self) -> Collateral {
        let mut collateral = Collateral::none();
        if let Self::Tdx { machine, .. } = self {
            for piece in &machine.pieces {
                let need = Need { source: Source::IntelPcs, path: piece.path.clone() };
                collateral.insert(need, Item { body: piece.body.clone(), issuer_chain: piece.issuer_chain.clone() });
            }
        }
        collateral
    }

    /// CPU-bound time to verify one piece of evidence, in milliseconds: the median of so many.
    pub(crate) fn verify_ms(&self, kind: Kind, times: u32) -> Result<f64> {
        let verifiers = Verifiers::new(self.trust()?);
        let verifier = verifiers.get(kind.tee())?;
        let report_data = ReportData([0x5a; 64]);
        let (evidence, collateral) = (self.evidence(&report_data)?, self.collateral());
        let expected = Expected { report_data: Some(&report_data), initdata_digest: None, now_unix: now()? };
        let mut took = Vec::new();
        for _ in 0..times {
            let start = Instant::now();
            verifier.verify(&evidence, &expected, &collateral, &mut Checks::default())?;
            took.push(start.elapsed().as_secs_f64() * 1e3);
        }
        took.sort_by(f64::total_cmp);
        took.get(took.len() / 2).copied().context("nothing was measured")
    }
}

/// A TD with a few events in its log, as firmware and EFI stub leave them.
fn launched_td() -> Result<td::Launched> {
    let dir = tempfile::tempdir()?;
    let file = |name: &str| -> Result<_> {
        let path = dir.path().join(name);
        fs::write(&path, name)?;
        Ok(path)
    };
    let (firmware, kernel, initrd) = (file("firmware")?, file("kernel")?, file("initrd")?);
    let launch = td::Launch { firmware, kernel, initrd, append: "console=ttyS0".into(), vcpus: 1, mr_config_id: MrConfigId::ZERO };
    Ok(launch.measure()?)
}

/// Seconds since the epoch.
pub(crate) fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_of_each_kind_verifies() {
        let snp = Machine::Snp {
            identity: Box::new(Hierarchy::generate(2048, now().unwrap()).unwrap().identity),
            launched: Launched { measurement: LaunchDigest(MEASUREMENT), host_data: HostData::ZERO, report_id: [1; 32] },
        };
        snp.verify_ms(Kind::Snp, 1).unwrap();
        Machine::make(Kind::Tdx).unwrap().verify_ms(Kind::Tdx, 1).unwrap();
        Machine::Sample.verify_ms(Kind::Sample, 1).unwrap();
    }
}
