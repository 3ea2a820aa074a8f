//! Components of an image: what the ultravisor decrypts into the guest, page by page, and the digests over all pages.
//!
//! A page is encrypted with AES-256-XTS (IEEE 1619). Its tweak is its component's, of which the first half says which component and is
//! random otherwise, and the second half is the page's offset. Digests are over the pages in the order of their addresses.

use std::io::{self, Read, Write};

use aes::Aes256;
use aes::cipher::KeyInit as _;
use sha2::{Digest as _, Sha512};
use xts_mode::Xts128;
use zeroize::Zeroizing;

use super::PAGE;
use super::header::Digests;
use super::seal::Secrets;

const STEP: u64 = 4096;

/// What a component is. The order is that in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The kernel.
    Kernel,
    /// The initrd.
    Initrd,
    /// The kernel's command line.
    CommandLine,
    /// The loader that brings the others to where the kernel wants them.
    Stage3b,
}

impl Component {
    /// How it begins the tweak.
    const fn prefix(self) -> u16 {
        match self {
            Self::Kernel => 40,
            Self::Initrd => 50,
            Self::CommandLine => 60,
            Self::Stage3b => 70,
        }
    }
}

impl std::fmt::Display for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::CommandLine => "command line",
            Self::Stage3b => "stage3b",
        })
    }
}

/// Where a component came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Which.
    pub component: Component,
    /// Its address; of the image, its offset.
    pub address: u64,
    /// Bytes of it, before they were padded.
    pub bytes: u64,
    /// Whole pages of it.
    pub pages: u64,
    /// First half of its tweaks.
    pub tweak: u64,
}

/// Pages that were measured: their number and digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// How many.
    pub pages: u64,
    /// Over all of them.
    pub digests: Digests,
}

/// Why a component was not added.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// Reading or writing failed.
    #[error("cannot read the {component}, or write it encrypted")]
    Io {
        /// Which.
        component: Component,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No byte.
    #[error("the {component} is empty")]
    Empty {
        /// Which.
        component: Component,
    },
    /// Where no page is, or below the last one: the digests are over ascending pages.
    #[error("the {component} cannot be at {address:#x}; expected a multiple of {PAGE:#x}, {next:#x} or above")]
    Address {
        /// Which.
        component: Component,
        /// Where it was to be.
        address: u64,
        /// End of what is there.
        next: u64,
    },
}

/// Encrypts components and measures them.
pub struct Components<'a> {
    secrets: &'a Secrets,
    cipher: Xts128<Aes256>,
    pld: Sha512,
    ald: Sha512,
    tld: Sha512,
    pages: u64,
    next: u64,
}

impl std::fmt::Debug for Components<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Components").field("pages", &self.pages).finish_non_exhaustive()
    }
}

impl<'a> Components<'a> {
    /// None yet, under these secrets.
    #[must_use]
    pub fn new(secrets: &'a Secrets) -> Self {
        let (data_key, tweak_key) = secrets.component_key.split_at(32);
        let cipher = Xts128::new(Aes256::new(data_key.into()), Aes256::new(tweak_key.into()));
        Self { secrets, cipher, pld: Sha512::new(), ald: Sha512::new(), tld: Sha512::new(), pages: 0, next: 0 }
    }

    /// Adds a component at an address: writes its pages, encrypted, the last one padded with zeros.
    ///
    /// # Errors
    /// When it is empty, the address is not that of a page behind those that are there, or reading or writing fails.
    pub fn add(
        &mut self,
        component: Component,
        address: u64,
        from: &mut impl Read,
        into: &mut impl Write,
    ) -> Result<Placed, ComponentError> {
        let random = self.secrets.tweaks.get(component as usize).copied().unwrap_or_default();
        let mut tweak = [0; 8];
        for (byte, value) in tweak.iter_mut().zip(component.prefix().to_be_bytes().into_iter().chain(random)) {
            *byte = value;
        }
        self.add_with(component, u64::from_be_bytes(tweak), address, from, into)
    }

    fn add_with(
        &mut self,
        component: Component,
        tweak: u64,
        address: u64,
        from: &mut impl Read,
        into: &mut impl Write,
    ) -> Result<Placed, ComponentError> {
        let misplaced = || ComponentError::Address { component, address, next: self.next };
        if !address.is_multiple_of(STEP) || address < self.next {
            return Err(misplaced());
        }
        let io = |source| ComponentError::Io { component, source };
        let mut page = Zeroizing::new([0; PAGE]);
        let (mut bytes, mut pages, mut at) = (0, 0, address);
        loop {
            let read = fill(from, &mut page).map_err(io)?;
            if read == 0 {
                break;
            }
            if let Some(padding) = page.get_mut(read..) {
                padding.fill(0);
            }
            // Offset of the page, whose 16 bytes are big-endian and go into the cipher as they are.
            let full = (u128::from(tweak) << 64 | u128::from(pages * STEP)).to_be_bytes();
            self.cipher.encrypt_sector(&mut *page, full);
            self.pld.update(page.as_slice());
            self.tld.update(full);
            self.ald.update(at.to_be_bytes());
            into.write_all(page.as_slice()).map_err(io)?;
            bytes += u64::try_from(read).unwrap_or(STEP);
            pages += 1;
            at = at.checked_add(STEP).ok_or(ComponentError::Address { component, address, next: self.next })?;
        }
        if pages == 0 {
            return Err(ComponentError::Empty { component });
        }
        self.pages += pages;
        self.next = at;
        Ok(Placed { component, address, bytes, pages, tweak })
    }

