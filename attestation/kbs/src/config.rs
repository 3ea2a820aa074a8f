//! The configuration file: TOML, parsed once, unknown keys refused.
//!
//! ```toml
//! listen = "0.0.0.0:8080"
//! data_dir = "/var/lib/kata-cc-kbs"
//! [tls]
//! certificate = "/etc/kata-cc-kbs/tls.pem"
//! private_key = "/etc/kata-cc-kbs/tls.key"
//! [admin]
//! public_keys = ["/etc/kata-cc-kbs/admin.pub"]
//! ```
//! Plain HTTP is served on a loopback address only, and only when the file says `insecure_http = true`.

mod admin;
mod cca;
mod collateral;
mod csv;
mod development;
mod http;
mod references;
mod se;
mod snp;
mod store;
mod tdx;
mod tpm;
mod vault;

pub use admin::{Admin, IdentityProvider, Role};
pub use cca::Cca;
pub use collateral::Collateral;
pub use csv::Csv;
pub use development::Development;
pub use http::Http;
pub use references::References;
pub use se::Se;
use serde::Deserialize;
pub use snp::Snp;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
pub use store::{KeySource, Pkcs11, Store};
pub use tdx::Tdx;
pub use tpm::Tpm;
pub use vault::Vault;

/// A configuration file larger than this is not one.
const MAX_CONFIG: u64 = 1024 * 1024;
const MAX_SIMULATED_ROOTS: usize = 16;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not the TOML that is expected.
    #[error("{} is not a valid configuration", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value is out of range or contradicts another.
    #[error("{0}")]
    Invalid(String),
}

/// Everything `kata-cc-kbs` can be told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port.
    pub listen: SocketAddr,
    /// Allow plain HTTP. Only on a loopback address.
    #[serde(default)]
    pub insecure_http: bool,
    /// Server certificate and key.
    pub tls: Option<Tls>,
    /// Where the database and the broker's own keys are.
    pub data_dir: PathBuf,
    /// Where secrets, policies and the like are, if not in `data_dir`.
    #[serde(default)]
    pub store: Store,
    /// Who may administer.
    #[serde(default)]
    pub admin: Admin,
    /// Limits of the HTTP side.
    #[serde(default)]
    pub http: Http,
    /// Roots of simulated TEEs. Evidence under them is marked and refused by the default policy.
    #[serde(default)]
    pub simulated_roots: Vec<SimulatedRoot>,
    /// SNP evidence.
    #[serde(default)]
    pub snp: Snp,
    /// TDX evidence.
    #[serde(default)]
    pub tdx: Tdx,
    /// Secure Execution. Without it no guest of this kind can be asked for evidence.
    pub se: Option<Se>,
    /// TPM evidence. Without a key there is none that is trusted.
    #[serde(default)]
    pub tpm: Tpm,
    /// CCA evidence. Without trust anchors there is none that is trusted.
    pub cca: Option<Cca>,
    /// CSV evidence. Without Hygon's root there is none that is trusted.
    pub csv: Option<Csv>,
    /// What evidence does not bring.
    #[serde(default)]
    pub collateral: Collateral,
    /// Whose reference values count.
    #[serde(default)]
    pub references: References,
    /// What no broker with real secrets allows.
    #[serde(default)]
    pub development: Development,
    /// Where the resources are, if not in the store.
    pub vault: Option<Vault>,
    /// The tokens that are issued.
    #[serde(default)]
    pub token: Token,
    /// How long a session lives from `/auth` on.
    #[serde(default = "default_session_lifetime")]
    pub session_lifetime_seconds: u64,
}

/// TLS certificate chain and private key, PEM files.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Chain, leaf first.
    pub certificate: PathBuf,
    /// PKCS#8, SEC1 or PKCS#1 key.
    pub private_key: PathBuf,
}

/// A simulated TEE whose evidence may be looked at.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulatedRoot {
    /// How claims name it.
    pub name: String,
    /// Root certificate, PEM.
    pub certificate: PathBuf,
}

