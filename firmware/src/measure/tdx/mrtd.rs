//! MRTD: SHA-384 over what the VMM asked of the TDX module for each page (TDX Module ABI specification 348551, TDH.MEM.PAGE.ADD
//! and TDH.MR.EXTEND).
//!
//! A page that is added counts 128 bytes: `MEM.PAGE.ADD`, at byte 16 its address, zeros. Each 256 bytes of content that are extended
//! count 128 bytes, `MR.EXTEND` and their address likewise, and then themselves. The order is the VMM's, and it has changed.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha384};

use super::metadata::{Section, TdxFirmware};
use super::register::Register;
use crate::footer::PAGE_LEN;

/// Bytes of content in one extension.
const CHUNK: usize = 256;

/// In which order QEMU adds and extends the pages of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageOrder {
    /// All pages of a section are added, and then extended: patched QEMU up to 8, before KVM had TDX.
    Qemu8,
    /// Each page is added and at once extended: QEMU from 9 on, and the TDX that Linux 6.16 and QEMU 10.1 have.
    Qemu9,
}

impl PageOrder {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Qemu8, Self::Qemu9];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qemu8 => "qemu8",
            Self::Qemu9 => "qemu9",
        }
    }
}

impl fmt::Display for PageOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PageOrder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|order| order.as_str() == text).ok_or_else(|| format!("expected qemu8 or qemu9, found {text:?}"))
    }
}

impl TdxFirmware<'_> {
    /// MRTD of a TD with this firmware.
    #[must_use]
    pub fn mrtd(&self, order: PageOrder) -> Register {
        let mut mrtd = Mrtd(Sha384::new());
        for section in self.sections() {
            match order {
                PageOrder::Qemu8 => {
                    pages(section).for_each(|(gpa, _)| mrtd.add(gpa));
                    pages(section).for_each(|(gpa, content)| mrtd.extend(gpa, content));
                }
                PageOrder::Qemu9 => pages(section).for_each(|(gpa, content)| {
                    mrtd.add(gpa);
                    mrtd.extend(gpa, content);
                }),
            }
        }
        Register::from_bytes(mrtd.0.finalize().into())
    }
}

/// Address and measured content of each page; empty where none is measured.
fn pages<'a>(section: &Section<'a>) -> impl Iterator<Item = (u64, &'a [u8])> {
    let content = section.measured().unwrap_or_default();
    let addresses = (section.gpa()..section.gpa() + section.size()).step_by(PAGE_LEN);
    addresses.zip(content.chunks(PAGE_LEN).chain(std::iter::repeat(&[][..])))
}

struct Mrtd(Sha384);

impl Mrtd {
    fn operation(&mut self, name: &[u8], gpa: u64) {
        let mut record = [0; 128];
        for (to, from) in record.iter_mut().zip(name) {
            *to = *from;
        }
        for (to, from) in record.iter_mut().skip(16).zip(gpa.to_le_bytes()) {
            *to = from;
        }
        self.0.update(record);
    }

    fn add(&mut self, gpa: u64) {
        self.operation(b"MEM.PAGE.ADD", gpa);
    }

    fn extend(&mut self, gpa: u64, content: &[u8]) {
        for (address, chunk) in (gpa..).step_by(CHUNK).zip(content.chunks(CHUNK)) {
            self.operation(b"MR.EXTEND", address);
            self.0.update(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_known_by_their_names() {
        for order in PageOrder::ALL {
            assert_eq!(order.to_string().parse(), Ok(order));
        }
        assert!("qemu10".parse::<PageOrder>().unwrap_err().contains("qemu10"));
    }
}
