//! The machine's side: this program plays QEMU, the vsock helper with an agent behind it, and the simulated TEE, told apart by the arguments.
//!
//! Containers run nothing; what their process "does" is told by its arguments: `bytes N`, `cat`, `exit N`, `hang`, `stuck`, `crash`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::FromRawFd as _;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use kata_cc_agent_protocol::rpc::agent::*;
use kata_cc_agent_protocol::rpc::agent_ttrpc::{AgentService, create_agent_service};
use kata_cc_agent_protocol::rpc::{Empty, types};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, watch};
use ttrpc::r#async::{Server, TtrpcContext};
use ttrpc::{Code, Result as TtrpcResult};

/// Plays a role when the arguments are those of one.
pub(crate) fn play(arguments: &[String]) -> bool {
    let follows = |name: &str| arguments.iter().position(|argument| argument == name).and_then(|at| arguments.get(at + 1));
    if arguments.iter().any(|argument| argument == "-nodefaults") {
        let disk = arguments.iter().find_map(|argument| argument.strip_prefix("driver=file,")).unwrap();
        let disk = disk.rsplit("filename=").next().unwrap();
        qemu(Path::new(disk).parent().unwrap());
    } else if let Some(vm) = follows("--vm") {
        let path = |key: &str| vm.split(',').find_map(|pair| pair.strip_prefix(key)).map(PathBuf::from).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(vsock(&path("socket="), &path("uds-path=")));
    } else if arguments.first().is_some_and(|argument| argument == "serve") {
        assert_eq!(follows("--host-data").unwrap().len(), 64);
        StdListener::bind(follows("--socket").unwrap()).unwrap().accept().unwrap();
    } else {
        return false;
    }
    true
}

#[expect(unsafe_code, reason = "descriptors are inherited by number")]
fn inherited(number: i32) -> File {
    // SAFETY: the shim's contract is that this descriptor is open and ours; nothing else in this process names it.
    unsafe { File::from_raw_fd(number) }
}

fn qemu(dir: &Path) {
    let (mut monitor, mut console) = (inherited(100), inherited(101));
    console.write_all(b"SeaBIOS\r\n").unwrap();
    std::fs::write(dir.join("qemu.pid"), std::process::id().to_string()).unwrap();
    if std::env::var_os("FAKE_REFUSES").is_some() {
        eprintln!("qemu: confidential guest support is not available");
        std::process::exit(1);
    }
    if std::env::var_os("FAKE_PANICS").is_some() {
        console.write_all(b"initdata digest mismatch, powering off\r\n").unwrap();
    }
    monitor.write_all(b"{\"QMP\":{\"version\":{},\"capabilities\":[]}}\n").unwrap();
    let mut line = Vec::new();
    let mut byte = [0];
    while monitor.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
        if byte[0] != b'\n' {
            continue;
        }
        monitor.write_all(b"{\"return\":{}}\n").unwrap();
        if String::from_utf8_lossy(&line).contains("quit") || std::env::var_os("FAKE_PANICS").is_some() {
            return;
        }
        line.clear();
    }
}

async fn vsock(device: &Path, socket: &Path) {
    let dir = socket.parent().unwrap().to_owned();
    let device = UnixListener::bind(device).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    let agent = dir.join("agent.sock");
    let mut server = Server::new()
        .bind(&format!("unix://{}", agent.display()))
        .unwrap()
        .register_service(create_agent_service(Arc::new(Agent { dir: dir.clone(), processes: Mutex::default() })));
    server.start().await.unwrap();
    let (mut vmm, _) = device.accept().await.unwrap();
    if std::env::var_os("FAKE_LATE").is_some() {
        // A guest that boots until it is told not to.
        while !dir.join("boot").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    if std::env::var_os("FAKE_PANICS").is_none() {
        // An agent that announces itself; the shim may not listen (and then asks again and again).
        let mut ready = socket.as_os_str().to_owned();
        ready.push("_1023");
        UnixStream::connect(ready).await.unwrap().write_all(&[1]).await.unwrap();
    }
    let end = async {
        let mut byte = [0];
        let _ = tokio::io::AsyncReadExt::read(&mut vmm, &mut byte).await;
    };
    let serve = async {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let agent = agent.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                assert_eq!(line, "CONNECT 1024\n");
                stream.get_mut().write_all(b"OK 1\n").await.unwrap();
                let mut agent = UnixStream::connect(agent).await.unwrap();
                let _ = copy_bidirectional(&mut stream, &mut agent).await;
            });
        }
    };
    tokio::select! {
        () = end => {}
        () = serve => {}
    }
}

