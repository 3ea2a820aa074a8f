//! `kata-cc measure snp --id-block …`: the measurement, signed as the ID block of a class.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_firmware::measure::snp::LaunchDigest;
use kata_cc_vmm::tee::snp::GuestPolicy;
use kata_cc_vmm::tee::snp::id_block::{IdBlock, IdKey, SignedIdBlock};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use crate::files;

/// What an ID block is made of, beside the measurement.
#[derive(clap::Args)]
pub(super) struct IdBlockArgs {
    /// Write an ID block for this measurement into this file, in base64: `[snp] id_block` of a class.
    #[arg(long, value_name = "FILE", requires_all = ["id_auth", "id_key"], conflicts_with_all = ["range", "each_vcpu_count"])]
    id_block: Option<PathBuf>,
    /// Write its signature and keys into this file, in base64: `[snp] id_auth` of a class.
    #[arg(long, value_name = "FILE", requires = "id_block")]
    id_auth: Option<PathBuf>,
    /// Private key (PKCS#8 PEM, P-384) that signs the ID block.
    #[arg(long, value_name = "KEY", requires = "id_block")]
    id_key: Option<PathBuf>,
    /// Private key (PKCS#8 PEM, P-384) that vouches for the one of --id-key.
    #[arg(long, value_name = "KEY", requires = "id_block")]
    author_key: Option<PathBuf>,
    /// Guest policy of the class, by its number. Default: that of a class without `[snp.policy]`.
    #[arg(long, value_name = "HEX", value_parser = super::parse_features, requires = "id_block")]
    guest_policy: Option<u64>,
    /// FAMILY_ID in each report: 32 hexadecimal digits. Default: zeros.
    #[arg(long, value_name = "HEX", value_parser = parse_name, requires = "id_block")]
    family_id: Option<[u8; 16]>,
    /// IMAGE_ID in each report: 32 hexadecimal digits. Default: zeros.
    #[arg(long, value_name = "HEX", value_parser = parse_name, requires = "id_block")]
    image_id: Option<[u8; 16]>,
    /// GUEST_SVN in each report.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "id_block")]
    guest_svn: u32,
}

fn parse_name(text: &str) -> Result<[u8; 16], String> {
    let mut name = [0; 16];
    hex::decode_to_slice(text, &mut name).map_err(|_| format!("expected 32 hexadecimal digits, found {text:?}"))?;
    Ok(name)
}

fn key(path: &Path) -> anyhow::Result<IdKey> {
    let text = Zeroizing::new(files::read(path)?);
    let unusable = || format!("{} is not a usable private key", path.display());
    let der = PrivatePkcs8KeyDer::from_pem_slice(&text)
        .map_err(|error| anyhow::anyhow!("expected PKCS#8 in PEM: {error}"))
        .with_context(unusable)?;
    IdKey::from_pkcs8(der.secret_pkcs8_der()).with_context(unusable)
}

impl IdBlockArgs {
    /// Signs and writes, if that was asked for; what was signed.
    pub(super) fn write(&self, digest: &LaunchDigest) -> anyhow::Result<Option<SignedIdBlock>> {
        let (Some(block_path), Some(auth_path), Some(id_key)) = (&self.id_block, &self.id_auth, &self.id_key) else { return Ok(None) };
        let block = IdBlock {
            launch_digest: *digest.as_bytes(),
            family_id: self.family_id.unwrap_or_default(),
            image_id: self.image_id.unwrap_or_default(),
            guest_svn: self.guest_svn,
            policy: self.guest_policy.unwrap_or_else(|| GuestPolicy::default().bits()),
        };
        let author = self.author_key.as_deref().map(key).transpose()?;
        let signed = SignedIdBlock::sign(&block, &key(id_key)?, author.as_ref())?;
        for (path, bytes) in [(block_path, signed.block()), (auth_path, signed.auth())] {
            files::write(path, format!("{}\n", STANDARD.encode(bytes)).as_bytes())?;
        }
        Ok(Some(signed))
    }
}
