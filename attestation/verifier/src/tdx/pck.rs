//! What a PCK certificate says of the platform it certifies: Intel's SGX extensions.
//!
//! Intel, "SGX PCK Certificate and Certificate Revocation List Profile Specification", section 1.3.5: SEQUENCE OF SEQUENCE { OID, value }.

use der::asn1::{AnyRef, OctetStringRef};
use der::oid::ObjectIdentifier;
use der::{Decode, DecodeValue, FixedTag, Header, Reader, Tag};

use super::cert::{Cert, CertError};

const SGX: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1");
const TCB: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.2");
const PCE_SVN: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.2.17");
const CPU_SVN: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.2.18");
const PCE_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.3");
const FMSPC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.4");
const PLATFORM_INSTANCE_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.6");
const CONFIGURATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.7");
const DYNAMIC_PLATFORM: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.7.1");
const CACHED_KEYS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.7.2");
const SMT_ENABLED: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1.7.3");

/// The platform, as its PCK certificate has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Platform {
    /// Security versions of the sixteen SGX TCB components.
    pub(super) tcb_components: [u8; 16],
    pub(super) pce_svn: u16,
    pub(super) cpu_svn: [u8; 16],
    pub(super) pce_id: [u8; 2],
    /// Family, model, stepping, platform type and customised SKU: which TCB info is for it.
    pub(super) fmspc: [u8; 6],
    /// Of a platform with several processors only.
    pub(super) platform_instance_id: Option<[u8; 16]>,
    pub(super) dynamic_platform: Option<bool>,
    pub(super) cached_keys: Option<bool>,
    pub(super) smt_enabled: Option<bool>,
}

/// One pair of the extension.
struct Item<'a> {
    id: ObjectIdentifier,
    value: AnyRef<'a>,
}

impl FixedTag for Item<'_> {
    const TAG: Tag = Tag::Sequence;
}

impl<'a> DecodeValue<'a> for Item<'a> {
    fn decode_value<R: Reader<'a>>(reader: &mut R, header: Header) -> der::Result<Self> {
        reader.read_nested(header.length, |reader| Ok(Self { id: reader.decode()?, value: reader.decode()? }))
    }
}

/// The value of a pair that must be there once.
fn one<'a>(items: &[Item<'a>], id: ObjectIdentifier, what: &'static str) -> Result<AnyRef<'a>, CertError> {
    maybe(items, id, what)?.ok_or_else(|| bad(id, what))
}

/// The value of a pair that may be missing, but not repeated.
fn maybe<'a>(items: &[Item<'a>], id: ObjectIdentifier, what: &'static str) -> Result<Option<AnyRef<'a>>, CertError> {
    let mut found = items.iter().filter(|item| item.id == id);
    let first = found.next().map(|item| item.value);
    if found.next().is_some() { Err(bad(id, what)) } else { Ok(first) }
}

fn bad(oid: ObjectIdentifier, what: &'static str) -> CertError {
    CertError::Extension { oid: oid.to_string(), what }
}

fn octets<const N: usize>(value: AnyRef<'_>, id: ObjectIdentifier, what: &'static str) -> Result<[u8; N], CertError> {
    let octets: OctetStringRef<'_> = value.decode_as().map_err(|_| bad(id, what))?;
    octets.as_bytes().try_into().map_err(|_| bad(id, what))
}

impl Platform {
    /// Of a PCK certificate. Believed only as far as the certificate is.
    pub(super) fn of(cert: &Cert) -> Result<Self, CertError> {
        let value = cert.extension(SGX).ok_or_else(|| bad(SGX, "SGX extensions"))?;
        let items = Vec::<Item<'_>>::from_der(value).map_err(|_| bad(SGX, "SGX extensions"))?;
        let tcb: Vec<Item<'_>> = one(&items, TCB, "TCB")?.decode_as().map_err(|_| bad(TCB, "TCB"))?;

        let mut tcb_components = [0; 16];
        for (number, component) in (1..).zip(&mut tcb_components) {
            let id = TCB.push_arc(number).map_err(|_| bad(TCB, "TCB component"))?;
            *component = one(&tcb, id, "TCB component")?.decode_as().map_err(|_| bad(id, "TCB component"))?;
        }
        let configuration: Vec<Item<'_>> = match maybe(&items, CONFIGURATION, "configuration")? {
            Some(value) => value.decode_as().map_err(|_| bad(CONFIGURATION, "configuration"))?,
            None => Vec::new(),
        };
        let flag =
            |id, what| maybe(&configuration, id, what)?.map(|value| value.decode_as::<bool>().map_err(|_| bad(id, what))).transpose();
        Ok(Self {
            tcb_components,
            pce_svn: one(&tcb, PCE_SVN, "PCESVN")?.decode_as().map_err(|_| bad(PCE_SVN, "PCESVN"))?,
            cpu_svn: octets(one(&tcb, CPU_SVN, "CPUSVN")?, CPU_SVN, "CPUSVN")?,
            pce_id: octets(one(&items, PCE_ID, "PCE-ID")?, PCE_ID, "PCE-ID")?,
            fmspc: octets(one(&items, FMSPC, "FMSPC")?, FMSPC, "FMSPC")?,
            platform_instance_id: maybe(&items, PLATFORM_INSTANCE_ID, "platform instance id")?
                .map(|value| octets(value, PLATFORM_INSTANCE_ID, "platform instance id"))
                .transpose()?,
            dynamic_platform: flag(DYNAMIC_PLATFORM, "dynamic platform")?,
            cached_keys: flag(CACHED_KEYS, "cached keys")?,
            smt_enabled: flag(SMT_ENABLED, "SMT enabled")?,
        })
    }
}
