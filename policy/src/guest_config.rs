//! What the guest agent reads from initdata: broker, image rules, and the keys and text of its policy.
//!
//! | document | whose | what we take |
//! |---|---|---|
//! | `aa.toml` | CoCo attestation-agent | `[token_configs.kbs] url, cert, tee_key_algorithm` |
//! | `cdh.toml` | CoCo confidential-data-hub | `[kbc]` (must agree with `aa.toml`), `[image]` (see [`ImageConfig`]) |
//! | `kata-cc.toml` | ours | `[policy] trusted_keys, min_version`, `[broker] insecure_http` |
//! | `policy.dsse.json` | ours | the signed policy ([`crate::envelope`]), whose signature covers all the others ([`crate::binding`]) |
//!
//! Keys of CoCo's documents that only steer CoCo's processes (`log`, `socket`, …) are listed in [`GuestConfig::ignored`]; any other
//! key we do not know is refused, because it may be a restriction that its author relies on. Other documents are left alone,
//! except names beginning with `kata-cc` or `policy.`, which would be ours.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::binding::DocumentDigests;
use crate::initdata::{Algorithm, Initdata, InitdataBuilder, InitdataError};
use crate::keys::{KeyError, PublicKey, TrustedKeys};

/// Document with the broker's address, in CoCo's form.
pub const AA_TOML: &str = "aa.toml";
/// Document with image rules, in CoCo's form.
pub const CDH_TOML: &str = "cdh.toml";
/// Our own document.
pub const KATA_CC_TOML: &str = "kata-cc.toml";
/// The signed policy.
pub const POLICY_DSSE: &str = "policy.dsse.json";

/// The only kind of key with which the agent receives secrets.
const TEE_KEY_ALGORITHM: &str = "ECDH-ES+A256KW-P256";

/// What is wrong with the documents in initdata.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A document is not the TOML expected. The parser's words name the key, but do not quote values.
    #[error("initdata `{document}`: {problem}")]
    Document {
        /// Which document.
        document: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A value is not as it must be.
    #[error("initdata `{document}`, key `{key}`: expected {expected}")]
    Value {
        /// Which document.
        document: &'static str,
        /// Which key.
        key: &'static str,
        /// What is expected.
        expected: &'static str,
    },
    /// A key that is needed is absent.
    #[error("initdata `{document}`, key `{key}` is missing: {why}")]
    Missing {
        /// Which document.
        document: &'static str,
        /// Which key, or `(document)`.
        key: &'static str,
        /// What it is for, and what to do.
        why: &'static str,
    },
    /// A trusted key is wrong.
    #[error("initdata `{KATA_CC_TOML}`, key `policy.trusted_keys`")]
    Key(#[source] KeyError),
    /// A document whose name would be ours.
    #[error(
        "initdata document {found:?} is not known; ours are `{KATA_CC_TOML}` and `{POLICY_DSSE}` (a plain policy.rego is not taken: \
         sign it with `kata-cc policy sign`)"
    )]
    Unknown {
        /// Its name.
        found: String,
    },
    /// Putting the text together failed.
    #[error("initdata cannot be written")]
    Initdata(#[from] InitdataError),
}

/// A resource at the broker: `kbs:///repository/type/tag`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ResourceUri {
    path: String,
}

impl ResourceUri {
    /// `repository/type/tag`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kbs:///{}", self.path)
    }
}

impl FromStr for ResourceUri {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "kbs:///repository/type/tag (letters, digits, `.`, `_`, `-` in each part)";
        let path = text.strip_prefix("kbs:///").ok_or(EXPECTED)?;
        let plain = |part: &str| {
            !matches!(part, "" | "." | "..") && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        let parts: Vec<&str> = path.split('/').collect();
        if text.len() <= 512 && parts.len() == 3 && parts.iter().all(|part| plain(part)) {
            Ok(Self { path: path.to_owned() })
        } else {
            Err(EXPECTED)
        }
    }
}