/// Token settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Token {
    /// How long a token is good for.
    pub lifetime_seconds: u64,
    /// The `iss` claim.
    pub issuer: String,
    /// The key that signs, a PEM file with an EC key on P-256. Without it the broker makes one, and keeps it in the store.
    pub signing_key: Option<PathBuf>,
    /// Certificates of that key, a PEM file, the key's own first. They are in each token (`x5c`), for whoever trusts their issuer.
    pub certificates: Option<PathBuf>,
}

impl Default for Token {
    fn default() -> Self {
        Self { lifetime_seconds: 300, issuer: "kata-cc-kbs".into(), signing_key: None, certificates: None }
    }
}

fn default_session_lifetime() -> u64 {
    300
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_bounded(path, MAX_CONFIG)?;
        Self::parse(&text).map_err(|e| match e {
            ConfigError::Parse { source, .. } => ConfigError::Parse { path: path.into(), source },
            other => other,
        })
    }

    /// Checks configuration text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|source| ConfigError::Parse { path: PathBuf::from("<text>"), source: Box::new(source) })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        match (&self.tls, self.insecure_http) {
            (Some(_), true) => return invalid("`insecure_http = true` and `[tls]` contradict each other: remove one".into()),
            (None, false) => {
                return invalid(
                    "no `[tls]`: secrets travel only over TLS; for a test on this machine alone set `insecure_http = true`".into(),
                );
            }
            (None, true) if !self.listen.ip().is_loopback() => {
                return invalid(format!("`insecure_http = true` needs a loopback address to listen on, found {}", self.listen.ip()));
            }
            _ => {}
        }
        for (name, value, allowed) in [
            ("token.lifetime_seconds", self.token.lifetime_seconds, 30..=86_400),
            ("session_lifetime_seconds", self.session_lifetime_seconds, 10..=86_400),
        ] {
            if !allowed.contains(&value) {
                return invalid(format!("`{name}` is {value}, expected {} to {}", allowed.start(), allowed.end()));
            }
        }
        self.http.check()?;
        self.store.check()?;
        self.references.check()?;
        self.tpm.check()?;
        if let Some(se) = &self.se {
            se.check()?;
        }
        if let Some(vault) = &self.vault {
            vault.check()?;
        }
        if self.token.issuer.is_empty() {
            return invalid("`token.issuer` is empty".into());
        }
        if self.token.certificates.is_some() && self.token.signing_key.is_none() {
            return invalid(
                "`token.certificates` needs `token.signing_key`: nobody has certified the key that the broker makes itself".into(),
            );
        }
        if self.snp.require_crl && self.collateral.directory.is_none() && self.collateral.amd_kds.is_none() {
            return invalid(
                "`snp.require_crl` needs `collateral.directory` or `collateral.amd_kds`: all SNP evidence would be refused".into(),
            );
        }
        check_simulated_roots("simulated_roots", &self.simulated_roots)?;
        check_simulated_roots("tdx.simulated_roots", &self.tdx.simulated_roots)
    }

    /// Session lifetime.
    pub fn session_lifetime(&self) -> Duration {
        Duration::from_secs(self.session_lifetime_seconds)
    }
}

fn check_simulated_roots(table: &str, roots: &[SimulatedRoot]) -> Result<(), ConfigError> {
    let invalid = |text: String| Err(ConfigError::Invalid(text));
    if roots.len() > MAX_SIMULATED_ROOTS {
        return invalid(format!("more than {MAX_SIMULATED_ROOTS} `[[{table}]]`"));
    }
    for (i, root) in roots.iter().enumerate() {
        if root.name.is_empty() || !root.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return invalid(format!("simulated root name {:?}: expected letters, digits, '-', '_', '.'", root.name));
        }
        if roots.iter().take(i).any(|other| other.name == root.name) {
            return invalid(format!("simulated root {:?} is configured twice", root.name));
        }
    }
    Ok(())
}

/// Reads a text file of at most `max` bytes.
pub fn read_bounded(path: &Path, max: u64) -> Result<String, ConfigError> {
    let fail = |error| ConfigError::Read { path: path.into(), source: std::io::Error::new(std::io::ErrorKind::InvalidData, error) };
    String::from_utf8(read_bytes(path, max)?).map_err(fail)
}

