//! How much of anything an image may be. Every number a registry or an archive names is held against one of these before it is acted on.

/// Bounds on one image. The defaults let every image through that we know to be honest, and keep a hostile one from exhausting the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one manifest, index or signature manifest.
    pub manifest_bytes: u64,
    /// Bytes of the image configuration.
    pub config_bytes: u64,
    /// Layers of one image.
    pub layers: usize,
    /// Compressed bytes of all layers of one image.
    pub download_bytes: u64,
    /// Bytes of all layers of one image after decompression.
    pub unpacked_bytes: u64,
    /// Archive entries of all layers of one image, and the directories they use without naming them.
    pub entries: u64,
    /// Decompressed bytes allowed for each compressed byte of a layer, once [`Self::ratio_floor`] is passed.
    pub ratio: u64,
    /// Decompressed bytes of a layer below which the ratio is not asked for: small layers of zeros compress a thousandfold.
    pub ratio_floor: u64,
    /// Bytes of one path in an archive.
    pub path_bytes: usize,
    /// Parts of one path in an archive. Every directory on the way costs memory and time, and taking a tree down takes as many steps.
    pub path_parts: usize,
    /// Bytes of one PAX or GNU extension header.
    pub extension_bytes: u64,
    /// Extended attributes of one entry.
    pub xattrs: usize,
    /// Signatures tried for one digest.
    pub signatures: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        const GIB: u64 = 1 << 30;
        Self {
            manifest_bytes: 4 * MIB,
            config_bytes: 4 * MIB,
            layers: 128,
            download_bytes: 64 * GIB,
            unpacked_bytes: 256 * GIB,
            entries: 4_000_000,
            ratio: 200,
            ratio_floor: 64 * MIB,
            path_bytes: 4096,
            path_parts: 255,
            extension_bytes: MIB,
            xattrs: 64,
            signatures: 32,
        }
    }
}
