//! The broker under test: the real binary, administered by the real command line.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::evidence::Machine;

/// What is stored and read.
pub(crate) const SECRET: &[u8] = b"a layer key of thirty-two bytes.";
/// Where.
pub(crate) const RESOURCE: &str = "default/key/bench";
/// Longest start.
const START: Duration = Duration::from_secs(20);
/// Clock ticks a second in `/proc/PID/stat` (proc(5)): fixed on Linux, whatever the kernel was built with.
const TICKS: f64 = 100.0;

/// A running broker; ends with this value.
pub(crate) struct Broker {
    child: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Broker {
    /// Starts it in a folder of its own, with a secret, policy and reference values for this machine.
    pub(crate) fn start(bin: &Path, machine: &Machine) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (config, log) = (dir.path().join("kbs.toml"), dir.path().join("kbs.log"));
        let address = free_address()?;
        let data = dir.path().join("data");
        fs::create_dir(&data)?;
        fs::write(
            &config,
            format!(
                "listen = \"{address}\"\ninsecure_http = true\ndata_dir = \"{}\"\n{}\
                 [http]\nauth_per_second = 1000000\nauth_burst = 1000000\n[references]\nallow_unsigned = true\n",
                data.display(),
                machine.trusted(dir.path())?
            ),
        )?;
        let program = bin.join("kata-cc-kbs");
        let child = Command::new(&program)
            .arg("--config")
            .arg(&config)
            .env("RUST_LOG", "warn")
            // As a service runs: with it, a policy engine records a backtrace for each expression that has no value.
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null())
            .stderr(File::create(&log)?)
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut broker = Self { child, address, _dir: dir };
        broker.wait_ready(&log)?;
        broker.register(bin, &data.join("admin.key"), machine)?;
        Ok(broker)
    }

    fn wait_ready(&mut self, log: &Path) -> Result<()> {
        let start = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if self.child.try_wait()?.is_some() || start.elapsed() > START {
                bail!("the broker did not start: {}", fs::read_to_string(log).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn register(&self, bin: &Path, key: &Path, machine: &Machine) -> Result<()> {
        let secret = self._dir.path().join("secret");
        let policy = self._dir.path().join("policy.rego");
        fs::write(&secret, SECRET)?;
        fs::write(&policy, machine.policy())?;
        let url = format!("http://{}", self.address);
        let admin = |args: &[&str]| -> Result<()> {
            let output = Command::new(bin.join("kata-cc")).args(["kbs", "--url", &url, "--admin-key"]).arg(key).args(args).output()?;
            if !output.status.success() {
                bail!("kata-cc kbs {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
            }
            Ok(())
        };
        admin(&["set-resource", RESOURCE, &secret.display().to_string()])?;
        admin(&["set-attestation-policy", &policy.display().to_string()])?;
        machine.references().iter().try_for_each(|(id, value)| admin(&["set-reference-value", id, value]))
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// CPU time it has used so far, in all its threads.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu_of(self.child.id())
    }

    /// Resident memory, in KiB.
    pub(crate) fn resident_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(self.proc("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("/proc/PID/status has no VmRSS")?;
        line.trim().trim_end_matches(" kB").parse().with_context(|| format!("VmRSS is {line:?}"))
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string()).join(file)
    }
}

/// CPU time that a process has used so far, in all its threads.
pub(crate) fn cpu_of(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses; utime and stime are the 14th and 15th.
    let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat has no name")?;
    let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_secs_f64(ticks as f64 / TICKS))
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
