//! The names of IBM's signing key, and why two spellings of it are one name.
//!
//! IBM moved from Poughkeepsie to Armonk in the name of its key signing service, and its revocation lists and host keys spell the name in another
//! order of its parts than the certificate does. So names of that service are compared as sets, with the two places taken for one. What makes
//! a host key genuine is the signature; the name says only which key it should be.

use der::oid::ObjectIdentifier;
use x509_cert::name::Name;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const COUNTRY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.6");
const LOCALITY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.7");
const STATE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.8");
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");
const UNIT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.11");

const IBM: &[u8] = b"International Business Machines Corporation";

fn parts(name: &Name) -> Vec<(ObjectIdentifier, &[u8])> {
    name.0.iter().flat_map(|set| set.0.iter()).map(|part| (part.oid, part.value.value())).collect()
}

/// True when the subject is that of an IBM Z key signing service.
pub(super) fn is_signing_service(name: &Name) -> bool {
    let parts = parts(name);
    parts.len() == 6
        && [(COMMON_NAME, IBM), (COUNTRY, b"US"), (STATE, b"New York"), (ORGANIZATION, IBM)].iter().all(|part| parts.contains(part))
        && parts.iter().any(|(oid, value)| *oid == LOCALITY && matches!(*value, b"Poughkeepsie" | b"Armonk"))
        && parts.iter().any(|(oid, value)| *oid == UNIT && value.ends_with(b"Key Signing Service"))
}

/// True when both name the same signing service.
pub(super) fn is_same_service(one: &Name, other: &Name) -> bool {
    let canonical = |name| {
        let mut parts = parts(name);
        for part in &mut parts {
            if *part == (LOCALITY, b"Armonk".as_slice()) {
                part.1 = b"Poughkeepsie";
            }
        }
        parts.sort_unstable();
        parts
    };
    canonical(one) == canonical(other)
}

/// For messages: the unit, which tells these names apart, or all of it.
pub(super) fn short(name: &Name) -> String {
    let unit =
        parts(name).into_iter().find(|(oid, _)| *oid == UNIT).and_then(|(_, value)| std::str::from_utf8(value).ok().map(str::to_owned));
    unit.unwrap_or_else(|| name.to_string()).chars().filter(|c| !c.is_control()).take(128).collect()
}
