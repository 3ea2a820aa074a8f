//! The ciphertext of one encrypted layer, held back until it is known to be authentic.
//!
//! Why it is held back: AES-CTR turns a flipped bit of ciphertext into the same flipped bit of plaintext. Whoever may alter the ciphertext (the registry, the
//! network, the host) and watches what a decoder then does (which pages it touches, how fast it drains the connection, when it gives up) learns bits of the
//! plaintext before the MAC has been looked at. So nothing is decrypted, decompressed or unpacked while a layer is downloaded (AC-44).
//!
//! ```text
//! Spool (ciphertext goes in) ──size, blob digest, MAC right──▶ Authenticated ──▶ Plaintext (comes out)
//! ```
//! The file is one without a name (`O_TMPFILE`), so it cannot be left behind and nobody else opens it; in the guest it is memory. What has been read of it is
//! given back at once by punching holes, so that ciphertext and unpacked files do not lie in memory side by side.
//!
//! **Invariant:** an [`Authenticated`] exists only if size, blob digest and MAC of all that is in the file were right, and [`Plaintext`] comes from one only.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use tokio::sync::watch;

use crate::layer::{LayerError, PIECE, Source, Tally};
use crate::ocicrypt::{Checking, LayerKey, Opening};

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> LayerError {
    move |source| LayerError::Spool { what, source }
}

/// A layer's ciphertext as it comes in. Nothing can be read from it.
pub(crate) struct Spool {
    file: File,
    tally: Tally,
    checking: Checking,
}

impl Spool {
    /// An empty spool in `file`, which must be empty, without a name, and nobody else's.
    pub(crate) fn new(file: File, tally: Tally, key: &LayerKey) -> Self {
        Self { file, tally, checking: Checking::new(key) }
    }

    /// Takes the next ciphertext in.
    pub(crate) fn take(&mut self, ciphertext: &[u8]) -> Result<(), LayerError> {
        // The size first: what is more than announced must not fill the guest's memory.
        self.tally.take(ciphertext)?;
        self.checking.update(ciphertext);
        self.file.write_all(ciphertext).map_err(failed("keeping the ciphertext until its authentication code is known"))
    }

    /// Ends the layer and says whether it is the one that was encrypted.
    pub(crate) fn authenticate(self) -> Result<Authenticated, LayerError> {
        let Self { file, tally, checking } = self;
        let length = tally.finish()?;
        let opening = checking.finish()?;
        Ok(Authenticated { file, length, opening })
    }
}

/// A whole layer's ciphertext that is authentic.
pub(crate) struct Authenticated {
    file: File,
    length: u64,
    opening: Opening,
}

impl Authenticated {
    /// Begins to decrypt. Ends early once `cancelled` is set, or its sender gone.
    pub(crate) fn open(self, cancelled: watch::Receiver<bool>) -> Plaintext {
        let Self { file, length, opening } = self;
        Plaintext { file, left: length, at: 0, opening, cancelled, piece: Vec::new(), used: 0, failure: None }
    }
}

/// The plaintext of an authentic layer. Its first failure stays.
pub(crate) struct Plaintext {
    file: File,
    left: u64,
    at: u64,
    opening: Opening,
    cancelled: watch::Receiver<bool>,
    piece: Vec<u8>,
    used: usize,
    failure: Option<LayerError>,
}

impl Plaintext {
    fn next(&mut self) -> Result<(), LayerError> {
        if *self.cancelled.borrow() || self.cancelled.has_changed().is_err() {
            return Err(LayerError::Cancelled);
        }
        let step = usize::try_from(self.left).unwrap_or(usize::MAX).min(PIECE);
        self.piece.resize(step, 0);
        self.used = 0;
        self.file.read_exact_at(&mut self.piece, self.at).map_err(failed("reading the ciphertext back"))?;
        self.opening.apply(&mut self.piece);
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, hole, self.at, step as u64) {
            // Where there are no holes, as on some disks of workstations, the file is gone a little later: when it is closed.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(failed("giving back the ciphertext that was read")(error.into())),
        }
        self.at += step as u64;
        self.left -= step as u64;
        Ok(())
    }

    /// The next piece, if there is one and the last is used up.
    fn advance(&mut self) {
        if self.used == self.piece.len()
            && self.left > 0
            && self.failure.is_none()
            && let Err(error) = self.next()
        {
            self.piece.clear();
            self.used = 0;
            self.failure = Some(error);
        }
    }
}

