//! The folder of a broker for development: certificate, configuration, a key that signs reference manifests.
//!
//! Invariants: nothing that was there before is changed or removed; private keys have mode 0600; the certificate authority's key is not
//! kept, so that nobody can be made to trust another certificate by it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use kata_cc_policy::SigningKey;
use kata_cc_policy::keys::KeyKind;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};

use crate::files;

/// How the broker names the simulated root that it is given.
const SIMULATED: &str = "dev";
/// Files and folders that a broker for development has.
const ENTRIES: [&str; 9] =
    ["ca.pem", "tls.pem", "tls.key", "reference.key", "reference.pub", "simulated-root.pem", "kbs.toml", "kbs.log", "data"];

/// A folder with everything that a broker needs.
pub(super) struct Folder {
    path: PathBuf,
    /// Whether the folder is to go, and not only what is in it.
    made_folder: bool,
    /// Whether what is in it was made by this run.
    made_entries: bool,
    simulated: bool,
}

impl Folder {
    /// Makes the folder, or uses one that an earlier run kept.
    pub(super) fn open(path: Option<&Path>, port: u16, simulated_root: Option<&Path>) -> anyhow::Result<Self> {
        let (path, made_folder) = match path {
            None => (tempfile::Builder::new().prefix("kata-cc-kbs-").tempdir().context("cannot make a temporary folder")?.keep(), true),
            Some(path) => match fs::DirBuilder::new().mode(0o700).create(path) {
                Ok(()) => (path.to_owned(), true),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (path.to_owned(), false),
                Err(error) => return Err(error).with_context(|| format!("cannot create {}", path.display())),
            },
        };
        let path = fs::canonicalize(&path).with_context(|| format!("cannot find {}", path.display()))?;
        let empty = fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?.next().is_none();
        let folder = Self { made_folder, made_entries: empty, simulated: simulated_root.is_some(), path };
        if !empty && !folder.entry("kbs.toml").exists() {
            bail!("{} is neither empty nor that of a broker made by --dev; choose another folder", folder.path.display());
        }
        // From here on, whatever fails takes what was made with it.
        match folder.fill(empty, port, simulated_root) {
            Ok(()) => Ok(folder),
            Err(error) => {
                let _ = folder.remove();
                Err(error)
            }
        }
    }

    fn fill(&self, empty: bool, port: u16, simulated_root: Option<&Path>) -> anyhow::Result<()> {
        if empty {
            self.make_certificate()?;
            self.make_signer()?;
        }
        if let Some(root) = simulated_root {
            files::write(&self.entry("simulated-root.pem"), &files::read(&root_file(root))?)?;
        }
        files::write(&self.entry("kbs.toml"), self.configuration(port)?.as_bytes())
    }

    /// One of [`ENTRIES`].
    pub(super) fn entry(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether evidence of a simulation is looked at.
    pub(super) fn simulated(&self) -> bool {
        self.simulated
    }

    /// Removes what this run made, and nothing else.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        if !self.made_entries {
            return Ok(());
        }
        for name in ENTRIES {
            let path = self.entry(name);
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        if self.made_folder {
            // What somebody else put there stays, and the folder with it.
            let _ = fs::remove_dir(&self.path);
        }
        Ok(())
    }

    /// An authority of its own and a certificate for loopback under it.
    fn make_certificate(&self) -> anyhow::Result<()> {
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "kata-cc development CA");
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let mut server = CertificateParams::new(vec!["localhost".to_owned()])?;
        server.distinguished_name.push(DnType::CommonName, "kata-cc-kbs for development");
        server.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = server.signed_by(&key, &authority)?;
        files::write(&self.entry("ca.pem"), authority.pem().as_bytes())?;
        files::write(&self.entry("tls.pem"), certificate.pem().as_bytes())?;
        files::write_secret(&self.entry("tls.key"), zeroize::Zeroizing::new(key.serialize_pem()).as_bytes())
    }

    fn make_signer(&self) -> anyhow::Result<()> {
        let key = SigningKey::generate(KeyKind::P256)?;
        files::write_secret(&self.entry("reference.key"), key.to_pkcs8_pem().as_bytes())?;
        files::write(&self.entry("reference.pub"), key.public_key().to_pem().as_bytes())
    }

    fn configuration(&self, port: u16) -> anyhow::Result<String> {
        let quoted = |name: &str| -> anyhow::Result<String> {
            let path = self.entry(name);
            // The same escapes as JSON's, as far as a path has any.
            Ok(serde_json::to_string(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?)?)
        };
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut text = format!(
            "# For development, on this machine alone. Made by `kata-cc kbs run --dev`.\nlisten = \"{listen}\"\ndata_dir = {}\n\n[tls]\n\
             certificate = {}\nprivate_key = {}\n\n[references]\nsigners = [{}]\n",
            quoted("data")?,
            quoted("tls.pem")?,
            quoted("tls.key")?,
            quoted("reference.pub")?
        );
        if self.simulated {
            text.push_str(&format!(
                "development = [\"simulation\"]\n\n[[simulated_roots]]\nname = \"{SIMULATED}\"\ncertificate = {}\n",
                quoted("simulated-root.pem")?
            ));
        }
        Ok(text)
    }
}

/// The root in the folder that `kata-cc-tee-sim init` fills, or the file itself.
fn root_file(given: &Path) -> PathBuf {
    if given.is_dir() { given.join("ark.pem") } else { given.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_was_made_is_removed_and_what_was_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broker");
        let folder = Folder::open(Some(&path), 0, None).unwrap();
        for name in ["tls.key", "reference.key"] {
            assert_eq!(fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        assert!(!fs::read_to_string(path.join("kbs.toml")).unwrap().contains("simulat"));
        folder.remove().unwrap();
        assert!(!path.exists());

        fs::create_dir(&path).unwrap();
        let folder = Folder::open(Some(&path), 0, None).unwrap();
        fs::write(path.join("mine"), "x").unwrap();
        folder.remove().unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        let refused = Folder::open(Some(&path), 0, None).err().unwrap().to_string();
        assert!(refused.contains("neither empty"), "{refused}");
        assert!(path.join("mine").exists());
    }

    #[test]
    fn a_kept_broker_is_used_again_and_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broker");
        Folder::open(Some(&path), 0, None).unwrap();
        let certificate = fs::read(path.join("ca.pem")).unwrap();
        let again = Folder::open(Some(&path), 8443, None).unwrap();
        assert_eq!(fs::read(path.join("ca.pem")).unwrap(), certificate);
        assert!(fs::read_to_string(path.join("kbs.toml")).unwrap().contains("127.0.0.1:8443"));
        again.remove().unwrap();
        assert!(path.join("tls.key").exists());
    }

    #[test]
    fn a_simulated_root_is_a_file_or_the_simulations_folder() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ark.pem"), "root").unwrap();
        for given in [dir.path().to_owned(), dir.path().join("ark.pem")] {
            let path = dir.path().join("broker");
            let folder = Folder::open(Some(&path), 0, Some(&given)).unwrap();
            assert_eq!(fs::read(path.join("simulated-root.pem")).unwrap(), b"root");
            let text = fs::read_to_string(path.join("kbs.toml")).unwrap();
            assert!(text.contains("development = [\"simulation\"]") && text.contains("[[simulated_roots]]"), "{text}");
            folder.remove().unwrap();
        }
        let path = dir.path().join("broker");
        assert!(Folder::open(Some(&path), 0, Some(&dir.path().join("absent"))).is_err());
        assert!(!path.exists(), "nothing is left of a start that failed");
    }
}