struct Process {
    arguments: Vec<String>,
    exit: watch::Sender<Option<i32>>,
    produced: Mutex<u64>,
    echo: (mpsc::UnboundedSender<Vec<u8>>, tokio::sync::Mutex<mpsc::UnboundedReceiver<Vec<u8>>>),
    input_closed: Notify,
}

struct Agent {
    dir: PathBuf,
    processes: Mutex<HashMap<(String, String), Arc<Process>>>,
}

/// The bytes a `bytes` process writes: they depend on the position, so that loss and disorder show.
pub(crate) fn pattern(position: u64) -> u8 {
    u8::try_from((position ^ (position >> 8) ^ (position >> 16)) & 0xff).unwrap()
}

fn status(code: Code, text: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, text))
}

impl Agent {
    fn add(&self, container: &str, exec: &str, arguments: &[String]) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let process = Process {
            arguments: arguments.to_vec(),
            exit: watch::Sender::new(None),
            produced: Mutex::new(0),
            echo: (sender, tokio::sync::Mutex::new(receiver)),
            input_closed: Notify::new(),
        };
        self.processes.lock().unwrap().insert((container.to_owned(), exec.to_owned()), Arc::new(process));
    }

    fn find(&self, container: &str, exec: &str) -> TtrpcResult<Arc<Process>> {
        let processes = self.processes.lock().unwrap();
        processes.get(&(container.to_owned(), exec.to_owned())).cloned().ok_or_else(|| status(Code::NOT_FOUND, "no such process"))
    }

    fn launch(&self, process: &Process) {
        let number = |at: usize| process.arguments.get(at).and_then(|text| text.parse::<i32>().ok()).unwrap_or_default();
        match process.arguments.first().map(String::as_str) {
            Some("exit" | "bytes") => {
                process.exit.send_replace(Some(if process.arguments[0] == "exit" { number(1) } else { 0 }));
            }
            Some("crash") => {
                let pid = std::fs::read_to_string(self.dir.join("qemu.pid")).unwrap().parse().unwrap();
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
            }
            _ => {}
        }
    }
}

#[async_trait]
impl AgentService for Agent {
    async fn create_sandbox(&self, _: &TtrpcContext, request: CreateSandboxRequest) -> TtrpcResult<Empty> {
        std::fs::write(self.dir.join("create_sandbox.json"), serde_json::to_vec(&request).unwrap()).unwrap();
        Ok(Empty::new())
    }

    async fn update_interface(&self, _: &TtrpcContext, request: UpdateInterfaceRequest) -> TtrpcResult<types::Interface> {
        Ok(request.interface.unwrap_or_default())
    }

    async fn copy_file(&self, _: &TtrpcContext, request: CopyFileRequest) -> TtrpcResult<Empty> {
        let mut log = std::fs::OpenOptions::new().append(true).create(true).open(self.dir.join("copies")).unwrap();
        writeln!(log, "{} {} {} {}", request.path, request.file_size, request.offset, request.data.len()).unwrap();
        Ok(Empty::new())
    }

    async fn create_container(&self, _: &TtrpcContext, request: CreateContainerRequest) -> TtrpcResult<Empty> {
        std::fs::write(self.dir.join(format!("create_{}.json", request.container_id)), serde_json::to_vec(&request).unwrap()).unwrap();
        let arguments = &request.OCI.Process.Args;
        if arguments.first().is_some_and(|argument| argument == "denied") {
            return Err(status(Code::PERMISSION_DENIED, "CreateContainerRequest is denied by the policy: image is not pinned"));
        }
        if self.find(&request.container_id, "").is_ok() {
            return Err(status(Code::ALREADY_EXISTS, "the container is already there"));
        }
        self.add(&request.container_id, "", arguments);
        if arguments.first().is_some_and(|argument| argument == "tardy") {
            return Err(status(Code::DEADLINE_EXCEEDED, "created, but too late"));
        }
        Ok(Empty::new())
    }

