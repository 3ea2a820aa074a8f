//! Certificates in PEM (RFC 7468), as they come beside evidence and from services.

use x509_cert::Certificate;

/// All certificates of a text, in order; zeros and line ends behind them are padding, which quoting enclaves write. `None` where the text is anything
/// else, or has none.
#[must_use]
pub fn certificates(text: &[u8]) -> Option<Vec<Certificate>> {
    let end = text.iter().rposition(|byte| !matches!(byte, 0 | b'\n' | b'\r'))?;
    // The library subtracts from the length of what it is given before it looks whether there is any: here there is.
    let chain = Certificate::load_pem_chain(text.get(..=end)?).ok()?;
    (!chain.is_empty()).then_some(chain)
}

#[cfg(test)]
mod tests {
    use super::certificates;

    #[test]
    fn a_text_without_certificates_has_none() {
        for text in ["", "\n", "\r\n\0", "x", "-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"] {
            assert_eq!(certificates(text.as_bytes()), None, "{text:?}");
        }
    }
}
