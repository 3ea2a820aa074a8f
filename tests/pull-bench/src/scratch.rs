//! A file system that begins empty for each run: ext4 in a sparse file of the work directory.
//!
//! Why not a directory: ext4 does not use an inode again for a while after it was freed, and looks at every such inode in turn whenever it needs a new one
//! (`recently_deleted` in its source). What earlier runs left behind, and removed, would decide how long the next one takes: ten times as long was seen.
//!
//! **Invariant:** what is mounted here is seen in this process's own mount namespace only, so nothing stays mounted, however it ends.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Size: several times what the largest image needs with its blobs beside it.
const BYTES: u64 = 8 << 30;
/// Inodes: several times what the image of most files needs.
const INODES: &str = "600000";

/// Gives this process a mount namespace of its own. Before any thread is started: it holds for the calling one.
pub(crate) fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).context("cannot make mounts private")
}

/// The file system. Dropped, it and all in it are gone.
#[derive(Debug)]
pub(crate) struct Scratch {
    file: PathBuf,
    at: PathBuf,
}

impl Scratch {
    /// Makes and mounts one in `directory`.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let scratch = Self { file: directory.join("scratch.ext4"), at: directory.join("scratch") };
        fs::create_dir_all(&scratch.at)?;
        File::create(&scratch.file)?.set_len(BYTES)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-N", INODES, "-E", "lazy_itable_init=1,lazy_journal_init=1"]).arg(&scratch.file))?;
        // Inode tables are holes in a new file, so they are zero already and no thread of the kernel need write them during the run.
        run(Command::new("mount").args(["-o", "loop,noinit_itable"]).arg(&scratch.file).arg(&scratch.at))?;
        Ok(scratch)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.at, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.at.display());
        }
        let _ = fs::remove_file(&self.file);
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{:?} failed ({}): {}", command.get_program(), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
