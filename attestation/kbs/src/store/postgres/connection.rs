//! Connections to PostgreSQL: where to, over TLS or not, and a pool of them.
//!
//! **Invariant:** nothing goes to another host in plain text. TLS there is not a wish (`sslmode`) but the rule, and the certificate is
//! verified against the configured authority and the host's name. **Invariant:** a connection on which anything failed is not used again.

use crate::config::{self, ConfigError, read_bounded};
use crate::store::StoreError;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;
use zeroize::Zeroizing;

const MAX_URL: u64 = 16 * 1024;
const MAX_CA: u64 = 1024 * 1024;
/// To wait for a connection that is free.
const TURN: Duration = Duration::from_secs(5);
/// To connect to one of the hosts that are named, where nothing else is said.
const HOST: Duration = Duration::from_secs(3);
/// To make a connection, over all hosts. Others of the pool are not kept from trying meanwhile.
const CONNECT: Duration = Duration::from_secs(10);
/// For one statement. The database gives up earlier than we do, so that it does not work on for nobody.
const STATEMENT: Duration = Duration::from_secs(10);
/// What each connection is set to. A decision is on the disk when we are told so, whatever the database's default is.
const SESSION: &str = "SET statement_timeout = '8s'; SET idle_in_transaction_session_timeout = '20s'; SET standard_conforming_strings = on;
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// Why the database that is configured cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ConfigError),
    /// A file with a password that everybody may read.
    #[error("{} may be read by everybody, and may have a password: chmod o-r it", .0.display())]
    Mode(PathBuf),
    /// Not a connection string. What it is stays unsaid, since it may have a password.
    #[error("{0}: expected postgresql://user@host/database, or host=… user=… dbname=…, without settings that are libpq's alone")]
    Syntax(&'static str),
    /// A password where others may read it.
    #[error("`store.postgres` has a password: put the whole of it into a file and name that in `store.postgres_url_file`")]
    Password,
    /// No host.
    #[error("no host is named for PostgreSQL: expected a name, an address, or the directory of a socket")]
    NoHost,
    /// Plain text over a network.
    #[error("PostgreSQL on {0} would be spoken to in plain text: expected sslmode=require there, or a socket or loopback address")]
    Plaintext(String),
    /// Nobody vouches for the database.
    #[error("PostgreSQL on {0} needs `store.postgres_ca`: the certificates (PEM) of whoever vouches for it")]
    NoAuthority(String),
    /// The authority's file has no certificates.
    #[error("no certificates of an authority in {}", .0.display())]
    Authority(PathBuf),
}

/// Which database, and how to speak to it.
#[derive(Clone)]
pub(crate) struct Target {
    config: tokio_postgres::Config,
    tls: Option<MakeRustlsConnect>,
    connections: usize,
}

impl Target {
    /// Reads what is configured; asks nobody yet. `None` where no database is.
    pub(crate) fn configured(config: &config::Store) -> Result<Option<Self>, PostgresError> {
        let mut target = match (&config.postgres, &config.postgres_url_file) {
            (Some(text), _) => {
                let target: tokio_postgres::Config = text.parse().map_err(|_| PostgresError::Syntax("`store.postgres`"))?;
                if target.get_password().is_some() {
                    return Err(PostgresError::Password);
                }
                target
            }
            (None, Some(path)) => {
                let text = read_private(path)?;
                text.trim().parse().map_err(|_| PostgresError::Syntax("the file of `store.postgres_url_file`"))?
            }
            (None, None) => return Ok(None),
        };
        let tls = config.postgres_ca.as_deref().map(connector).transpose()?;
        secure(&mut target, tls.is_some())?;
        let per_host = target.get_connect_timeout().copied().unwrap_or(HOST).min(CONNECT);
        target
            .application_name("kata-cc-kbs")
            .connect_timeout(per_host)
            .tcp_user_timeout(STATEMENT)
            .keepalives_idle(Duration::from_secs(60));
        Ok(Some(Self { config: target, tls, connections: config.postgres_connections }))
    }

    /// Under another name in the database's list of who is there.
    pub(super) fn named(mut self, name: &str) -> Self {
        self.config.application_name(name);
        self
    }

    async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        // The task ends with the client, or with the connection: then the client says that it is closed.
        match &self.tls {
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await?;
                tokio::spawn(connection);
                Ok(client)
            }
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                tokio::spawn(connection);
                Ok(client)
            }
        }
    }
}

