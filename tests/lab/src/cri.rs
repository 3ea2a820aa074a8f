//! CRI as the kubelet speaks it: sandbox, image, container, logs, exec.
//!
//! Thin on purpose: every call is one RPC, and an error is the status message that containerd would give the kubelet,
//! which is what `kubectl describe pod` shows.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// A pod as a test describes it.
#[derive(Debug, Clone)]
pub(crate) struct PodSpec {
    /// Pod and container name.
    pub(crate) name: String,
    /// The runtime handler of containerd's configuration.
    pub(crate) handler: String,
    /// The initdata annotation's value, if any.
    pub(crate) initdata: Option<String>,
    /// The image, by digest.
    pub(crate) image: String,
    /// What runs in the container.
    pub(crate) command: Vec<String>,
    /// Its variables, beside those of the image.
    pub(crate) env: Vec<(String, String)>,
    /// Directories of the host's, read-only at a place in the container: what the kubelet makes of volumes.
    pub(crate) volumes: Vec<(PathBuf, String)>,
}

/// A connection to containerd's CRI plugin.
#[derive(Debug, Clone)]
pub(crate) struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    logs: PathBuf,
}

/// What an exec gave.
#[derive(Debug)]
pub(crate) struct ExecOutput {
    pub(crate) exit_code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Cri {
    /// Connects to `socket`; pod logs go below `logs`.
    pub(crate) async fn connect(socket: &Path, logs: PathBuf) -> Result<Self> {
        let socket = socket.to_owned();
        let channel = Endpoint::from_static("http://containerd")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
            }))
            .await
            .context("cannot reach containerd's CRI socket")?;
        Ok(Cri {
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel).max_decoding_message_size(16 << 20),
            logs,
        })
    }

    /// containerd's version, once its CRI plugin is ready.
    pub(crate) async fn version(&mut self) -> Result<String> {
        Ok(self.runtime.version(cri::VersionRequest { version: String::new() }).await?.into_inner().runtime_version)
    }

    /// RunPodSandbox.
    pub(crate) async fn run_sandbox(&mut self, pod: &PodSpec) -> Result<String> {
        let request = cri::RunPodSandboxRequest { config: Some(self.sandbox_config(pod)?), runtime_handler: pod.handler.clone() };
        Ok(self.runtime.run_pod_sandbox(request).await.map_err(status)?.into_inner().pod_sandbox_id)
    }

    /// PullImage, as the kubelet asks for it with the pod's sandbox configuration.
    pub(crate) async fn pull(&mut self, pod: &PodSpec) -> Result<String> {
        let mut annotations = HashMap::new();
        annotations.insert("io.containerd.cri.runtime-handler".to_owned(), pod.handler.clone());
        let request = cri::PullImageRequest {
            image: Some(cri::ImageSpec { image: pod.image.clone(), annotations, ..Default::default() }),
            auth: None,
            sandbox_config: Some(self.sandbox_config(pod)?),
        };
        Ok(self.images.pull_image(request).await.map_err(status)?.into_inner().image_ref)
    }

    /// CreateContainer in a sandbox.
    pub(crate) async fn create(&mut self, sandbox: &str, pod: &PodSpec) -> Result<String> {
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: pod.name.clone(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: pod.image.clone(), ..Default::default() }),
            command: pod.command.clone(),
            envs: pod.env.iter().map(|(key, value)| cri::KeyValue { key: key.clone(), value: value.clone() }).collect(),
            mounts: pod
                .volumes
                .iter()
                .map(|(host, container)| cri::Mount {
                    host_path: host.display().to_string(),
                    container_path: container.clone(),
                    readonly: true,
                    ..Default::default()
                })
                .collect(),
            log_path: format!("{}.log", pod.name),
            linux: Some(cri::LinuxContainerConfig { security_context: Some(container_security()), ..Default::default() }),
            ..Default::default()
        };
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(self.sandbox_config(pod)?),
        };
        Ok(self.runtime.create_container(request).await.map_err(status)?.into_inner().container_id)
    }

    /// StartContainer.
    pub(crate) async fn start(&mut self, container: &str) -> Result<()> {
        self.runtime.start_container(cri::StartContainerRequest { container_id: container.to_owned() }).await.map_err(status)?;
        Ok(())
    }

    /// ExecSync with a bound of 30 s.
    pub(crate) async fn exec(&mut self, container: &str, command: &[&str]) -> Result<ExecOutput> {
        let request = cri::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 30,
        };
        let answer = self.runtime.exec_sync(request).await.map_err(status)?.into_inner();
        Ok(ExecOutput {
            exit_code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }

    /// ContainerStatus: state and exit code.
    pub(crate) async fn state(&mut self, container: &str) -> Result<(cri::ContainerState, i32)> {
        let request = cri::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let answer = self.runtime.container_status(request).await.map_err(status)?.into_inner().status.context("status without a body")?;
        Ok((answer.state(), answer.exit_code))
    }

    /// PodSandboxStatus: whether the sandbox is ready.
    pub(crate) async fn sandbox_ready(&mut self, sandbox: &str) -> Result<bool> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
        let answer =
            self.runtime.pod_sandbox_status(request).await.map_err(status)?.into_inner().status.context("status without a body")?;
        Ok(answer.state() == cri::PodSandboxState::SandboxReady)
    }

    /// StopContainer with the kubelet's grace, then RemoveContainer. Gives the exit code.
    pub(crate) async fn stop_and_remove(&mut self, container: &str, grace_seconds: i64) -> Result<i32> {
        let request = cri::StopContainerRequest { container_id: container.to_owned(), timeout: grace_seconds };
        self.runtime.stop_container(request).await.map_err(status)?;
        let (_, code) = self.state(container).await?;
        self.remove(container).await?;
        Ok(code)
    }

    /// RemoveContainer.
    pub(crate) async fn remove(&mut self, container: &str) -> Result<()> {
        self.runtime.remove_container(cri::RemoveContainerRequest { container_id: container.to_owned() }).await.map_err(status)?;
        Ok(())
    }

    /// StopPodSandbox and RemovePodSandbox.
    pub(crate) async fn remove_sandbox(&mut self, sandbox: &str) -> Result<()> {
        self.runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() }).await.map_err(status)?;
        self.runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() }).await.map_err(status)?;
        Ok(())
    }

    /// Ids of all sandboxes containerd knows, ready or not.
    pub(crate) async fn sandboxes(&mut self) -> Result<Vec<String>> {
        let answer = self.runtime.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await.map_err(status)?;
        Ok(answer.into_inner().items.into_iter().map(|item| item.id).collect())
    }

    /// Waits until the container has exited.
    pub(crate) async fn wait_exit(&mut self, container: &str, bound: Duration) -> Result<i32> {
        let start = Instant::now();
        loop {
            let (state, code) = self.state(container).await?;
            if state == cri::ContainerState::ContainerExited {
                return Ok(code);
            }
            if start.elapsed() > bound {
                bail!("container {container} has not exited within {} s (state {state:?})", bound.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The container's log so far, as the kubelet's log file has it, without time stamps and tags.
    pub(crate) fn log_text(&self, pod: &PodSpec) -> String {
        let raw = std::fs::read_to_string(self.logs.join(&pod.name).join(format!("{}.log", pod.name))).unwrap_or_default();
        let mut text = String::new();
        for line in raw.lines() {
            let mut parts = line.splitn(4, ' ');
            let (_time, _stream, tag, rest) = (parts.next(), parts.next(), parts.next(), parts.next().unwrap_or_default());
            text.push_str(rest);
            if tag == Some("F") {
                text.push('\n');
            }
        }
        text
    }

    /// Waits until the container's log holds `needle`, and gives the log.
    pub(crate) async fn wait_log(&mut self, pod: &PodSpec, container: &str, needle: &str, bound: Duration) -> Result<String> {
        let start = Instant::now();
        loop {
            let text = self.log_text(pod);
            if text.contains(needle) {
                return Ok(text);
            }
            if let Ok((cri::ContainerState::ContainerExited, code)) = self.state(container).await {
                // Once more: the last lines may have come between the two looks.
                let text = self.log_text(pod);
                if text.contains(needle) {
                    return Ok(text);
                }
                bail!("the container ended with {code} before it printed {needle:?}; it printed:\n{text}");
            }
            if start.elapsed() > bound {
                bail!("{needle:?} is not in the log after {} s; it has:\n{text}", bound.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn sandbox_config(&self, pod: &PodSpec) -> Result<cri::PodSandboxConfig> {
        let log_directory = self.logs.join(&pod.name);
        std::fs::create_dir_all(&log_directory)?;
        let mut annotations = HashMap::new();
        if let Some(initdata) = &pod.initdata {
            annotations.insert("io.katacontainers.config.hypervisor.cc_init_data".to_owned(), initdata.clone());
        }
        Ok(cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: pod.name.clone(),
                uid: format!("uid-{}", pod.name),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: pod.name.clone(),
            log_directory: log_directory.display().to_string(),
            dns_config: Some(cri::DnsConfig { servers: vec![crate::namespaces::GATEWAY.to_owned()], ..Default::default() }),
            annotations,
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: crate::cgroup::parent(),
                security_context: Some(sandbox_security()),
                ..Default::default()
            }),
            ..Default::default()
        })
    }
}

/// What the kubelet says of a pod without a security context.
fn namespaces() -> cri::NamespaceOption {
    cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() }
}

fn sandbox_security() -> cri::LinuxSandboxSecurityContext {
    cri::LinuxSandboxSecurityContext { namespace_options: Some(namespaces()), ..Default::default() }
}

/// The paths are the kubelet's defaults (`pkg/securitycontext`, procMount Default).
fn container_security() -> cri::LinuxContainerSecurityContext {
    let paths = |all: &[&str]| all.iter().map(|&path| path.to_owned()).collect();
    cri::LinuxContainerSecurityContext {
        namespace_options: Some(namespaces()),
        masked_paths: paths(&[
            "/proc/asound",
            "/proc/acpi",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/proc/scsi",
            "/sys/firmware",
            "/sys/devices/virtual/powercap",
        ]),
        readonly_paths: paths(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]),
        ..Default::default()
    }
}

/// The message alone: it is what the kubelet puts into the pod's events.
fn status(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}
