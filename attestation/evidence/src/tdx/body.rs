//! The TD report in a quote: 584 bytes for TDX 1.0, 64 more from TDX 1.5 on, 237 more again in its extended form.

use super::attributes::TdAttributes;
use super::cursor::Cursor;
use super::quote::{BodyType, QuoteError};
use crate::values::{MrConfigId, ReportData, TdMeasurement};

/// What the TDX module and the guest say of the TD. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// TEE_TCB_SVN: security versions of the TDX module and what is below it, as they were when the TD was made.
    pub tee_tcb_svn: [u8; 16],
    /// MRSEAM: the TDX module.
    pub mr_seam: TdMeasurement,
    /// MRSIGNERSEAM: who signed it; zero is Intel.
    pub mr_signer_seam: TdMeasurement,
    /// SEAMATTRIBUTES; zero for Intel's module.
    pub seam_attributes: [u8; 8],
    /// TDATTRIBUTES.
    pub td_attributes: TdAttributes,
    /// XFAM: which extended features the TD may use.
    pub xfam: u64,
    /// MRTD: what the TD was made of.
    pub mr_td: TdMeasurement,
    /// MRCONFIGID: given by the host; carries the digest of the initdata.
    pub mr_config_id: MrConfigId,
    /// MROWNER: given by the host.
    pub mr_owner: TdMeasurement,
    /// MROWNERCONFIG: given by the host.
    pub mr_owner_config: TdMeasurement,
    /// RTMR0 to RTMR3: what was measured since.
    pub rtmr: [TdMeasurement; 4],
    /// REPORTDATA.
    pub report_data: ReportData,
    /// What TDX 1.5 has more.
    pub extension: Option<Extension15>,
}

/// The fields that TDX 1.5 added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension15 {
    /// TEE_TCB_SVN_2: security versions as they are now, after an update that kept TDs running.
    pub tee_tcb_svn2: [u8; 16],
    /// MRSERVICETD: digest of the service TDs bound to this one; zero without any.
    pub mr_service_td: TdMeasurement,
    /// What the extended form has more.
    pub more: Option<Extension15Ex>,
}

/// The fields of the extended form of TDX 1.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension15Ex {
    /// VMID: which VM of a partitioned TD; 0 without partitions.
    pub vm_id: u8,
    /// TD_ID: unique to this run of the TD.
    pub td_id: [u8; 32],
    /// DEV_INFO: digest of what is known of the devices assigned to it.
    pub dev_info: TdMeasurement,
    /// INIT_SERVTD_HASH: digest of the service TDs bound when the TD was made.
    pub init_service_td_hash: TdMeasurement,
    /// INIT_SERVTD_ATTR: attributes of the service TD bound when the TD was made.
    pub init_service_td_attributes: [u8; 8],
    /// INIT_CPUSVN: CPUSVN when the TD was made.
    pub init_cpu_svn: [u8; 16],
    /// INIT_TEE_TCB_SVN: TEE_TCB_SVN when the TD was made.
    pub init_tee_tcb_svn: [u8; 16],
    /// INIT_TEE_FMSPC: model of the platform the TD was made on.
    pub init_tee_fmspc: [u8; 12],
    /// CURR_SERVTD_HASH: digest of the service TDs bound now.
    pub cur_service_td_hash: TdMeasurement,
    /// CURR_SERVTD_ATTR: attributes of the service TD bound now.
    pub cur_service_td_attributes: [u8; 8],
}

impl Extension15Ex {
    fn read(c: &mut Cursor<'_>) -> Result<Self, QuoteError> {
        Ok(Self {
            vm_id: u8::from_le_bytes(c.array()?),
            td_id: c.array()?,
            dev_info: TdMeasurement(c.array()?),
            init_service_td_hash: TdMeasurement(c.array()?),
            init_service_td_attributes: c.array()?,
            init_cpu_svn: c.array()?,
            init_tee_tcb_svn: c.array()?,
            init_tee_fmspc: c.array()?,
            cur_service_td_hash: TdMeasurement(c.array()?),
            cur_service_td_attributes: c.array()?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.vm_id);
        out.extend(self.td_id);
        out.extend(self.dev_info.0);
        out.extend(self.init_service_td_hash.0);
        out.extend(self.init_service_td_attributes);
        out.extend(self.init_cpu_svn);
        out.extend(self.init_tee_tcb_svn);
        out.extend(self.init_tee_fmspc);
        out.extend(self.cur_service_td_hash.0);
        out.extend(self.cur_service_td_attributes);
    }
}

impl Body {
    /// Size for TDX 1.0.
    pub const LEN_10: usize = 584;
    /// Size from TDX 1.5 on.
    pub const LEN_15: usize = 648;
    /// Size of the extended form.
    pub const LEN_15_EX: usize = 885;

    pub(super) fn read(c: &mut Cursor<'_>, kind: BodyType) -> Result<Self, QuoteError> {
        Ok(Self {
            tee_tcb_svn: c.array()?,
            mr_seam: TdMeasurement(c.array()?),
            mr_signer_seam: TdMeasurement(c.array()?),
            seam_attributes: c.array()?,
            td_attributes: TdAttributes(c.u64()?),
            xfam: c.u64()?,
            mr_td: TdMeasurement(c.array()?),
            mr_config_id: MrConfigId(c.array()?),
            mr_owner: TdMeasurement(c.array()?),
            mr_owner_config: TdMeasurement(c.array()?),
            rtmr: [TdMeasurement(c.array()?), TdMeasurement(c.array()?), TdMeasurement(c.array()?), TdMeasurement(c.array()?)],
            report_data: ReportData(c.array()?),
            extension: match kind {
                BodyType::Td10 => None,
                BodyType::Td15 | BodyType::Td15Ex => Some(Extension15 {
                    tee_tcb_svn2: c.array()?,
                    mr_service_td: TdMeasurement(c.array()?),
                    more: if kind == BodyType::Td15Ex { Some(Extension15Ex::read(c)?) } else { None },
                }),
            },
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.tee_tcb_svn);
        out.extend(self.mr_seam.0);
        out.extend(self.mr_signer_seam.0);
        out.extend(self.seam_attributes);
        out.extend(self.td_attributes.to_bytes());
        out.extend(self.xfam.to_le_bytes());
        out.extend(self.mr_td.0);
        out.extend(self.mr_config_id.0);
        out.extend(self.mr_owner.0);
        out.extend(self.mr_owner_config.0);
        for register in self.rtmr {
            out.extend(register.0);
        }
        out.extend(self.report_data.0);
        if let Some(extension) = self.extension {
            out.extend(extension.tee_tcb_svn2);
            out.extend(extension.mr_service_td.0);
            if let Some(more) = extension.more {
                more.write(out);
            }
        }
    }
}

impl Default for Body {
    /// Zeros, as of TDX 1.0, for building one field by field.
    fn default() -> Self {
        Self {
            tee_tcb_svn: [0; 16],
            mr_seam: TdMeasurement::ZERO,
            mr_signer_seam: TdMeasurement::ZERO,
            seam_attributes: [0; 8],
            td_attributes: TdAttributes::default(),
            xfam: 0,
            mr_td: TdMeasurement::ZERO,
            mr_config_id: MrConfigId::ZERO,
            mr_owner: TdMeasurement::ZERO,
            mr_owner_config: TdMeasurement::ZERO,
            rtmr: [TdMeasurement::ZERO; 4],
            report_data: ReportData::ZERO,
            extension: None,
        }
    }
}
