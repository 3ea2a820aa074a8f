//! CPU models and their signatures as real QEMU binaries have them. One that QEMU has and we do not could not be measured; one with another
//! signature would be measured wrongly.
//!
//! `KATA_CC_QEMU_TREES` names unpacked root directories of Debian releases, joined by `:` (`cargo xtask test` fetches them).

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use kata_cc_firmware::measure::snp::{CpuModel, CpuSignature};
use serde_json::{Value, json};

/// A QEMU without a machine, which answers questions.
struct Qemu {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Qemu {
    /// Starts the binary of a tree with the tree's loader and libraries.
    fn start(root: &Path) -> Self {
        let mut process = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"))
            .arg("--library-path")
            .arg(root.join("usr/lib/x86_64-linux-gnu"))
            .arg(root.join("usr/bin/qemu-system-x86_64"))
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "none,accel=tcg", "-S", "-qmp", "stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let mut qemu = Self { process, to, from };
        assert!(qemu.message().get("QMP").is_some());
        qemu.ask("qmp_capabilities", &json!({}));
        qemu
    }

    fn message(&mut self) -> Value {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// What QEMU answers; events in between are passed over.
    fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        // In one piece: QEMU obeys `quit` at the closing brace, and a line's end of its own would find nobody.
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.to.write_all(line.as_bytes()).unwrap();
        loop {
            let mut message = self.message();
            assert!(message.get("error").is_none(), "{command} {arguments}: {message}");
            if let Some(answer) = message.get_mut("return") {
                return answer.take();
            }
        }
    }

    /// Names of AMD's server models.
    fn models(&mut self) -> BTreeSet<String> {
        let all = self.ask("query-cpu-definitions", &json!({}));
        let names = all.as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap().to_owned());
        names.filter(|name| name.starts_with("EPYC")).collect()
    }

    fn signature(&mut self, model: &str) -> CpuSignature {
        let expanded = self.ask("query-cpu-model-expansion", &json!({ "type": "full", "model": { "name": model } }));
        let number = |id: &str| u32::try_from(expanded["model"]["props"][id].as_u64().unwrap()).unwrap();
        CpuSignature::of(number("family"), number("model"), number("stepping"))
    }

    fn quit(mut self) {
        self.ask("quit", &json!({}));
        assert!(self.process.wait().unwrap().success());
    }
}

/// A failed test must not leave a QEMU that holds the test's output open.
impl Drop for Qemu {
    fn drop(&mut self) {
        // After `quit` there is nobody left to end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "needs QEMU of other Debian releases; run by `cargo xtask test`"]
fn every_model_of_qemu_is_known_with_its_signature_and_no_other_is() {
    let trees = std::env::var_os("KATA_CC_QEMU_TREES").expect("KATA_CC_QEMU_TREES names no trees; run this by `cargo xtask test`");
    let mut of_qemu = BTreeSet::new();
    for root in std::env::split_paths(&trees) {
        let mut qemu = Qemu::start(&root);
        let models = qemu.models();
        assert!(models.len() >= 16, "{}: {models:?}", root.display());
        for name in &models {
            let known: CpuModel = name.parse().unwrap_or_else(|error| panic!("{}: {error}", root.display()));
            assert_eq!(known.signature(), qemu.signature(name), "{name} of {}", root.display());
        }
        of_qemu.extend(models);
        qemu.quit();
    }
    let ours: BTreeSet<String> = CpuModel::NAMES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(ours, of_qemu);
}
