//! The lab set up: registry, images, brokers, policies, initdata, a containerd with a runtime handler per way to launch.
//!
//! All is made as a user would make it, by the command lines of the products involved.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::artifacts::Artifacts;
use crate::broker::{ATTESTATION_POLICY, Broker, RESOURCE_POLICY, Tls};
use crate::containerd::{Containerd, Handler, Version};
use crate::cri::{Cri, PodSpec};
use crate::demo::{LISTED_EXEC, WORKLOAD};
use crate::leftovers::Baseline;
use crate::process::run_with;
use crate::registry::{self, CosignKey, Registry};
use crate::report::Phase;

/// The kernel command line of the lab's class; measured.
pub(crate) const KERNEL_PARAMS: &str = "console=ttyS0 reboot=k panic=-1 quiet";
/// What the workload must print and nobody else may see.
pub(crate) const SECRET: &str = "the-secret-of-the-lab-7f3a91";

/// Everything about a pod that its owner decides, and what a hostile host makes of it.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    /// Pod and container name.
    pub(crate) name: String,
    /// Runtime handler: which configuration the shim launches by.
    pub(crate) handler: &'static str,
    /// Which of the lab's images.
    pub(crate) image: &'static str,
    /// What runs.
    pub(crate) command: Vec<String>,
    /// Commands that exec may run.
    pub(crate) exec: Vec<Vec<String>>,
    /// Whether the policy is signed by the key that the initdata trusts.
    pub(crate) trusted_signer: bool,
    /// Whether the initdata is the host's own making: a policy key of its own, and a policy signed by it.
    pub(crate) host_owned: bool,
    /// Whether the host changed one document of the initdata, and left the owner's key and the owner's signed policy in it.
    pub(crate) changed_document: bool,
    /// Whether the initdata names the broker that knows the simulated root.
    pub(crate) knowing_broker: bool,
    /// What the container has beside its image.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) volumes: Vec<(PathBuf, String)>,
    /// What the policy's description says of the container besides, and what of other ones by their names; those run the same.
    pub(crate) container: serde_json::Value,
    pub(crate) others: Vec<(String, serde_json::Value)>,
    /// Keys at the broker that sealed secrets may be signed with.
    pub(crate) sealing_keys: Vec<String>,
}

impl Recipe {
    /// The good pod, running `script` by the image's shell.
    pub(crate) fn script(name: &str, script: &str) -> Self {
        Recipe {
            name: name.to_owned(),
            handler: "kata-cc",
            image: "good",
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            exec: vec![LISTED_EXEC.map(str::to_owned).to_vec()],
            trusted_signer: true,
            host_owned: false,
            changed_document: false,
            knowing_broker: true,
            env: Vec::new(),
            volumes: Vec::new(),
            container: serde_json::json!({}),
            others: Vec::new(),
            sealing_keys: Vec::new(),
        }
    }
}

/// One pod to run: what is good or bad about it, and which words its refusal must hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// For people.
    pub(crate) title: &'static str,
    name: &'static str,
    handler: &'static str,
    image: &'static str,
    initdata: &'static str,
    /// Words of the refusal that show it came for the right reason.
    pub(crate) expect: &'static [&'static str],
}

impl Case {
    /// The pod of this case: the good one but for one thing.
    pub(crate) fn recipe(&self) -> Recipe {
        Recipe {
            handler: self.handler,
            image: self.image,
            trusted_signer: self.initdata != "other-policy-key",
            knowing_broker: self.initdata != "strict-broker",
            ..Recipe::script(self.name, WORKLOAD)
        }
    }

    /// The pod that must run.
    pub(crate) const GOOD: Case =
        Case { title: "the main job", name: "good", handler: "kata-cc", image: "good", initdata: "good", expect: &[] };

