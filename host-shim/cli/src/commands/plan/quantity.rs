//! Kubernetes quantities: `500m`, `1.5`, `128Mi`, `1e3`.

use anyhow::{Context as _, bail};

/// Suffixes, and the numerator and denominator they stand for.
const SUFFIXES: [(&str, u128, u128); 16] = [
    ("Ki", 1 << 10, 1),
    ("Mi", 1 << 20, 1),
    ("Gi", 1 << 30, 1),
    ("Ti", 1 << 40, 1),
    ("Pi", 1 << 50, 1),
    ("Ei", 1 << 60, 1),
    ("n", 1, 1_000_000_000),
    ("u", 1, 1_000_000),
    ("m", 1, 1000),
    ("k", 1000, 1),
    ("M", 1_000_000, 1),
    ("G", 1_000_000_000, 1),
    ("T", 1_000_000_000_000, 1),
    ("P", 1_000_000_000_000_000, 1),
    ("E", 1_000_000_000_000_000_000, 1),
    ("", 1, 1),
];

/// More digits than any limit has; keeps what follows from overflowing.
const MAX_DIGITS: usize = 18;

/// A quantity in units of one `per_unit`-th, rounded up as Kubernetes does: 1000 for the thousandths of a CPU, 1 for bytes.
pub(super) fn parse(text: &str, per_unit: u64) -> anyhow::Result<u64> {
    let what = || format!("expected a quantity such as 500m, 1.5 or 128Mi, found {text:?}");
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        bail!(what());
    }
    let (mut numerator, mut denominator) = (digits.parse::<u128>().with_context(what)?, 10_u128.pow(u32::try_from(fraction.len())?));
    match SUFFIXES.iter().find(|(name, ..)| *name == suffix) {
        Some(&(_, up, down)) => {
            numerator = numerator.checked_mul(up).with_context(what)?;
            denominator *= down;
        }
        None => {
            let exponent = suffix.strip_prefix(['e', 'E']).and_then(|digits| digits.parse::<i32>().ok()).with_context(what)?;
            let power = 10_u128.checked_pow(exponent.unsigned_abs()).with_context(what)?;
            let side = if exponent < 0 { &mut denominator } else { &mut numerator };
            *side = side.checked_mul(power).with_context(what)?;
        }
    }
    let units = numerator.checked_mul(per_unit.into()).with_context(what)?.div_ceil(denominator);
    u64::try_from(units).ok().filter(|units| i64::try_from(*units).is_ok()).with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_writes() {
        for (text, per_unit, units) in [
            ("1", 1000, 1000),
            ("500m", 1000, 500),
            ("0.1", 1000, 100),
            ("1.0005", 1000, 1001),
            ("100u", 1000, 1),
            (".5", 1000, 500),
            ("2.", 1000, 2000),
            ("128Mi", 1, 128 << 20),
            ("1.5Gi", 1, 3 << 29),
            ("1k", 1, 1000),
            ("1e3", 1, 1000),
            ("1E3", 1, 1000),
            ("15e-1", 1, 2),
            ("1E", 1, 1_000_000_000_000_000_000),
            ("0", 1, 0),
        ] {
            assert_eq!(parse(text, per_unit).unwrap(), units, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_quantity_or_too_large() {
        for text in ["", ".", "m", "-1", "+1", "1 Gi", "1gi", "1KiB", "1.2.3", "1e", "1e99", "1e-99", "9Ei", "99999999999999999999", "１"]
        {
            assert!(parse(text, 1).is_err(), "{text:?}");
        }
    }
}
