//! End-to-end tests: what only real VMs, a real containerd and real crashes can show.
//!
//! Each test is a function that gets the lab and fails by an error; the attack cases carry their ids (AC-nn).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cri::Cri;
use crate::demo::{self, Running, WORKLOAD, start_pod};
use crate::leftovers::Baseline;
use crate::world::{Case, Recipe, SECRET, World};

/// How many passed and how many did not.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: usize,
    failed: Vec<String>,
}

impl Tally {
    fn note(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => {
                println!("e2e {name} ... ok");
                self.passed += 1;
            }
            Err(error) => {
                println!("e2e {name} ... FAILED\n    {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Prints the closing line and says whether all passed.
    pub(crate) fn close(&self) -> bool {
        for name in &self.failed {
            println!("failed: {name}");
        }
        println!("{} passed, {} failed", self.passed, self.failed.len());
        self.failed.is_empty()
    }
}

/// The whole set, on one containerd.
pub(crate) async fn run_all(world: &mut World, tally: &mut Tally) -> Result<()> {
    let baseline = world.baseline()?;
    run_short(world, tally).await?;
    tally.note("refuses every attack of the demo (AC-06, AC-23, AC-29, AC-44, AC-46, AC-51)", attacks(world).await);
    tally.note("lets AML of the host's reach ports, and neither memory nor tables (AC-11)", crate::aml::kept_out_of_memory(world));
    tally.note("gives no secret to the registered guest under initdata of the host's own making", host_owned(world).await);
    tally.note("refuses the owner's key and signed policy beside a document of the host's making", changed_document(world).await);
    tally.note("carries 100 MB of output without loss or reordering", bulk_output(world).await);
    tally.note("reports the exit code of the workload", exit_code(world).await);
    tally.note("runs a container without a pod, by ctr run", crate::single::single_container(world));
    tally.note("denies a second container that the policy does not expect (AC-27)", second_container(world).await);
    tally.note(
        "opens sealed secrets in variables and files, and refuses those that are not signed or not the container's",
        crate::secrets::sealed_secrets(world).await,
    );
    tally.note("gives a container what is its own and nothing of another's", crate::secrets::resources_by_container(world).await);
    tally.note(
        "downloads nothing for the second pod of an image, and catches a node that gives other bytes",
        crate::blobs::node_cache(world).await,
    );
    tally.note("leaves the layers to the guest: containerd holds no layer blob", no_layers(world));
    tally.note("keeps secrets out of every file and command line of the host (AC-61)", canaries(world).await);
    tally.note("keeps its run directory to itself (AC-67)", private_run_dir(world).await);
    for step in STEPS {
        for victim in VICTIMS {
            let name = format!("leaves nothing behind when {} is killed {} (AC-68)", victim.title(), step.title());
            tally.note(&name, crash(world, &baseline, step, victim).await);
        }
    }
    tally.note("leaves nothing behind after all of it", nothing_left(world, &baseline));
    Ok(())
}

/// What every supported containerd must do.
pub(crate) async fn run_short(world: &mut World, tally: &mut Tally) -> Result<()> {
    let baseline = world.baseline()?;
    tally.note("runs an encrypted, signed image in an attested pod with one attestation", good_pod(world).await);
    tally.note("survives a restart of the snapshotter and of containerd", restarts(world).await);
    tally.note("leaves nothing behind", nothing_left(world, &baseline));
    Ok(())
}

async fn good_pod(world: &World) -> Result<()> {
    let before = world.broker().attestations()?;
    let pod = world.pod(&Recipe::script("e2e-good", WORKLOAD))?;
    let mut cri = world.cri().await?;
    let running = start_pod(&mut cri, &pod).await?;
    let result = async {
        let log = cri.wait_log(&pod, &running.container, "\nready\n", Duration::from_secs(60)).await?;
        ensure!(log.contains(SECRET), "the workload did not get its secret; it printed:\n{log}");
        let attestations = world.broker().attestations()? - before;
        ensure!(attestations == 1, "expected one attestation for the pod, the broker counted {attestations}");
        let listed = cri.exec(&running.container, &demo::LISTED_EXEC).await?;
        ensure!(listed.stdout == "hello from an encrypted layer\n", "the listed exec printed {:?}", listed.stdout);
        match cri.exec(&running.container, &["id"]).await {
            Ok(output) => bail!("an exec that the policy does not list ran and printed {:?}", output.stdout),
            Err(error) => ensure!(error.to_string().contains("ExecProcessRequest"), "the refusal does not name the rule: {error}"),
        }
        Ok(())
    }
    .await;
    let code = cri.stop_and_remove(&running.container, 10).await?;
    cri.remove_sandbox(&running.sandbox).await?;
    result?;
    ensure!(code == 0, "the workload handles SIGTERM and exits 0; found {code}");
    Ok(())
}

/// Initdata, policy and policy key all made by the host, consistent in themselves: only the broker can tell that nobody registered them.
async fn host_owned(world: &World) -> Result<()> {
    refused_with(world, &Recipe { host_owned: true, ..Recipe::script("e2e-host-owned", WORKLOAD) }, &["found cpu0/configuration warning"])
        .await
}

/// The owner's initdata with one document changed and launched as such, so that the report holds its digest and the broker would find a
/// registered key in it: only the owner's signature over all documents tells, and the guest is who asks for it.
async fn changed_document(world: &World) -> Result<()> {
    let recipe = Recipe { changed_document: true, ..Recipe::script("e2e-changed-document", WORKLOAD) };
    let before = world.broker().attestations()?;
    refused_with(world, &recipe, &["the guest refuses to run this pod", "`cdh.toml` was changed", "expected sha256"]).await?;
    let attestations = world.broker().attestations()? - before;
    ensure!(attestations == 0, "the guest must refuse before it asks for anything, the broker counted {attestations} attestations");
    Ok(())
}

/// Starts a pod that must not run, for the reason that holds these words.
pub(crate) async fn refused_with(world: &World, recipe: &Recipe, words: &[&str]) -> Result<()> {
    let pod = world.pod(recipe)?;
    let mut cri = world.cri().await?;
    match start_pod(&mut cri, &pod).await {
        Ok(running) => {
            cri.stop_and_remove(&running.container, 1).await?;
            cri.remove_sandbox(&running.sandbox).await?;
            bail!("the pod ran");
        }
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(words.iter().all(|word| text.contains(word)), "refused, but for another reason: {text}");
        }
    }
    Ok(())
}

async fn attacks(world: &World) -> Result<()> {
    let outcomes = demo::attack(world, &Case::ATTACKS).await?;
    let wrong: Vec<String> = outcomes.iter().filter(|o| !o.refused).map(|o| format!("{}: {}", o.case, o.error)).collect();
    ensure!(wrong.is_empty(), "not refused as expected:\n{}", wrong.join("\n"));
    Ok(())
}

/// 100 MB in lines that can be checked, as the kubelet's log file has them.
async fn bulk_output(world: &World) -> Result<()> {
    const LINES: u64 = 1_000_000;
    let script = format!("awk 'BEGIN {{ for (i = 1; i <= {LINES}; i++) print i, \"{}\" }}'", "x".repeat(92));
    let pod = world.pod(&Recipe::script("e2e-bulk", &script))?;
    let mut cri = world.cri().await?;
    let running = start_pod(&mut cri, &pod).await?;
    let code = cri.wait_exit(&running.container, Duration::from_secs(300)).await?;
    let log = cri.log_text(&pod);
    cri.stop_and_remove(&running.container, 1).await?;
    cri.remove_sandbox(&running.sandbox).await?;
    ensure!(code == 0, "awk ended with {code}");
    let mut expected = 1;
    for line in log.lines() {
        let number: u64 = line.split(' ').next().unwrap_or_default().parse().with_context(|| format!("line {expected} is {line:?}"))?;
        ensure!(number == expected, "expected line {expected}, found {number}");
        expected += 1;
    }
    ensure!(expected == LINES + 1, "expected {LINES} lines, found {}", expected - 1);
    ensure!(log.len() > 95_000_000, "expected about 100 MB, found {} bytes", log.len());
    Ok(())
}

async fn exit_code(world: &World) -> Result<()> {
    let pod = world.pod(&Recipe::script("e2e-exit", "echo to-stderr >&2; exit 7"))?;
    let mut cri = world.cri().await?;
    let running = start_pod(&mut cri, &pod).await?;
    let code = cri.wait_exit(&running.container, Duration::from_secs(60)).await?;
    let log = cri.log_text(&pod);
    cri.stop_and_remove(&running.container, 1).await?;
    cri.remove_sandbox(&running.sandbox).await?;
    ensure!(code == 7, "expected exit code 7, found {code}");
    ensure!(log.contains("to-stderr"), "standard error is missing from the log: {log:?}");
    Ok(())
}

async fn second_container(world: &World) -> Result<()> {
    let pod = world.pod(&Recipe::script("e2e-twice", WORKLOAD))?;
    let mut cri = world.cri().await?;
    let running = start_pod(&mut cri, &pod).await?;
    let mut again = pod.clone();
    again.name = "e2e-twice-more".to_owned();
    // containerd asks the shim, and the shim the agent, when a container is started, not when it is created.
    let second = match cri.create(&running.sandbox, &again).await {
        Ok(container) => {
            let started = cri.start(&container).await;
            cri.remove(&container).await?;
            started
        }
        Err(error) => Err(error),
    };
    cri.stop_and_remove(&running.container, 5).await?;
    cri.remove_sandbox(&running.sandbox).await?;
    match second {
        Ok(()) => bail!("a second container of the same description was started"),
        Err(error) => ensure!(error.to_string().contains("CreateContainerRequest"), "the refusal does not name the rule: {error}"),
    }
    Ok(())
}

fn no_layers(world: &World) -> Result<()> {
    let bytes = world.containerd().content_bytes()?;
    ensure!(bytes < 200_000, "containerd's content store holds {bytes} bytes; manifests and configs alone are some KB");
    Ok(())
}

/// Looks for the secret that the broker released, raw and as base64 and hex, in everything the host could read of a running pod.
async fn canaries(world: &World) -> Result<()> {
    use base64::Engine;
    let quiet = "s=$(wget -q -O - http://127.0.0.1:8006/cdh/resource/default/demo/secret); echo got ${#s}; trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";
    let pod = world.pod(&Recipe::script("e2e-canary", quiet))?;
    let mut cri = world.cri().await?;
    let running = start_pod(&mut cri, &pod).await?;
    let expected = format!("got {}\n", SECRET.len());
    let log = cri.wait_log(&pod, &running.container, &expected, Duration::from_secs(60)).await;
    let mut needles: Vec<(String, Vec<u8>)> = Vec::new();
    let kek = fs::read(world.work().join("kek"))?;
    for (what, secret) in [("the workload's secret", SECRET.as_bytes()), ("the layer key", &kek)] {
        needles.push((what.to_owned(), secret.to_vec()));
        needles.push((format!("{what} in base64"), base64::engine::general_purpose::STANDARD.encode(secret).into_bytes()));
        needles.push((format!("{what} in hex"), hex::encode(secret).into_bytes()));
    }
    let mut found = Vec::new();
    // Pod logs of other tests print the secret on purpose, and the key file itself is the owner's; all else is the host's.
    let skip = [world.work().join("kek"), world.work().join("forbidden-kek"), world.work().join("pod-logs")];
    for root in [world.work(), Path::new("/run"), Path::new("/var/lib/cni")] {
        search(root, &skip, &needles, &mut found)?;
    }
    search_pod_log(&cri.log_text(&pod), &needles, &mut found);
    for entry in fs::read_dir("/proc")?.flatten() {
        if entry.file_name().to_string_lossy().parse::<u32>().is_ok() {
            for file in ["cmdline", "environ"] {
                look(&entry.path().join(file), &needles, &mut found);
            }
        }
    }
    cri.stop_and_remove(&running.container, 5).await?;
    cri.remove_sandbox(&running.sandbox).await?;
    log?;
    ensure!(found.is_empty(), "found on the host:\n{}", found.join("\n"));
    Ok(())
}

fn search(root: &Path, skip: &[PathBuf], needles: &[(String, Vec<u8>)], found: &mut Vec<String>) -> Result<()> {
    let Ok(entries) = fs::read_dir(root) else { return Ok(()) };
    for entry in entries.flatten() {
        let path = entry.path();
        if skip.contains(&path) {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            search(&path, skip, needles, found)?;
        } else if kind.is_file() {
            look(&path, needles, found);
        }
    }
    Ok(())
}

fn look(path: &Path, needles: &[(String, Vec<u8>)], found: &mut Vec<String>) {
    let Ok(content) = fs::read(path) else { return };
    for (what, needle) in needles {
        if content.windows(needle.len()).any(|window| window == needle.as_slice()) {
            found.push(format!("{what} in {}", path.display()));
        }
    }
}

fn search_pod_log(log: &str, needles: &[(String, Vec<u8>)], found: &mut Vec<String>) {
    for (what, needle) in needles {
        if log.as_bytes().windows(needle.len()).any(|window| window == needle.as_slice()) {
            found.push(format!("{what} in the pod's log"));
        }
    }
}

async fn private_run_dir(world: &World) -> Result<()> {
    let pod = world.pod(&Recipe::script("e2e-private", WORKLOAD))?;
    let mut cri = world.cri().await?;
    let running = start_pod(&mut cri, &pod).await?;
    let dir = Path::new("/run/kata-cc").join(&running.sandbox);
    let mode = fs::metadata(&dir).map(|m| m.permissions().mode() & 0o777);
    let abstract_sockets: Vec<String> = fs::read_to_string("/proc/net/unix")?
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .filter(|name| name.starts_with('@') && (name.contains("kata") || name.contains("containerd")))
        .map(str::to_owned)
        .collect();
    cri.stop_and_remove(&running.container, 5).await?;
    cri.remove_sandbox(&running.sandbox).await?;
    let mode = mode.with_context(|| format!("no {}", dir.display()))?;
    ensure!(mode == 0o700, "{} must be 0700, found {mode:o}", dir.display());
    ensure!(abstract_sockets.is_empty(), "abstract sockets, which anyone in the network namespace may connect to: {abstract_sockets:?}");
    Ok(())
}

/// When in a pod's life.
#[derive(Debug, Clone, Copy)]
enum Step {
    SandboxRuns,
    ContainerCreated,
    ContainerRuns,
}

const STEPS: [Step; 3] = [Step::SandboxRuns, Step::ContainerCreated, Step::ContainerRuns];

impl Step {
    fn title(self) -> &'static str {
        match self {
            Step::SandboxRuns => "after RunPodSandbox",
            Step::ContainerCreated => "after CreateContainer",
            Step::ContainerRuns => "after StartContainer",
        }
    }
}

/// Who is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Qemu,
    Vsock,
    Shim,
    Containerd,
}

