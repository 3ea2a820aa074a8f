//! containerd's side: starts the shim's binary the way containerd does, talks to its task service, receives its events.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim::shim as api;
use containerd_shim_protos::shim_async::{Client, Events, TaskClient, create_events};
use containerd_shim_protos::types::empty::Empty;
use kata_cc_policy::initdata::InitdataBuilder;
use serde_json::json;
use tokio::sync::mpsc;
use ttrpc::r#async::{Server, TtrpcContext};
use ttrpc::context::Context;

/// One test's world: directories, configuration, and containerd's event service.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) events: mpsc::UnboundedReceiver<(String, Vec<u8>)>,
    _server: Server,
    pub(crate) environment: Vec<(String, String)>,
    /// Runs of a test do not share sockets: containerd's address is part of their names.
    address: String,
}

struct Receiver(mpsc::UnboundedSender<(String, Vec<u8>)>);

#[async_trait]
impl Events for Receiver {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        let _ = self.0.send((envelope.topic, envelope.event.unwrap_or_default().value));
        Ok(Empty::new())
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("kcc").tempdir().unwrap();
        let (sender, events) = mpsc::unbounded_channel();
        let socket = dir.path().join("c.sock.ttrpc");
        let mut server = Server::new()
            .bind(&format!("unix://{}", socket.display()))
            .unwrap()
            .register_service(create_events(Arc::new(Receiver(sender))));
        server.start().await.unwrap();
        let fake = std::env::current_exe().unwrap();
        let fake = fake.display();
        let base = dir.path().display();
        fs::write(
            dir.path().join("config.toml"),
            format!(
                "tee = \"sim\"\nqemu = \"{fake}\"\nfirmware = \"/f\"\nkernel = \"/k\"\ninitrd = \"/i\"\nvhost_device_vsock = \"{fake}\"\n\
                 run_dir = \"{base}/run\"\ntimeline_dir = \"{base}/timeline\"\npod_cgroup = false\n[simulation]\ntee_sim = \"{fake}\"\nkeys = \"/keys\"\n\
                 [timeouts]\nboot_seconds = 20\n"
            ),
        )
        .unwrap();
        let address = dir.path().join("c.sock").display().to_string();
        Self { dir, events, _server: server, environment: Vec::new(), address }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a bundle. `annotations` are added to the initdata every pod has.
    pub(crate) fn bundle(&self, id: &str, arguments: &[&str], annotations: &[(&str, &str)], mounts: serde_json::Value) -> PathBuf {
        let bundle = self.path(id);
        fs::create_dir_all(&bundle).unwrap();
        let initdata = InitdataBuilder::new().document("kata-cc.toml", "x = 1").build().unwrap();
        let mut all = json!({
            kata_cc_vmm::plan::INITDATA_ANNOTATION: initdata.to_annotation(),
            "io.kubernetes.cri.image-name": "registry.example/app@sha256:00",
        });
        for (name, value) in annotations {
            all[*name] = json!(value);
        }
        let spec = json!({
            "ociVersion": "1.1.0",
            "process": {"args": arguments, "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"}, "hostname": "h", "annotations": all, "mounts": mounts,
            "linux": {"namespaces": [{"type": "network"}, {"type": "pid"}]},
        });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    pub(crate) fn action(&self, id: &str, bundle: &Path, action: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_containerd-shim-kata-cc-v2"));
        command.args(["-namespace", "test", "-id", id, "-address", &self.address, "-publish-binary", "/bin/true", "-bundle"]);
        command.arg(bundle).arg(action).current_dir(bundle).stdin(Stdio::null());
        command.env("TTRPC_ADDRESS", format!("{}.ttrpc", self.address)).env("KATA_CC_CONFIG", self.path("config.toml"));
        command.envs(self.environment.iter().cloned());
        command.output().unwrap()
    }

    /// Starts a shim, or joins one, and connects to it.
    pub(crate) async fn start(&self, id: &str, bundle: &Path) -> Task {
        let output = self.action(id, bundle, "start");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let address = String::from_utf8(output.stdout).unwrap();
        let client = Client::connect(&address).await.unwrap();
        Task { client: TaskClient::new(client), id: id.into(), bundle: bundle.to_owned() }
    }

    /// The next event that is not about execs being added.
    pub(crate) async fn event(&mut self) -> (String, Vec<u8>) {
        let event = tokio::time::timeout(std::time::Duration::from_secs(20), self.events.recv()).await;
        event.expect("an event").unwrap()
    }

    pub(crate) async fn topics(&mut self, expected: &[&str]) {
        for topic in expected {
            assert_eq!(self.event().await.0, *topic);
        }
    }

    /// What the fake agent was asked.
    pub(crate) fn agent_saw(&self, sandbox: &str, name: &str) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.path("run").join(sandbox).join(name)).unwrap()).unwrap()
    }

    pub(crate) fn nothing_left(&self) {
        let left: Vec<_> =
            fs::read_dir(self.path("run")).map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default();
        assert!(left.is_empty(), "left behind: {left:?}");
        let base = self.dir.path().display().to_string();
        for process in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            assert!(!(line.contains(&base) && line.contains("task_api")), "still running: {line}");
        }
    }
}

