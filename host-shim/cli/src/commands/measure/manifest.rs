//! Manifests of reference values, signed: what `kata-cc measure … --sign` writes and the broker takes.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::ArgGroup;
use kata_cc_policy::reference::{Entry, Kind, Manifest, SignedManifest, ValuesEntry};
use kata_cc_policy::{SigningKey, TrustedKeys};
use serde_json::{Value, json};

use super::initrd;
use crate::files;
use crate::output::{self, Format, Outcome, show};

/// How long a manifest holds when nobody says otherwise: long enough for a release, short enough that a forgotten one ends.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// Who signs, and what is said about the values.
#[derive(clap::Args)]
pub(crate) struct ManifestArgs {
    /// Private key (PKCS#8 PEM, P-256 or Ed25519) that signs; may be given several times. `kata-cc policy keygen` makes one.
    #[arg(long, value_name = "KEY", requires_all = ["name", "release", "serial", "kind"])]
    sign: Vec<PathBuf>,
    /// What the manifest is about, such as kata-cc-guest. On a broker it replaces the one of the same name.
    #[arg(long, value_name = "NAME", requires = "sign")]
    name: Option<String>,
    /// Version of the image, as people call it.
    #[arg(long, value_name = "TEXT", requires = "sign")]
    release: Option<String>,
    /// Serial number. A broker never goes back to a lower one of the same name, unless told to.
    #[arg(long, value_name = "N", requires = "sign")]
    serial: Option<u64>,
    /// What it is for: production, debug or simulation. Brokers refuse the last two unless they are set up for development. An initrd that
    /// says it is one of the last two is not signed as production.
    #[arg(long, value_name = "KIND", requires = "sign")]
    kind: Option<Kind>,
    /// When it begins to hold: RFC 3339. Default: now.
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "sign")]
    not_before: Option<SystemTime>,
    /// When it ends: RFC 3339, or a span after its beginning such as 90d. Default: 365d.
    #[arg(long, value_name = "TIME", value_parser = parse_end, requires = "sign")]
    expires: Option<End>,
    /// File to write it to. Default: stdout.
    #[arg(long, short, value_name = "FILE", requires = "sign")]
    out: Option<PathBuf>,
}

/// When something ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    At(SystemTime),
    After(Duration),
}

fn parse_time(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339_weak(text).map_err(|_| format!("expected a UTC time such as 2026-01-31T12:00:00Z, found {text:?}"))
}

fn parse_end(text: &str) -> Result<End, String> {
    let span = humantime::parse_duration(text).map(End::After);
    span.or_else(|_| parse_time(text).map(End::At))
        .map_err(|_| format!("expected a UTC time such as 2026-01-31T12:00:00Z or a span such as 90d, found {text:?}"))
}

fn unix(time: SystemTime) -> anyhow::Result<u64> {
    Ok(time.duration_since(UNIX_EPOCH).context("a time is before 1970")?.as_secs())
}

impl ManifestArgs {
    /// Whether a manifest is wanted at all.
    pub(super) fn wanted(&self) -> bool {
        !self.sign.is_empty()
    }

    /// Refuses an initrd that says it is of another kind than this manifest; nothing to refuse where none is signed.
    pub(super) fn check_initrd(&self, initrd: Option<&Path>, sha256: &[u8; 32], format: Format) -> anyhow::Result<()> {
        match (initrd, self.kind) {
            (Some(path), Some(kind)) if self.wanted() => initrd::check(path, sha256, kind, format),
            _ => Ok(()),
        }
    }

    fn manifest(&self, entries: Vec<Entry>, now: SystemTime) -> anyhow::Result<Manifest> {
        let from = self.not_before.unwrap_or(now);
        let until = match self.expires.unwrap_or(End::After(LIFETIME)) {
            End::At(time) => time,
            End::After(span) => from.checked_add(span).context("--expires is too far away")?,
        };
        // `requires_all` of --sign sees to it already.
        let (Some(name), Some(release), Some(serial), Some(kind)) = (&self.name, &self.release, self.serial, self.kind) else {
            bail!("a manifest has a --name, a --release, a --serial and a --kind");
        };
        Ok(Manifest { name: name.clone(), release: release.clone(), serial, kind, not_before: unix(from)?, expires: unix(until)?, entries })
    }