    /// The pods that must not. Each differs from the good one in one thing.
    pub(crate) const ATTACKS: [Case; 9] = [
        Case {
            title: "one byte of the initrd changed",
            name: "initrd-byte",
            handler: "kata-cc-initrd",
            image: "good",
            initdata: "good",
            expect: &["expected affirming", "found cpu0/executables warning"],
        },
        Case {
            title: "one word added to the kernel command line",
            name: "cmdline-word",
            handler: "kata-cc-cmdline",
            image: "good",
            initdata: "good",
            expect: &["expected affirming", "found cpu0/executables warning"],
        },
        Case {
            title: "initdata swapped after the launch was planned",
            name: "initdata-swap",
            handler: "kata-cc-swap",
            image: "good",
            initdata: "good",
            expect: &["initdata", "exchanged"],
        },
        Case {
            title: "policy envelope signed by another key",
            name: "policy-key",
            handler: "kata-cc",
            image: "good",
            initdata: "other-policy-key",
            expect: &["policy", "key"],
        },
        Case {
            title: "image not signed",
            name: "unsigned",
            handler: "kata-cc",
            image: "unsigned",
            initdata: "good",
            expect: &["signature"],
        },
        Case {
            title: "image signed by another key",
            name: "other-signer",
            handler: "kata-cc",
            image: "other-signer",
            initdata: "good",
            expect: &["signature"],
        },
        Case {
            title: "one bit flipped in an encrypted layer",
            name: "bit-flip",
            handler: "kata-cc",
            image: "flipped",
            initdata: "good",
            expect: &["layer 0", "has the digest", "where the manifest says"],
        },
        Case {
            title: "the broker's resource policy says no",
            name: "forbidden-key",
            handler: "kata-cc",
            image: "forbidden",
            initdata: "good",
            expect: &["default/forbidden/key", "policy"],
        },
        Case {
            title: "simulated evidence shown to a broker without the simulated root",
            name: "no-sim-root",
            handler: "kata-cc",
            image: "good",
            initdata: "strict-broker",
            expect: &["root"],
        },
    ];
}

/// Everything that runs and exists while the lab does.
#[derive(Debug)]
pub(crate) struct World {
    artifacts: Artifacts,
    work: PathBuf,
    start: Instant,
    registry: Registry,
    broker: Broker,
    strict_broker: Broker,
    containerd: RefCell<Containerd>,
    images: BTreeMap<&'static str, String>,
    tls: Tls,
}

impl World {
    /// Sets all up. Takes some seconds; says what it does.
    pub(crate) fn set_up(artifacts: &Artifacts, work: &Path, version: Version) -> Result<Self> {
        let start = Instant::now();
        let say = |what: &str| eprintln!("[{:6.1} s] {what}", start.elapsed().as_secs_f64());
        let artifacts = artifacts.clone();

        say("images: busybox, encrypted by kata-cc and signed by cosign, in Debian's docker-registry");
        let registry = Registry::start(work)?;
        let layout = registry::build_images(work)?;
        registry::push_plain(&layout, "pause", "kata-cc/pause")?;
        let kek = random_file(&work.join("kek"))?;
        let forbidden_kek = random_file(&work.join("forbidden-kek"))?;
        let owner = registry::cosign_key(&artifacts, work, "owner")?;
        let stranger = registry::cosign_key(&artifacts, work, "stranger")?;
        let kid = "kbs:///default/key/demo";
        let mut images = BTreeMap::new();
        for (name, key, kid, signer) in [
            ("good", &kek, kid, Some(&owner)),
            ("unsigned", &kek, kid, None),
            ("other-signer", &kek, kid, Some(&stranger)),
            ("flipped", &kek, kid, Some(&owner)),
            ("forbidden", &forbidden_kek, "kbs:///default/forbidden/key", Some(&owner)),
        ] {
            let reference = registry::push_encrypted(&artifacts, &layout, name, &format!("demo/{name}"), key, kid)?;
            if let Some(signer) = signer {
                registry::cosign_sign(&artifacts, work, signer, &reference)?;
            }
            images.insert(name, reference);
        }
        let flipped = registry.layers(&images["flipped"])?;
        registry.flip_bit(flipped.first().context("the image has no layer")?)?;

        say("broker: kata-cc-kbs over HTTPS, and one that knows no simulated root");
        let sim = work.join("sim");
        run_with(Command::new(artifacts.bin("kata-cc-tee-sim")).arg("init").arg("--keys").arg(&sim))?;
        let tls = Tls::make(work)?;
        for name in ["policy-owner", "policy-stranger", "reference-owner"] {
            run_with(Command::new(artifacts.bin("kata-cc")).args(["policy", "keygen", "--out-dir"]).arg(work.join(name)))?;
        }
        let signer = work.join("reference-owner").join("policy.pub");
        let broker = Broker::start(&artifacts, work, &tls, "kbs", 8443, &signer, Some(&sim.join("ark.pem")))?;
        let strict_broker = Broker::start(&artifacts, work, &tls, "kbs-strict", 8444, &signer, None)?;
        let manifests = sign_references(&artifacts, work)?;
        for b in [&broker, &strict_broker] {
            register(b, work, &kek, &forbidden_kek, &owner, &manifests)?;
        }

        say(&format!("containerd {version:?} of the lab's own, with kata-cc-node"));
        let handlers = make_handlers(&artifacts, work, &sim)?;
        let containerd = Containerd::start(&artifacts, work, version, &handlers)?;
        Ok(World {
            artifacts,
            work: work.to_owned(),
            start,
            registry,
            broker,
            strict_broker,
            containerd: RefCell::new(containerd),
            images,
            tls,
        })
    }

