//! What an overlay of the layers needs: its mount options, and the metadata of directories a layer used without describing them.
//!
//! An archive may hold `tmp/x` and no `tmp/`. In one file system, unpacked layer on layer, `tmp` keeps the mode it had; in an overlay the directory of
//! the upper layer would cover it, and `/tmp` would lose its sticky bit. So such directories take owner, mode and time from the topmost layer below
//! that has them, unless the layer itself hides that one: with a whiteout it said that nothing of what was there is to come through.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::beneath::{self, Tree};
use crate::pull::PulledImage;
use crate::unpack::{Ownership, UnpackError};

/// The options of an overlay mount of this image: `mount -t overlay -o <this>`. `upper` and `work` are the caller's, empty, on one file system.
///
/// A layer that occurs twice is given once, at its upper place; that is the same tree, and the kernel refuses a directory given twice. Metadata-only copies and redirects
/// are switched off: they work by attributes, and files should come from where the archive put them.
#[must_use]
pub fn overlay_options(image: &PulledImage, upper: &Path, work: &Path) -> String {
    let mut seen = BTreeSet::new();
    let lower: Vec<String> = image.layers.iter().rev().filter(|layer| seen.insert(&layer.path)).map(|layer| escaped(&layer.link)).collect();
    format!(
        "lowerdir={},upperdir={},workdir={},index=off,metacopy=off,redirect_dir=nofollow",
        lower.join(":"),
        escaped(upper),
        escaped(work)
    )
}

fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, ':' | ',' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

/// What a layer has to say about a directory.
enum Below {
    Here(Box<Stat>),
    /// It hides whatever is further below.
    Hidden,
    Nothing,
}

fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0u8; 2];
    rustix::fs::fgetxattr(directory, "trusted.overlay.opaque", &mut value[..]) == Ok(1)
}

/// Whether a layer hides what lower ones have of its own directory: that directory, or one on the way to it, is opaque.
fn hides(tree: &mut Tree, path: &[u8]) -> Result<bool, Errno> {
    let ends = path.iter().enumerate().filter(|&(_, &b)| b == b'/').map(|(at, _)| at).chain([path.len()]);
    for end in ends {
        let directory = tree.directory(path.get(..end).unwrap_or_default())?;
        if is_opaque(&directory) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn look(tree: &mut Tree, path: &[u8]) -> Result<Below, Errno> {
    let mut directory: Rc<OwnedFd> = tree.root();
    let mut opaque = false;
    let mut length = 0;
    for part in path.split(|&b| b == b'/') {
        length += part.len() + usize::from(length > 0);
        match beneath::stat(&*directory, part)? {
            None => return Ok(if opaque { Below::Hidden } else { Below::Nothing }),
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                directory = tree.directory(path.get(..length).unwrap_or_default())?;
                if length == path.len() {
                    return Ok(Below::Here(Box::new(stat)));
                }
                opaque |= is_opaque(&directory);
            }
            Some(_) => return Ok(Below::Hidden),
        }
    }
    Ok(Below::Nothing)
}

/// Gives the implied directories of each layer what the layers below say about them. `layers` is lowest first. Doing it again changes nothing.
pub(crate) fn settle_implied(layers: &[(PathBuf, Arc<BTreeSet<Vec<u8>>>)], ownership: Ownership) -> Result<(), UnpackError> {
    let failed = |path: &[u8], what| {
        let path = String::from_utf8_lossy(path).into_owned();
        move |source| UnpackError::System { path, what, source }
    };
    let mut trees = Vec::with_capacity(layers.len());
    for (path, implied) in layers {
        let mut tree = Tree::open(path).map_err(failed(path.as_os_str().as_bytes(), "opening the layer"))?;
        // Set from the deepest up: setting a directory's own time is then the last thing that happens to it.
        for directory in implied.iter().rev() {
            if hides(&mut tree, directory).map_err(failed(directory, "looking for its whiteouts"))? {
                continue;
            }
            for below in trees.iter_mut().rev() {
                match look(below, directory).map_err(failed(directory, "looking it up in a layer below"))? {
                    Below::Nothing => {}
                    Below::Hidden => break,
                    Below::Here(stat) => {
                        let fd = tree.directory(directory).map_err(failed(directory, "opening it"))?;
                        if ownership == Ownership::FromImage {
                            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
                            rustix::fs::fchown(&*fd, Some(uid), Some(gid)).map_err(failed(directory, "setting the owner"))?;
                        }
                        rustix::fs::fchmod(&*fd, Mode::from_raw_mode(stat.st_mode & 0o7777))
                            .map_err(failed(directory, "setting the mode"))?;
                        let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) };
                        rustix::fs::futimens(&*fd, &Timestamps { last_access: time, last_modification: time })
                            .map_err(failed(directory, "setting the time"))?;
                        break;
                    }
                }
            }
        }
        trees.push(tree);
    }
    Ok(())
}
