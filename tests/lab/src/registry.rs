//! Debian's docker-registry on the lab's bridge, and the images in it: a real small image of busybox, plain, encrypted and signed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::artifacts::Artifacts;
use crate::namespaces::GATEWAY;
use crate::process::{Ready, Service, run, run_with};

/// The registry and where it keeps its blobs.
#[derive(Debug)]
pub(crate) struct Registry {
    service: Service,
    storage: PathBuf,
    log: PathBuf,
}

/// A pair of cosign keys, made by cosign.
#[derive(Debug, Clone)]
pub(crate) struct CosignKey {
    /// Private key file.
    pub(crate) private: PathBuf,
    /// Public key file, PEM.
    pub(crate) public: PathBuf,
}

impl Registry {
    /// Its address, host and port.
    pub(crate) fn address() -> String {
        format!("{GATEWAY}:5000")
    }

    /// Starts it with its files below `work`.
    pub(crate) fn start(work: &Path) -> Result<Self> {
        let storage = work.join("registry");
        fs::create_dir_all(&storage)?;
        let config = work.join("registry.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: false\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {}\n",
                storage.display(),
                Self::address()
            ),
        )?;
        let log = work.join("registry.log");
        let service = Service::start(
            "docker-registry",
            Command::new("docker-registry").arg("serve").arg(&config),
            log.clone(),
            &Ready::Tcp(Self::address().parse()?),
        )?;
        Ok(Registry { service, storage, log })
    }

    /// Process id, for the list of what may run.
    pub(crate) fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// How often a blob was asked for and given, by the registry's own access log.
    pub(crate) fn blob_requests(&self, digest: &str) -> Result<usize> {
        let log = fs::read_to_string(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        let asked = format!("/blobs/{digest} HTTP/");
        Ok(log.lines().filter(|line| line.contains("\"GET /v2/") && line.contains(&asked)).count())
    }

    /// Flips one bit of a stored blob, as a registry (or whoever owns its disk) can.
    pub(crate) fn flip_bit(&self, digest: &str) -> Result<()> {
        let hex = digest.strip_prefix("sha256:").with_context(|| format!("expected sha256:<hex>, found {digest}"))?;
        let path = self.storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data");
        let mut data = fs::read(&path).with_context(|| format!("no blob at {}", path.display()))?;
        let middle = data.len() / 2;
        data[middle] ^= 1;
        fs::write(&path, data)?;
        Ok(())
    }

    /// The descriptor digests of the layers of a pushed image.
    pub(crate) fn layers(&self, reference: &str) -> Result<Vec<String>> {
        let raw = run("skopeo", ["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")])?;
        let manifest: serde_json::Value = serde_json::from_str(&raw)?;
        let layers = manifest["layers"].as_array().context("the manifest has no layers")?;
        Ok(layers.iter().filter_map(|layer| layer["digest"].as_str().map(str::to_owned)).collect())
    }
}

/// The lab's images of the workload: one that is as it should be, and what attacks need.
pub(crate) const APPS: [&str; 5] = ["good", "unsigned", "other-signer", "flipped", "forbidden"];