/// The broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// `https://host[:port]`, or `http://…` where [`BrokerConfig::insecure_http`] allows it. Without a slash at the end.
    pub url: String,
    /// Certificates in PEM: the only roots for the broker's TLS. Present for every `https` URL.
    pub cert: Option<String>,
    /// The owner wrote that plain HTTP is wanted. Secrets stay sealed to the guest, but anyone on the network can pose as the broker.
    pub insecure_http: bool,
}

/// Rules for pulling images.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// The containers-policy.json (signature requirements), to be fetched from the broker.
    pub image_security_policy_uri: Option<ResourceUri>,
    /// The same, inline. At most one of the two is there.
    pub image_security_policy: Option<String>,
    /// Registry credentials (containers-auth.json), to be fetched from the broker.
    pub authenticated_registry_credentials_uri: Option<ResourceUri>,
    /// Further roots for registries' TLS, each PEM.
    pub extra_root_certificates: Vec<String>,
    /// Registries (`host[:port]`) spoken to by plain HTTP. Digests still pin every byte; no login is sent to them.
    pub insecure_registries: Vec<String>,
    /// Layers downloaded at the same time.
    pub max_concurrent_layer_downloads: Option<u32>,
}

/// The signed policy and what it takes to trust it.
#[derive(Debug, Clone)]
pub struct PolicyConfig {
    /// The envelope, not verified yet.
    pub envelope: Vec<u8>,
    /// The keys to verify it with.
    pub trusted: TrustedKeys,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// The broker, if initdata names one.
    pub broker: Option<BrokerConfig>,
    /// Image rules.
    pub image: ImageConfig,
    /// The policy. Without one there is no pod.
    pub policy: PolicyConfig,
    /// `document: key` of what was skipped because it only concerns CoCo's own processes. Worth a log line.
    pub ignored: Vec<String>,
}

impl GuestConfig {
    /// Reads and checks the documents.
    ///
    /// # Errors
    /// When one is not well-formed, has a key that is not known, or the policy is missing. Errors name document and key.
    pub fn from_initdata(initdata: &Initdata) -> Result<Self, ConfigError> {
        let Parts { broker, image, trusted, ignored } = Parts::of(initdata)?;
        let envelope = initdata.get(POLICY_DSSE).ok_or(ConfigError::Missing {
            document: POLICY_DSSE,
            key: "(document)",
            why: "without a policy every request is denied; build initdata with `kata-cc initdata build --policy …`",
        })?;
        Ok(Self { broker, image, policy: PolicyConfig { envelope: envelope.as_bytes().to_vec(), trusted }, ignored })
    }
}

/// What all documents but the policy say.
struct Parts {
    broker: Option<BrokerConfig>,
    image: ImageConfig,
    trusted: TrustedKeys,
    ignored: Vec<String>,
}

