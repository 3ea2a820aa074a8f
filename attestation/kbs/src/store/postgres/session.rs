//! Sessions that all brokers of a database know.
//!
//! Ids are credentials and tokens open resources, so rows are found by the SHA-256 of the id and are sealed. The bounds of
//! [`crate::session`] hold nearly: each broker counts what it adds itself, and asks for the sum every second.
//!
//! **Invariant:** a waiting session is handed out once over all brokers: by the `DELETE` that found its row. **Invariant:** times are those
//! of the brokers' clocks, which must agree to within seconds; the database's is not asked.

use super::Postgres;
use crate::session::{MAX_TOKENS, MAX_WAITING, SWEEP_SECONDS, SessionError};
use crate::store::StoreError;
use crate::store::audit::integer;
use kata_cc_kbs_protocol::{AttestedSession, AwaitAttest, SessionId};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a count of waiting sessions is believed, seconds.
const COUNT_SECONDS: u64 = 1;
/// How long the sum for metrics is shown again.
const SHOWN: Duration = Duration::from_secs(2);

/// What this broker knows of the tables.
#[derive(Debug, Default)]
pub(super) struct Known {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    /// Waiting sessions when they were counted, and our own since.
    waiting: usize,
    counted_at: u64,
    /// Bytes of tokens that we added since the sweep.
    added: usize,
    swept_at: u64,
    /// The sum for metrics, and when it was made.
    shown: Option<(Instant, usize)>,
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time to count. Whoever is told so does; the others go by the old count meanwhile.
    fn is_count_due(&self, now: u64) -> bool {
        let mut counts = self.lock();
        let due = now >= counts.counted_at.saturating_add(COUNT_SECONDS);
        if due {
            counts.counted_at = now;
        }
        due
    }

    /// Whether it is time to make room among tokens, now that one of so many bytes came.
    fn is_sweep_due(&self, bytes: usize, now: u64) -> bool {
        let mut counts = self.lock();
        counts.added = counts.added.saturating_add(bytes);
        let due = now >= counts.swept_at.saturating_add(SWEEP_SECONDS) || counts.added > MAX_TOKENS / 8;
        if due {
            (counts.swept_at, counts.added) = (now, 0);
        }
        due
    }
}

fn row_key(id: &SessionId) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, id.as_str().as_bytes()).as_ref().to_vec()
}

fn place(table: &str, key: &[u8]) -> String {
    format!("{table}:{}", hex::encode(key))
}

impl Postgres {
    pub(crate) async fn open_session(&self, session: AwaitAttest, now: u64) -> Result<(), SessionError> {
        let key = row_key(session.id());
        let expires_at = integer(session.expires_at());
        let text = serde_json::to_vec(&session).map_err(|_| StoreError::Corrupt("session"))?;
        let sealed = self.sealer.seal_transient(&place("waiting", &key), &text).map_err(StoreError::from)?;
        let mut lease = self.pool.get().await?;
        if self.sessions.is_count_due(now) {
            let sql = "WITH over AS (DELETE FROM kbs_waiting WHERE expires_at <= $1)
                SELECT count(*) FROM kbs_waiting WHERE expires_at > $1";
            let row = lease.row(sql, &[&integer(now)]).await?.ok_or(StoreError::Corrupt("count"))?;
            let waiting: i64 = row.try_get(0).map_err(StoreError::from)?;
            self.sessions.lock().waiting = usize::try_from(waiting).unwrap_or_default();
        }
        {
            let mut counts = self.sessions.lock();
            if counts.waiting >= MAX_WAITING {
                return Err(SessionError::Full);
            }
            counts.waiting = counts.waiting.saturating_add(1);
        }
        lease.query("INSERT INTO kbs_waiting (id, sealed, expires_at) VALUES ($1, $2, $3)", &[&key, &sealed, &expires_at]).await?;
        Ok(())
    }

    pub(crate) async fn take_waiting(&self, id: &SessionId, now: u64) -> Result<AwaitAttest, SessionError> {
        let key = row_key(id);
        let mut lease = self.pool.get().await?;
        let Some(row) = lease.row("DELETE FROM kbs_waiting WHERE id = $1 RETURNING sealed", &[&key]).await? else {
            let has_token = lease.touched("SELECT 1 FROM kbs_attested WHERE id = $1", &[&key]).await?;
            return Err(if has_token { SessionError::Attested } else { SessionError::Unknown });
        };
        drop(lease);
        let sealed: Vec<u8> = row.try_get(0).map_err(StoreError::from)?;
        let text = self.sealer.open_transient(&place("waiting", &key), &sealed).map_err(StoreError::from)?;
        let session: AwaitAttest = serde_json::from_slice(&text).map_err(|_| StoreError::Corrupt("session"))?;
        if now < session.expires_at() { Ok(session) } else { Err(SessionError::Unknown) }
    }

    pub(crate) async fn keep_attested(&self, session: AttestedSession, now: u64) -> Result<(), StoreError> {
        let key = row_key(session.id());
        let sealed = self.sealer.seal_transient(&place("attested", &key), session.token().as_bytes())?;
        let mut lease = self.pool.get().await?;
        let sql = "INSERT INTO kbs_attested (id, sealed, expires_at) VALUES ($1, $2, $3)";
        lease.query(sql, &[&key, &sealed, &integer(session.expires_at())]).await?;
        if self.sessions.is_sweep_due(sealed.len(), now) {
            lease.query("DELETE FROM kbs_attested WHERE expires_at <= $1", &[&integer(now)]).await?;
            // The oldest make room for the newest.
            let sql = "DELETE FROM kbs_attested WHERE id IN (SELECT id FROM (
                SELECT id, sum(octet_length(sealed)) OVER (ORDER BY expires_at DESC, id) AS bytes FROM kbs_attested) AS summed
                WHERE bytes > $1)";
            lease.query(sql, &[&i64::try_from(MAX_TOKENS).unwrap_or(i64::MAX)]).await?;
        }
        Ok(())
    }

    pub(crate) async fn session_token(&self, id: &SessionId, now: u64) -> Result<Option<String>, StoreError> {
        let key = row_key(id);
        let sql = "SELECT sealed FROM kbs_attested WHERE id = $1 AND expires_at > $2";
        let row = self.pool.get().await?.row(sql, &[&key, &integer(now)]).await?;
        let Some(row) = row else { return Ok(None) };
        let token = self.sealer.open_transient(&place("attested", &key), &row.try_get::<_, Vec<u8>>(0)?)?;
        Ok(Some(std::str::from_utf8(&token).map_err(|_| StoreError::Corrupt("session"))?.to_owned()))
    }

    /// Anybody may ask for it, so the database is asked now and then alone.
    pub(crate) async fn session_count(&self) -> Result<usize, StoreError> {
        if let Some((at, count)) = self.sessions.lock().shown
            && at.elapsed() < SHOWN
        {
            return Ok(count);
        }
        let sql = "SELECT (SELECT count(*) FROM kbs_waiting) + (SELECT count(*) FROM kbs_attested)";
        let row = self.pool.get().await?.row(sql, &[]).await?.ok_or(StoreError::Corrupt("count"))?;
        let count = usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or_default();
        self.sessions.lock().shown = Some((Instant::now(), count));
        Ok(count)
    }
}
