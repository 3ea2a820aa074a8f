//! What waits for the database thread. Decisions that wait together are written together: a write to the disk takes as long for many as for one.

use super::Db;
use crate::audit::Decision;
use crate::store::StoreError;
use crate::store::audit::MAX_BATCH;
use kata_cc_kbs_protocol::ResourcePath;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

/// Work that may wait; more makes callers wait, not memory grow.
pub(super) const LENGTH: usize = 256;

type Secret = Zeroizing<Vec<u8>>;

/// What the database thread is asked for.
pub(super) enum Job {
    /// Anything.
    Work(Box<dyn FnOnce(&mut Db) + Send>),
    /// To keep a decision.
    Keep(Box<Decision>, Option<Release>, Kept),
}

/// Whom to tell that a decision is kept, or why not.
pub(super) type Kept = oneshot::Sender<Result<(), StoreError>>;

/// The secret that a decision releases, and whom it goes to: before the decision is kept, for whatever is to be done meanwhile.
pub(super) struct Release {
    pub(super) path: ResourcePath,
    pub(super) to: oneshot::Sender<Option<Secret>>,
}

/// Serves the queue until the last sender is gone.
pub(super) fn serve(db: &mut Db, mut queue: mpsc::Receiver<Job>) {
    let mut next = queue.blocking_recv();
    while let Some(job) = next.take() {
        match job {
            Job::Work(work) => work(db),
            Job::Keep(decision, release, kept) => {
                let mut batch = Vec::new();
                batch.extend(prepare(db, *decision, release, kept));
                while batch.len() < MAX_BATCH {
                    match queue.try_recv() {
                        Ok(Job::Keep(decision, release, kept)) => batch.extend(prepare(db, *decision, release, kept)),
                        Ok(other) => {
                            next = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                keep(db, batch);
            }
        }
        if next.is_none() {
            next = queue.blocking_recv();
        }
    }
}

/// Looks for the secret, if one is to be released. `None` where that fails, which is told at once.
fn prepare(db: &Db, decision: Decision, release: Option<Release>, kept: Kept) -> Option<(Decision, Kept)> {
    let Some(Release { path, to }) = release else { return Some((decision, kept)) };
    match db.resource(&path) {
        Ok(secret) => {
            let decision = decision.of_found(secret.is_some());
            // Whoever has stopped waiting, here and below, needs no answer.
            let _ = to.send(secret);
            Some((decision, kept))
        }
        Err(error) => {
            let _ = kept.send(Err(error));
            None
        }
    }
}

/// Keeps decisions together. Where that fails, each by itself: one that cannot be kept must not take others with it, and whoever asked is
/// told of its own.
fn keep(db: &mut Db, batch: Vec<(Decision, Kept)>) {
    let (decisions, kept): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
    let together = db.record(&decisions);
    for (decision, kept) in decisions.iter().zip(kept) {
        let _ = kept.send(if together.is_ok() { Ok(()) } else { db.record(std::slice::from_ref(decision)) });
    }
}
