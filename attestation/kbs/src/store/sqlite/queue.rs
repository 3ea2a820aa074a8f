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
    Keep(Box<Decision>, Then),
}

/// What is done when a decision is kept.
pub(super) enum Then {
    /// Whoever waits is told.
    Tell(oneshot::Sender<Result<(), StoreError>>),
    /// The secret that it releases is handed out.
    Release(ResourcePath, oneshot::Sender<Result<Option<Secret>, StoreError>>),
}

/// A decision that can be kept, and whom to answer what then.
enum Answer {
    Done(oneshot::Sender<Result<(), StoreError>>),
    Secret(oneshot::Sender<Result<Option<Secret>, StoreError>>, Option<Secret>),
}

impl Answer {
    fn send(self, kept: Result<(), StoreError>) {
        // Whoever has stopped waiting needs no answer.
        match self {
            Self::Done(to) => drop(to.send(kept)),
            Self::Secret(to, secret) => drop(to.send(kept.map(|()| secret))),
        }
    }
}

/// Serves the queue until the last sender is gone.
pub(super) fn serve(db: &mut Db, mut queue: mpsc::Receiver<Job>) {
    let mut next = queue.blocking_recv();
    while let Some(job) = next.take() {
        match job {
            Job::Work(work) => work(db),
            Job::Keep(decision, then) => {
                let mut batch = Vec::new();
                batch.extend(prepare(db, *decision, then));
                while batch.len() < MAX_BATCH {
                    match queue.try_recv() {
                        Ok(Job::Keep(decision, then)) => batch.extend(prepare(db, *decision, then)),
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

/// Looks for the secret, if one is to be released. `None` where that fails, which is answered at once.
fn prepare(db: &Db, decision: Decision, then: Then) -> Option<(Decision, Answer)> {
    match then {
        Then::Tell(to) => Some((decision, Answer::Done(to))),
        Then::Release(path, to) => match db.resource(&path) {
            Ok(secret) => Some((decision.of_found(secret.is_some()), Answer::Secret(to, secret))),
            Err(error) => {
                let _ = to.send(Err(error));
                None
            }
        },
    }
}

/// Keeps decisions together. Where that fails, each by itself: one that cannot be kept must not take others with it, and whoever asked is
/// told of its own.
fn keep(db: &mut Db, batch: Vec<(Decision, Answer)>) {
    let (decisions, answers): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
    let together = db.record(&decisions);
    for (decision, answer) in decisions.iter().zip(answers) {
        answer.send(if together.is_ok() { Ok(()) } else { db.record(std::slice::from_ref(decision)) });
    }
}
