//! `kata-cc verify token`: a relying party's look at an attestation token (EAR, a JWT signed with ES256), without a broker.
//!
//! The issuer's key is either one of a JWK set that the caller trusts, or the one in the token's own header, for whose certificates the caller
//! trusts a root. A key that comes with the token is never a reason to trust it.
//!
//! Invariant: nothing that the token says is shown before its signature was found good.

mod endorsement;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use kata_cc_kbs_protocol::ear::Status;
use kata_cc_kbs_protocol::token::{IssuerJwk, unverified_header_key};
use kata_cc_kbs_protocol::{TokenError, TokenVerifier, VerifiedToken};
use kata_cc_verifier::checks::{Checks, Outcome as Ended};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::files;
use crate::output::{Format, Outcome, show};
use endorsement::{Roots, endorse};

/// Arguments of `verify token`.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("trust").required(true).args(["roots", "jwks"])))]
pub(crate) struct Args {
    /// The token, as a broker or `http://127.0.0.1:8006/aa/token` gives it: the JWT, or JSON with it as "token" (`-`: stdin).
    #[arg(long, value_name = "FILE")]
    token: PathBuf,
    /// Certificates in PEM to one of which those of the token's key must lead.
    #[arg(long, value_name = "PEM")]
    roots: Option<PathBuf>,
    /// JWK set with the issuer's keys, as a broker has it at /.well-known/jwks.json.
    #[arg(long, value_name = "FILE")]
    jwks: Option<PathBuf>,
    /// Demand that everything in the token is affirmed, not only that the token is genuine.
    #[arg(long)]
    affirming: bool,
    /// Verify as of this time, such as 2026-01-31T12:00:00Z. Default: now.
    #[arg(long, value_name = "RFC3339", value_parser = super::verify::parse_time)]
    now: Option<SystemTime>,
}

pub(crate) fn run(args: &Args, format: Format) -> anyhow::Result<Outcome> {
    let told = verify(args)?;
    show(format, "verify.token", &told.json(), || told.text())?;
    Ok(Outcome::when(told.error.is_none()))
}

/// What became of the token.
struct Told {
    checks: Checks,
    /// There for a token that is genuine and in its time, even where it is not what was wanted.
    verified: Option<VerifiedToken>,
    error: Option<String>,
}

fn verify(args: &Args) -> anyhow::Result<Told> {
    let token = read_token(&args.token)?;
    let now = args.now.unwrap_or_else(SystemTime::now).duration_since(UNIX_EPOCH).context("the time is before 1970")?.as_secs();
    let unusable = |path: &PathBuf| format!("cannot use {}", path.display());
    let (mut checks, mut verified) = (Checks::default(), None);
    let outcome = match (&args.roots, &args.jwks) {
        (Some(path), _) => {
            let roots = Roots::from_pem(&files::read(path)?).with_context(|| unusable(path))?;
            by_certificates(&token, &roots, now, &mut checks)
        }
        (None, Some(path)) => Ok(key_set(&files::read(path)?).with_context(|| unusable(path))?),
        (None, None) => bail!("name whom to trust: --roots PEM or --jwks FILE"),
    };
    let outcome = outcome.and_then(|issuers| by_keys(&token, &issuers, now, &mut checks)).and_then(|good| {
        let good = verified.insert(good);
        appraised(good, args.affirming, &mut checks)
    });
    Ok(Told { checks, verified, error: outcome.err() })
}

/// The token in a file: bare, or in the JSON it is handed out in.
fn read_token(path: &std::path::Path) -> anyhow::Result<String> {
    let text = String::from_utf8(files::read(path)?).with_context(|| format!("{} is not text", path.display()))?;
    if text.trim_start().starts_with('{') {
        let value: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
        let token = value.get("token").and_then(Value::as_str).with_context(|| format!("{} has no \"token\"", path.display()))?;
        return Ok(token.to_owned());
    }
    Ok(text.trim().to_owned())
}

/// The issuer's keys of a JWK set, or of one JWK. Others than those on P-256 sign nothing that is taken here.
fn key_set(bytes: &[u8]) -> anyhow::Result<Vec<IssuerJwk>> {
    let set: Value = serde_json::from_slice(bytes).context("expected a JWK set, JSON with \"keys\"")?;
    let keys = match set.get("keys") {
        Some(keys) => keys.as_array().context("\"keys\" is not a list")?.clone(),
        None => vec![set],
    };
    let keys: Vec<IssuerJwk> = keys.iter().filter_map(issuer).collect();
    if keys.is_empty() {
        bail!("holds no key that could have signed: expected kty \"EC\" and crv \"P-256\"");
    }
    Ok(keys)
}

/// A key that could have signed a token.
fn issuer(jwk: &Value) -> Option<IssuerJwk> {
    IssuerJwk::deserialize(jwk).ok().filter(|key| TokenVerifier::new([key]).is_ok())
}

