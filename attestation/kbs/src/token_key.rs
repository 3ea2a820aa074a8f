//! The key that signs tokens, where an operator brings it: with certificates, so that others than this broker can know it.
//!
//! **Invariant:** a certificate of another key is never put into a token.

use crate::config::{ConfigError, Token, read_bounded};
use kata_cc_kbs_protocol::{TokenError, TokenSigner};
use p256::SecretKey;
use p256::pkcs8::DecodePrivateKey;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::{Path, PathBuf};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use zeroize::Zeroizing;

const MAX_KEY: u64 = 16 * 1024;
const MAX_CERTIFICATES: u64 = 64 * 1024;

/// Why the key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ConfigError),
    /// Not such a key.
    #[error("token.signing_key: {} is not a private EC key on P-256, PKCS #8 or SEC 1, in PEM and without a password", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
    },
    /// No certificate, or not one.
    #[error("token.certificates: {}: {why}", path.display())]
    Certificates {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// The signer did not take it.
    #[error(transparent)]
    Signer(#[from] TokenError),
}

/// The signer of an operator's key, if there is one.
///
/// # Errors
/// When key or certificates cannot be read, or do not belong together.
pub fn configured(config: &Token) -> Result<Option<TokenSigner>, TokenKeyError> {
    let Some(path) = &config.signing_key else { return Ok(None) };
    let text = Zeroizing::new(read_bounded(path, MAX_KEY)?);
    let key = SecretKey::from_pkcs8_pem(&text).ok().or_else(|| SecretKey::from_sec1_pem(&text).ok());
    let key = key.ok_or_else(|| TokenKeyError::Key { path: path.clone() })?;
    let signer = TokenSigner::from_bytes(Zeroizing::new(key.to_bytes()).as_slice())?;
    match &config.certificates {
        Some(path) => {
            let chain = certificates(path, &signer)?;
            Ok(Some(signer.with_certificates(&chain)))
        }
        None => Ok(Some(signer)),
    }
}

fn certificates(path: &Path, signer: &TokenSigner) -> Result<Vec<Vec<u8>>, TokenKeyError> {
    let fail = |why| TokenKeyError::Certificates { path: path.into(), why };
    let text = read_bounded(path, MAX_CERTIFICATES)?;
    let chain: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(text.as_bytes())
        .map(|certificate| certificate.map(|der| der.to_vec()))
        .collect::<Result<_, _>>()
        .map_err(|_| fail("not certificates in PEM"))?;
    let parsed = chain.iter().map(|der| Certificate::from_der(der)).collect::<Result<Vec<_>, _>>();
    let parsed = parsed.map_err(|_| fail("one of the certificates is malformed"))?;
    let leaf = parsed.first().ok_or_else(|| fail("holds no certificate"))?;
    if leaf.tbs_certificate.subject_public_key_info.subject_public_key.as_bytes() == Some(signer.public_point()) {
        Ok(chain)
    } else {
        Err(fail("the first certificate is not of token.signing_key"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};

    struct Files(tempfile::TempDir);

    impl Files {
        fn token(&self, key: &str, certificates: Option<&str>) -> Token {
            let put = |name: &str, text: &str| {
                let path = self.0.path().join(name);
                std::fs::write(&path, text).unwrap();
                path
            };
            Token {
                signing_key: Some(put("key.pem", key)),
                certificates: certificates.map(|text| put("chain.pem", text)),
                ..Token::default()
            }
        }

        fn refused(&self, key: &str, certificates: Option<&str>) -> String {
            configured(&self.token(key, certificates)).unwrap_err().to_string()
        }
    }

    fn key() -> KeyPair {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
    }

    fn certificate(key: &KeyPair) -> String {
        CertificateParams::new(vec!["broker.example".into()]).unwrap().self_signed(key).unwrap().pem()
    }

    #[test]
    fn certificates_of_the_key_are_in_the_key_set() {
        let files = Files(tempfile::tempdir().unwrap());
        let key = key();
        let chain = certificate(&key) + &certificate(&self::key());
        let signer = configured(&files.token(&key.serialize_pem(), Some(&chain))).unwrap().unwrap();
        assert_eq!(signer.public_jwk().x5c.len(), 2);
        let signer = configured(&files.token(&key.serialize_pem(), None)).unwrap().unwrap();
        assert!(signer.public_jwk().x5c.is_empty());
        assert!(configured(&Token::default()).unwrap().is_none());
    }

    #[test]
    fn a_key_of_another_kind_and_certificates_of_another_key_are_refused() {
        let files = Files(tempfile::tempdir().unwrap());
        let key = key();
        let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        for text in ["", "no PEM", &certificate(&key), &p384.serialize_pem()] {
            assert!(files.refused(text, None).contains("not a private EC key on P-256"), "{text}");
        }
        let pem = key.serialize_pem();
        assert!(files.refused(&pem, Some(&certificate(&self::key()))).contains("not of token.signing_key"));
        assert!(files.refused(&pem, Some("")).contains("holds no certificate"));
        assert!(files.refused(&pem, Some(&certificate(&key)[..200])).contains("chain.pem"));
        assert!(
            files
                .refused(&pem, Some(&(certificate(&key) + "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")))
                .contains("malformed")
        );
    }
}
