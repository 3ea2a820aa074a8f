//! IBM Secure Execution: what the ultravisor measures of a boot image, and the image itself.
//!
//! ```text
//! image = loader | header | encrypted pages (kernel, initrd, command line, second loader) | parameter block
//! header = plain part (host keys' slots, digests of the pages, of their addresses, of their tweaks) | encrypted part | tag
//! ```
//! The pages are encrypted under a key in the header's encrypted part, which is encrypted under a protection key, which each host key's
//! slot holds once more. So an image starts on the machines it was made for alone. The header's tag is the image's identity. It covers
//! everything above, and since all keys are made anew it differs for each build: there is no tag to predict from kernel and initrd, only
//! one to read from the image.
//!
//! [`header`] has the header's form, [`seal`] makes one, [`components`] encrypts pages and makes the three digests, [`image`] puts a boot
//! image together.
//!
//! Specification: "IBM Secure Execution for Linux", and the tool that makes such images, pvimg (before: genprotimg) of s390-tools. All
//! integers are big-endian.
//!
//! Invariant: an image is a function of its inputs and of the random bytes that the caller gives; no secret is in an error or in `Debug`.

pub mod components;
pub mod header;
pub mod image;
pub mod seal;

/// Size of a page: unit of encryption, and what everything in an image is aligned to.
pub const PAGE: usize = 4096;