    /// Progress, with the time since the lab's start.
    pub(crate) fn say(&self, what: &str) {
        eprintln!("[{:6.1} s] {what}", self.start.elapsed().as_secs_f64());
    }

    /// The broker that the good pod asks.
    pub(crate) fn broker(&self) -> &Broker {
        &self.broker
    }

    /// containerd and the snapshotter.
    pub(crate) fn containerd(&self) -> std::cell::RefMut<'_, Containerd> {
        self.containerd.borrow_mut()
    }

    /// A CRI connection, once the CRI plugin answers.
    pub(crate) async fn cri(&self) -> Result<Cri> {
        let start = Instant::now();
        loop {
            let mut cri = Cri::connect(&Containerd::socket(), self.work.join("pod-logs")).await?;
            match cri.version().await {
                Ok(_) => return Ok(cri),
                Err(error) if start.elapsed().as_secs() > 20 => return Err(error.context("containerd's CRI plugin does not answer")),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
    }

    /// Writes, signs and packs what the owner of such a pod does: policy by `kata-cc policy gen`, signed together with the
    /// other documents by `kata-cc initdata build`.
    pub(crate) fn pod(&self, recipe: &Recipe) -> Result<PodSpec> {
        let image = self.images.get(recipe.image).with_context(|| format!("the lab has no image {}", recipe.image))?.clone();
        let cli = self.artifacts.bin("kata-cc");
        let dir = self.work.join("pods").join(&recipe.name);
        fs::create_dir_all(&dir)?;
        let (spec, rego, toml) = (dir.join("policy.json"), dir.join("policy.rego"), dir.join("initdata.toml"));
        let container = |name: &str, besides: &serde_json::Value| {
            let mut container = serde_json::json!({
                "name": name,
                "image": image,
                "args": recipe.command,
                "env": [{ "name": "PATH", "value": "/bin" }],
                "exec": recipe.exec,
                "logs": true,
            });
            if let (Some(container), Some(besides)) = (container.as_object_mut(), besides.as_object()) {
                container.extend(besides.clone());
            }
            container
        };
        let mut containers = vec![container(&recipe.name, &recipe.container)];
        containers.extend(recipe.others.iter().map(|(name, besides)| container(name, besides)));
        let description = serde_json::json!({
            "containers": containers,
            "sealing_keys": recipe.sealing_keys,
            "resources": ["default/demo/secret"],
            "diagnostics": ["timeline"],
            "token": true,
        });
        fs::write(&spec, description.to_string())?;
        fs::write(&rego, run_with(Command::new(&cli).args(["policy", "gen", "--spec"]).arg(&spec))?)?;
        let signer = self.work.join(if recipe.trusted_signer && !recipe.host_owned { "policy-owner" } else { "policy-stranger" });
        let trusted = self.work.join(if recipe.host_owned { "policy-stranger" } else { "policy-owner" });
        let broker = if recipe.knowing_broker { &self.broker } else { &self.strict_broker };
        run_with(
            Command::new(&cli)
                .args(["initdata", "build", "--broker", broker.url(), "--image-security-policy-uri", "kbs:///default/security-policy/demo"])
                .args(["--insecure-registry", &Registry::address(), "--broker-cert"])
                .arg(&self.tls.ca)
                .args(["--policy-version", "1", "--policy"])
                .arg(&rego)
                .arg("--sign-with")
                .arg(signer.join("policy.key"))
                .arg("--policy-key")
                .arg(trusted.join("policy.pub"))
                .args((!recipe.trusted_signer).then_some("--skip-policy-verification"))
                .arg("--out")
                .arg(&toml),
        )?;
        if recipe.changed_document {
            let text = fs::read_to_string(&toml)?;
            fs::write(&toml, with_another_registry(&text)?)?;
        }
        let initdata = run_with(Command::new(&cli).args(["initdata", "annotation"]).arg(&toml))?.trim().to_owned();
        Ok(PodSpec {
            name: recipe.name.clone(),
            handler: recipe.handler.to_owned(),
            initdata: Some(initdata),
            image,
            command: recipe.command.clone(),
            env: recipe.env.clone(),
            volumes: recipe.volumes.clone(),
        })
    }

    /// The world as it is without a pod.
    pub(crate) fn baseline(&self) -> Result<Baseline> {
        Baseline::take()
    }

    /// The phases of a pod, by `kata-cc timeline` from the shim's file.
    pub(crate) fn timeline(&self, sandbox: &str) -> Result<Vec<Phase>> {
        let value = self.timeline_json(sandbox)?;
        let mut phases = Vec::new();
        for entry in value["phases"].as_array().context("the timeline has no phases")? {
            let name = entry["phase"].as_str().context("a phase without a name")?;
            // Ids differ from pod to pod; what was made does not.
            let phase = match name.rsplit_once(' ') {
                Some((what, id)) if id == sandbox => format!("{what} (sandbox)"),
                Some((what, id)) if id.len() == sandbox.len() => what.to_owned(),
                _ => name.to_owned(),
            };
            let ms = entry["ms"].as_f64().context("a phase without ms")?;
            phases.push(Phase { phase, ms });
        }
        Ok(phases)
    }

    /// The same as the command says it.
    pub(crate) fn timeline_json(&self, sandbox: &str) -> Result<serde_json::Value> {
        let path = self.work.join("timeline").join(format!("{sandbox}.json"));
        let json = run_with(Command::new(self.artifacts.bin("kata-cc")).args(["--json", "timeline"]).arg(&path))?;
        serde_json::from_str(&json).context("the timeline is no JSON")
    }

    /// Encrypted layers of the good image.
    pub(crate) fn layers_encrypted(&self) -> Result<usize> {
        Ok(self.registry.layers(&self.images["good"])?.len())
    }

    /// Digests of the layers of one of the lab's images.
    pub(crate) fn layers(&self, image: &str) -> Result<Vec<String>> {
        self.registry.layers(self.images.get(image).with_context(|| format!("the lab has no image {image}"))?)
    }

    /// The registry.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The lab's directory.
    pub(crate) fn work(&self) -> &Path {
        &self.work
    }

    /// The artifacts.
    pub(crate) fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// Process ids of all services.
    pub(crate) fn service_pids(&self) -> Vec<u32> {
        let mut pids = vec![self.registry.pid(), self.broker.pid(), self.strict_broker.pid()];
        pids.extend(self.containerd.borrow().pids());
        pids
    }
}

fn random_file(path: &Path) -> Result<PathBuf> {
    let mut bytes = [0u8; 32];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    fs::write(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(path.to_owned())
}

/// Signed manifests of what the broker compares with: what the guest measures to in all sizes, as the owner computes it from the files the
/// host is supposed to launch; and whose initdata will do, without which the host could write initdata, and thereby policies, of its own.
fn sign_references(artifacts: &Artifacts, work: &Path) -> Result<[PathBuf; 2]> {
    let key = work.join("reference-owner").join("policy.key");
    let signed = |name: &str, kind: &str, measure: &mut Command| -> Result<PathBuf> {
        let out = work.join(format!("{name}.json"));
        let about = ["--name", name, "--release", "lab", "--serial", "1", "--kind", kind];
        run_with(measure.args(about).arg("--sign").arg(&key).arg("--out").arg(&out))?;
        Ok(out)
    };
    let guest = signed(
        "lab-guest",
        "simulation",
        Command::new(artifacts.bin("kata-cc"))
            .args(["measure", "snp", "--vcpus", "4", "--range", "--guest-features", "0x1"])
            .arg("--ovmf")
            .arg(artifacts.firmware())
            .arg("--kernel")
            .arg(artifacts.kernel())
            .arg("--initrd")
            .arg(artifacts.initrd())
            .args(["--append", KERNEL_PARAMS]),
    )?;
    let trusted = format!("policy_trusted_keys={}", work.join("policy-owner").join("policy.pub").display());
    let owner = signed("lab-owner", "production", Command::new(artifacts.bin("kata-cc")).args(["measure", "values", "--file", &trusted]))?;
    Ok([guest, owner])
}

fn register(broker: &Broker, work: &Path, kek: &Path, forbidden_kek: &Path, owner: &CosignKey, manifests: &[PathBuf]) -> Result<()> {
    broker.set_resource(work, "default/key/demo", &fs::read(kek)?)?;
    broker.set_resource(work, "default/forbidden/key", &fs::read(forbidden_kek)?)?;
    broker.set_resource(work, "default/demo/secret", SECRET.as_bytes())?;
    broker.set_resource(work, "default/security-policy/demo", security_policy(owner)?.as_bytes())?;
    for manifest in manifests {
        broker.admin(["set-reference-manifest".as_ref(), manifest.as_os_str()])?;
    }
    let attestation = work.join("attestation-policy.rego");
    fs::write(&attestation, ATTESTATION_POLICY)?;
    broker.admin(["set-attestation-policy".as_ref(), attestation.as_os_str()])?;
    let resource = work.join("resource-policy.rego");
    fs::write(&resource, RESOURCE_POLICY)?;
    broker.admin(["set-resource-policy".as_ref(), resource.as_os_str()])?;
    Ok(())
}

/// containers-policy.json: nothing but images of our registry that the owner signed.
fn security_policy(owner: &CosignKey) -> Result<String> {
    use base64::Engine;
    let key = base64::engine::general_purpose::STANDARD.encode(fs::read(&owner.public)?);
    let requirement = serde_json::json!([{ "type": "sigstoreSigned", "keyData": key, "signedIdentity": { "type": "matchRepository" } }]);
    Ok(serde_json::json!({ "default": [{ "type": "reject" }], "transports": { "docker": { Registry::address(): requirement } } })
        .to_string())
}

/// The owner's initdata but for `cdh.toml`, which lets the guest ask a registry of the host's by plain HTTP.
fn with_another_registry(initdata: &str) -> Result<String> {
    let mut initdata: toml::Table = toml::from_str(initdata)?;
    let cdh = initdata.get_mut("data").and_then(|data| data.get_mut("cdh.toml")).context("the initdata has no cdh.toml")?;
    let mut changed: toml::Table = toml::from_str(cdh.as_str().context("cdh.toml is no text")?)?;
    let registries = changed.get_mut("image").and_then(|image| image.get_mut("insecure_registries"));
    let registries = registries.and_then(toml::Value::as_array_mut).context("cdh.toml has no image.insecure_registries")?;
    registries.push("registry.host.example:5000".into());
    *cdh = toml::to_string(&changed)?.into();
    Ok(toml::to_string(&initdata)?)
}

/// One shim configuration per way to launch: the right one, and what a hostile host makes of it.
fn make_handlers(artifacts: &Artifacts, work: &Path, sim: &Path) -> Result<Vec<Handler>> {
    let mut handlers = Vec::new();
    let mut add = |name: &str, initrd: &Path, params: &str, qemu: &Path| -> Result<()> {
        let config = work.join(format!("{name}.toml"));
        fs::write(
            &config,
            format!(
                "tee = \"sim\"\nqemu = \"{}\"\nfirmware = \"{}\"\nkernel = \"{}\"\ninitrd = \"{}\"\nkernel_params = \"{params}\"\ndefault_vcpus = 1\n\
                 default_memory_mib = 256\nrun_dir = \"/run/kata-cc\"\ntimeline_dir = \"{}\"\nvhost_device_vsock = \"{}\"\n\n\
                 [simulation]\ntee_sim = \"{}\"\nkeys = \"{}\"\nvcpu_type = \"EPYC-v4\"\nguest_features = 1\n",
                qemu.display(),
                artifacts.firmware().display(),
                artifacts.kernel().display(),
                initrd.display(),
                work.join("timeline").display(),
                artifacts.bin("vhost-device-vsock").display(),
                artifacts.bin("kata-cc-tee-sim").display(),
                sim.display(),
            ),
        )?;
        handlers.push(Handler { name: name.to_owned(), config });
        Ok(())
    };
    let qemu = Path::new("/usr/bin/qemu-system-x86_64");
    add("kata-cc", &artifacts.initrd(), KERNEL_PARAMS, qemu)?;
    // The same with the node's blob cache. A key of the configuration itself, so before its first section.
    add(crate::blobs::HANDLER, &artifacts.initrd(), KERNEL_PARAMS, qemu)?;
    let config = work.join(format!("{}.toml", crate::blobs::HANDLER));
    let text = fs::read_to_string(&config)?;
    fs::write(&config, format!("node_blobs = \"{}\"\n{text}", Containerd::blobs_socket().display()))?;

    let changed = work.join("changed.cpio");
    let mut initrd = fs::read(artifacts.initrd())?;
    change_harmless_byte(&mut initrd)?;
    fs::write(&changed, initrd)?;
    add("kata-cc-initrd", &changed, KERNEL_PARAMS, qemu)?;
    add("kata-cc-cmdline", &artifacts.initrd(), &format!("{KERNEL_PARAMS} nosmt"), qemu)?;

    // A host that plans honestly, so that the report holds the right digest, and swaps the disk at the last moment.
    let swap = work.join("qemu-that-swaps-initdata");
    fs::write(&swap, swapping_qemu(qemu))?;
    fs::set_permissions(&swap, fs::Permissions::from_mode(0o755))?;
    add("kata-cc-swap", &artifacts.initrd(), KERNEL_PARAMS, &swap)?;
    Ok(handlers)
}

/// Changes the time stamp of the first archive member: the guest boots as before, and only the measurement can tell.
fn change_harmless_byte(initrd: &mut [u8]) -> Result<()> {
    // newc: "070701", then 13 fields of 8 hex digits; the mtime is the sixth (cpio(5)).
    let at = 6 + 5 * 8 + 7;
    anyhow::ensure!(initrd.get(..6) == Some(b"070701"), "the initrd does not begin with a newc header");
    let digit = initrd.get_mut(at).context("the initrd is too short")?;
    *digit = if *digit == b'1' { b'2' } else { b'1' };
    Ok(())
}

/// Finds the initdata disk on QEMU's command line and puts other initdata of the same size into it.
fn swapping_qemu(qemu: &Path) -> String {
    format!(
        r#"#!/bin/sh
for word in "$@"; do
    case "$word" in
        *initdata*file=*|*file=*initdata*|*filename=*initdata*)
            disk=$(printf '%s' "$word" | sed -n 's/.*file\(name\)\{{0,1\}}=\([^,]*initdata[^,]*\).*/\2/p')
            toml='version = "0.1.0"
algorithm = "sha256"
[data]
"note" = "swapped by the host"
'
            gz=$(mktemp) && printf '%s' "$toml" | gzip -9n > "$gz"
            len=$(stat -c %s "$gz")
            {{ printf 'initdata'; printf "\\$(printf %03o $((len & 255)))\\$(printf %03o $((len >> 8)))"; printf '\0\0\0\0\0\0'; cat "$gz"; }} > "$gz.img"
            truncate -s "$(stat -c %s "$disk")" "$gz.img"
            cat "$gz.img" > "$disk"
            rm -f "$gz" "$gz.img"
            ;;
    esac
done
exec {} "$@"
"#,
        qemu.display()
    )
}

#[cfg(test)]
mod tests {
    use super::with_another_registry;

    #[test]
    fn the_hosts_initdata_differs_in_one_document() {
        let owner = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"x\"\n\"cdh.toml\" = \"[image]\\ninsecure_registries = ['a:1']\"\n";
        let [old, new] =
            [owner.to_owned(), with_another_registry(owner).unwrap()].map(|text| toml::from_str::<toml::Table>(&text).unwrap());
        assert_eq!(
            (&old["version"], &old["algorithm"], &old["data"]["aa.toml"]),
            (&new["version"], &new["algorithm"], &new["data"]["aa.toml"])
        );
        let cdh: toml::Table = toml::from_str(new["data"]["cdh.toml"].as_str().unwrap()).unwrap();
        assert_eq!(cdh["image"]["insecure_registries"].as_array().unwrap().len(), 2);
    }
}
