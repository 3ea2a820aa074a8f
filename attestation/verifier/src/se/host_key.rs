//! Host-key documents: which public keys belong to machines of IBM.
//!
//! ```text
//! root (by configuration) -> intermediates -> IBM Z key signing service -> host key (P-521)
//! ```
//! Each certificate below the root must be in its time, signed by the one above, and not on a current revocation list of it; without such a list
//! it is refused. "IBM Secure Execution for Linux", section "Verifying the host key document".

use p521::PublicKey;
use p521::elliptic_curve::sec1::ToEncodedPoint as _;
use ring::digest::{SHA256, digest};

use super::cert::{Cert, CertError, Contents, RevocationList};
use super::name;

/// Most intermediates between root and signing key.
const MAX_INTERMEDIATES: usize = 2;
const COORDINATE: usize = 80;

/// A file, by a name that messages use.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// Its name.
    pub name: &'a str,
    /// What is in it.
    pub bytes: &'a [u8],
}

/// Why a host key is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostKeyError {
    /// A file is not what it should be.
    #[error("{file}: {source}")]
    File {
        /// Which.
        file: String,
        /// Why.
        source: CertError,
    },
    /// A file holds too many or too few certificates.
    #[error("{file} holds {found} certificates, expected {expected}")]
    Count {
        /// Which.
        file: String,
        /// How many there are.
        found: usize,
        /// What should be there.
        expected: &'static str,
    },
    /// None of the certificates is IBM's signing key's.
    #[error("no certificate is that of an IBM Z key signing service; download it from IBM beside the host-key document")]
    NoSigningKey,
    /// Which one is meant is not for us to choose.
    #[error("{found} certificates are of IBM Z key signing services, expected one")]
    ManySigningKeys {
        /// How many.
        found: usize,
    },
    /// No certificate above.
    #[error("nobody who is trusted issued \"{subject}\": no root, and no intermediate certificate that was given, has signed it")]
    NoIssuer {
        /// Whose certificate.
        subject: String,
    },
    /// Too many certificates in between.
    #[error("more than {MAX_INTERMEDIATES} certificates between the IBM Z key signing service and a root")]
    TooLong,
    /// Outside its validity.
    #[error("\"{subject}\" is valid from {not_before} to {not_after} (seconds since 1970), it is {now}")]
    NotInTime {
        /// Whose certificate.
        subject: String,
        /// Start.
        not_before: u64,
        /// End.
        not_after: u64,
        /// Now.
        now: u64,
    },
    /// Nobody can say whether it was withdrawn.
    #[error("no current revocation list of \"{issuer}\": {reason}")]
    RevocationList {
        /// Whose list.
        issuer: String,
        /// What there is instead.
        reason: &'static str,
    },
    /// Withdrawn.
    #[error("\"{subject}\" was revoked by \"{issuer}\"")]
    Revoked {
        /// Whose certificate.
        subject: String,
        /// By whom.
        issuer: String,
    },
    /// The host key names another issuer than the signing key.
    #[error("issued by \"{found}\", expected \"{expected}\"")]
    Issuer {
        /// Who it says.
        found: String,
        /// The signing service.
        expected: String,
    },
    /// It names another key of the issuer.
    #[error("the authority key identifier is not that of \"{expected}\"")]
    AuthorityKey {
        /// The signing service.
        expected: String,
    },
    /// Not signed by the signing key.
    #[error("the signature is not by \"{expected}\"")]
    Signature {
        /// The signing service.
        expected: String,
    },
    /// Not a key that machines have.
    #[error("the key is not an EC key on P-521")]
    NotP521,
}

/// A host key that was verified. Private fields: only [`Documents`] makes it.
#[derive(Clone, Debug)]
pub struct HostKey {
    key: PublicKey,
    root: String,
}

impl HostKey {
    pub(super) fn key(&self) -> &PublicKey {
        &self.key
    }

    /// X and Y, each padded to 80 bytes: how the ultravisor has it.
    #[must_use]
    pub fn coordinates(&self) -> [u8; 160] {
        coordinates(&self.key)
    }

    /// Name of the root it hangs from.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// SHA-256 of the key: what key slots and additional data call it by.
    #[must_use]
    pub fn phkh(&self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, &self.coordinates()).as_ref());
        hash
    }
}

