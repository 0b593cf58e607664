//! A filesystem whose daemon answers as a file's name says, so that each kernel call meets what a network
//! or a FUSE filesystem may answer: sizes that are stale or made up, and errors of any number.
//!
//! The daemon is a process of its own: one that served itself could not be killed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request, Session,
};

use super::child::ROOM;
use crate::common::Data;

/// The content of every file.
pub(crate) const DATA: Data = Data::new(0xf5e);

/// Tells the daemon's process what it is, and where it is to serve.
const TOLD: &str = "ZCIO_FUSE_DAEMON";

/// A file, as its name says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spec {
    /// The size that it is said to have.
    pub(crate) stated: u64,
    /// How many bytes it has.
    pub(crate) held: u64,
    /// How many it has once the first of them has been read.
    pub(crate) grown: u64,
    /// Every read goes to the daemon, whatever the size (`FOPEN_DIRECT_IO`).
    pub(crate) direct: bool,
    /// Whether what is stated of it is believed for an hour, or not at all.
    pub(crate) believed: bool,
    /// No position: `FOPEN_NONSEEKABLE`.
    pub(crate) no_seek: bool,
    /// What a read of a byte from here on answers, and how often it does before it does better.
    pub(crate) fails: Option<(u64, i32, u32)>,
}

impl Spec {
    fn name(self, number: u32) -> String {
        let (from, errno, times) = self.fails.unwrap_or((u64::MAX, 0, 0));
        let flags = [self.direct, self.believed, self.no_seek].map(u64::from);
        let sizes = [self.stated, self.held, self.grown];
        let numbers = [&sizes[..], &flags, &[from, errno as u64, times.into()]].concat();
        let words: Vec<_> = numbers.iter().map(u64::to_string).collect();
        format!("{number}.{}", words.join("."))
    }

    fn from_name(name: &OsStr) -> Option<Self> {
        let words = name.to_str()?.split('.').map(|word| word.parse().ok());
        let numbers: Vec<u64> = words.collect::<Option<_>>()?;
        let [
            _,
            stated,
            held,
            grown,
            direct,
            believed,
            no_seek,
            from,
            errno,
            times,
        ] = numbers[..]
        else {
            return None;
        };
        let fails = (times > 0).then_some((from, errno as i32, times as u32));
        let (direct, believed, no_seek) = (direct > 0, believed > 0, no_seek > 0);
        Some(Self {
            stated,
            held,
            grown,
            direct,
            believed,
            no_seek,
            fails,
        })
    }
}

/// The filesystem, mounted, and its daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    dir: PathBuf,
    process: Child,
    files: u32,
}

impl Daemon {
    /// An error says why it cannot be had here.
    pub(crate) fn new(name: &str) -> Result<Self, String> {
        if !PathBuf::from("/dev/fuse").exists() {
            return Err("there is no /dev/fuse".to_owned());
        }
        let dir = PathBuf::from(ROOM).join(name);
        fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let exe = std::env::current_exe().expect("this very binary");
        let process = Command::new(exe)
            .args(["a_fuse_daemon", "--exact", "--ignored", "--nocapture"])
            .env(TOLD, &dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| format!("the daemon: {e}"))?;
        let mut daemon = Self {
            dir,
            process,
            files: 0,
        };
        while !daemon.dir.join(COUNT).exists() {
            if let Ok(Some(status)) = daemon.process.try_wait() {
                return Err(format!("the daemon: {status}"));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(daemon)
    }

    /// A new file of this kind, opened for reading.
    pub(crate) fn open(&mut self, spec: Spec) -> File {
        self.files += 1;
        let path = self.dir.join(spec.name(self.files));
        File::open(path).expect("a file of any name")
    }

    /// How many reads it has answered, of all files.
    pub(crate) fn reads(&self) -> u64 {
        let count = fs::read_to_string(self.dir.join(COUNT)).expect("the daemon's own count");
        count.parse().expect("a number")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Serves where this process is the daemon: what the test of that name does.
pub(crate) fn serve() {
    if let Some(dir) = std::env::var_os(TOLD) {
        let served = Session::new(Files::default(), &dir, &Config::default());
        served.and_then(Session::run).expect("a mount");
    }
}

/// The file that tells how many reads there were.
const COUNT: &str = "reads";
const ROOT: u64 = 1;
const COUNT_INODE: u64 = 2;

#[derive(Debug, Default)]
struct Files(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    reads: u64,
    /// Each name's file, whose inode is its place here and some.
    places: HashMap<String, usize>,
    files: Vec<Spec>,
}

impl State {
    fn file(&mut self, inode: INodeNo) -> Option<&mut Spec> {
        let place = u64::from(inode).checked_sub(COUNT_INODE + 1)?;
        self.files.get_mut(place as usize)
    }

    fn attributes(&mut self, inode: INodeNo) -> Option<(Duration, FileAttr)> {
        let file = match u64::from(inode) {
            ROOT => None,
            COUNT_INODE => Some(Spec::default()),
            _ => Some(*self.file(inode)?),
        };
        let believed = file.is_some_and(|file| file.believed);
        let size = file.map_or(0, |file| file.stated);
        let attributes = FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: match file {
                None => FileType::Directory,
                Some(_) => FileType::RegularFile,
            },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        let hour = Duration::from_secs(3600);
        Some((if believed { hour } else { Duration::ZERO }, attributes))
    }

    /// What a read of so many bytes at this offset answers.
    fn read(&mut self, inode: INodeNo, offset: u64, len: u64) -> Result<Vec<u8>, i32> {
        if u64::from(inode) == COUNT_INODE {
            let text = self.reads.to_string().into_bytes();
            return Ok(text.get(offset as usize..).unwrap_or_default().to_vec());
        }
        self.reads += 1;
        let file = self.file(inode).ok_or(libc::ENOENT)?;
        let mut end = file.held.min(offset + len);
        if let Some((from, errno, times)) = &mut file.fails {
            // A short answer is the end of what the page cache holds.
            if *from < end && *times > 0 && (offset >= *from || !file.direct) {
                *times -= u32::from(*times < u32::MAX);
                return Err(*errno);
            }
            if *times > 0 {
                end = end.min((*from).max(offset));
            }
        }
        file.held = file.held.max(file.grown);
        Ok(DATA.bytes(offset, end.saturating_sub(offset) as usize))
    }
}

impl Files {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.with(|state| {
            if name == COUNT {
                return state.attributes(INodeNo(COUNT_INODE));
            }
            let spec = Spec::from_name(name)?;
            let next = state.files.len();
            let key = name.to_str()?.to_owned();
            let place = *state.places.entry(key).or_insert(next);
            if place == next {
                state.files.push(spec);
            }
            state.attributes(INodeNo(place as u64 + COUNT_INODE + 1))
        });
        match found {
            Some((believed, attributes)) => reply.entry(&believed, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.with(|state| state.attributes(inode)) {
            Some((believed, attributes)) => reply.attr(&believed, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let file = self.with(|state| state.file(inode).copied());
        let mut flags = FopenFlags::empty();
        // The count is never cached.
        flags.set(
            FopenFlags::FOPEN_DIRECT_IO,
            file.is_none_or(|file| file.direct),
        );
        flags.set(
            FopenFlags::FOPEN_NONSEEKABLE,
            file.is_some_and(|file| file.no_seek),
        );
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.with(|state| state.read(inode, offset, size.into())) {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(Errno::from_i32(errno)),
        }
    }
}