impl Read for Plaintext {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let step = self.fill_buf()?.read(buf)?;
        self.consume(step);
        Ok(step)
    }
}

impl BufRead for Plaintext {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.advance();
        if self.failure.is_some() {
            return Err(io::Error::other("the layer cannot be read on"));
        }
        Ok(self.piece.get(self.used..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.used = self.used.saturating_add(amount).min(self.piece.len());
    }
}

impl Source for Plaintext {
    fn finish(mut self) -> Result<(), LayerError> {
        while self.failure.is_none() && (self.left > 0 || self.used < self.piece.len()) {
            self.used = self.piece.len();
            self.advance();
        }
        match self.failure {
            Some(error) => Err(error),
            None => Ok(self.opening.finish()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::digest::Digest;
    use crate::ocicrypt::Sealed;
    use crate::secret::Secret;
    use crate::testing::{KEK, Layer};

    /// A layer of this content taken in pieces, the spool's file once more, and how long it is.
    fn spooled(content: &[u8]) -> (Spool, File, u64) {
        let layer = Layer::plain(content).encrypted(&KEK);
        let sealed = Sealed::from_annotations(&layer.annotations).unwrap();
        let key = sealed.unwrap(&sealed.packets()[0], &Secret::new(KEK.to_vec())).unwrap();
        let file = tempfile::tempfile().unwrap();
        let same = file.try_clone().unwrap();
        let size = layer.blob.len() as u64;
        let mut spool = Spool::new(file, Tally::expecting(size, Digest::of(&layer.blob)), &key);
        for piece in layer.blob.chunks(10_000) {
            spool.take(piece).unwrap();
        }
        (spool, same, size)
    }

    #[test]
    fn gives_ciphertext_back_to_the_system_as_it_is_read() {
        let content: Vec<u8> = (0..4 * PIECE + 1000).map(|n| (n % 251) as u8).collect();
        let (spool, same, _) = spooled(&content);
        same.sync_all().unwrap();
        let before = same.metadata().unwrap().blocks();
        let (_cancel, cancelled) = watch::channel(false);
        let mut plaintext = spool.authenticate().unwrap().open(cancelled);
        let mut found = vec![0; 3 * PIECE];
        plaintext.read_exact(&mut found).unwrap();
        assert_eq!(found, content[..3 * PIECE]);
        let after = same.metadata().unwrap().blocks();
        assert!(after <= before - 3 * (PIECE as u64 / 512), "{before} blocks before, {after} after");
        // What the decoder leaves is read all the same, for the digest.
        plaintext.finish().unwrap();
    }

    #[test]
    fn ac78_a_failure_stays_one_however_often_is_read() {
        let (spool, same, size) = spooled(&vec![7; 2 * PIECE]);
        let (_cancel, cancelled) = watch::channel(false);
        let mut plaintext = spool.authenticate().unwrap().open(cancelled);
        same.set_len(PIECE as u64 + 1).unwrap();
        let mut found = vec![0; PIECE];
        plaintext.read_exact(&mut found).unwrap();
        // Also once the bytes are there again: what failed is no end, and nothing comes after it.
        assert!(plaintext.read(&mut found).is_err());
        same.set_len(size).unwrap();
        for _ in 0..3 {
            assert!(plaintext.read(&mut found).is_err());
        }
        assert!(matches!(plaintext.finish(), Err(LayerError::Spool { .. })));
    }

    #[test]
    fn a_cut_file_is_no_shorter_layer() {
        let (spool, same, _) = spooled(&vec![7; 2 * PIECE]);
        let (_cancel, cancelled) = watch::channel(false);
        let plaintext = spool.authenticate().unwrap().open(cancelled);
        same.set_len(PIECE as u64).unwrap();
        assert!(matches!(plaintext.finish(), Err(LayerError::Spool { .. })));
    }
}
