//! One maker's service over HTTPS: what is asked, what is taken, and how often.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use kata_cc_verifier::collateral::{Item, Need};
use percent_encoding::percent_decode;
use reqwest::{Client, Response, StatusCode, Url};

use crate::{MAX_BODY, directory};

/// A guest waits for the answer, and its own patience is not much longer.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest issuer chain: two certificates of Intel's have some four thousand bytes.
const MAX_CHAIN: usize = 32 * 1024;
/// Requests of a service at once, and how many come back each second. AMD limits who asks too often; made-up evidence must not use that up.
const BURST: u64 = 32;
const PER_SECOND: u64 = 1;
/// Headers in which Intel's service sends the certificates that signed the body. An answer has one of them.
const ISSUER_CHAINS: [&str; 5] = [
    "tcb-info-issuer-chain",
    "sgx-tcb-info-issuer-chain",
    "sgx-enclave-identity-issuer-chain",
    "sgx-pck-crl-issuer-chain",
    "sgx-pck-certificate-issuer-chain",
];

/// Intel serves the root's revocation list beside its service, not in it; a PCCS has it under its own base URL like everything else.
const INTEL: &str = "https://api.trustedservices.intel.com";
const ROOT_CRL: &str = "sgx/certification/v4/rootcacrl";
const INTEL_ROOT_CRL: &str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";

/// Why a base URL is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BaseUrlError {
    /// Not a URL.
    #[error("{0:?} is not a URL; expected one such as https://kdsintf.amd.com")]
    Url(String),
    /// Plain HTTP to another machine.
    #[error("{0:?} is not https: plain http is for a loopback address only")]
    Scheme(String),
    /// A user, a query or a fragment.
    #[error("{0:?} must have neither user, password, query nor fragment")]
    Parts(String),
}

/// Where a service is: https, or plain http on a loopback address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl(String);

impl FromStr for BaseUrl {
    type Err = BaseUrlError;

    fn from_str(text: &str) -> Result<Self, BaseUrlError> {
        let url = Url::parse(text).map_err(|_| BaseUrlError::Url(text.into()))?;
        let host = url.host_str().ok_or_else(|| BaseUrlError::Url(text.into()))?;
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let loopback = host == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if !(url.scheme() == "https" || url.scheme() == "http" && loopback) {
            return Err(BaseUrlError::Scheme(text.into()));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err(BaseUrlError::Parts("the URL".into()));
        }
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }
}

impl BaseUrl {
    /// The URL, without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a piece was not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("not a path that is asked for")]
    Path,
    #[error("no answer in time, or none that is HTTP: {}", without_url(.0))]
    Http(reqwest::Error),
    #[error("answered {0}, expected 200")]
    Status(StatusCode),
    #[error("the body is larger than {MAX_BODY} bytes")]
    Large,
    #[error("the issuer chain in the header is larger than {MAX_CHAIN} bytes or no text")]
    Chain,
    #[error("the body ({bytes} bytes) is no certificate, no revocation list and no TCB information")]
    Form { bytes: usize },
}

/// Reqwest repeats the URL, which the log line has already.
fn without_url(error: &reqwest::Error) -> &'static str {
    match (error.is_timeout(), error.is_connect()) {
        (true, _) => "timeout",
        (_, true) => "cannot connect",
        _ => "broken answer",
    }
}

/// A service.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    base: BaseUrl,
    client: Client,
}

impl Service {
    pub(crate) fn new(base: BaseUrl) -> Result<Self, reqwest::Error> {
        // The client takes the process's provider of cryptography. A second call finds one installed, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            // A redirect would be a base URL that nobody configured.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("kata-cc-collateral/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { base, client })
    }

    pub(crate) async fn get(&self, need: &Need) -> Result<Item, FetchError> {
        // Whatever has no file name is not asked for either: such a path is not one of ours.
        directory::file_name(need).ok_or(FetchError::Path)?;
        let url = address(&self.base, &need.path);
        let mut response = self.client.get(url).send().await.map_err(FetchError::Http)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let issuer_chain = issuer_chain(&response)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(FetchError::Http)? {
            if body.len().saturating_add(chunk.len()) > MAX_BODY {
                return Err(FetchError::Large);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Item { body, issuer_chain })
    }
}

fn address(base: &BaseUrl, path: &str) -> String {
    if base.0 == INTEL && path == ROOT_CRL { INTEL_ROOT_CRL.into() } else { format!("{}/{path}", base.0) }
}

/// The chain in PEM, which is URL-encoded in the header.
fn issuer_chain(response: &Response) -> Result<Vec<u8>, FetchError> {
    let Some(value) = ISSUER_CHAINS.iter().find_map(|name| response.headers().get(*name)) else { return Ok(Vec::new()) };
    if value.len() > MAX_CHAIN {
        return Err(FetchError::Chain);
    }
    let decoded: Vec<u8> = percent_decode(value.as_bytes()).collect();
    if decoded.is_ascii() { Ok(decoded) } else { Err(FetchError::Chain) }
}

/// How many requests are left: a bucket that fills with time.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    left: u64,
    since: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: BURST, since: 0 }
    }
}

impl Budget {
    /// Takes one request, if there is one left.
    pub(crate) fn take(&mut self, now: u64) -> bool {
        let elapsed = now.saturating_sub(self.since);
        self.left = self.left.saturating_add(elapsed.saturating_mul(PER_SECOND)).min(BURST);
        self.since = now;
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_are_https_or_loopback() {
        for good in
            ["https://kdsintf.amd.com", "https://pccs.example:8081/", "http://127.0.0.1:8081", "http://[::1]:8081/x", "http://localhost"]
        {
            assert!(good.parse::<BaseUrl>().is_ok(), "{good}");
        }
        for bad in ["http://kdsintf.amd.com", "ftp://127.0.0.1", "kdsintf.amd.com", "", "http://127.0.0.1.example.org", "http://10.0.0.1"] {
            assert!(bad.parse::<BaseUrl>().is_err(), "{bad}");
        }
        for bad in ["https://u@x", "https://u:p@x", "https://x?a=b", "https://x#a"] {
            let error = bad.parse::<BaseUrl>().unwrap_err();
            assert!(matches!(error, BaseUrlError::Parts(_)) && !error.to_string().contains("u:p"), "{bad}");
        }
        assert_eq!("https://x/y/".parse(), Ok(BaseUrl("https://x/y".into())));
    }

    #[test]
    fn intels_root_list_has_an_address_of_its_own() {
        let base = |text: &str| text.parse::<BaseUrl>().unwrap();
        assert_eq!(address(&base("https://api.trustedservices.intel.com/"), ROOT_CRL), INTEL_ROOT_CRL);
        let tcb = "tdx/certification/v4/tcb?fmspc=50806f000000";
        assert_eq!(address(&base(INTEL), tcb), format!("{INTEL}/{tcb}"));
        assert_eq!(address(&base("https://pccs:8081"), ROOT_CRL), format!("https://pccs:8081/{ROOT_CRL}"));
    }

    #[test]
    fn the_budget_fills_with_time_and_no_further() {
        let mut budget = Budget::default();
        let taken = |budget: &mut Budget, now| (0..1000).filter(|_| budget.take(now)).count() as u64;
        assert_eq!(taken(&mut budget, 1_000_000), BURST);
        assert_eq!(taken(&mut budget, 1_000_003), 3 * PER_SECOND);
        assert_eq!(taken(&mut budget, 2_000_000), BURST);
        // A clock that goes back gives nothing.
        assert_eq!(taken(&mut budget, 1_000_000), 0);
    }
}
