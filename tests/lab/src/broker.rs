//! Our key broker on the lab's bridge, and its registrations, all by `kata-cc kbs` as an operator does them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::artifacts::Artifacts;
use crate::namespaces::GATEWAY;
use crate::process::{Ready, Service, run, run_with};

/// Certificate authority and server certificate of the lab's brokers.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    /// CA certificate, PEM: the only root the guest and the CLI trust.
    pub(crate) ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Tls {
    /// Makes both by openssl.
    pub(crate) fn make(work: &Path) -> Result<Self> {
        let dir = work.join("tls");
        fs::create_dir_all(&dir)?;
        let (ca, ca_key, key, csr, certificate, ext) =
            (dir.join("ca.pem"), dir.join("ca.key"), dir.join("kbs.key"), dir.join("kbs.csr"), dir.join("kbs.pem"), dir.join("kbs.ext"));
        fs::write(&ext, format!("subjectAltName=IP:{GATEWAY}\nbasicConstraints=CA:FALSE\n"))?;
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        run_with(
            Command::new("openssl")
                .args(["req", "-x509", "-days", "30", "-subj", "/CN=kata-cc lab CA"])
                .args(curve)
                .arg("-keyout")
                .arg(&ca_key)
                .arg("-out")
                .arg(&ca),
        )?;
        run_with(
            Command::new("openssl")
                .args(["req", "-new", "-subj", "/CN=kata-cc-kbs"])
                .args(curve)
                .arg("-keyout")
                .arg(&key)
                .arg("-out")
                .arg(&csr),
        )?;
        run_with(
            Command::new("openssl")
                .args(["x509", "-req", "-days", "30", "-CAcreateserial", "-in"])
                .arg(&csr)
                .arg("-CA")
                .arg(&ca)
                .arg("-CAkey")
                .arg(&ca_key)
                .arg("-extfile")
                .arg(&ext)
                .arg("-out")
                .arg(&certificate),
        )?;
        Ok(Tls { ca, certificate, key })
    }
}

/// A running broker.
#[derive(Debug)]
pub(crate) struct Broker {
    service: Service,
    url: String,
    cli: PathBuf,
    ca: PathBuf,
    admin_key: PathBuf,
}

impl Broker {
    /// Starts a broker named `name` on `port` that takes the manifests of `signer`; `simulated_root` is the certificate it shall trust by
    /// name, if any.
    pub(crate) fn start(
        artifacts: &Artifacts,
        work: &Path,
        tls: &Tls,
        name: &'static str,
        port: u16,
        signer: &Path,
        simulated_root: Option<&Path>,
    ) -> Result<Self> {
        let data = work.join(name);
        fs::create_dir_all(&data)?;
        let mut config = format!(
            "listen = \"{GATEWAY}:{port}\"\ndata_dir = \"{}\"\n\n[tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n\n[references]\nsigners = [\"{}\"]\n\
             development = [\"simulation\"]\n",
            data.display(),
            tls.certificate.display(),
            tls.key.display(),
            signer.display()
        );
        if let Some(root) = simulated_root {
            config.push_str(&format!("\n[[simulated_roots]]\nname = \"lab\"\ncertificate = \"{}\"\n", root.display()));
        }
        let file = work.join(format!("{name}.toml"));
        fs::write(&file, config)?;
        let service = Service::start(
            name,
            Command::new(artifacts.bin("kata-cc-kbs")).arg("--config").arg(&file).env("RUST_LOG", "kata_cc_kbs=debug"),
            work.join(format!("{name}.log")),
            &Ready::Tcp(format!("{GATEWAY}:{port}").parse()?),
        )?;
        Ok(Broker {
            service,
            url: format!("https://{GATEWAY}:{port}"),
            cli: artifacts.bin("kata-cc"),
            ca: tls.ca.clone(),
            admin_key: data.join("admin.key"),
        })
    }

    /// Its address, as initdata names it.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Process id, for the list of what may run.
    pub(crate) fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// Runs `kata-cc kbs … ARGS`.
    pub(crate) fn admin<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(&self, args: I) -> Result<String> {
        run_with(
            Command::new(&self.cli)
                .args(["kbs", "--url", &self.url, "--ca"])
                .arg(&self.ca)
                .arg("--admin-key")
                .arg(&self.admin_key)
                .args(args),
        )
    }

    /// Stores a resource from bytes.
    pub(crate) fn set_resource(&self, work: &Path, path: &str, content: &[u8]) -> Result<()> {
        let file = work.join(format!("resource-{}", path.replace('/', "-")));
        fs::write(&file, content)?;
        self.admin(["set-resource".as_ref(), path.as_ref(), file.as_os_str()])?;
        fs::remove_file(&file)?;
        Ok(())
    }

    /// How often evidence was looked at so far, by the broker's own metrics.
    pub(crate) fn attestations(&self) -> Result<u64> {
        let text = run(
            "curl",
            ["--silent", "--show-error", "--fail", "--cacert", &self.ca.display().to_string(), &format!("{}/metrics", self.url)],
        )?;
        let mut sum = 0;
        for line in text.lines().filter(|line| line.starts_with("kbs_attestations_total")) {
            // Whatever came of it: an attestation is evidence made and looked at.
            let value = line.rsplit(' ').next().context("a metric line without a value")?;
            sum += value.parse::<u64>().with_context(|| format!("a number was expected in {line:?}"))?;
        }
        Ok(sum)
    }
}

/// What the pods of the lab are appraised by: the broker's own policy for development set-ups, which accepts a simulated root
/// and asks of everything else what the default policy asks.
pub(crate) const ATTESTATION_POLICY: &str = include_str!("../../../attestation/kbs/policies/simulated-attestation.rego");

/// Releases only to an affirmed guest, and nothing below `default/forbidden`.
pub(crate) const RESOURCE_POLICY: &str = r#"package policy
import rego.v1

default allow := false

allow if {
    data.plugin == "resource"
    input.submods.cpu0["ear.status"] == "affirming"
    not forbidden
}

forbidden if {
    data["resource-path"][0] == "default"
    data["resource-path"][1] == "forbidden"
}
"#;
