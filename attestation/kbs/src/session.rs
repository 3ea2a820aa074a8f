//! The sessions of the RCAR exchange: bounded in number, bounded in time, in memory.
//!
//! `/auth` is open to everybody, so this table is what a flood would fill. It takes [`MAX_SESSIONS`] and then refuses newcomers until
//! some have expired; those inside go on undisturbed.

use kata_cc_kbs_protocol::{AttestedSession, AwaitAttest, SessionId};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most sessions held at a time.
pub const MAX_SESSIONS: usize = 10_000;
/// Expired sessions are looked for at most this often, so that a flood does not make every call a walk over the table.
const SWEEP_SECONDS: u64 = 5;

/// Why a session is not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
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
}

#[derive(Debug)]
enum Session {
    Waiting(AwaitAttest),
    Attested(AttestedSession),
}

impl Session {
    fn expires_at(&self) -> u64 {
        match self {
            Self::Waiting(s) => s.expires_at(),
            Self::Attested(s) => s.expires_at(),
        }
    }
}

/// The table.
#[derive(Debug, Default)]
pub struct Sessions {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    sessions: HashMap<SessionId, Session>,
    swept_at: u64,
}

impl Table {
    fn insert(&mut self, id: SessionId, session: Session, now: u64) -> Result<(), SessionError> {
        if now >= self.swept_at.saturating_add(SWEEP_SECONDS) {
            self.sessions.retain(|_, s| now < s.expires_at());
            self.swept_at = now;
        }
        if self.sessions.len() >= MAX_SESSIONS {
            return Err(SessionError::Full);
        }
        self.sessions.insert(id, session);
        Ok(())
    }
}

impl Sessions {
    /// Holds a session that waits for evidence.
    pub fn open(&self, session: AwaitAttest, now: u64) -> Result<(), SessionError> {
        self.table().insert(session.id().clone(), Session::Waiting(session), now)
    }

    /// Takes a waiting session out: its nonce is answered once, whatever comes of it.
    pub fn take_waiting(&self, id: &SessionId, now: u64) -> Result<AwaitAttest, SessionError> {
        let mut table = self.table();
        match table.sessions.remove(id) {
            Some(Session::Waiting(session)) if now < session.expires_at() => Ok(session),
            Some(attested @ Session::Attested(_)) => {
                table.sessions.insert(id.clone(), attested);
                Err(SessionError::Attested)
            }
            _ => Err(SessionError::Unknown),
        }
    }

    /// Holds a session that has its token.
    pub fn attested(&self, session: AttestedSession, now: u64) -> Result<(), SessionError> {
        self.table().insert(session.id().clone(), Session::Attested(session), now)
    }

    /// The token of an attested session.
    pub fn token(&self, id: &SessionId, now: u64) -> Option<String> {
        match self.table().sessions.get(id)? {
            Session::Attested(session) if session.is_live(now) => Some(session.token().to_owned()),
            _ => None,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table().sessions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every operation leaves the map whole; nothing between lock and unlock can panic half way.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_kbs_protocol::message::Request;
    use serde_json::json;

    fn waiting(now: u64) -> AwaitAttest {
        let request: Request = serde_json::from_value(json!({"version": "0.4.0", "tee": "snp", "extra-params": {}})).unwrap();
        AwaitAttest::open(&request, now, 300).unwrap().0
    }

    #[test]
    fn a_nonce_is_answered_once() {
        let sessions = Sessions::default();
        let session = waiting(100);
        let id = session.id().clone();
        sessions.open(session, 100).unwrap();
        assert!(sessions.token(&id, 100).is_none());
        sessions.take_waiting(&id, 100).unwrap();
        assert_eq!(sessions.take_waiting(&id, 100).unwrap_err(), SessionError::Unknown);
    }

    #[test]
    fn expired_sessions_are_nobodys() {
        let sessions = Sessions::default();
        let session = waiting(100);
        let id = session.id().clone();
        sessions.open(session, 100).unwrap();
        assert_eq!(sessions.take_waiting(&id, 400).unwrap_err(), SessionError::Unknown);
    }

    #[test]
    fn a_full_table_refuses_until_sessions_expire() {
        let sessions = Sessions::default();
        for _ in 0..MAX_SESSIONS {
            sessions.open(waiting(100), 100).unwrap();
        }
        assert_eq!(sessions.open(waiting(101), 101), Err(SessionError::Full));
        assert_eq!(sessions.len(), MAX_SESSIONS);
        sessions.open(waiting(401), 401).unwrap();
        assert_eq!(sessions.len(), 1);
    }
}