/// X and Y, each padded to 80 bytes, as the ultravisor wants keys on P-521.
pub(super) fn coordinates(key: &PublicKey) -> [u8; 160] {
    let point = key.to_encoded_point(false);
    let mut bytes = [0; 160];
    let (x_field, y_field) = bytes.split_at_mut(COORDINATE);
    for (field, coordinate) in [(x_field, point.x()), (y_field, point.y())] {
        let coordinate = coordinate.map(|coordinate| coordinate.as_slice()).unwrap_or_default();
        let start = COORDINATE.saturating_sub(coordinate.len());
        if let Some(end) = field.get_mut(start..) {
            end.copy_from_slice(coordinate);
        }
    }
    bytes
}

/// Host-key documents with everything they are verified by. Who signed what was found out when they were parsed, once; what depends on the time is
/// found out when it is asked for.
#[derive(Clone, Debug)]
pub struct Documents {
    chain: Result<Chain, HostKeyError>,
    documents: Vec<(String, Result<Document, HostKeyError>)>,
}

/// The signing key up to a root.
#[derive(Clone, Debug)]
struct Chain {
    /// From the signing key on.
    links: Vec<Link>,
    root: Validity,
    root_file: String,
}

/// A host key that the signing key vouches for, at some time.
#[derive(Clone, Debug)]
struct Document {
    link: Link,
    key: PublicKey,
}

/// A certificate whose signature was verified, and what the lists of its issuer say of it.
#[derive(Clone, Debug)]
struct Link {
    validity: Validity,
    issuer: String,
    lists: Lists,
}

/// When a certificate is valid.
#[derive(Clone, Debug)]
struct Validity {
    subject: String,
    not_before: u64,
    not_after: u64,
}

/// Revocation lists of one issuer, as far as they concern one certificate.
#[derive(Clone, Debug)]
struct Lists {
    /// Whether there are any in the issuer's name.
    named: bool,
    /// On a genuine list, however old: what was withdrawn once stays so.
    revoked: bool,
    /// Start and end of those that its key signed.
    genuine: Vec<(u64, u64)>,
}

/// What the files hold, before anything is known of it.
struct Parsed {
    roots: Vec<(String, Cert)>,
    intermediates: Vec<Cert>,
    signing: Cert,
    lists: Vec<RevocationList>,
}

impl Documents {
    /// Parses the files: roots and host-key documents with one certificate each; the certificates in between; revocation lists, which may also
    /// stand in the other files. Verifies all signatures.
    ///
    /// # Errors
    /// When a file is malformed, or there is not exactly one signing key among `certificates`. Documents that are not to be trusted are none:
    /// see [`Self::verify`].
    pub fn parse(roots: &[File<'_>], certificates: &[File<'_>], lists: &[File<'_>], documents: &[File<'_>]) -> Result<Self, HostKeyError> {
        let mut all_lists = Vec::new();
        let mut read = |file: &File<'_>| {
            let contents = Contents::parse(file.bytes).map_err(|source| HostKeyError::File { file: file.name.into(), source })?;
            all_lists.extend(contents.lists);
            Ok::<_, HostKeyError>(contents.certs)
        };
        let mut one = |file: &File<'_>| {
            let mut certs = read(file)?;
            let found = certs.len();
            let count = || HostKeyError::Count { file: file.name.into(), found, expected: "one" };
            Ok::<_, HostKeyError>((file.name.to_owned(), certs.pop().filter(|_| found == 1).ok_or_else(count)?))
        };
        let roots = roots.iter().map(&mut one).collect::<Result<_, _>>()?;
        let documents = documents.iter().map(&mut one).collect::<Result<Vec<_>, _>>()?;
        let mut given = Vec::new();
        for file in certificates {
            given.extend(read(file)?);
        }
        for file in lists {
            match read(file)?.len() {
                0 => {}
                found => return Err(HostKeyError::Count { file: file.name.into(), found, expected: "revocation lists alone" }),
            }
        }
        let (mut signing, intermediates): (Vec<_>, Vec<_>) = given.into_iter().partition(|cert| name::is_signing_service(cert.subject()));
        let found = signing.len();
        let signing = signing.pop().ok_or(HostKeyError::NoSigningKey)?;
        if found != 1 {
            return Err(HostKeyError::ManySigningKeys { found });
        }
        let parsed = Parsed { roots, intermediates, signing, lists: all_lists };
        let documents = documents.into_iter().map(|(name, cert)| (name, parsed.document(&cert))).collect();
        Ok(Self { chain: parsed.chain(), documents })
    }

    /// Verifies each document at a time, in seconds since the epoch: its name, and the key or why there is none.
    #[must_use]
    pub fn verify(&self, now: u64) -> Vec<(&str, Result<HostKey, HostKeyError>)> {
        let root = self.chain.as_ref().map_err(Clone::clone).and_then(|chain| chain.check(now));
        let verify = |document: &Result<Document, HostKeyError>| {
            let root = root.clone()?;
            let document = document.as_ref().map_err(Clone::clone)?;
            document.link.check(now)?;
            Ok(HostKey { key: document.key, root: root.to_owned() })
        };
        self.documents.iter().map(|(name, document)| (name.as_str(), verify(document))).collect()
    }
}

