//! Tells the host when a container lost a process for want of memory.

use tokio::sync::{Mutex, mpsc};

use super::ContainerId;
use super::cgroup::{Changes, Group};

/// Bound on events the host has not fetched. More of them say nothing new.
const MAX_PENDING: usize = 64;

/// Events on their way to the host.
#[derive(Debug)]
pub(crate) struct OomEvents {
    sender: mpsc::Sender<ContainerId>,
    receiver: Mutex<mpsc::Receiver<ContainerId>>,
}

impl Default for OomEvents {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(MAX_PENDING);
        Self { sender, receiver: Mutex::new(receiver) }
    }
}

impl OomEvents {
    /// Watches a container's group until it is gone.
    pub(crate) fn watch(&self, id: ContainerId) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let group = Group::of(&id);
            let Ok(changes) = Changes::of(&group.file("memory.events")) else {
                tracing::warn!(container = %id, "no memory controller: kills for want of memory will not be told");
                return;
            };
            let mut seen = 0;
            while let Ok(kills) = group.oom_kills() {
                if kills > seen {
                    seen = kills;
                    let _ = sender.try_send(id.clone());
                }
                if changes.next().await.is_err() {
                    return;
                }
            }
        });
    }

    /// Waits for the next event.
    pub(crate) async fn next(&self) -> Option<ContainerId> {
        self.receiver.lock().await.recv().await
    }
}