/// The key in the token's header, once certificates say whose it is.
fn by_certificates(token: &str, roots: &Roots, now: u64, checks: &mut Checks) -> Result<Vec<IssuerJwk>, String> {
    let jwk = unverified_header_key(token).map_err(|error| error.to_string());
    let found = jwk.as_ref().map_or_else(Clone::clone, |jwk| if jwk.is_some() { "a jwk" } else { "no jwk" }.to_owned());
    let missing = || "the token's header has no jwk, so there are no certificates to look at: use --jwks".to_owned();
    let jwk = checks.record("header key", found, "a jwk with its certificates", jwk.and_then(|jwk| jwk.ok_or_else(missing)))?;
    endorse(&jwk, roots, now, checks)?;
    let key = issuer(&jwk).ok_or("the key in the token's header is not an EC key on P-256, so it cannot have signed with ES256");
    let kind = |name: &str| jwk.get(name).and_then(Value::as_str).unwrap_or("none").chars().take(16).collect::<String>();
    let key = checks.record("key", format!("{} {}", kind("kty"), kind("crv")), "EC P-256", key)?;
    Ok(vec![key])
}

/// Signature and times, as the one verifier of tokens has them.
fn by_keys(token: &str, issuers: &[IssuerJwk], now: u64, checks: &mut Checks) -> Result<VerifiedToken, String> {
    let verifier = TokenVerifier::new(issuers).map_err(|error| error.to_string())?;
    let outcome = verifier.verify(token, now);
    // It looks at one after the other: what comes before that which failed was as it should be.
    let failed = match &outcome {
        Ok(_) => 4,
        Err(TokenError::Expired { .. }) => 2,
        Err(TokenError::NotYetValid { .. }) => 3,
        Err(TokenError::Signature) => 1,
        Err(_) => 0,
    };
    let reason = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let mut check = |at: usize, name, found: String, expected: String| match at.cmp(&failed) {
        std::cmp::Ordering::Less => checks.record(name, found, expected, Ok::<(), String>(())),
        std::cmp::Ordering::Equal => checks.record(name, found, expected, Err(reason.clone())),
        std::cmp::Ordering::Greater => Ok(()),
    };
    let trusted = match issuers {
        [one] if one.kid.is_empty() => "the trusted key".to_owned(),
        [one] => format!("the trusted key {}", one.kid),
        several => format!("one of {} trusted keys", several.len()),
    };
    check(0, "form", if failed == 0 { reason.clone() } else { "JWT, ES256, EAR".to_owned() }, "JWT, ES256, EAR".to_owned())?;
    check(1, "signature", if failed == 1 { "another key's, or none" } else { "good" }.to_owned(), format!("by {trusted}"))?;
    let times = kata_cc_kbs_protocol::token::unverified_times(token).map_err(|error| error.to_string())?;
    check(2, "expires", shown(times.expires_at), format!("after {}", shown(now)))?;
    check(3, "issued", shown(times.issued_at), format!("not after {}", shown(now)))?;
    outcome.map_err(|error| error.to_string())
}

/// Whether what the token is about is as one would have it.
fn appraised(token: &VerifiedToken, affirming: bool, checks: &mut Checks) -> Result<(), String> {
    let status = |status: Status| serde_json::to_value(status).ok().and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default();
    let submods = &token.ear().submods;
    let found: Vec<String> =
        submods.iter().map(|(name, appraisal)| format!("{} {}", name.escape_debug(), status(appraisal.status))).collect();
    let found = if found.is_empty() { "nothing appraised".to_owned() } else { found.join(", ") };
    if !affirming {
        checks.not_compared("status", found);
        return Ok(());
    }
    let all = !submods.is_empty() && submods.values().all(|appraisal| appraisal.status == Status::Affirming);
    let outcome = all.then_some(()).ok_or_else(|| format!("the token is genuine, and says {found}"));
    checks.record("status", found, "affirming", outcome)
}

/// Years beyond 9999 cannot be written.
fn shown(unix: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix.min(253_402_300_799))).to_string()
}

impl Told {
    fn json(&self) -> Value {
        json!({
            "verified": self.error.is_none(),
            "error": self.error,
            "checks": self.checks.all(),
            "claims": self.verified.as_ref().map(VerifiedToken::claims),
        })
    }

    fn text(&self) -> String {
        let mut out = super::verify::text_of(&self.checks);
        if let Some(token) = &self.verified {
            out += &format!("issuer {:?}, profile {:?}\n", token.ear().iss, token.ear().eat_profile);
        }
        let open = self.checks.all().iter().any(|check| check.outcome == Ended::NotCompared);
        out += &match (&self.error, open) {
            (Some(error), _) => format!("refused: {error}\nnot verified; checks after the failed one were not reached\n"),
            (None, true) => "verified as genuine; not compared: status (--affirming demands that all is affirmed)\n".to_owned(),
            (None, false) => "verified\n".to_owned(),
        };
        out
    }
}

#[cfg(test)]
mod tests;