/// Demands TLS where the database is on another host.
fn secure(target: &mut tokio_postgres::Config, has_authority: bool) -> Result<(), PostgresError> {
    if target.get_hosts().is_empty() && target.get_hostaddrs().is_empty() {
        return Err(PostgresError::NoHost);
    }
    // Where addresses are given, they are what is connected to; names are then for certificates alone.
    let addresses = target.get_hostaddrs().iter().filter(|address| !address.is_loopback()).map(IpAddr::to_string);
    let names = target.get_hosts().iter().filter_map(|host| match host {
        Host::Unix(_) => None,
        Host::Tcp(name) if name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()) => None,
        Host::Tcp(name) => Some(name.clone()),
    });
    let elsewhere = if target.get_hostaddrs().is_empty() { names.collect::<Vec<_>>() } else { addresses.collect() };
    if let Some(host) = elsewhere.into_iter().next() {
        match (target.get_ssl_mode(), has_authority) {
            (SslMode::Prefer | SslMode::Require, true) => _ = target.ssl_mode(SslMode::Require),
            (SslMode::Prefer | SslMode::Require, false) => return Err(PostgresError::NoAuthority(host)),
            (_, _) => return Err(PostgresError::Plaintext(host)),
        }
    }
    Ok(())
}

fn connector(path: &Path) -> Result<MakeRustlsConnect, PostgresError> {
    let pem = read_bounded(path, MAX_CA)?;
    let none = || PostgresError::Authority(path.into());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|_| none())?).map_err(|_| none())?;
    }
    if roots.is_empty() {
        return Err(none());
    }
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|_| none())?;
    Ok(MakeRustlsConnect::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

fn read_private(path: &Path) -> Result<Zeroizing<String>, PostgresError> {
    let meta = std::fs::metadata(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    if meta.permissions().mode() & 0o004 != 0 {
        return Err(PostgresError::Mode(path.into()));
    }
    Ok(Zeroizing::new(read_bounded(path, MAX_URL)?))
}

/// The connections there are. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool(Arc<Inner>);

struct Inner {
    target: Target,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

struct Connection {
    client: Client,
    statements: HashMap<&'static str, Statement>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pool(..)")
    }
}

impl Pool {
    pub(super) fn new(target: Target) -> Self {
        let turns = Arc::new(Semaphore::new(target.connections));
        Self(Arc::new(Inner { target, turns, idle: Mutex::default() }))
    }

    /// A connection that is open as far as we know.
    pub(super) async fn get(&self) -> Result<Lease, StoreError> {
        let turn = timeout(TURN, Arc::clone(&self.0.turns).acquire_owned()).await;
        let turn = turn.map_err(|_| unavailable("all connections are busy"))?.map_err(|_| StoreError::Closed)?;
        let idle = {
            let mut idle = self.0.idle();
            // The last used: where fewer would do, the others stay unused until the database closes them.
            std::iter::from_fn(|| idle.pop()).find(|connection| !connection.client.is_closed())
        };
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let made = timeout(CONNECT, async {
                    let client = self.0.target.connect().await?;
                    client.batch_execute(SESSION).await?;
                    Ok::<_, tokio_postgres::Error>(client)
                });
                let client = made.await.map_err(|_| unavailable("no connection within 10 s"))?.map_err(|e| unavailable(&causes(&e)))?;
                Connection { client, statements: HashMap::new() }
            }
        };
        Ok(Lease { pool: Arc::clone(&self.0), connection: Some(connection), whole: true, _turn: turn })
    }
}

impl Inner {
    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection for one caller. It goes back to the others if nothing failed on it and nothing is under way.
pub(super) struct Lease {
    pool: Arc<Inner>,
    connection: Option<Connection>,
    /// Nothing failed, no statement was left half way, no transaction is open.
    whole: bool,
    _turn: OwnedSemaphorePermit,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.whole
            && !connection.client.is_closed()
        {
            self.pool.idle().push(connection);
        }
    }
}

impl Lease {
    /// Rows of a statement, which is prepared once for each connection.
    pub(super) async fn query(&mut self, sql: &'static str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, StoreError> {
        let (connection, whole) = self.start()?;
        let rows = within(async {
            let statement = match connection.statements.get(sql) {
                Some(statement) => statement.clone(),
                None => {
                    let statement = connection.client.prepare(sql).await?;
                    connection.statements.insert(sql, statement.clone());
                    statement
                }
            };
            connection.client.query(&statement, values).await
        })
        .await?;
        self.whole = whole;
        Ok(rows)
    }

    /// The one row, or none.
    pub(super) async fn row(&mut self, sql: &'static str, values: &[&(dyn ToSql + Sync)]) -> Result<Option<Row>, StoreError> {
        Ok(self.query(sql, values).await?.pop())
    }

    /// How many rows a statement with `RETURNING` touched: none, or some.
    pub(super) async fn touched(&mut self, sql: &'static str, values: &[&(dyn ToSql + Sync)]) -> Result<bool, StoreError> {
        Ok(!self.query(sql, values).await?.is_empty())
    }

