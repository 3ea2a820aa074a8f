//! The sessions of the RCAR exchange: bounded in number, bounded in time, in memory.
//!
//! `/auth` is open to everybody, so the sessions that wait for evidence are what a flood would fill. There are [`MAX_WAITING`] and then
//! newcomers are refused until some have expired; those inside go on undisturbed. Sessions that have their token came by evidence that
//! verified; they hold [`MAX_TOKENS`] bytes together, and the oldest make room for the newest: the token alone opens resources too.

use crate::store::StoreError;
use kata_cc_kbs_protocol::{AttestedSession, AwaitAttest, SessionId};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most sessions that wait for evidence at a time.
pub const MAX_WAITING: usize = 10_000;
/// Most bytes of tokens held for sessions that have attested. A token has some 6 KiB.
pub const MAX_TOKENS: usize = 16 * 1024 * 1024;
/// Expired sessions are looked for at most this often, so that a flood does not make every call a walk over the table.
pub(crate) const SWEEP_SECONDS: u64 = 5;

/// Why a session is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The table is full.
    #[error("too many sessions: try again in a while")]
    Full,
    /// No such session, or its time is over, or its one attempt was used.
    #[error("no such session, or it expired: start again with /auth")]
    Unknown,
    /// It has its token already.
    #[error("this session has attested already: start a new one with /auth")]
    Attested,
    /// The store that has them failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All sessions.
#[derive(Debug, Default)]
pub struct Sessions {
    waiting: Mutex<Waiting>,
    attested: Mutex<Attested>,
}

#[derive(Debug, Default)]
struct Waiting {
    sessions: HashMap<SessionId, AwaitAttest>,
    swept_at: u64,
}

#[derive(Debug, Default)]
struct Attested {
    sessions: HashMap<SessionId, AttestedSession>,
    /// As they came. All live equally long, so this is also the order in which they expire.
    order: VecDeque<SessionId>,
    bytes: usize,
}

impl Attested {
    fn drop_oldest(&mut self) {
        if let Some(gone) = self.order.pop_front().and_then(|id| self.sessions.remove(&id)) {
            self.bytes = self.bytes.saturating_sub(gone.token().len());
        }
    }

    fn oldest_is_over(&self, now: u64) -> bool {
        self.order.front().and_then(|id| self.sessions.get(id)).is_some_and(|session| !session.is_live(now))
    }
}

impl Sessions {
    /// Holds a session that waits for evidence.
    pub fn open(&self, session: AwaitAttest, now: u64) -> Result<(), SessionError> {
        let mut waiting = lock(&self.waiting);
        if now >= waiting.swept_at.saturating_add(SWEEP_SECONDS) {
            waiting.sessions.retain(|_, s| now < s.expires_at());
            waiting.swept_at = now;
        }
        if waiting.sessions.len() >= MAX_WAITING {
            return Err(SessionError::Full);
        }
        waiting.sessions.insert(session.id().clone(), session);
        Ok(())
    }

    /// Takes a waiting session out: its nonce is answered once, whatever comes of it.
    pub fn take_waiting(&self, id: &SessionId, now: u64) -> Result<AwaitAttest, SessionError> {
        let taken = lock(&self.waiting).sessions.remove(id);
        match taken {
            Some(session) if now < session.expires_at() => Ok(session),
            None if lock(&self.attested).sessions.contains_key(id) => Err(SessionError::Attested),
            _ => Err(SessionError::Unknown),
        }
    }

    /// Holds a session that has its token, and lets go of those that are over, and of the oldest where there is no room.
    pub fn attested(&self, session: AttestedSession, now: u64) {
        let mut attested = lock(&self.attested);
        while attested.oldest_is_over(now) {
            attested.drop_oldest();
        }
        attested.bytes = attested.bytes.saturating_add(session.token().len());
        attested.order.push_back(session.id().clone());
        attested.sessions.insert(session.id().clone(), session);
        while attested.bytes > MAX_TOKENS {
            attested.drop_oldest();
        }
    }

