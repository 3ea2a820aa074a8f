//! Launch digests of one image for a range of virtual machines: 1 to N vCPUs of each of several CPU models.
//!
//! Invariant: each digest is the one that [`SnpFirmware::digest`] gives for that machine alone.

use super::{CpuModel, CpuSignature, LaunchDigest, MeasureError, SnpFirmware, SnpVcpus, Vmm};

/// The digests of one CPU signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuDigests {
    /// The models that have it; empty where the VMM does not let the model into the measurement.
    pub models: Vec<CpuModel>,
    /// The signature; `None` likewise.
    pub signature: Option<CpuSignature>,
    /// For 1, 2, … vCPUs, in that order.
    pub digests: Vec<LaunchDigest>,
}

impl SnpFirmware {
    /// Launch digests for 1 to `largest.vcpus` vCPUs of each model, once for each signature; `largest.vcpu_type` is not looked at.
    /// VMMs other than QEMU do not measure the model: then there is one list, of no model.
    ///
    /// # Errors
    /// As [`super::SnpLaunch::digest`].
    pub fn digests_per_cpu(&self, largest: &SnpVcpus<'_>, models: &[CpuModel]) -> Result<Vec<CpuDigests>, MeasureError> {
        if largest.vmm != Vmm::Qemu {
            return Ok(vec![CpuDigests { models: Vec::new(), signature: None, digests: self.digests_per_vcpu_count(largest)? }]);
        }
        let mut all: Vec<CpuDigests> = Vec::new();
        for model in models {
            let signature = model.signature();
            match all.iter_mut().find(|cpu| cpu.signature == Some(signature)) {
                Some(cpu) if cpu.models.contains(model) => {}
                Some(cpu) => cpu.models.push(*model),
                None => {
                    let digests = self.digests_per_vcpu_count(&SnpVcpus { vcpu_type: *model, ..largest.clone() })?;
                    all.push(CpuDigests { models: vec![*model], signature: Some(signature), digests });
                }
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::footer::{Footer, PAGE_LEN, SEV_ES_RESET};
    use crate::measure::snp::SnpLaunch;

    fn image() -> Vec<u8> {
        let mut image = vec![0x90; PAGE_LEN];
        let table = Footer::build(&[(SEV_ES_RESET, &[0x10, 0, 0, 0])]);
        let place = Footer::place(image.len(), &table).unwrap();
        image[place].copy_from_slice(&table);
        image
    }

    fn largest(vcpus: u32, vmm: Vmm) -> SnpVcpus<'static> {
        SnpVcpus { kernel: None, vcpus, vcpu_type: "EPYC".parse().unwrap(), guest_features: 1, vmm }
    }

    #[test]
    fn each_digest_is_the_one_for_that_machine_alone() {
        let image = image();
        let models: Vec<CpuModel> = CpuModel::NAMES.iter().map(|(name, _)| name.parse().unwrap()).collect();
        let all = SnpFirmware::parse(&image).unwrap().digests_per_cpu(&largest(3, Vmm::Qemu), &models).unwrap();
        assert_eq!(all.iter().map(|cpu| cpu.models.len()).sum::<usize>(), models.len());
        assert_eq!(all.len(), 5, "Naples, Rome, Milan, Genoa, Turin");
        for cpu in &all {
            for (model, (i, digest)) in cpu.models.iter().flat_map(|model| cpu.digests.iter().enumerate().map(move |d| (model, d))) {
                let alone = SnpLaunch {
                    firmware: &image,
                    kernel: None,
                    vcpus: u32::try_from(i).unwrap() + 1,
                    vcpu_type: *model,
                    guest_features: 1,
                    vmm: Vmm::Qemu,
                };
                assert_eq!(*digest, alone.digest().unwrap(), "{model} {i}");
            }
        }
    }

    #[test]
    fn vmms_that_do_not_measure_the_model_have_one_list() {
        let image = image();
        let firmware = SnpFirmware::parse(&image).unwrap();
        for vmm in [Vmm::Ec2, Vmm::Gce] {
            let all = firmware.digests_per_cpu(&largest(2, vmm), &["EPYC-Turin".parse().unwrap(), "EPYC".parse().unwrap()]).unwrap();
            assert_eq!((all.len(), all[0].models.len(), all[0].signature, all[0].digests.len()), (1, 0, None, 2));
        }
    }

    #[test]
    fn a_model_given_twice_is_listed_once() {
        let image = image();
        let twice = ["EPYC".parse().unwrap(), "EPYC".parse().unwrap()];
        let all = SnpFirmware::parse(&image).unwrap().digests_per_cpu(&largest(1, Vmm::Qemu), &twice).unwrap();
        assert_eq!(all[0].models.len(), 1);
    }
}