impl Parts {
    fn of(initdata: &Initdata) -> Result<Self, ConfigError> {
        let ours = |name: &&str| name.starts_with("kata-cc") || name.starts_with("policy.");
        if let Some(found) = initdata.names().filter(ours).find(|name| ![KATA_CC_TOML, POLICY_DSSE].contains(name)) {
            return Err(ConfigError::Unknown { found: found.to_owned() });
        }
        let mut ignored = Vec::new();
        let own: KataCc = read(initdata, KATA_CC_TOML)?.ok_or(ConfigError::Missing {
            document: KATA_CC_TOML,
            key: "(document)",
            why: "it names the keys that sign the policy; build initdata with `kata-cc initdata build --policy-key …`",
        })?;
        let aa: Aa = read(initdata, AA_TOML)?.unwrap_or_default();
        let cdh: Cdh = read(initdata, CDH_TOML)?.unwrap_or_default();
        note(&mut ignored, AA_TOML, &[("log", aa.log.is_some()), ("eventlog_config", aa.eventlog_config.is_some())]);
        note(
            &mut ignored,
            CDH_TOML,
            &[
                ("log", cdh.log.is_some()),
                ("socket", cdh.socket.is_some()),
                ("aa", cdh.aa.is_some()),
                ("image.work_dir", cdh.image.work_dir.is_some()),
            ],
        );
        Ok(Self {
            broker: broker(aa.token_configs.kbs, cdh.kbc, own.broker.insecure_http)?,
            image: image(cdh.image)?,
            trusted: trusted(&own.policy)?,
            ignored,
        })
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Aa {
    #[serde(default)]
    token_configs: TokenConfigs,
    eventlog_config: Option<toml::Table>,
    log: Option<toml::Table>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct TokenConfigs {
    kbs: Option<KbsToken>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KbsToken {
    url: String,
    cert: Option<String>,
    tee_key_algorithm: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Cdh {
    socket: Option<String>,
    log: Option<toml::Table>,
    aa: Option<toml::Table>,
    kbc: Option<Kbc>,
    #[serde(default)]
    image: Image,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kbc {
    name: String,
    url: String,
    kbs_cert: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Image {
    work_dir: Option<String>,
    image_security_policy_uri: Option<String>,
    image_security_policy: Option<String>,
    authenticated_registry_credentials_uri: Option<String>,
    extra_root_certificates: Vec<String>,
    insecure_registries: Vec<String>,
    max_concurrent_layer_downloads_per_image: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KataCc {
    policy: Policy,
    #[serde(default)]
    broker: Broker,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    trusted_keys: Vec<String>,
    #[serde(default = "one")]
    min_version: u64,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Broker {
    insecure_http: bool,
}

fn one() -> u64 {
    1
}

fn read<T: DeserializeOwned>(initdata: &Initdata, document: &'static str) -> Result<Option<T>, ConfigError> {
    let parse = |text| toml::from_str(text).map_err(|e| ConfigError::Document { document, problem: e.message().to_owned() });
    initdata.get(document).map(parse).transpose()
}

fn note(ignored: &mut Vec<String>, document: &str, keys: &[(&str, bool)]) {
    ignored.extend(keys.iter().filter(|(_, there)| *there).map(|(key, _)| format!("{document}: {key}")));
}

fn broker(token: Option<KbsToken>, kbc: Option<Kbc>, insecure_http: bool) -> Result<Option<BrokerConfig>, ConfigError> {
    let wrong = |document, key, expected| ConfigError::Value { document, key, expected };
    if token.as_ref().and_then(|t| t.tee_key_algorithm.as_deref()).is_some_and(|name| name != TEE_KEY_ALGORITHM) {
        return Err(wrong(AA_TOML, "token_configs.kbs.tee_key_algorithm", "\"ECDH-ES+A256KW-P256\" or no such key"));
    }
    if kbc.as_ref().is_some_and(|kbc| kbc.name != "cc_kbc") {
        return Err(wrong(CDH_TOML, "kbc.name", "\"cc_kbc\": secrets come from the broker only"));
    }
    let token = token.map(|t| (trim_slash(&t.url), t.cert));
    let kbc = kbc.map(|k| (trim_slash(&k.url), k.kbs_cert));
    let (document, key, (url, cert)) = match (token, kbc) {
        (None, None) => return Ok(None),
        (None, Some(kbc)) => (CDH_TOML, "kbc.url", kbc),
        (Some(token), None) => (AA_TOML, "token_configs.kbs.url", token),
        (Some(token), Some(kbc)) => {
            // Two brokers would mean two attestations, and a doubt which one is meant.
            if token.0 != kbc.0 {
                return Err(wrong(CDH_TOML, "kbc.url", "the same URL as in aa.toml"));
            }
            if kbc.1.is_some() && token.1 != kbc.1 {
                return Err(wrong(CDH_TOML, "kbc.kbs_cert", "the same certificate as in aa.toml"));
            }
            (AA_TOML, "token_configs.kbs.url", token)
        }
    };
    let cert = cert.filter(|pem| !pem.trim().is_empty());
    let authority = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(_), _) if cert.is_none() => {
            return Err(ConfigError::Missing {
                document,
                key: "cert",
                why: "the guest trusts no public roots; put the broker's certificate (PEM) there",
            });
        }
        (Some(rest), _) => rest,
        (None, Some(_)) if !insecure_http => {
            let expected =
                "an https:// URL (plain HTTP lets anyone pose as the broker; [broker] insecure_http = true in kata-cc.toml allows it)";
            return Err(wrong(document, key, expected));
        }
        (None, Some(rest)) => rest,
        (None, None) => return Err(wrong(document, key, "a URL that begins with https://")),
    };
    if !is_authority(authority) {
        return Err(wrong(document, key, "a URL of scheme, host and optionally port and path, without user, query or spaces"));
    }
    if cert.as_deref().is_some_and(|pem| !is_certificates(pem)) {
        return Err(wrong(document, "cert", "certificates as PEM blocks"));
    }
    Ok(Some(BrokerConfig { url, cert, insecure_http }))
}

fn image(image: Image) -> Result<ImageConfig, ConfigError> {
    let wrong = |key, expected| ConfigError::Value { document: CDH_TOML, key, expected };
    let uri = |key, value: Option<String>| value.map(|v| v.parse().map_err(|expected| wrong(key, expected))).transpose();
    if image.image_security_policy_uri.is_some() && image.image_security_policy.is_some() {
        return Err(wrong("image.image_security_policy", "either this or image_security_policy_uri, not both"));
    }
    if !image.extra_root_certificates.iter().all(|pem| is_certificates(pem)) {
        return Err(wrong("image.extra_root_certificates", "a list of certificates in PEM"));
    }
    if !image.insecure_registries.iter().all(|host| is_authority(host) && !host.contains('/')) {
        return Err(wrong("image.insecure_registries", "a list of host or host:port"));
    }
    if image.max_concurrent_layer_downloads_per_image == Some(0) {
        return Err(wrong("image.max_concurrent_layer_downloads_per_image", "a number from 1"));
    }
    Ok(ImageConfig {
        image_security_policy_uri: uri("image.image_security_policy_uri", image.image_security_policy_uri)?,
        image_security_policy: image.image_security_policy,
        authenticated_registry_credentials_uri: uri(
            "image.authenticated_registry_credentials_uri",
            image.authenticated_registry_credentials_uri,
        )?,
        extra_root_certificates: image.extra_root_certificates,
        insecure_registries: image.insecure_registries,
        max_concurrent_layer_downloads: image.max_concurrent_layer_downloads_per_image,
    })
}

fn trusted(policy: &Policy) -> Result<TrustedKeys, ConfigError> {
    let keys = policy.trusted_keys.iter().map(|pem| PublicKey::from_pem(pem)).collect::<Result<Vec<_>, _>>();
    keys.and_then(|keys| TrustedKeys::new(keys, policy.min_version)).map_err(ConfigError::Key)
}

fn trim_slash(url: &str) -> String {
    url.trim_end_matches('/').to_owned()
}

/// `host[:port][/path]`.
fn is_authority(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']' | b'/' | b'~' | b'%');
    (1..=512).contains(&text.len()) && !text.starts_with(['/', ':']) && text.bytes().all(allowed)
}

fn is_certificates(pem: &str) -> bool {
    const END: &str = "-----END CERTIFICATE-----";
    let blocks: Vec<&str> = pem.split_inclusive(END).filter(|block| !block.trim().is_empty()).collect();
    !blocks.is_empty() && blocks.iter().all(|block| crate::pem::decode(block, "CERTIFICATE").is_some())
}

/// The documents as an owner puts them together, all but the policy; the inverse of [`GuestConfig::from_initdata`], for the command line.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    /// The broker's URL.
    pub broker_url: Option<String>,
    /// The broker's certificate (PEM).
    pub broker_cert: Option<String>,
    /// Allow plain HTTP to the broker.
    pub insecure_http: bool,
    /// Where the signature requirements are.
    pub image_security_policy_uri: Option<String>,
    /// Where the registry credentials are.
    pub authenticated_registry_credentials_uri: Option<String>,
    /// Registries spoken to by plain HTTP, to which no login is sent.
    pub insecure_registries: Vec<String>,
    /// Further roots for registries (PEM).
    pub extra_root_certificates: Vec<String>,
    /// The keys that sign the policy (PEM).
    pub policy_keys: Vec<String>,
    /// The lowest version accepted; 0 counts as 1.
    pub min_version: u64,
}

/// Initdata without its policy, otherwise such as the guest takes: what a policy is signed for.
#[derive(Debug, Clone)]
pub struct Draft {
    initdata: Initdata,
    trusted: TrustedKeys,
}

impl Draft {
    /// Takes initdata as a draft. A policy that it has already is left out.
    ///
    /// # Errors
    /// When the guest would refuse one of the documents.
    pub fn of(initdata: &Initdata) -> Result<Self, ConfigError> {
        let trusted = Parts::of(initdata)?.trusted;
        Ok(Self { initdata: InitdataBuilder::from(initdata).without(POLICY_DSSE).build()?, trusted })
    }

    /// Its text.
    #[must_use]
    pub fn initdata(&self) -> &Initdata {
        &self.initdata
    }

    /// The keys and the lowest version it demands of its policy.
    #[must_use]
    pub fn trusted(&self) -> &TrustedKeys {
        &self.trusted
    }

    /// What the policy's signature must cover.
    #[must_use]
    pub fn documents(&self) -> DocumentDigests {
        DocumentDigests::of(&self.initdata)
    }

    /// Puts the signed policy in. Signature and binding are not looked at here.
    ///
    /// # Errors
    /// When the result is too large to be initdata.
    pub fn complete(&self, envelope: &str) -> Result<Initdata, ConfigError> {
        Ok(InitdataBuilder::from(&self.initdata).document(POLICY_DSSE, envelope).build()?)
    }
}

#[derive(Serialize)]
struct AaOut<'a> {
    token_configs: BTreeMap<&'static str, KbsOut<'a>>,
}

#[derive(Serialize)]
struct KbsOut<'a> {
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cert: Option<&'a str>,
}

#[derive(Serialize)]
struct CdhOut<'a> {
    image: ImageOut<'a>,
}

#[derive(Serialize)]
struct ImageOut<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    image_security_policy_uri: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authenticated_registry_credentials_uri: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    insecure_registries: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    extra_root_certificates: &'a [String],
}

#[derive(Serialize)]
struct KataCcOut<'a> {
    policy: PolicyOut<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    broker: Option<BrokerOut>,
}