    /// Signs and writes; what is written is read back as a broker will read it.
    pub(super) fn write(&self, entries: Vec<Entry>, schema: &str, format: Format) -> anyhow::Result<Outcome> {
        let read = |path: &PathBuf| {
            SigningKey::from_pkcs8_pem(&files::read_text(path)?).with_context(|| format!("{} is not a usable private key", path.display()))
        };
        let keys = self.sign.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
        let manifest = self.manifest(entries, SystemTime::now())?;
        let bytes = SignedManifest::sign(&manifest, &keys.iter().collect::<Vec<_>>())?;
        let trusted = TrustedKeys::new(keys.iter().map(SigningKey::public_key), 0)?;
        let verified = SignedManifest::verify(&bytes, &trusted)?;
        let values: usize = manifest.values().values().map(Vec::len).sum();
        let result = json!({
            "digest": verified.digest().to_string(),
            "name": manifest.name,
            "serial": manifest.serial,
            "kind": manifest.kind,
            "expires": manifest.expires,
            "values": values,
            "signers": keys.iter().map(|key| key.public_key().id().to_string()).collect::<Vec<_>>(),
            "out": self.out,
        });
        match &self.out {
            Some(path) => {
                files::write(path, &bytes)?;
                show(format, schema, &result, || verified.digest().to_string())?;
            }
            None => output::raw(&[bytes.as_slice(), b"\n"].concat())?,
        }
        output::note(
            format,
            format!(
                "signed manifest {} {}, serial {}, {}: {values} values",
                manifest.name, manifest.release, manifest.serial, manifest.kind
            ),
        );
        Ok(Outcome::Done)
    }
}

/// Arguments of `measure values`.
#[derive(clap::Args)]
#[command(group(ArgGroup::new("signers").required(true).args(["sign"])))]
pub(crate) struct Values {
    /// A value that is text; the same id may be given several times.
    #[arg(long, value_name = "ID=TEXT", value_parser = parse_pair)]
    text: Vec<(String, String)>,
    /// A value that is a number, true or false, such as snp_bootloader=4.
    #[arg(long, value_name = "ID=VALUE", value_parser = parse_pair)]
    value: Vec<(String, String)>,
    /// A value that is the text of a file, such as policy_trusted_keys=policy.pub.
    #[arg(long, value_name = "ID=FILE", value_parser = parse_pair)]
    file: Vec<(String, String)>,
    #[command(flatten)]
    manifest: ManifestArgs,
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (id, value) = text.split_once('=').ok_or_else(|| format!("expected ID=…, found {text:?}"))?;
    Ok((id.to_owned(), value.to_owned()))
}

/// Signs values that no image measures to.
pub(super) fn values(args: &Values, format: Format) -> anyhow::Result<Outcome> {
    let mut entry = ValuesEntry { values: Default::default() };
    let mut add = |id: &str, value: Value| entry.values.entry(id.to_owned()).or_default().push(value);
    for (id, text) in &args.text {
        add(id, text.clone().into());
    }
    for (id, text) in &args.value {
        add(
            id,
            serde_json::from_str(text)
                .with_context(|| format!("--value {id}={text}: expected a number, true or false; text is given by --text"))?,
        );
    }
    for (id, path) in &args.file {
        add(id, files::read_text(path.as_ref())?.into());
    }
    args.manifest.write(vec![Entry::Values(entry)], "measure.values", format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_time_or_a_span() {
        assert_eq!(parse_end("90d"), Ok(End::After(Duration::from_secs(90 * 86400))));
        assert_eq!(parse_end("1970-01-01T00:01:00Z"), Ok(End::At(UNIX_EPOCH + Duration::from_secs(60))));
        assert!(parse_end("soon").is_err() && parse_end("").is_err());
    }
}
