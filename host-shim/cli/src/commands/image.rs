//! `kata-cc image`: what the pod's owner does to an image before a registry or a host sees it; and, in `se`, guests' boot images.
//!
//! Formats and ciphers are `kata_cc_image_pull`'s, the same code the guest opens them with. Invariants: plain layers are read from
//! the source only and written nowhere but, for a registry source, a temporary directory of mode 0700; a key is never printed.

mod se;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::Subcommand;
use kata_cc_image_pull::encrypt::{Encrypted, encrypt_layout};
use kata_cc_image_pull::layout::Layout;
use kata_cc_image_pull::publish::{fetch_layout, push_layout, sign_image};
use kata_cc_image_pull::registry::auth::Credentials;
use kata_cc_image_pull::registry::http::{HttpConfig, HttpRegistry};
use kata_cc_image_pull::{Reference, ResourceUri, Secret};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::files;
use crate::output::{self, Format, Outcome, show};

/// AES-256.
const KEY_BYTES: usize = 32;

/// What to do with an image.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a key to encrypt images with: 32 random bytes in a new file of mode 0600.
    Keygen {
        /// File to create.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Encrypt every layer of an image; prints the new image's reference by digest.
    Encrypt(Encrypt),
    /// Sign an image in a registry, as cosign does with a key; prints the digest that was signed.
    Sign(Sign),
    /// Boot images of IBM Secure Execution.
    #[command(subcommand)]
    Se(se::Command),
}

/// Arguments of `image encrypt`.
#[derive(clap::Args)]
pub(crate) struct Encrypt {
    /// Where the plain image is: oci:DIR[:tag] or docker://host/repository:tag.
    #[arg(long, value_name = "IMAGE")]
    source: Location,
    /// Where the encrypted image goes: docker://host/repository:tag or oci:DIR[:tag].
    #[arg(long, value_name = "IMAGE")]
    destination: Location,
    /// File with the key (`kata-cc image keygen`).
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Where the guest will find that key at the broker: kbs:///repository/type/tag.
    #[arg(long, value_name = "URI")]
    key_id: ResourceUri,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Arguments of `image sign`.
#[derive(clap::Args)]
pub(crate) struct Sign {
    /// The image, by digest: docker://host/repository@sha256:…
    #[arg(value_name = "IMAGE")]
    image: Location,
    /// Private key: ECDSA P-256, PKCS#8 PEM, not encrypted (`kata-cc policy keygen` makes such keys).
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// How to reach registries.
#[derive(clap::Args)]
struct RegistryArgs {
    /// Registry to speak plain HTTP with; may be given several times. No login is sent to it.
    #[arg(long, value_name = "HOST:PORT")]
    insecure_registry: Vec<String>,
    /// Further root certificate (PEM) for registries; may be given several times.
    #[arg(long, value_name = "FILE")]
    registry_ca: Vec<PathBuf>,
    /// Docker config.json with logins (`auths`). None is read unless given.
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

impl RegistryArgs {
    fn connect(&self) -> anyhow::Result<HttpRegistry> {
        let credentials = match &self.authfile {
            Some(path) => Credentials::parse(&Secret::new(files::read(path)?)).with_context(|| format!("cannot use {}", path.display()))?,
            None => Credentials::default(),
        };
        Ok(HttpRegistry::new(HttpConfig {
            insecure_registries: self.insecure_registry.iter().cloned().collect::<BTreeSet<_>>(),
            extra_ca: self.registry_ca.iter().map(|path| files::read_text(path)).collect::<anyhow::Result<_>>()?,
            public_ca: true,
            credentials,
        })?)
    }
}

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Location {
    /// An OCI image layout on disk, and which image of it.
    Layout { dir: PathBuf, tag: Option<String> },
    /// A registry.
    Registry(Box<Reference>),
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(reference) = text.strip_prefix("docker://") {
            return reference.parse().map(|r| Location::Registry(Box::new(r))).map_err(|e| e.to_string());
        }
        let Some(rest) = text.strip_prefix("oci:") else {
            return Err("expected oci:DIR[:tag] or docker://host/repository:tag".to_owned());
        };
        // A tag holds no slash, so a colon before one belongs to the path.
        let (dir, tag) = match rest.rsplit_once(':') {
            Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag.to_owned())),
            _ => (rest, None),
        };
        if dir.is_empty() || tag.as_deref() == Some("") {
            return Err("expected oci:DIR[:tag] with a directory and, after a colon, a tag".to_owned());
        }
        Ok(Location::Layout { dir: dir.into(), tag })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Layout { dir, tag: Some(tag) } => write!(f, "oci:{}:{tag}", dir.display()),
            Location::Layout { dir, tag: None } => write!(f, "oci:{}", dir.display()),
            Location::Registry(reference) => write!(f, "docker://{reference}"),
        }
    }
}