    async fn start_container(&self, _: &TtrpcContext, request: StartContainerRequest) -> TtrpcResult<Empty> {
        self.launch(&*self.find(&request.container_id, "")?);
        Ok(Empty::new())
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> TtrpcResult<Empty> {
        self.add(&request.container_id, &request.exec_id, &request.process.Args);
        self.launch(&*self.find(&request.container_id, &request.exec_id)?);
        Ok(Empty::new())
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> TtrpcResult<Empty> {
        let process = self.find(&request.container_id, &request.exec_id)?;
        if process.arguments.first().is_some_and(|argument| argument == "stuck") {
            std::future::pending::<()>().await;
        }
        process.exit.send_if_modified(|exit| exit.is_none().then(|| *exit = Some(128 + i32::try_from(request.signal).unwrap())).is_some());
        Ok(Empty::new())
    }

    async fn wait_process(&self, _: &TtrpcContext, request: WaitProcessRequest) -> TtrpcResult<WaitProcessResponse> {
        let process = self.find(&request.container_id, &request.exec_id)?;
        let mut exit = process.exit.subscribe();
        let code = exit.wait_for(Option::is_some).await.unwrap().unwrap();
        Ok(WaitProcessResponse { status: code, ..Default::default() })
    }

    async fn read_stdout(&self, _: &TtrpcContext, request: ReadStreamRequest) -> TtrpcResult<ReadStreamResponse> {
        let process = self.find(&request.container_id, &request.exec_id)?;
        let data = match process.arguments.first().map(String::as_str) {
            Some("bytes") => {
                let mut produced = process.produced.lock().unwrap();
                let total: u64 = process.arguments[1].parse().unwrap();
                let end = (*produced + u64::from(request.len)).min(total);
                let data = (*produced..end).map(pattern).collect();
                *produced = end;
                data
            }
            Some("cat") => {
                let mut echo = process.echo.1.lock().await;
                tokio::select! {
                    biased;
                    data = echo.recv() => data.unwrap_or_default(),
                    () = process.input_closed.notified() => {
                        process.exit.send_replace(Some(0));
                        Vec::new()
                    }
                }
            }
            Some("exit") => Vec::new(),
            _ => {
                process.exit.subscribe().wait_for(Option::is_some).await.unwrap();
                Vec::new()
            }
        };
        Ok(ReadStreamResponse { data, ..Default::default() })
    }

    async fn read_stderr(&self, _: &TtrpcContext, request: ReadStreamRequest) -> TtrpcResult<ReadStreamResponse> {
        self.find(&request.container_id, &request.exec_id)?.exit.subscribe().wait_for(Option::is_some).await.unwrap();
        Err(status(Code::INVALID_ARGUMENT, "end of file"))
    }

    async fn write_stdin(&self, _: &TtrpcContext, request: WriteStreamRequest) -> TtrpcResult<WriteStreamResponse> {
        let process = self.find(&request.container_id, &request.exec_id)?;
        // Takes half at a time: short writes must not lose anything.
        let taken = request.data.len().div_ceil(2);
        process.echo.0.send(request.data[..taken].to_vec()).unwrap();
        Ok(WriteStreamResponse { len: u32::try_from(taken).unwrap(), ..Default::default() })
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> TtrpcResult<Empty> {
        self.find(&request.container_id, &request.exec_id)?.input_closed.notify_one();
        Ok(Empty::new())
    }

    async fn remove_container(&self, _: &TtrpcContext, request: RemoveContainerRequest) -> TtrpcResult<Empty> {
        self.processes.lock().unwrap().retain(|(container, _), _| *container != request.container_id);
        Ok(Empty::new())
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: GetOOMEventRequest) -> TtrpcResult<OOMEvent> {
        std::future::pending().await
    }

    async fn get_diagnostic_data(&self, _: &TtrpcContext, request: GetDiagnosticDataRequest) -> TtrpcResult<GetDiagnosticDataResponse> {
        let data = if request.log_type == "timeline" { "[{\"phase\":\"policy\"}]" } else { "last words" };
        Ok(GetDiagnosticDataResponse { data: data.into(), ..Default::default() })
    }

    async fn stats_container(&self, _: &TtrpcContext, _: StatsContainerRequest) -> TtrpcResult<StatsContainerResponse> {
        Ok(StatsContainerResponse::default())
    }
}