/// Reads a file of at most `max` bytes.
pub fn read_bytes(path: &Path, max: u64) -> Result<Vec<u8>, ConfigError> {
    use std::io::Read;
    let fail = |source| ConfigError::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(fail)?.take(max + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > max {
        return Err(ConfigError::Invalid(format!("{} is larger than {max} bytes", path.display())));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "listen = \"127.0.0.1:8080\"\ninsecure_http = true\ndata_dir = \"/var/lib/kbs\"\n";

    #[track_caller]
    fn refused(text: &str, because: &str) {
        let e = Config::parse(text).unwrap_err();
        let text = format!("{e}: {}", std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default());
        assert!(text.contains(because), "{text}");
    }

    #[test]
    fn accepts_a_minimal_file_with_safe_defaults() {
        let config = Config::parse(MINIMAL).unwrap();
        assert_eq!(config.token.lifetime_seconds, 300);
        assert!(config.simulated_roots.is_empty());
    }

    #[test]
    fn refuses_plain_http_unless_asked_for_on_loopback() {
        refused(&MINIMAL.replace("insecure_http = true", ""), "no `[tls]`");
        refused(&MINIMAL.replace("127.0.0.1", "0.0.0.0"), "loopback");
        refused(&format!("{MINIMAL}[tls]\ncertificate = \"c\"\nprivate_key = \"k\"\n"), "contradict");
    }

    #[test]
    fn refuses_unknown_keys() {
        refused(&format!("{MINIMAL}insecure = true\n"), "unknown field");
        refused(&format!("{MINIMAL}[admin]\nauthorization_mode = \"InsecureAllowAll\"\n"), "unknown field");
    }

    #[test]
    fn refuses_values_out_of_range() {
        refused(&format!("{MINIMAL}session_lifetime_seconds = 1\n"), "session_lifetime_seconds");
        refused(&format!("{MINIMAL}[token]\nlifetime_seconds = 1000000\n"), "token.lifetime_seconds");
        refused(&format!("{MINIMAL}[http]\nauth_per_second = 0\n"), "auth_per_second");
        refused(&format!("{MINIMAL}[http]\nclient_timeout_seconds = 0\n"), "client_timeout_seconds");
        refused(&format!("{MINIMAL}[token]\nissuer = \"\"\n"), "issuer");
        refused(&format!("{MINIMAL}[token]\ncertificates = \"c\"\n"), "token.signing_key");
    }

    #[test]
    fn refuses_nameless_and_doubled_simulated_roots() {
        let root = |name: &str| format!("[[simulated_roots]]\nname = \"{name}\"\ncertificate = \"c\"\n");
        refused(&format!("{MINIMAL}{}", root("")), "simulated root name");
        refused(&format!("{MINIMAL}{}{}", root("lab"), root("lab")), "twice");
        let root = |name: &str| format!("[[tdx.simulated_roots]]\nname = \"{name}\"\ncertificate = \"c\"\n");
        refused(&format!("{MINIMAL}{}{}", root("lab"), root("lab")), "twice");
    }

    #[test]
    fn a_store_is_said_once() {
        let with = |text: &str| format!("{MINIMAL}[store]\n{text}\n");
        let key = Config::parse(&with("key_env = \"KBS_KEY\"")).unwrap().store.key(Path::new("/d"));
        assert_eq!(key, KeySource::Environment("KBS_KEY".into()));
        assert_eq!(Config::parse(MINIMAL).unwrap().store.key(Path::new("/d")), KeySource::File("/d/store.key".into()));
        refused(&with("key_env = \"A\"\nkey_file = \"b\""), "remove one");
        refused(&with("key_env = \"A=B\""), "no name of an environment variable");
        refused(&with("postgres = \"host=/run\"\npostgres_url_file = \"b\""), "remove one");
        refused(&with("postgres_ca = \"b\""), "no database");
        refused(&with("postgres = \"host=/run\"\npostgres_connections = 0"), "expected 1 to 64");
        let hsm = "[store.pkcs11]\nmodule = \"/m.so\"\ntoken = \"t\"\nkey = \"k\"\npin_file = \"p\"\n";
        let key = Config::parse(&with(hsm)).unwrap().store.key(Path::new("/d"));
        assert!(matches!(key, KeySource::Pkcs11 { wrapped, .. } if wrapped == Path::new("/d/store.key.wrapped")));
        refused(&with(&format!("key_env = \"A\"\n{hsm}")), "remove one");
        refused(&with(&format!("key_file = \"a\"\n{hsm}")), "remove one");
        refused(&with(&hsm.replace("/m.so", "m.so")), "absolute path");
        refused(&with(&hsm.replace("\"t\"", "\"\"")), "store.pkcs11.token");
        refused(&with(&hsm.replace("\"t\"", &format!("{:?}", "t".repeat(33)))), "1 to 32 bytes");
        refused(&with(&hsm.replace("\"k\"", &format!("{:?}", "k".repeat(256)))), "store.pkcs11.key");
        refused(&with(&format!("{hsm}pin = \"1234\"")), "unknown field");
        refused(&with("mysql = \"x\""), "unknown field");
    }

    #[test]
    fn a_vault_is_asked_over_https_and_under_plain_names() {
        assert!(Config::parse(MINIMAL).unwrap().vault.is_none());
        let with = |address: &str, more: &str| format!("{MINIMAL}[vault]\naddress = \"{address}\"\ntoken_file = \"t\"\n{more}\n");
        let vault = Config::parse(&with("https://vault:8200/", "")).unwrap().vault.unwrap();
        assert_eq!((vault.address.as_str(), vault.mount.as_str(), vault.prefix.as_str()), ("https://vault:8200", "secret", ""));
        assert!(Config::parse(&with("http://127.0.0.1:8200", "mount = \"team/kv\"\nprefix = \"a/b\"\nnamespace = \"n/m\"")).is_ok());
        refused(&with("http://vault:8200", ""), "not https");
        for bad in ["mount = \"\"", "mount = \"/kv\"", "prefix = \"a//b\"", "prefix = \"a/../b\"", "prefix = \"a?b\"", "namespace = \"\""] {
            refused(&with("https://vault", bad), "segments between single slashes");
        }
        refused(&with("https://vault", "token = \"s.1\""), "unknown field");
        refused(&format!("{MINIMAL}[vault]\naddress = \"https://vault\"\n"), "missing field `token_file`");
    }

    #[test]
    fn reference_values_are_signed_unless_said_otherwise() {
        let references = Config::parse(MINIMAL).unwrap().references;
        assert!(references.signers.is_empty() && !references.allow_unsigned && references.development.is_empty());
        let with = |text: &str| format!("{MINIMAL}[references]\n{text}\n");
        assert_eq!(Config::parse(&with("development = [\"simulation\"]")).unwrap().references.development.len(), 1);
        refused(&with("development = [\"production\"]"), "production");
        refused(&with("development = [\"test\"]"), "unknown variant");
        refused(&with("unsigned = true"), "unknown field");
    }

    #[test]
    fn evidence_that_nobody_signed_is_looked_at_only_where_it_is_named() {
        assert!(!Config::parse(MINIMAL).unwrap().development.sample_evidence);
        assert!(Config::parse(&format!("{MINIMAL}[development]\nsample_evidence = true\n")).unwrap().development.sample_evidence);
        refused(&format!("{MINIMAL}[development]\nsample = true\n"), "unknown field");
    }

    #[test]
    fn rules_for_tdx_are_strict_unless_said_otherwise() {
        let rules = Config::parse(MINIMAL).unwrap().tdx.rules();
        assert!(rules.require_sept_ve_disable);
        let text = format!("{MINIMAL}[tdx]\nrequire_sept_ve_disable = false\nminimum_tcb_evaluation_data_number = 20\n");
        let rules = Config::parse(&text).unwrap().tdx.rules();
        assert_eq!((rules.require_sept_ve_disable, rules.minimum_tcb_evaluation_data_number), (false, 20));
        refused(&format!("{MINIMAL}[tdx]\nallow_debug = true\n"), "unknown field");
    }

    #[test]
    fn secure_execution_is_configured_whole_or_not_at_all() {
        assert!(Config::parse(MINIMAL).unwrap().se.is_none());
        let with = |images: &str| format!("{MINIMAL}[se]\nroots = [\"r\"]\ncertificates = [\"c\"]\nhost_keys = [\"h\"]\n{images}\n");
        assert!(Config::parse(&with("images = [\"i\"]")).unwrap().se.unwrap().revocation_lists.is_empty());
        refused(&with(""), "missing field `images`");
        refused(&with("images = []"), "`se.images` is empty");
        refused(&with("images = [\"i\"]\noffline = true"), "unknown field");
    }

    #[test]
    fn kinds_without_a_built_in_root_are_trusted_by_what_is_named() {
        assert!(Config::parse(MINIMAL).unwrap().tpm.attestation_keys.is_empty());
        let with = |keys: &str| format!("{MINIMAL}[tpm]\nattestation_keys = [{keys}]\n");
        assert_eq!(Config::parse(&with("\"a.pem\"")).unwrap().tpm.attestation_keys.len(), 1);
        refused(&with(&"\"a\",".repeat(1025)), "has 1025 entries");
        refused(&format!("{MINIMAL}[tpm]\nkeys = []\n"), "unknown field");
        assert!(Config::parse(MINIMAL).unwrap().cca.is_none());
        assert!(Config::parse(&format!("{MINIMAL}[cca]\ntrust_anchors = \"s.json\"\n")).unwrap().cca.is_some());
        refused(&format!("{MINIMAL}[cca]\n"), "missing field `trust_anchors`");
        assert!(Config::parse(MINIMAL).unwrap().csv.is_none());
        assert!(Config::parse(&format!("{MINIMAL}[csv]\nroot = \"hrk.cert\"\n")).unwrap().csv.unwrap().chips.is_empty());
        refused(&format!("{MINIMAL}[csv]\n"), "missing field `root`");
    }

    #[test]
    fn rules_for_snp_are_whole_or_refused() {
        let snp = Config::parse(MINIMAL).unwrap().snp.rules();
        assert_eq!(snp, kata_cc_verifier::snp::SnpRules::default());
        let tcb = "bootloader = 9\ntee = 0\nsnp = 21\nmicrocode = 72\n";
        let text = format!("{MINIMAL}[snp]\nallow_vlek = false\ndeny_generations = [\"Milan\"]\n[snp.minimum_tcb.Genoa]\n{tcb}");
        let rules = Config::parse(&text).unwrap().snp.rules();
        assert_eq!((rules.allow_vlek, rules.deny_generations.len(), rules.minimum_tcb.len()), (false, 1, 1));
        assert_eq!(rules.minimum_tcb[0].1.microcode, 72);
        refused(&format!("{MINIMAL}[snp]\ndeny_generations = [\"Rome\"]\n"), "expected one of Milan, Genoa, Turin");
        refused(&format!("{MINIMAL}[snp.minimum_tcb.Genoa]\nbootloader = 9\n"), "missing field");
        refused(&format!("{MINIMAL}[snp.minimum_tcb.Genoa]\n{tcb}fmc = 1\n"), "Turin");
        refused(&format!("{MINIMAL}[snp.minimum_tcb.Turin]\n{tcb}"), "Turin");
        refused(&format!("{MINIMAL}[snp]\nrequire_crl = true\n"), "collateral.directory");
        assert!(Config::parse(&format!("{MINIMAL}[snp]\nrequire_crl = true\n[collateral]\ndirectory = \"/x\"\n")).is_ok());
    }

    #[test]
    fn services_are_https_urls() {
        let with = |url: &str| format!("{MINIMAL}[collateral]\namd_kds = \"{url}\"\n");
        assert!(Config::parse(&with("https://kdsintf.amd.com")).unwrap().collateral.amd_kds.is_some());
        refused(&with("http://kdsintf.amd.com"), "not https");
        refused(&format!("{MINIMAL}[collateral]\nkds = \"https://x\"\n"), "unknown field");
    }
}
