//! What a PCK certificate says of its platform: Intel's SGX extensions (the profile specification, section 1.3.5).

use der::Encode as _;
use x509_cert::ext::Extension;

use super::cert::{extension, oid};

/// Intel's arc.
const SGX: &str = "1.2.840.113741.1.13.1";

/// A platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Security versions of the sixteen SGX TCB components.
    pub components: [u8; 16],
    /// Security version of the provisioning certification enclave; below 128.
    pub pce_svn: u8,
    /// Which model it is.
    pub fmspc: [u8; 6],
}

impl Platform {
    /// The extension of its PCK certificate. `times` says how often a pair is written, by its number below Intel's: once, but in tests.
    #[must_use]
    pub fn extension(&self, times: impl Fn(&str) -> usize) -> Extension {
        let keep = |arcs: String, value: Vec<u8>| pair(&arcs, &value).repeat(times(&arcs));
        let numbered = (1..).zip(self.components);
        let mut tcb: Vec<u8> = numbered.flat_map(|(number, svn)| keep(format!(".2.{number}"), tlv(2, &[svn]))).collect();
        tcb.extend(keep(".2.17".into(), tlv(2, &[self.pce_svn])));
        tcb.extend(keep(".2.18".into(), tlv(4, &self.components)));
        let flag = |arcs: &str| keep(arcs.into(), tlv(1, &[0xff]));
        let configuration = [flag(".7.1"), flag(".7.2"), flag(".7.3")].concat();
        let all = [
            keep(".1".into(), tlv(4, &[1; 16])),
            keep(".2".into(), tlv(0x30, &tcb)),
            keep(".3".into(), tlv(4, &[0, 0])),
            keep(".4".into(), tlv(4, &self.fmspc)),
            keep(".5".into(), tlv(10, &[1])),
            keep(".6".into(), tlv(4, &[6; 16])),
            keep(".7".into(), tlv(0x30, &configuration)),
        ];
        extension(SGX, false, tlv(0x30, &all.concat()))
    }
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).expect("a few hundred bytes").to_be_bytes();
    let header = if content.len() < 128 { vec![tag, low] } else { vec![tag, 0x82, high, low] };
    [header, content.to_vec()].concat()
}

fn pair(arcs: &str, value: &[u8]) -> Vec<u8> {
    let id = oid(&format!("{SGX}{arcs}")).to_der().expect("short");
    tlv(0x30, &[id, value.to_vec()].concat())
}
