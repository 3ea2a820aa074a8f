//! Work inside another network namespace.
//!
//! A namespace belongs to a thread, so the work gets a thread of its own, which ends with it; no other part of the shim ever changes namespaces.

use std::fs::File;
use std::future::Future;
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;
use tokio::sync::oneshot;

use super::NetworkError;

/// Runs `work` with a netlink handle of the namespace at `path`.
pub(super) async fn within<T, W, F>(path: &Path, work: W) -> Result<T, NetworkError>
where
    T: Send + 'static,
    W: FnOnce(Handle) -> F + Send + 'static,
    F: Future<Output = Result<T, NetworkError>>,
{
    let path = path.to_owned();
    let shown = path.clone();
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        let failed = |source: io::Error| NetworkError::Namespace { path: path.clone(), source };
        let namespace = File::open(&path).map_err(failed)?;
        setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
            tokio::spawn(connection);
            work(handle).await
        })
    };
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            // Nobody may be waiting any more.
            let _ = sender.send(run());
        })
        .map_err(|source| NetworkError::Namespace { path: shown.clone(), source })?;
    let gone = |_| NetworkError::Namespace { path: shown, source: io::Error::other("the thread ended unexpectedly") };
    receiver.await.map_err(gone)?
}