const VICTIMS: [Victim; 4] = [Victim::Qemu, Victim::Vsock, Victim::Shim, Victim::Containerd];

impl Victim {
    fn title(self) -> &'static str {
        match self {
            Victim::Qemu => "QEMU",
            Victim::Vsock => "the vsock helper",
            Victim::Shim => "the shim",
            Victim::Containerd => "containerd",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Victim::Qemu => "qemu-system",
            Victim::Vsock => "vhost-device-vsock",
            Victim::Shim => "containerd-shim-kata-cc-v2",
            Victim::Containerd => "containerd",
        }
    }
}

async fn crash(world: &World, baseline: &Baseline, step: Step, victim: Victim) -> Result<()> {
    let name = format!("crash-{step:?}-{victim:?}").to_lowercase();
    let pod = world.pod(&Recipe::script(&name, WORKLOAD))?;
    let mut cri = world.cri().await?;
    let sandbox = cri.run_sandbox(&pod).await?;
    let mut container = None;
    if !matches!(step, Step::SandboxRuns) {
        cri.pull(&pod).await?;
        container = Some(cri.create(&sandbox, &pod).await?);
    }
    if let (Step::ContainerRuns, Some(container)) = (step, &container) {
        cri.start(container).await?;
        cri.wait_log(&pod, container, "ready", Duration::from_secs(60)).await?;
    }
    if let Victim::Containerd = victim {
        world.containerd().crash_and_restart()?;
        cri = world.cri().await?;
        if let (Step::ContainerRuns, Some(container)) = (step, &container) {
            let output = cri.exec(container, &demo::LISTED_EXEC).await.context("the pod must go on while containerd restarts")?;
            ensure!(output.exit_code == 0, "exec after the restart ended with {}", output.exit_code);
        }
    } else {
        for pid in pids_of(victim.program())? {
            kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("cannot kill {} ({pid})", victim.title()))?;
        }
        if let (Step::ContainerRuns, Some(container)) = (step, &container) {
            cri.wait_exit(container, Duration::from_secs(10)).await.context("the loss of the VM must end the container")?;
        }
    }
    remove_all(&mut cri, &sandbox, container.as_deref()).await?;
    let left = baseline.leftovers(&world.service_pids())?;
    ensure!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    Ok(())
}

