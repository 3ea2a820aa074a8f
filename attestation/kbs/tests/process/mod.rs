//! The broker's program, run on loopback over a directory of its own: for what only a process can show, as its memory, or being killed.

#![allow(dead_code, clippy::unwrap_used)] // each test file uses a part; helpers of tests: to panic is to fail

use crate::broker::{SECRET, SIMULATED_POLICY, admin_key, bearer};
use crate::http::try_call;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kata_cc_evidence::{HostData, LaunchDigest, TeeType, snp};
use kata_cc_kbs_protocol::{Attested, AwaitEvidence, AwaitToken, ClientSession, HttpRequest, HttpResponse, Method, ResourcePath};
use kata_cc_tee_sim::identity::{self, Hierarchy, Identity};
use kata_cc_tee_sim::report::{self, Launched};
use kata_cc_tee_sim::wire::ReportRequest;
use ring::signature::Ed25519KeyPair;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

/// The process has the machine's clock, so the machine's certificates must be of now.
static MACHINE: LazyLock<Identity> = LazyLock::new(|| Hierarchy::generate(2048, now()).unwrap().identity);

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Evidence of the simulated machine for this report data.
pub(crate) fn evidence(report_data: [u8; 64]) -> Value {
    let launched = Launched { measurement: LaunchDigest([0x4d; 48]), host_data: HostData::ZERO, report_id: [1; 32] };
    let blobs = report::report(&MACHINE, &launched, &ReportRequest { report_data, vmpl: 0 }).unwrap();
    serde_json::to_value(snp::Evidence::from_raw(&blobs.outblob, &blobs.auxblob).unwrap()).unwrap()
}

/// What a broker has on disk, which outlives it.
pub(crate) struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    /// With a configuration that trusts the simulation, and counts no sessions; `http` goes into its table of that name.
    pub(crate) fn new(http: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("ark.pem");
        std::fs::write(&root, identity::pem(&MACHINE.ark).unwrap()).unwrap();
        let text = format!(
            "listen = \"127.0.0.1:0\"\ninsecure_http = true\ndata_dir = {:?}\n\
             [http]\nauth_per_second = 1000000\nauth_burst = 1000000\n{http}\n\
             [references]\nallow_unsigned = true\n[[simulated_roots]]\nname = \"lab\"\ncertificate = {root:?}\n",
            dir.path().join("data")
        );
        std::fs::write(dir.path().join("kbs.toml"), text).unwrap();
        Self { dir }
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn admin(&self) -> Ed25519KeyPair {
        admin_key(&self.data())
    }

    /// Starts the program, and waits until it says where it listens.
    pub(crate) fn start(&self) -> Process {
        start(&self.dir.path().join("kbs.toml"))
    }

    /// With a secret, the simulation's policy and the machine's measurement.
    pub(crate) fn make_ready(&self, process: &Process) {
        let admin = self.admin();
        let post = |path: &str, body: &[u8]| assert_eq!(process.as_admin(&admin, "POST", path, body).unwrap().status, 200, "{path}");
        post("/kbs/v0/resource/default/key/1", SECRET);
        let policy = json!({"type": "rego", "policy_id": "default_cpu", "policy": URL_SAFE_NO_PAD.encode(SIMULATED_POLICY)});
        post("/kbs/v0/attestation-policy", policy.to_string().as_bytes());
        for (id, value) in [("snp_launch_measurement", "4d".repeat(48)), ("init_data", "00".repeat(32))] {
            post("/kbs/v0/reference-value", json!({"id": id, "values": [value]}).to_string().as_bytes());
        }
    }
}

fn start(config: &Path) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc-kbs"));
    command.arg("--config").arg(config).env("RUST_LOG", "error").env_remove("RUST_BACKTRACE").stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("http://").expect("the broker says where it listens").parse().unwrap();
    Process { child: Mutex::new(child), address }
}

/// A running broker; ends with this value.
pub(crate) struct Process {
    child: Mutex<Child>,
    pub(crate) address: SocketAddr,
}

impl Process {
    /// SIGKILL: no handler runs, nothing is flushed.
    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.lock().unwrap().try_wait().unwrap().is_none()
    }

    /// Most memory it has had, in KiB.
    pub(crate) fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.lock().unwrap().id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn as_admin(&self, key: &Ed25519KeyPair, method: &str, path: &str, body: &[u8]) -> io::Result<HttpResponse> {
        try_call(self.address, method, path, &[("authorization", bearer(key, "admin", now()))], body)
    }

    pub(crate) fn get(&self, path: &str) -> io::Result<HttpResponse> {
        try_call(self.address, "GET", path, &[], &[])
    }

    pub(crate) fn send(&self, request: &HttpRequest) -> io::Result<HttpResponse> {
        let method = if request.method == Method::Get { "GET" } else { "POST" };
        try_call(self.address, method, &request.path, &request.headers, &request.body)
    }

    /// How many sessions it says it holds.
    pub(crate) fn sessions(&self) -> usize {
        let metrics = String::from_utf8(self.get("/metrics").unwrap().body).unwrap();
        metrics.lines().find_map(|line| line.strip_prefix("kbs_sessions ")).unwrap().parse().unwrap()
    }

    /// A challenge.
    pub(crate) fn open(&self) -> io::Result<AwaitEvidence> {
        let (state, request) = ClientSession::start(TeeType::Snp);
        Ok(state.handle(&self.send(&request)?).unwrap())
    }

    /// The token for good evidence.
    pub(crate) fn attest(&self, state: AwaitEvidence) -> io::Result<Attested> {
        let (state, request) = submit(state);
        Ok(state.handle(&self.send(&request)?, now()).unwrap())
    }

    /// A secret, opened.
    pub(crate) fn read(&self, attested: &Attested, path: &str) -> io::Result<Vec<u8>> {
        let response = self.send(&attested.get_resource(&path.parse::<ResourcePath>().unwrap()))?;
        Ok(attested.open_resource(&response).unwrap().expose().to_vec())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Good evidence for a challenge.
pub(crate) fn submit(state: AwaitEvidence) -> (AwaitToken, HttpRequest) {
    let evidence = evidence(state.report_data().0);
    state.submit(evidence, None).unwrap()
}
