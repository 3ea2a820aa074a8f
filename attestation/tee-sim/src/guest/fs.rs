//! FUSE in front of [`ReportInterface`]: inode numbers, open files, error numbers. No decision is made here.
//!
//! Open files behave as configfs makes them: the first read takes the whole value and later reads of the same file are slices of it,
//! so a reader with a small buffer gets one consistent blob; writes of `inblob` gather and take effect when the file is closed (FLUSH,
//! which the closing process waits for; RELEASE would come too late for whoever reads `outblob` next). Files are read by `read(2)`, as
//! configfs has it: their size is 0 until they are read, so `sendfile` and `splice` see nothing.

use super::tsm::{Attribute, EntryId, Hardware, INBLOB_MAX, Provider, Refusal, ReportInterface};
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nothing is cached: attributes do not change, and names come and go by mkdir and rmdir.
const TTL: Duration = Duration::ZERO;
/// Inode numbers an entry takes: one for the directory and one for each attribute, with room.
const STRIDE: u64 = 16;
const MAX_OPEN_FILES: usize = 256;

/// The report directory as a FUSE file system.
pub struct ReportFs<H> {
    state: Mutex<State<H>>,
}

struct State<H> {
    tsm: ReportInterface<H>,
    open: HashMap<u64, OpenFile>,
    next_handle: u64,
}

struct OpenFile {
    entry: EntryId,
    attribute: Attribute,
    content: Option<Vec<u8>>,
    written: Option<Vec<u8>>,
}

#[derive(Clone, Copy)]
enum Node {
    Root,
    Entry(EntryId),
    File(EntryId, Attribute),
}

impl Node {
    fn inode(self) -> INodeNo {
        INodeNo(match self {
            Self::Root => 1,
            Self::Entry(id) => id.0 * STRIDE,
            Self::File(id, attribute) => {
                let position = Attribute::ALL.iter().position(|a| *a == attribute).unwrap_or_default();
                id.0 * STRIDE + 1 + position as u64
            }
        })
    }

    fn attr(self) -> FileAttr {
        let (kind, perm, nlink) = match self {
            Self::Root | Self::Entry(_) => (FileType::Directory, 0o755, 2),
            Self::File(_, attribute) => (FileType::RegularFile, attribute.mode(), 1),
        };
        FileAttr {
            ino: self.inode(),
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl<H: Hardware> State<H> {
    fn node(&self, inode: INodeNo) -> Result<Node, Errno> {
        if inode.0 == 1 {
            return Ok(Node::Root);
        }
        let id = EntryId(inode.0 / STRIDE);
        if !self.tsm.contains(id) {
            return Err(Errno::ENOENT);
        }
        match inode.0 % STRIDE {
            0 => Ok(Node::Entry(id)),
            n => usize::try_from(n - 1)
                .ok()
                .and_then(|n| Attribute::ALL.get(n))
                .map(|attribute| Node::File(id, *attribute))
                .ok_or(Errno::ENOENT),
        }
    }

    fn lookup(&self, parent: INodeNo, name: &OsStr) -> Result<Node, Errno> {
        let name = name.to_str().ok_or(Errno::ENOENT)?;
        match self.node(parent)? {
            Node::Root => self.tsm.find(name).map(Node::Entry).ok_or(Errno::ENOENT),
            Node::Entry(id) => {
                let attribute = Attribute::by_name(name).filter(|attribute| self.tsm.provider().has(*attribute));
                attribute.map(|a| Node::File(id, a)).ok_or(Errno::ENOENT)
            }
            Node::File(..) => Err(Errno::ENOTDIR),
        }
    }

    fn open(&mut self, inode: INodeNo) -> Result<u64, Errno> {
        let Node::File(entry, attribute) = self.node(inode)? else { return Err(Errno::EISDIR) };
        if self.open.len() >= MAX_OPEN_FILES {
            return Err(Errno::ENFILE);
        }
        let handle = self.next_handle;
        self.next_handle += 1;
        self.open.insert(handle, OpenFile { entry, attribute, content: None, written: None });
        Ok(handle)
    }

    fn read(&mut self, handle: FileHandle, offset: u64, size: u32) -> Result<&[u8], Errno> {
        let file = self.open.get_mut(&handle.0).ok_or(Errno::EBADF)?;
        if file.content.is_none() {
            file.content = Some(self.tsm.read(file.entry, file.attribute).map_err(errno)?);
        }
        let content = file.content.as_deref().unwrap_or_default();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX)).min(content.len());
        content.get(start..end).ok_or(Errno::EINVAL)
    }

    fn write(&mut self, handle: FileHandle, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let file = self.open.get_mut(&handle.0).ok_or(Errno::EBADF)?;
        let written = u32::try_from(data.len()).map_err(|_| Errno::EFBIG)?;
        match file.attribute {
            Attribute::Inblob => {
                let gathered = file.written.get_or_insert_default();
                let start = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
                let end = start.checked_add(data.len()).filter(|end| *end <= INBLOB_MAX).ok_or(Errno::EFBIG)?;
                if gathered.len() < end {
                    gathered.resize(end, 0);
                }
                gathered.get_mut(start..end).ok_or(Errno::EFBIG)?.copy_from_slice(data);
            }
            attribute => self.tsm.write(file.entry, attribute, data).map_err(errno)?,
        }
        Ok(written)
    }

    fn flush(&mut self, handle: FileHandle) -> Result<(), Errno> {
        let file = self.open.get_mut(&handle.0).ok_or(Errno::EBADF)?;
        match file.written.take() {
            Some(value) => self.tsm.write(file.entry, file.attribute, &value).map_err(errno),
            None => Ok(()),
        }
    }
}

impl<H: Hardware> ReportFs<H> {
    /// A file system over an interface without entries.
    pub fn new(hardware: H, provider: Provider) -> Self {
        Self { state: Mutex::new(State { tsm: ReportInterface::new(hardware, provider), open: HashMap::new(), next_handle: 1 }) }
    }