/// A container of a shim.
pub(crate) struct Task {
    pub(crate) client: TaskClient,
    pub(crate) id: String,
    bundle: PathBuf,
}

impl Task {
    pub(crate) async fn create(&self, io: &Io) -> ttrpc::Result<()> {
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            stdin: io.stdin.clone(),
            stdout: io.stdout.clone(),
            stderr: io.stderr.clone(),
            ..Default::default()
        };
        self.client.create(Context::default(), &request).await.map(drop)
    }

    pub(crate) async fn start(&self, exec: &str) -> ttrpc::Result<()> {
        let request = api::StartRequest { id: self.id.clone(), exec_id: exec.into(), ..Default::default() };
        self.client.start(Context::default(), &request).await.map(drop)
    }

    pub(crate) async fn exec(&self, exec: &str, arguments: &[&str], io: &Io) -> ttrpc::Result<()> {
        let mut request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            stdin: io.stdin.clone(),
            stdout: io.stdout.clone(),
            stderr: io.stderr.clone(),
            ..Default::default()
        };
        request.spec.mut_or_insert_default().value = json!({"args": arguments, "cwd": "/"}).to_string().into_bytes();
        self.client.exec(Context::default(), &request).await.map(drop)
    }

    pub(crate) async fn wait(&self, exec: &str) -> u32 {
        let request = api::WaitRequest { id: self.id.clone(), exec_id: exec.into(), ..Default::default() };
        self.client.wait(Context::default(), &request).await.unwrap().exit_status
    }

    pub(crate) async fn kill(&self, exec: &str, signal: u32) -> ttrpc::Result<()> {
        let request = api::KillRequest { id: self.id.clone(), exec_id: exec.into(), signal, ..Default::default() };
        self.client.kill(Context::default(), &request).await.map(drop)
    }

    pub(crate) async fn delete(&self, exec: &str) -> ttrpc::Result<u32> {
        let request = api::DeleteRequest { id: self.id.clone(), exec_id: exec.into(), ..Default::default() };
        self.client.delete(Context::default(), &request).await.map(|response| response.exit_status)
    }

    pub(crate) async fn close_stdin(&self, exec: &str) {
        let request = api::CloseIORequest { id: self.id.clone(), exec_id: exec.into(), stdin: true, ..Default::default() };
        self.client.close_io(Context::default(), &request).await.unwrap();
    }

    pub(crate) async fn shutdown(&self) {
        let request = api::ShutdownRequest { id: self.id.clone(), ..Default::default() };
        self.client.shutdown(Context::default(), &request).await.unwrap();
    }

    pub(crate) async fn shim_pid(&self) -> u32 {
        let request = api::ConnectRequest { id: self.id.clone(), ..Default::default() };
        self.client.connect(Context::default(), &request).await.unwrap().shim_pid
    }
}

/// Named pipes as containerd makes them.
#[derive(Default)]
pub(crate) struct Io {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Io {
    pub(crate) fn pipes(world: &World, name: &str) -> Self {
        let pipe = |stream: &str| {
            let path = world.path(&format!("{name}-{stream}"));
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            path.display().to_string()
        };
        Self { stdin: pipe("in"), stdout: pipe("out"), stderr: pipe("err") }
    }

    /// Reads everything a process writes.
    pub(crate) fn output(&self) -> std::thread::JoinHandle<Vec<u8>> {
        let path = self.stdout.clone();
        std::thread::spawn(move || fs::read(path).unwrap())
    }

    pub(crate) fn write_input(&self, data: &[u8]) {
        fs::OpenOptions::new().write(true).open(&self.stdin).unwrap().write_all(data).unwrap();
    }
}

/// Reads a field of an event.
pub(crate) fn exit_event(bytes: &[u8]) -> (String, String, u32) {
    let event = containerd_shim_protos::events::task::TaskExit::parse_from_bytes(bytes).unwrap();
    (event.container_id, event.id, event.exit_status)
}