/// Builds an OCI layout with a two-layer image of busybox (one tag for each of [`APPS`]) and a nearly empty one (`pause`) by umoci.
pub(crate) fn build_images(work: &Path) -> Result<PathBuf> {
    let layout = work.join("layout");
    let image = format!("{}:app", layout.display());
    run("umoci", ["init", "--layout", &layout.display().to_string()])?;
    run("umoci", ["new", "--image", &image])?;

    let base = work.join("app-base");
    fs::create_dir_all(base.join("bin"))?;
    fs::create_dir_all(base.join("etc"))?;
    fs::create_dir_all(base.join("tmp"))?;
    fs::copy("/bin/busybox", base.join("bin/busybox")).context("busybox-static is not installed")?;
    fs::set_permissions(base.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    for applet in ["awk", "cat", "date", "dd", "echo", "head", "id", "ls", "seq", "sh", "sleep", "stty", "tr", "true", "wget", "yes"] {
        symlink("busybox", base.join("bin").join(applet))?;
    }
    fs::write(base.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    fs::write(base.join("etc/group"), "root:x:0:\n")?;
    run("umoci", ["insert", "--image", &image, &base.display().to_string(), "/"])?;

    let app = work.join("app-top");
    fs::create_dir_all(app.join("app"))?;
    fs::write(app.join("app/motd"), "hello from an encrypted layer\n")?;
    run("umoci", ["insert", "--image", &image, &app.display().to_string(), "/"])?;
    run("umoci", ["config", "--image", &image, "--config.cmd", "/bin/sh", "--config.env", "PATH=/bin"])?;
    // containerd knows an image by the digest of its configuration, so each gets one of its own.
    for name in APPS {
        let label = format!("kata-cc.lab={name}");
        run("umoci", ["config", "--image", &image, "--tag", name, "--config.label", &label])?;
    }

    let pause = format!("{}:pause", layout.display());
    run("umoci", ["new", "--image", &pause])?;
    let empty = work.join("pause-root");
    fs::create_dir_all(empty.join("empty"))?;
    run("umoci", ["insert", "--image", &pause, &empty.display().to_string(), "/"])?;
    run("umoci", ["config", "--image", &pause, "--config.cmd", "/pause"])?;
    Ok(layout)
}

/// Pushes an image of the layout as it is.
pub(crate) fn push_plain(layout: &Path, tag: &str, repository: &str) -> Result<String> {
    let reference = format!("{}/{repository}:{tag}", Registry::address());
    run(
        "skopeo",
        [
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            &format!("oci:{}:{tag}", layout.display()),
            &format!("docker://{reference}"),
        ],
    )?;
    by_digest(&reference, repository)
}

/// Encrypts an image of the layout for `kid` by `kata-cc image encrypt` and pushes it. Gives the reference by digest.
pub(crate) fn push_encrypted(artifacts: &Artifacts, layout: &Path, tag: &str, repository: &str, kek: &Path, kid: &str) -> Result<String> {
    let reference = format!("{}/{repository}:{tag}", Registry::address());
    run_with(
        Command::new(artifacts.bin("kata-cc"))
            .args(["image", "encrypt", "--source", &format!("oci:{}:{tag}", layout.display())])
            .args(["--destination", &format!("docker://{reference}")])
            .arg("--key-file")
            .arg(kek)
            .args(["--key-id", kid, "--insecure-registry", &Registry::address()]),
    )?;
    by_digest(&reference, repository)
}

fn by_digest(reference: &str, repository: &str) -> Result<String> {
    let digest = run("skopeo", ["inspect", "--no-tags", "--format", "{{.Digest}}", "--tls-verify=false", &format!("docker://{reference}")])
        .or_else(|_| run("skopeo", ["inspect", "--format", "{{.Digest}}", "--tls-verify=false", &format!("docker://{reference}")]))?;
    let digest = digest.trim();
    if !digest.starts_with("sha256:") {
        bail!("skopeo inspect gave {digest:?} where a digest was expected");
    }
    Ok(format!("{}/{repository}@{digest}", Registry::address()))
}

/// Makes a pair of keys by Debian's cosign.
pub(crate) fn cosign_key(artifacts: &Artifacts, work: &Path, name: &str) -> Result<CosignKey> {
    let prefix = work.join(name);
    run_with(cosign(artifacts, work).args(["generate-key-pair", "--output-key-prefix"]).arg(&prefix))?;
    Ok(CosignKey { private: prefix.with_extension("key"), public: prefix.with_extension("pub") })
}

/// Signs an image by Debian's cosign; no transparency log, since there is none here.
pub(crate) fn cosign_sign(artifacts: &Artifacts, work: &Path, key: &CosignKey, reference: &str) -> Result<()> {
    run_with(
        cosign(artifacts, work)
            .args(["sign", "--yes", "--tlog-upload=false", "--allow-http-registry", "--allow-insecure-registry", "--key"])
            .arg(&key.private)
            .arg(reference),
    )?;
    Ok(())
}

fn cosign(artifacts: &Artifacts, work: &Path) -> Command {
    let mut command = Command::new(artifacts.cosign());
    command.env("COSIGN_PASSWORD", "").env("HOME", work);
    command
}