    fn state(&self) -> MutexGuard<'_, State<H>> {
        // One thread serves requests; a panic in it ends the process, so a poisoned lock cannot be seen by another.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<H: Hardware + Send + 'static> Filesystem for ReportFs<H> {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.state().lookup(parent, name) {
            Ok(node) => reply.entry(&TTL, &node.attr(), Generation(0)),
            Err(e) => reply.error(e),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.state().node(ino) {
            Ok(node) => reply.attr(&TTL, &node.attr()),
            Err(e) => reply.error(e),
        }
    }

    /// Comes with O_TRUNC; there is nothing to truncate.
    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.state().node(ino) {
            Ok(node) => reply.attr(&TTL, &node.attr()),
            Err(e) => reply.error(e),
        }
    }

    fn mkdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        let mut state = self.state();
        let made = match (state.node(parent), name.to_str()) {
            (Ok(Node::Root), Some(name)) => state.tsm.make(name).map_err(errno),
            (Ok(Node::Root), None) => Err(Errno::EINVAL),
            (Ok(_), _) => Err(Errno::EPERM),
            (Err(e), _) => Err(e),
        };
        match made {
            Ok(id) => reply.entry(&TTL, &Node::Entry(id).attr(), Generation(0)),
            Err(e) => reply.error(e),
        }
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = self.state();
        let removed = match (state.node(parent), name.to_str()) {
            (Ok(Node::Root), Some(name)) => state.tsm.remove(name).map_err(errno),
            (Ok(Node::Root), None) => Err(Errno::ENOENT),
            (Ok(_), _) => Err(Errno::EPERM),
            (Err(e), _) => Err(e),
        };
        match removed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn create(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, _mode: u32, _umask: u32, _flags: i32, reply: ReplyCreate) {
        reply.error(Errno::EACCES);
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.state().open(ino) {
            // Direct: sizes are not known before the report is made, so the page cache must not cut reads short.
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO),
            Err(e) => reply.error(e),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.state().read(fh, offset, size) {
            Ok(data) => reply.data(data),
            Err(e) => reply.error(e),
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.state().write(fh, offset, data) {
            Ok(written) => reply.written(written),
            Err(e) => reply.error(e),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        match self.state().flush(fh) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.state().open.remove(&fh.0);
        reply.ok();
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let state = self.state();
        let mut names = vec![(ino, FileType::Directory, ".".to_owned()), (INodeNo(1), FileType::Directory, "..".to_owned())];
        match state.node(ino) {
            Ok(Node::Root) => {
                names.extend(state.tsm.list().map(|(id, name)| (Node::Entry(id).inode(), FileType::Directory, name.to_owned())));
            }
            Ok(Node::Entry(id)) => {
                let attributes = Attribute::ALL.into_iter().filter(|attribute| state.tsm.provider().has(*attribute));
                names.extend(attributes.map(|a| (Node::File(id, a).inode(), FileType::RegularFile, a.name().to_owned())));
            }
            Ok(Node::File(..)) => return reply.error(Errno::ENOTDIR),
            Err(e) => return reply.error(e),
        }
        for (next, (inode, kind, name)) in (1u64..).zip(names).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(inode, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

pub(super) fn errno(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::NotFound => Errno::ENOENT,
        Refusal::Exists => Errno::EEXIST,
        Refusal::NotPermitted => Errno::EPERM,
        Refusal::Invalid => Errno::EINVAL,
        Refusal::Busy => Errno::EBUSY,
        Refusal::TooBig => Errno::EFBIG,
        Refusal::NoSpace => Errno::ENOSPC,
        Refusal::NameTooLong => Errno::ENAMETOOLONG,
        Refusal::Io => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Blobs;

    struct Big;
    impl Hardware for Big {
        fn report(&mut self, report_data: &[u8; 64], _vmpl: u8) -> Result<Blobs, Refusal> {
            Ok(Blobs { outblob: report_data.to_vec(), auxblob: (0..10_000u32).map(|i| (i % 251) as u8).collect() })
        }
    }

    fn file(state: &mut State<Big>, name: &str) -> FileHandle {
        let entry = state.lookup(INodeNo(1), OsStr::new("r")).unwrap().inode();
        let inode = state.lookup(entry, OsStr::new(name)).unwrap().inode();
        FileHandle(state.open(inode).unwrap())
    }

    fn state() -> State<Big> {
        let mut state = State { tsm: ReportInterface::new(Big, Provider::SevGuest), open: HashMap::new(), next_handle: 1 };
        state.tsm.make("r").unwrap();
        state
    }

    #[test]
    fn reads_of_a_large_blob_in_pieces_give_the_whole_blob() {
        let mut state = state();
        let inblob = file(&mut state, "inblob");
        state.write(inblob, 0, &[3; 32]).unwrap();
        state.write(inblob, 32, &[4; 32]).unwrap();
        state.flush(inblob).unwrap();
        let auxblob = file(&mut state, "auxblob");
        let mut whole = Vec::new();
        loop {
            let piece = state.read(auxblob, whole.len() as u64, 4096).unwrap().to_vec();
            if piece.is_empty() {
                break;
            }
            whole.extend(piece);
        }
        assert_eq!(whole.len(), 10_000);
        assert!(whole.iter().enumerate().all(|(i, b)| *b == (i % 251) as u8));
        let outblob = file(&mut state, "outblob");
        assert_eq!(state.read(outblob, 30, 4).unwrap(), [3, 3, 4, 4]);
        assert_eq!(state.read(outblob, 1 << 40, 4).unwrap(), [0u8; 0]);
    }

    #[test]
    fn a_write_takes_effect_once_and_when_the_file_is_closed() {
        let mut state = state();
        let inblob = file(&mut state, "inblob");
        state.write(inblob, 0, &[3; 64]).unwrap();
        let generation = file(&mut state, "generation");
        assert_eq!(state.read(generation, 0, 10).unwrap(), b"0\n");
        state.flush(inblob).unwrap();
        state.flush(inblob).unwrap();
        let generation = file(&mut state, "generation");
        assert_eq!(state.read(generation, 0, 10).unwrap(), b"1\n");
    }

    #[test]
    fn refuses_an_inblob_that_is_too_long() {
        let mut state = state();
        let inblob = file(&mut state, "inblob");
        assert_eq!(state.write(inblob, 1, &[0; 64]).unwrap_err().code(), Errno::EFBIG.code());
        assert_eq!(state.write(inblob, u64::MAX, &[0; 1]).unwrap_err().code(), Errno::EFBIG.code());
    }

    #[test]
    fn files_of_a_removed_entry_are_gone() {
        let mut state = state();
        let generation = file(&mut state, "generation");
        state.tsm.remove("r").unwrap();
        assert_eq!(state.read(generation, 0, 10).unwrap_err().code(), Errno::ENOENT.code());
    }
}