pub(crate) fn run(command: Command, format: Format) -> anyhow::Result<Outcome> {
    match command {
        Command::Keygen { file } => keygen(&file, format),
        Command::Encrypt(args) => super::block_on(encrypt(&args, format)),
        Command::Sign(args) => super::block_on(sign(&args, format)),
        Command::Se(command) => se::run(&command, format),
    }
}

fn keygen(path: &Path, format: Format) -> anyhow::Result<Outcome> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    SystemRandom::new().fill(key.as_mut_slice()).map_err(|_| anyhow::anyhow!("the system's random source failed"))?;
    files::write_secret(path, key.as_slice())?;
    show(format, "image.keygen", &serde_json::json!({ "file": path, "bytes": KEY_BYTES }), String::new)?;
    output::note(
        format,
        format!("wrote {} ({KEY_BYTES} random bytes); store it at the broker with `kata-cc kbs set-resource`", path.display()),
    );
    Ok(Outcome::Done)
}

fn read_key(path: &Path) -> anyhow::Result<Secret> {
    let key = files::read(path)?;
    if key.len() != KEY_BYTES {
        bail!("{} holds {} bytes; expected a key of exactly {KEY_BYTES} (make one with `kata-cc image keygen`)", path.display(), key.len());
    }
    Ok(Secret::new(key))
}

async fn encrypt(args: &Encrypt, format: Format) -> anyhow::Result<Outcome> {
    if args.source == args.destination {
        bail!("source and destination are the same image ({}); the plain layers would stay beside the encrypted ones", args.source);
    }
    let key = read_key(&args.key_file)?;
    let registry = args.registry.connect()?;
    let work = tempfile::tempdir().context("cannot make a temporary directory")?;

    let (source, name) = open_source(&args.source, &registry, work.path(), format).await?;
    let (destination, encrypted) = match &args.destination {
        Location::Layout { dir, tag } => {
            let target = Layout::create(dir)?;
            let encrypted = encrypt_into(&source, &target, name.as_deref(), tag.as_deref(), &key, &args.key_id)?;
            (format!("oci:{}@{}", dir.display(), encrypted.digest), encrypted)
        }
        Location::Registry(reference) => {
            let target = Layout::create(work.path().join("encrypted"))?;
            let encrypted = encrypt_layout(&source, &target, name.as_deref(), &key, &args.key_id)?;
            output::note(format, format!("pushing {} layer(s) to {reference}", encrypted.layers.len()));
            let digest =
                push_layout(&registry, &target, name.as_deref(), reference).await.with_context(|| format!("cannot push {reference}"))?;
            (reference.at_digest(digest).to_string(), encrypted)
        }
    };
    let layers: Vec<_> = encrypted
        .layers
        .iter()
        .map(|l| serde_json::json!({ "plain": l.plain.to_string(), "encrypted": l.encrypted.to_string() }))
        .collect();
    let result = serde_json::json!({
        "image": destination,
        "digest": encrypted.digest.to_string(),
        "key_id": args.key_id.to_string(),
        "layers": layers,
    });
    show(format, "image.encrypt", &result, || destination.clone())?;
    output::note(format, format!("{} layer(s) encrypted; the guest will ask the broker for {}", encrypted.layers.len(), args.key_id));
    Ok(Outcome::Done)
}

