//! A PostgreSQL of a test: Debian's programs, a directory of its own, a socket in it, and an end with the test.
//!
//! PostgreSQL refuses to run as root, so root's tests run it as `nobody`.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NOBODY: u32 = 65534;

/// It runs until it is dropped.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    bin: PathBuf,
    port: u16,
    process: Option<Child>,
}

impl Server {
    /// With a database `kbs` of the user `kbs`, whom the socket lets in and the loopback address asks for the password "PASSWORD".
    pub(crate) fn start() -> Self {
        let bin =
            programs().expect("these tests need PostgreSQL: Debian's package postgresql, or its programs' directory in KATA_CC_POSTGRES");
        let dir = tempfile::tempdir().unwrap();
        if is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { dir, bin, port, process: None };
        server.file("password", "PASSWORD\n");
        let data = server.data();
        let password = server.dir.path().join("password");
        let mut initdb = server.program("initdb");
        initdb.args(["-U", "kbs", "-E", "UTF8", "--no-locale", "-N", "--auth-local=trust", "--auth-host=scram-sha-256", "-D"]).arg(&data);
        let made = initdb.arg("--pwfile").arg(password).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        server.file("server.pem", "");
        server.run(&[]);
        let client = server
            .program("psql")
            .args(["-h"])
            .arg(server.socket())
            .arg(format!("-p{port}"))
            .args(["-U", "kbs", "-d", "postgres"])
            .args(["-c", "CREATE DATABASE kbs"])
            .output();
        let client = client.unwrap();
        assert!(client.status.success(), "{}", String::from_utf8_lossy(&client.stderr));
        server
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Directory of the socket.
    pub(crate) fn socket(&self) -> &Path {
        self.dir.path()
    }

    /// How to reach a database over the socket.
    pub(crate) fn target(&self, database: &str) -> String {
        format!("host={} port={} user=kbs dbname={database}", self.socket().display(), self.port)
    }

    /// Writes a file that the server alone may read.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        if is_root() {
            chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        path
    }

    /// Starts it, with more settings.
    pub(crate) fn run(&mut self, settings: &[&str]) {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let (data, socket, port) = (self.data(), self.socket().to_owned(), self.port.to_string());
        let mut postgres = self.program("postgres");
        postgres.arg("-D").arg(data).arg("-k").arg(socket).args(["-p", &port, "-h", "127.0.0.1", "-c", "fsync=off"]);
        for setting in settings {
            postgres.args(["-c", setting]);
        }
        self.process = Some(postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(60);
        while !self.program("pg_isready").arg("-q").arg("-h").arg(self.socket()).arg(format!("-p{port}")).status().unwrap().success() {
            assert!(Instant::now() < end, "{}", std::fs::read_to_string(self.dir.path().join("log")).unwrap());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends it at once, as a power cut would.
    pub(crate) fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // SIGQUIT: the server ends its children and itself without tidying up; by SIGKILL they would outlive it for a while.
        let _ = Command::new("kill").args(["-QUIT", &process.id().to_string()]).status();
        let end = Instant::now() + Duration::from_secs(10);
        while process.try_wait().unwrap().is_none() {
            if Instant::now() > end {
                let _ = process.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.current_dir(self.dir.path()).env("LC_ALL", "C");
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// The newest of Debian's, or those of the directory that the environment names.
fn programs() -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os("KATA_CC_POSTGRES") {
        return Some(directory.into());
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<_> = versions.flatten().map(|entry| entry.path().join("bin")).filter(|bin| bin.join("postgres").is_file()).collect();
    found.sort();
    found.pop()
}