impl Chain {
    /// The root's name.
    fn check(&self, now: u64) -> Result<&str, HostKeyError> {
        self.links.iter().try_for_each(|link| link.check(now))?;
        self.root.check(now)?;
        Ok(&self.root_file)
    }
}

impl Link {
    fn check(&self, now: u64) -> Result<(), HostKeyError> {
        self.validity.check(now)?;
        if self.lists.revoked {
            return Err(HostKeyError::Revoked { subject: self.validity.subject.clone(), issuer: self.issuer.clone() });
        }
        if self.lists.genuine.iter().any(|(this_update, next_update)| (*this_update..=*next_update).contains(&now)) {
            return Ok(());
        }
        let reason = match (self.lists.named, self.lists.genuine.is_empty()) {
            (false, _) => "there is none",
            (true, true) => "what there is has not been signed by its key",
            (true, false) => "what there is is past its time, or not in it yet",
        };
        Err(HostKeyError::RevocationList { issuer: self.issuer.clone(), reason })
    }
}

impl Validity {
    fn of(cert: &Cert) -> Self {
        Self { subject: name::short(cert.subject()), not_before: cert.not_before(), not_after: cert.not_after() }
    }

    fn check(&self, now: u64) -> Result<(), HostKeyError> {
        let Self { subject, not_before, not_after } = self;
        if (*not_before..=*not_after).contains(&now) {
            return Ok(());
        }
        Err(HostKeyError::NotInTime { subject: subject.clone(), not_before: *not_before, not_after: *not_after, now })
    }
}

impl Parsed {
    fn chain(&self) -> Result<Chain, HostKeyError> {
        let mut links = Vec::new();
        let mut cert = &self.signing;
        for _ in 0..=MAX_INTERMEDIATES {
            let issued = |issuer: &Cert| issuer.is_authority() && cert.issuer() == issuer.subject() && cert.is_signed_by_key_of(issuer);
            if let Some((file, root)) = self.roots.iter().find(|(_, root)| issued(root)) {
                links.push(self.link(cert, root, |list| list == root.subject()));
                return Ok(Chain { links, root: Validity::of(root), root_file: file.clone() });
            }
            let none = || HostKeyError::NoIssuer { subject: name::short(cert.subject()) };
            let issuer = self.intermediates.iter().find(|issuer| issued(issuer)).ok_or_else(none)?;
            links.push(self.link(cert, issuer, |list| list == issuer.subject()));
            cert = issuer;
        }
        Err(HostKeyError::TooLong)
    }

    fn document(&self, document: &Cert) -> Result<Document, HostKeyError> {
        let signing = &self.signing;
        let expected = || name::short(signing.subject());
        if !name::is_same_service(document.issuer(), signing.subject()) {
            return Err(HostKeyError::Issuer { found: name::short(document.issuer()), expected: expected() });
        }
        if document.names_another_key_than(signing) {
            return Err(HostKeyError::AuthorityKey { expected: expected() });
        }
        if !document.is_signed_by_key_of(signing) {
            return Err(HostKeyError::Signature { expected: expected() });
        }
        let key = document.p521_key().ok_or(HostKeyError::NotP521)?;
        // IBM's signing key also signs lists, though its key usage does not say so.
        Ok(Document { link: self.link(document, signing, |list| name::is_same_service(list, signing.subject())), key })
    }

    fn link(&self, cert: &Cert, issuer: &Cert, is_name: impl Fn(&x509_cert::name::Name) -> bool) -> Link {
        let named: Vec<_> = self.lists.iter().filter(|list| is_name(list.issuer())).collect();
        let genuine: Vec<_> = named.iter().filter(|list| list.is_signed_by_key_of(issuer)).collect();
        let lists = Lists {
            named: !named.is_empty(),
            revoked: genuine.iter().any(|list| list.revokes(cert)),
            genuine: genuine.iter().map(|list| (list.this_update(), list.next_update())).collect(),
        };
        Link { validity: Validity::of(cert), issuer: name::short(issuer.subject()), lists }
    }
}

#[cfg(test)]
impl HostKey {
    /// Of a key that nothing vouches for.
    pub(super) fn unverified(key: PublicKey) -> Self {
        Self { key, root: "nobody".into() }
    }
}
