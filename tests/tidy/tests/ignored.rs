//! Rule: no test is ignored but those that a step of `cargo xtask test` runs, or says that it skips.

use std::path::Path;

use kata_cc_tidy::{files, none, text};

/// Files whose tests are ignored by `cargo test`, and the step that runs them.
const RUN_ELSEWHERE: &[(&str, &str)] = &[
    ("attestation/kbs/tests/postgres.rs", "brokers on PostgreSQL"),
    ("attestation/kbs/tests/pkcs11.rs", "store keys in an HSM"),
    ("attestation/kbs/tests/vault.rs", "resources in a Vault"),
    ("host-shim/vmm/tests/qemu_accepts.rs", "launch plans on QEMU"),
    ("firmware/tests/qemu_cpus.rs", "CPU models of QEMU"),
    ("firmware/tests/ready_firmware.rs", "ready firmware"),
];

/// In two parts, so that this file has it not.
const MARK: &str = concat!("#[ign", "ore");

#[test]
fn ignored_tests_are_run_by_a_step_of_their_own() {
    let elsewhere = |path: &Path| RUN_ELSEWHERE.iter().any(|(file, _)| path == Path::new(file));
    let is_ignored = |path: &Path| text(path).lines().any(|line| line.trim_start().starts_with(MARK));
    let findings: Vec<String> = files(&["rs"])
        .iter()
        .filter(|path| is_ignored(path) && !elsewhere(path))
        .map(|path| format!("{} has ignored tests, which nothing runs", path.display()))
        .collect();
    none("tests that nothing runs", &findings);
}

#[test]
fn the_steps_are_there() {
    let steps = text(Path::new("xtask/src/check.rs"));
    for (file, step) in RUN_ELSEWHERE {
        assert!(text(Path::new(file)).contains(MARK) && steps.contains(step), "{file} or the step {step:?} is gone");
    }
}