/// As the kubelet does after a failure: stop and remove, again if need be.
async fn remove_all(cri: &mut Cri, sandbox: &str, container: Option<&str>) -> Result<()> {
    let mut last = Ok(());
    for _ in 0..3 {
        last = async {
            if let Some(container) = container
                && cri.state(container).await.is_ok()
            {
                cri.stop_and_remove(container, 2).await.context("removing the container")?;
            }
            if cri.sandboxes().await?.iter().any(|id| id == sandbox) {
                cri.remove_sandbox(sandbox).await.context("removing the sandbox")?;
            }
            Ok(())
        }
        .await;
        if last.is_ok() {
            break;
        }
    }
    last
}

/// Processes whose program name holds `program`.
pub(crate) fn pids_of(program: &str) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let first = command.split(|&byte| byte == 0).next().unwrap_or_default();
        if String::from_utf8_lossy(first).contains(program) {
            pids.push(pid);
        }
    }
    ensure!(!pids.is_empty(), "no process of {program} to kill");
    Ok(pids)
}

async fn restarts(world: &World) -> Result<()> {
    let pod = world.pod(&Recipe::script("e2e-restart", WORKLOAD))?;
    let mut cri = world.cri().await?;
    let Running { sandbox, container } = start_pod(&mut cri, &pod).await?;
    cri.wait_log(&pod, &container, "\nready\n", Duration::from_secs(60)).await?;
    world.containerd().crash_and_restart_node()?;
    world.containerd().crash_and_restart()?;
    let mut cri = world.cri().await?;
    ensure!(cri.sandbox_ready(&sandbox).await?, "the sandbox is not ready after the restart");
    let output = cri.exec(&container, &demo::LISTED_EXEC).await?;
    ensure!(output.exit_code == 0, "exec after the restart ended with {}: {}", output.exit_code, output.stderr);
    let code = cri.stop_and_remove(&container, 10).await?;
    cri.remove_sandbox(&sandbox).await?;
    ensure!(code == 0, "the workload handles SIGTERM and exits 0; found {code}");
    Ok(())
}

fn nothing_left(world: &World, baseline: &Baseline) -> Result<()> {
    let left = baseline.leftovers(&world.service_pids())?;
    ensure!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    Ok(())
}
