//! Sizes as people write them.

/// Reads a number of bytes: digits, and KiB, MiB, GiB or TiB if it is meant so.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("expected a number of bytes such as 10GiB (suffixes KiB, MiB, GiB, TiB), found {text:?}");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match text.get(digits.len()..).unwrap_or_default() {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1_u64 << 40,
        _ => return Err(wrong()),
    };
    // No sign and nothing else that `parse` would take.
    let number: u64 = Some(digits).filter(|d| d.bytes().all(|b| b.is_ascii_digit())).and_then(|d| d.parse().ok()).ok_or_else(wrong)?;
    number.checked_mul(factor).filter(|&bytes| bytes > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_bytes_with_and_without_a_suffix_and_nothing_else() {
        assert_eq!(parse("1"), Ok(1));
        assert_eq!(parse("10GiB"), Ok(10 << 30));
        assert_eq!(parse("3TiB"), Ok(3 << 40));
        for wrong in ["", "0", "GiB", "10GB", "10gib", "10 GiB", "-1", "+1", "1.5GiB", "99999999TiB", "99999999999999999999"] {
            assert!(parse(wrong).unwrap_err().contains("10GiB"), "{wrong}");
        }
    }
}
