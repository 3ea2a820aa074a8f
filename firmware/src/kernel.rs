//! The guest kernel's configuration and the check that a build kept to it.
//!
//! `firmware/kernel/x86_64.config` is a fragment over `allnoconfig`. Kconfig drops without a word what a kernel does not
//! know or cannot have; here that is an error, because a guest without an option the design rests on (no modules,
//! lockdown, the report interface) would still boot.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The fragment for x86_64.
pub const X86_64: &str = include_str!("../kernel/x86_64.config");

/// Changes to Debian's source, by file name, in the order they are applied (unified diffs below one directory, `patch -p1`).
pub const PATCHES: [(&str, &str); 2] = [
    ("0001-acpi-no-memory-for-host-tables.patch", include_str!("../kernel/patches/0001-acpi-no-memory-for-host-tables.patch")),
    ("0002-acpi-no-mailbox-outside-a-td.patch", include_str!("../kernel/patches/0002-acpi-no-mailbox-outside-a-td.patch")),
];

/// A `.config` or fragment is a few hundred KiB.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// Values of options by name. `n` is what an option that is not set has.
type Options<'a> = BTreeMap<&'a str, &'a str>;

/// Checks that a kernel's resulting `.config` holds what a fragment asks for, line by line.
///
/// # Errors
/// Names every option that differs, not only the first.
pub fn check(fragment: &str, resulting: &str) -> Result<(), KernelConfigError> {
    let wanted = parse(fragment)?;
    let found = parse(resulting)?;
    let differing: Vec<_> = wanted
        .iter()
        .map(|(name, wanted)| (*name, *wanted, found.get(name).copied().unwrap_or("n")))
        .filter(|(_, wanted, found)| !same(wanted, found))
        .map(|(name, wanted, found)| Difference { name: name.into(), wanted: wanted.into(), found: found.into() })
        .collect();
    if differing.is_empty() { Ok(()) } else { Err(KernelConfigError::Differs(differing)) }
}

/// An absent string option and an empty one are the same to Kconfig.
fn same(wanted: &str, found: &str) -> bool {
    wanted == found || (wanted == "\"\"" && found == "n")
}

fn parse(text: &str) -> Result<Options<'_>, KernelConfigError> {
    if text.len() > MAX_BYTES {
        return Err(KernelConfigError::TooLarge { found: text.len() });
    }
    let mut options = Options::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_end();
        let option = match line.strip_prefix("# CONFIG_").and_then(|rest| rest.strip_suffix(" is not set")) {
            Some(_) => line.strip_prefix("# ").and_then(|l| l.strip_suffix(" is not set")).map(|name| (name, "n")),
            None if line.is_empty() || line.starts_with('#') => continue,
            None => line.split_once('=').filter(|(name, value)| name.starts_with("CONFIG_") && !value.is_empty()),
        };
        let (name, value) = option.ok_or(KernelConfigError::Line { number: number + 1 })?;
        if options.insert(name, value).is_some_and(|before| before != value) {
            return Err(KernelConfigError::Twice { name: name.into() });
        }
    }
    Ok(options)
}

/// An option that is not as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its name, with `CONFIG_`.
    pub name: String,
    /// What the fragment says.
    pub wanted: String,
    /// What the kernel has.
    pub found: String,
}

/// Why a kernel configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelConfigError {
    /// Options are not as asked for.
    #[error("the kernel's configuration differs from the fragment:{}", list(.0))]
    Differs(Vec<Difference>),
    /// A line that is neither an option nor a comment.
    #[error("line {number} is no option and no comment")]
    Line {
        /// Counted from 1.
        number: usize,
    },
    /// Two values for one option: which one counts would depend on the reader.
    #[error("{name} is given two values")]
    Twice {
        /// Its name.
        name: String,
    },
    /// Not a configuration.
    #[error("expected at most {MAX_BYTES} bytes, found {found}")]
    TooLarge {
        /// Its length.
        found: usize,
    },
}

fn list(differences: &[Difference]) -> String {
    let mut text = String::new();
    for Difference { name, wanted, found } in differences {
        let _ = write!(text, "\n  {name}: expected {wanted}, found {found}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_fragment_is_well_formed() {
        assert_eq!(check(X86_64, X86_64), Ok(()));
    }

    #[test]
    fn unset_and_absent_are_no() {
        assert_eq!(check("CONFIG_A=n\nCONFIG_B=n\nCONFIG_S=\"\"", "# CONFIG_A is not set\n# comment"), Ok(()));
    }

    #[test]
    fn names_every_option_that_differs() {
        let error = check("CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=y\nCONFIG_N=8", "CONFIG_B=y\nCONFIG_C=y\nCONFIG_N=9").unwrap_err();
        let KernelConfigError::Differs(all) = &error else { panic!("{error}") };
        assert_eq!(all.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["CONFIG_A", "CONFIG_B", "CONFIG_N"]);
        assert!(error.to_string().contains("CONFIG_A: expected y, found n"), "{error}");
    }

    #[test]
    fn refuses_lines_it_does_not_understand() {
        assert_eq!(check("MODULES=n", ""), Err(KernelConfigError::Line { number: 1 }));
        assert_eq!(check("CONFIG_A=", ""), Err(KernelConfigError::Line { number: 1 }));
        assert_eq!(check("CONFIG_A=y\nCONFIG_A=n", ""), Err(KernelConfigError::Twice { name: "CONFIG_A".into() }));
    }
}
