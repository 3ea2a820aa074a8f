//! Decompression of layer blobs: gzip of several members, zstd of several frames and skippable frames, or none.
//!
//! Not a judge of content: what comes out is compared with the diffID elsewhere. What it does hold: memory (the zstd window is checked before it is
//! allocated) and completeness (garbage after the last member or frame is an error, never ignored).
//!
//! Formats: RFC 1952 (gzip), RFC 8878 (zstd; 3.1.1.1 frame header, 3.1.2 skippable frames).

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// How a layer's archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// Largest zstd window taken, in bytes. A frame may ask for terabytes; the decoder would allocate what the first frame asks for.
const WINDOW_LIMIT: u64 = 100 << 20;

/// A reader of the decompressed bytes of `source`.
pub fn decoder<'a, R: BufRead + 'a>(compression: Compression, source: R) -> Box<dyn Read + 'a> {
    match compression {
        Compression::None => Box::new(source),
        Compression::Gzip => Box::new(MultiGzDecoder::new(source)),
        Compression::Zstd => Box::new(ZstdFrames { source, frame: FrameDecoder::new(), inside: false }),
    }
}

fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads frame after frame up to the end of the source.
struct ZstdFrames<R> {
    source: R,
    frame: FrameDecoder,
    inside: bool,
}

/// What begins at the current place of the source.
enum Start {
    End,
    Skippable(u64),
    Frame(Vec<u8>),
}

impl<R: BufRead> ZstdFrames<R> {
    /// Reads one frame header, byte for byte no further than it goes, and checks the window it asks for.
    fn start(&mut self) -> io::Result<Start> {
        if self.source.fill_buf()?.is_empty() {
            return Ok(Start::End);
        }
        let mut magic = [0u8; 4];
        self.source.read_exact(&mut magic)?;
        let number = u32::from_le_bytes(magic);
        if number & 0xffff_fff0 == 0x184d_2a50 {
            let mut length = [0u8; 4];
            self.source.read_exact(&mut length)?;
            return Ok(Start::Skippable(u64::from(u32::from_le_bytes(length))));
        }
        if number != 0xfd2f_b528 {
            return Err(invalid("zstd: bytes that begin no frame"));
        }
        let mut descriptor = [0u8; 1];
        self.source.read_exact(&mut descriptor)?;
        let [descriptor] = descriptor;
        let single = descriptor & 0x20 != 0;
        let window_bytes = usize::from(!single);
        let dictionary_bytes = [0usize, 1, 2, 4][usize::from(descriptor & 3)];
        let content_bytes = [usize::from(single), 2, 4, 8][usize::from(descriptor >> 6)];
        let mut rest = vec![0u8; window_bytes + dictionary_bytes + content_bytes];
        self.source.read_exact(&mut rest)?;
        let window = match rest.first() {
            Some(&w) if !single => {
                let base = 1u64 << (10 + u32::from(w >> 3));
                base + (base / 8) * u64::from(w & 7)
            }
            _ => {
                let content = rest.iter().rev().take(content_bytes).fold(0u64, |n, &b| n << 8 | u64::from(b));
                if content_bytes == 2 { content + 256 } else { content }
            }
        };
        if window > WINDOW_LIMIT {
            return Err(invalid(format!("zstd: a window of {window} bytes is asked for, at most {WINDOW_LIMIT} are allowed")));
        }
        let mut header = magic.to_vec();
        header.push(descriptor);
        header.append(&mut rest);
        Ok(Start::Frame(header))
    }

    fn skip(&mut self, mut length: u64) -> io::Result<()> {
        while length > 0 {
            let there = self.source.fill_buf()?.len();
            if there == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = usize::try_from(length).unwrap_or(usize::MAX).min(there);
            self.source.consume(step);
            length -= step as u64;
        }
        Ok(())
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.inside {
                match self.start()? {
                    Start::End => return Ok(0),
                    Start::Skippable(length) => self.skip(length)?,
                    Start::Frame(header) => {
                        self.frame.reset(header.as_slice()).map_err(invalid)?;
                        self.inside = true;
                    }
                }
                continue;
            }
            while self.frame.can_collect() < buf.len() && !self.frame.is_finished() {
                let more = buf.len() - self.frame.can_collect();
                self.frame.decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBytes(more)).map_err(invalid)?;
            }
            let read = self.frame.read(buf)?;
            if read > 0 {
                return Ok(read);
            }
            self.inside = false; // finished and empty: the next frame, if any
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn all(compression: Compression, blob: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decoder(compression, blob).read_to_end(&mut out).map(|_| out)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn reads_every_gzip_member() {
        let blob = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(all(Compression::Gzip, &blob).unwrap(), b"one two");
    }

    #[test]
    fn refuses_garbage_after_gzip_and_truncation() {
        let good = gzip(&vec![7u8; 100_000]);
        assert!(all(Compression::Gzip, &[good.clone(), b"garbage".to_vec()].concat()).is_err());
        assert!(all(Compression::Gzip, &good[..good.len() - 1]).is_err());
    }

    #[test]
    fn ac76_reads_every_zstd_frame_and_skips_skippable_ones() {
        let skippable = [0x5f, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let long = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect::<Vec<u8>>();
        let blob = [skippable.to_vec(), zstd(b"one "), skippable.to_vec(), zstd(&long), skippable.to_vec()].concat();
        assert_eq!(all(Compression::Zstd, &blob).unwrap(), [b"one ".to_vec(), long].concat());
    }

    #[test]
    fn ac76_refuses_garbage_after_zstd_truncation_and_a_cut_skippable_frame() {
        let good = zstd(&vec![7u8; 100_000]);
        assert!(all(Compression::Zstd, &[good.clone(), b"garbage!".to_vec()].concat()).is_err());
        assert!(all(Compression::Zstd, &good[..good.len() - 1]).is_err());
        assert!(all(Compression::Zstd, &[0x50, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 1]).is_err());
    }

    #[test]
    fn ac43_refuses_a_zstd_window_beyond_the_limit_before_allocating() {
        // Window descriptor 0xa8: exponent 21, 2 GiB.
        let bomb = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
        assert!(all(Compression::Zstd, &bomb).unwrap_err().to_string().contains("window of 2147483648"));
        // The same through a single segment whose content size is 2^40.
        let bomb = [0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0];
        assert!(all(Compression::Zstd, &bomb).unwrap_err().to_string().contains("window of"));
    }
}