    /// Opens a transaction. It ends with [`Lease::commit`]; otherwise the connection is closed, which takes all of it back.
    pub(super) async fn begin(&mut self) -> Result<(), StoreError> {
        self.batch("BEGIN").await?;
        self.whole = false;
        Ok(())
    }

    /// Ends a transaction.
    pub(super) async fn commit(&mut self) -> Result<(), StoreError> {
        self.batch("COMMIT").await?;
        self.whole = true;
        Ok(())
    }

    /// Statements of ours without values.
    pub(super) async fn batch(&mut self, sql: &str) -> Result<(), StoreError> {
        let (connection, whole) = self.start()?;
        within(connection.client.batch_execute(sql)).await?;
        self.whole = whole;
        Ok(())
    }

    /// Until the statement is through, the connection is not whole: also when the caller goes away meanwhile.
    fn start(&mut self) -> Result<(&mut Connection, bool), StoreError> {
        let whole = std::mem::replace(&mut self.whole, false);
        Ok((self.connection.as_mut().ok_or(StoreError::Closed)?, whole))
    }
}

async fn within<T>(work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, StoreError> {
    timeout(STATEMENT, work).await.map_err(|_| unavailable("no answer within 10 s"))?.map_err(failed)
}

/// Whose fault: the connection's or the server's state, which pass, or the statement's.
fn failed(error: tokio_postgres::Error) -> StoreError {
    // SQLSTATE classes: connection, transaction rolled back, resources, object in use, operator intervention, system error. 25006 is a
    // standby, which takes no writes.
    let passes = error.code().is_none_or(|code| {
        let code = code.code();
        ["08", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class)) || code == "25006"
    });
    if passes { unavailable(&causes(&error)) } else { StoreError::Postgres(error) }
}

fn unavailable(why: &str) -> StoreError {
    StoreError::Unavailable(why.into())
}

fn causes(error: &dyn std::error::Error) -> String {
    crate::server::error::causes(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(text: &str, ca: Option<&Path>) -> Result<SslMode, PostgresError> {
        let config = config::Store { postgres: Some(text.into()), postgres_ca: ca.map(Into::into), ..config::Store::default() };
        Target::configured(&config).map(|target| target.unwrap().config.get_ssl_mode())
    }

    fn authority(dir: &Path) -> PathBuf {
        let path = dir.join("ca.pem");
        let certificate = rcgen::generate_simple_self_signed(["db".to_owned()]).unwrap();
        std::fs::write(&path, certificate.cert.pem()).unwrap();
        path
    }

    #[test]
    fn other_hosts_are_spoken_to_over_tls_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority(dir.path());
        for elsewhere in [
            "host=db.example user=kbs",
            "postgresql://kbs@192.0.2.1/kbs",
            "host=/run/pg,db.example user=kbs",
            "host=localhost hostaddr=192.0.2.1",
        ] {
            assert!(matches!(configured(elsewhere, None), Err(PostgresError::NoAuthority(_))), "{elsewhere}");
            assert_eq!(configured(elsewhere, Some(&ca)).unwrap(), SslMode::Require, "{elsewhere}");
            let plain =
                if elsewhere.contains("://") { format!("{elsewhere}?sslmode=disable") } else { format!("{elsewhere} sslmode=disable") };
            assert!(matches!(configured(&plain, Some(&ca)), Err(PostgresError::Plaintext(_))), "{plain}");
        }
        for here in [
            "host=/run/postgresql user=kbs",
            "postgresql://kbs@127.0.0.1/kbs",
            "host=localhost user=kbs",
            "host=::1",
            "host=db hostaddr=127.0.0.1",
        ] {
            assert!(configured(here, None).is_ok(), "{here}");
        }
        assert!(matches!(configured("user=kbs", None), Err(PostgresError::NoHost)));
    }

    #[test]
    fn passwords_are_in_private_files_and_in_no_message() {
        assert!(matches!(configured("postgresql://kbs:CANARY@localhost/kbs", None), Err(PostgresError::Password)));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("url");
        std::fs::write(&path, "host=localhost user=kbs password=CANARY nonsense\n").unwrap();
        let config = config::Store { postgres_url_file: Some(path.clone()), ..config::Store::default() };
        let read = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Target::configured(&config).map(drop).unwrap_err()
        };
        assert!(matches!(read(0o644), PostgresError::Mode(_)));
        let error = read(0o640);
        assert!(matches!(error, PostgresError::Syntax(_)) && !format!("{error} {error:?}").contains("CANARY"), "{error:?}");
        std::fs::write(&path, "host=localhost user=kbs password=secret\n").unwrap();
        assert!(Target::configured(&config).unwrap().is_some());
    }

    #[test]
    fn an_authority_is_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        for text in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(configured("host=db.example", Some(&path)), Err(PostgresError::Authority(_))), "{text:?}");
        }
    }
}