    /// The token of an attested session.
    pub fn token(&self, id: &SessionId, now: u64) -> Option<String> {
        let attested = lock(&self.attested);
        attested.sessions.get(id).filter(|session| session.is_live(now)).map(|session| session.token().to_owned())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        lock(&self.waiting).sessions.len() + lock(&self.attested).sessions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every operation leaves its table whole; nothing between lock and unlock can panic half way.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_kbs_protocol::message::{Challenge, Request};
    use serde_json::json;

    fn challenged(now: u64) -> (AwaitAttest, Challenge) {
        let request: Request = serde_json::from_value(json!({"version": "0.4.0", "tee": "snp", "extra-params": {}})).unwrap();
        AwaitAttest::open(&request, now, 300).unwrap()
    }

    fn waiting(now: u64) -> AwaitAttest {
        challenged(now).0
    }

    #[test]
    fn a_nonce_is_answered_once() {
        let sessions = Sessions::default();
        let session = waiting(100);
        let id = session.id().clone();
        sessions.open(session, 100).unwrap();
        assert!(sessions.token(&id, 100).is_none());
        sessions.take_waiting(&id, 100).unwrap();
        assert!(matches!(sessions.take_waiting(&id, 100), Err(SessionError::Unknown)));
    }

    #[test]
    fn expired_sessions_are_nobodys() {
        let sessions = Sessions::default();
        let session = waiting(100);
        let id = session.id().clone();
        sessions.open(session, 100).unwrap();
        assert!(matches!(sessions.take_waiting(&id, 400), Err(SessionError::Unknown)));
    }

    #[test]
    fn a_full_table_refuses_until_sessions_expire() {
        let sessions = Sessions::default();
        for _ in 0..MAX_WAITING {
            sessions.open(waiting(100), 100).unwrap();
        }
        assert!(matches!(sessions.open(waiting(101), 101), Err(SessionError::Full)));
        assert_eq!(sessions.len(), MAX_WAITING);
        sessions.open(waiting(401), 401).unwrap();
        assert_eq!(sessions.len(), 1);
    }

    fn attested(token_len: usize, expires_at: u64) -> AttestedSession {
        let jwk = kata_cc_kbs_protocol::TeeKey::generate().unwrap().to_jwk();
        let (session, Challenge { nonce, .. }) = challenged(100);
        let attestation = serde_json::from_value(json!({
            "runtime-data": {"nonce": nonce, "tee-pubkey": jwk},
            "tee-evidence": {"primary_evidence": {}, "additional_evidence": ""},
        }));
        session.attest(attestation.unwrap(), 100).unwrap().accept("t".repeat(token_len), expires_at)
    }

    #[test]
    fn the_oldest_tokens_make_room_for_the_newest() {
        let sessions = Sessions::default();
        let of = |session: AttestedSession| {
            let id = session.id().clone();
            sessions.attested(session, 100);
            id
        };
        let ids = [0; 4].map(|_| of(attested(MAX_TOKENS / 4, 400)));
        assert!(ids.iter().all(|id| sessions.token(id, 100).is_some()));
        assert!(matches!(sessions.take_waiting(&ids[0], 100), Err(SessionError::Attested)));
        let one_more = of(attested(1, 400));
        assert_eq!(ids.iter().map(|id| sessions.token(id, 100).is_some()).collect::<Vec<_>>(), [false, true, true, true]);
        assert!(sessions.token(&one_more, 399).is_some() && sessions.token(&one_more, 400).is_none());
    }

    #[test]
    fn tokens_that_are_over_leave() {
        let sessions = Sessions::default();
        for _ in 0..3 {
            sessions.attested(attested(10, 400), 100);
        }
        sessions.attested(attested(10, 800), 500);
        assert_eq!((sessions.len(), lock(&sessions.attested).bytes), (1, 10));
    }
}
