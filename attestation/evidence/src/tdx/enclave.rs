//! The report of the quoting enclave (REPORTBODY of Intel SGX, 384 bytes): which enclave holds the key that signed the quote.

use super::cursor::Cursor;
use super::quote::QuoteError;

/// An SGX report body. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnclaveReport {
    /// CPUSVN.
    pub cpu_svn: [u8; 16],
    /// MISCSELECT.
    pub misc_select: u32,
    /// Reserved; signed, so kept.
    pub reserved1: [u8; 12],
    /// ISVEXTPRODID.
    pub isv_ext_prod_id: [u8; 16],
    /// ATTRIBUTES: flags, then XFRM.
    pub attributes: [u8; 16],
    /// MRENCLAVE.
    pub mr_enclave: [u8; 32],
    /// Reserved; signed, so kept.
    pub reserved2: [u8; 32],
    /// MRSIGNER.
    pub mr_signer: [u8; 32],
    /// Reserved; signed, so kept.
    pub reserved3: [u8; 32],
    /// CONFIGID.
    pub config_id: [u8; 64],
    /// ISVPRODID.
    pub isv_prod_id: u16,
    /// ISVSVN.
    pub isv_svn: u16,
    /// CONFIGSVN.
    pub config_svn: u16,
    /// Reserved; signed, so kept.
    pub reserved4: [u8; 42],
    /// ISVFAMILYID.
    pub isv_family_id: [u8; 16],
    /// REPORTDATA: the first 32 bytes are SHA-256 of attestation key and authentication data.
    pub report_data: [u8; 64],
}

impl EnclaveReport {
    /// Size in bytes.
    pub const LEN: usize = 384;

    pub(super) fn read(c: &mut Cursor<'_>) -> Result<Self, QuoteError> {
        Ok(Self {
            cpu_svn: c.array()?,
            misc_select: c.u32()?,
            reserved1: c.array()?,
            isv_ext_prod_id: c.array()?,
            attributes: c.array()?,
            mr_enclave: c.array()?,
            reserved2: c.array()?,
            mr_signer: c.array()?,
            reserved3: c.array()?,
            config_id: c.array()?,
            isv_prod_id: c.u16()?,
            isv_svn: c.u16()?,
            config_svn: c.u16()?,
            reserved4: c.array()?,
            isv_family_id: c.array()?,
            report_data: c.array()?,
        })
    }

    /// The bytes that are signed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::LEN);
        out.extend(self.cpu_svn);
        out.extend(self.misc_select.to_le_bytes());
        out.extend(self.reserved1);
        out.extend(self.isv_ext_prod_id);
        out.extend(self.attributes);
        out.extend(self.mr_enclave);
        out.extend(self.reserved2);
        out.extend(self.mr_signer);
        out.extend(self.reserved3);
        out.extend(self.config_id);
        out.extend(self.isv_prod_id.to_le_bytes());
        out.extend(self.isv_svn.to_le_bytes());
        out.extend(self.config_svn.to_le_bytes());
        out.extend(self.reserved4);
        out.extend(self.isv_family_id);
        out.extend(self.report_data);
        out
    }
}

impl Default for EnclaveReport {
    /// Zeros, for building one field by field.
    fn default() -> Self {
        Self {
            cpu_svn: [0; 16],
            misc_select: 0,
            reserved1: [0; 12],
            isv_ext_prod_id: [0; 16],
            attributes: [0; 16],
            mr_enclave: [0; 32],
            reserved2: [0; 32],
            mr_signer: [0; 32],
            reserved3: [0; 32],
            config_id: [0; 64],
            isv_prod_id: 0,
            isv_svn: 0,
            config_svn: 0,
            reserved4: [0; 42],
            isv_family_id: [0; 16],
            report_data: [0; 64],
        }
    }
}