    /// End of the pages so far.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// What they measure to.
    #[must_use]
    pub fn finish(self) -> Measured {
        let digests = Digests { pld: self.pld.finalize().into(), ald: self.ald.finalize().into(), tld: self.tld.finalize().into() };
        Measured { pages: self.pages, digests }
    }
}

/// Reads until the page is full or nothing is left: a pipe gives less at a time.
fn fill(from: &mut impl Read, page: &mut [u8; PAGE]) -> io::Result<usize> {
    let mut read = 0;
    while let Some(rest) = page.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::se::seal::tests::secrets;

    fn hex64(text: &str) -> [u8; 64] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    /// Keys and digests are those in a test of pvimg (s390-tools, rust/pvimg/src/pv_utils/secured_comp.rs,
    /// `prepare_aligned_component_test`).
    #[test]
    fn measures_what_pvimg_measures() {
        let mut secrets = secrets(1);
        secrets.component_key[..32].fill(0x42);
        secrets.component_key[32..].fill(0x43);
        let mut components = Components::new(&secrets);
        let mut out = Vec::new();
        let placed = components.add_with(Component::Kernel, 0x42, 0x10000, &mut [1; 0x3400].as_slice(), &mut out).unwrap();
        assert_eq!((placed.bytes, placed.pages), (0x3400, 4));
        components.add_with(Component::Initrd, 0x42, 0x20000, &mut [2; 0x3000].as_slice(), &mut out).unwrap();
        assert_eq!(out.len(), 7 * PAGE);
        let measured = components.finish();
        assert_eq!(measured.pages, 7);
        let digests = Digests {
            ald: hex64(
                &[
                    "c391de5727a08212ea2fea9c37f9cf090be51f93c6d521b8906332ce720c5f38",
                    "ada0e73e69663e5211d015fef41dc62606f5135e619904d4f450ab889f49caad",
                ]
                .concat(),
            ),
            pld: hex64(
                &[
                    "a24ff30a8af1295888dedfe9369eb509290309a90159ebc32ca26a53f9d4364a",
                    "781857e2590587536c3e767355c7b7603f2b0c6a407f16330d82128d0964fad2",
                ]
                .concat(),
            ),
            tld: hex64(
                &[
                    "424fe3cf04a6f64a7aef185c3b4ef607c0e4f54bb7e14620b574a3d31eef31c7",
                    "d462eb040d45ee6918e6b80968ba4454f9e2edc26f6929ed624d0055f2355659",
                ]
                .concat(),
            ),
        };
        assert_eq!(measured, Measured { pages: 7, digests });
    }

    #[test]
    fn components_lie_on_pages_one_behind_the_other() {
        let secrets = secrets(1);
        let mut components = Components::new(&secrets);
        let mut add = |address| components.add(Component::Kernel, address, &mut [1; PAGE + 1].as_slice(), &mut Vec::new());
        assert!(matches!(add(0x1001), Err(ComponentError::Address { address: 0x1001, .. })));
        assert_eq!(add(0x1000).unwrap().pages, 2);
        assert!(matches!(add(0x2000), Err(ComponentError::Address { next: 0x3000, .. })));
        assert!(matches!(add(u64::MAX - 0xfff), Err(ComponentError::Address { .. })));
        assert_eq!(add(0x3000).unwrap().pages, 2);
    }

    #[test]
    fn an_empty_component_is_refused() {
        let secrets = secrets(1);
        let empty = Components::new(&secrets).add(Component::Initrd, 0, &mut io::empty(), &mut Vec::new());
        assert!(matches!(empty, Err(ComponentError::Empty { component: Component::Initrd })));
    }

    /// A page of zeros says nothing: neither that it is the same as another, nor as that of another component.
    #[test]
    fn equal_pages_are_not_equal_when_encrypted() {
        let secrets = secrets(1);
        let mut components = Components::new(&secrets);
        let mut out = Vec::new();
        components.add(Component::Kernel, 0, &mut [0; 2 * PAGE].as_slice(), &mut out).unwrap();
        components.add(Component::Initrd, 0x2000, &mut [0; PAGE].as_slice(), &mut out).unwrap();
        let pages: std::collections::BTreeSet<_> = out.chunks(PAGE).collect();
        assert_eq!(pages.len(), 3);
    }

    /// Pipes and decompressors give what they have.
    #[test]
    fn a_reader_that_gives_little_at_a_time_measures_the_same() {
        struct Drops<'a>(&'a [u8]);
        impl Read for Drops<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let len = into.len().min(1000);
                self.0.read(&mut into[..len])
            }
        }
        let (secrets, bytes) = (secrets(1), [7; 9000]);
        let measure = |mut from: &mut dyn Read| {
            let mut components = Components::new(&secrets);
            let placed = components.add(Component::Kernel, 0, &mut from, &mut Vec::new()).unwrap();
            (placed, components.finish())
        };
        assert_eq!(measure(&mut Drops(&bytes)), measure(&mut bytes.as_slice()));
    }
}
