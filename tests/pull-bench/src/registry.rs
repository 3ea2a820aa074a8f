//! The registry: Debian's docker-registry on a free port of the loopback, over plain HTTP.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::service::Service;

/// A running registry.
#[derive(Debug)]
pub(crate) struct Registry {
    address: SocketAddr,
    _service: Service,
}

impl Registry {
    /// Starts it; what was pushed into it before with the same work directory is still there.
    pub(crate) fn start(work: &Path) -> Result<Self> {
        let storage = work.join("registry");
        fs::create_dir_all(&storage).with_context(|| format!("cannot make {}", storage.display()))?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = work.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            storage.display()
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        let service = Service::start("docker-registry", &mut command, work.join("registry.log"), || TcpStream::connect(address).is_ok())?;
        Ok(Self { address, _service: service })
    }

    /// Host and port.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }
}