#[derive(Serialize)]
struct PolicyOut<'a> {
    trusted_keys: &'a [String],
    min_version: u64,
}

#[derive(Serialize)]
struct BrokerOut {
    insecure_http: bool,
}

impl Documents {
    /// Writes initdata but for the policy, and reads it back as the guest will, so that a mistake shows here and not at the pod's start.
    ///
    /// # Errors
    /// When the guest would refuse one of the documents.
    pub fn draft(&self, algorithm: Algorithm) -> Result<Draft, ConfigError> {
        let mut builder = InitdataBuilder::new().algorithm(algorithm);
        if let Some(url) = &self.broker_url {
            let kbs = KbsOut { url, cert: self.broker_cert.as_deref() };
            builder = builder.document(AA_TOML, write(AA_TOML, &AaOut { token_configs: BTreeMap::from([("kbs", kbs)]) })?);
        }
        let image = ImageOut {
            image_security_policy_uri: self.image_security_policy_uri.as_deref(),
            authenticated_registry_credentials_uri: self.authenticated_registry_credentials_uri.as_deref(),
            insecure_registries: &self.insecure_registries,
            extra_root_certificates: &self.extra_root_certificates,
        };
        let own = KataCcOut {
            policy: PolicyOut { trusted_keys: &self.policy_keys, min_version: self.min_version.max(1) },
            broker: self.insecure_http.then_some(BrokerOut { insecure_http: true }),
        };
        let initdata =
            builder.document(CDH_TOML, write(CDH_TOML, &CdhOut { image })?).document(KATA_CC_TOML, write(KATA_CC_TOML, &own)?).build()?;
        Draft::of(&initdata)
    }
}

fn write<T: Serialize>(document: &'static str, value: &T) -> Result<String, ConfigError> {
    toml::to_string_pretty(value).map_err(|e| ConfigError::Document { document, problem: e.to_string() })
}

#[cfg(test)]
#[path = "guest_config_tests.rs"]
mod tests;