/// A layout with the source in it, and the image's name there.
async fn open_source(source: &Location, registry: &HttpRegistry, work: &Path, format: Format) -> anyhow::Result<(Layout, Option<String>)> {
    match source {
        Location::Layout { dir, tag } => Ok((Layout::open(dir)?, tag.clone())),
        Location::Registry(reference) => {
            output::note(format, format!("fetching {reference}"));
            let layout = Layout::create(work.join("plain"))?;
            fetch_layout(registry, reference, &layout, None).await.with_context(|| format!("cannot fetch {reference}"))?;
            Ok((layout, None))
        }
    }
}

/// Encrypts into a layout that may hold other images, the source among them.
fn encrypt_into(
    source: &Layout,
    target: &Layout,
    from: Option<&str>,
    to: Option<&str>,
    key: &Secret,
    kid: &ResourceUri,
) -> anyhow::Result<Encrypted> {
    // `encrypt_layout` keeps the name, so whatever had it is put back afterwards.
    let before = target.image(from).ok();
    let encrypted = encrypt_layout(source, target, from, key, kid)?;
    if let Some(to) = to
        && from != Some(to)
    {
        target.name_image(target.image(from)?, Some(to))?;
        if let Some(before) = before {
            target.name_image(before, from)?;
        }
    }
    Ok(encrypted)
}

async fn sign(args: &Sign, format: Format) -> anyhow::Result<Outcome> {
    let Location::Registry(reference) = &args.image else {
        bail!("expected an image in a registry (docker://host/repository@sha256:…): a signature is stored beside it there");
    };
    let Some(digest) = reference.digest() else {
        bail!("{reference} names no digest; a tag may point elsewhere tomorrow, so sign host/repository@sha256:…");
    };
    let key = Secret::new(files::read(&args.key)?);
    let registry = args.registry.connect()?;
    sign_image(&registry, reference, digest, &key).await.with_context(|| format!("cannot sign {reference}"))?;
    let result = serde_json::json!({ "image": reference.to_string(), "digest": digest.to_string() });
    show(format, "image.sign", &result, || digest.to_string())?;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_in_skopeos_form() {
        let layout = |dir: &str, tag: Option<&str>| Location::Layout { dir: dir.into(), tag: tag.map(str::to_owned) };
        assert_eq!("oci:img".parse(), Ok(layout("img", None)));
        assert_eq!("oci:img:1.0".parse(), Ok(layout("img", Some("1.0"))));
        assert_eq!("oci:/a:b/img".parse(), Ok(layout("/a:b/img", None)));
        assert_eq!("oci:/a:b/img:x".parse(), Ok(layout("/a:b/img", Some("x"))));
        assert!(matches!("docker://127.0.0.1:5000/a/b:1".parse(), Ok(Location::Registry(_))));
        for bad in ["", "img", "oci:", "oci::x", "oci:img:", "docker://", "docker://A/B C", "dir:x"] {
            assert!(bad.parse::<Location>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_of_another_size_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert_eq!(keygen(&path, Format::Json).unwrap(), Outcome::Done);
        assert_eq!(std::fs::read(&path).unwrap().len(), KEY_BYTES);
        assert!(read_key(&path).is_ok());
        std::fs::write(&path, [0; 31]).unwrap();
        assert!(read_key(&path).unwrap_err().to_string().contains("31 bytes"));
    }

    #[test]
    fn encrypting_within_one_layout_leaves_the_plain_image_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path().join("img")).unwrap();
        let config = layout.put(b"{}").unwrap();
        let layer = layout.put(b"layer").unwrap();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.to_string(), "size": 2 },
            "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.to_string(), "size": 5 }],
        })
        .to_string();
        let digest = layout.put(manifest.as_bytes()).unwrap();
        let plain = serde_json::json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": manifest.len() });
        layout.name_image(plain, Some("plain")).unwrap();

        let kid: ResourceUri = "kbs:///default/key/x".parse().unwrap();
        let encrypted = encrypt_into(&layout, &layout, Some("plain"), Some("sealed"), &Secret::new(vec![7; 32]), &kid).unwrap();
        assert_eq!(layout.image(Some("plain")).unwrap()["digest"], digest.to_string());
        assert_eq!(layout.image(Some("sealed")).unwrap()["digest"], encrypted.digest.to_string());
        assert_eq!(encrypted.layers.len(), 1);
        assert_ne!(encrypted.layers[0].plain, encrypted.layers[0].encrypted);
    }
}
