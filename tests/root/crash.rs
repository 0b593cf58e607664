//! A power cut seconds after a file was replaced, without fsync(2): what a transfer wrote is no worse
//! off than what `cp` wrote.
//!
//! ext4 starts to write a file back when it replaces another by rename(2), or is closed after it was
//! truncated, if some of its blocks are still to be allocated (`auto_da_alloc`). So the new content is
//! there after a crash. A file whose blocks were all reserved has none such, and would be empty.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use zcio::{Backend, Cache, TransferOptions};

use super::disk::{Disk, Fs};
use crate::common::{Data, Pulse, make, skipped};

/// Several times a window and a pipe, and no multiple of a block.
const LEN: usize = 9_000_123;
/// What is told to a transfer from a stream that ends early.
const TOLD: u64 = 100 << 20;
/// Several commits of the journal, and less than pages may stay dirty.
const WAIT: Duration = Duration::from_secs(5);

/// How the old file gives way to the new one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Renamed,
    InPlace,
}

/// What writes the new content into an empty file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// A loop of read(2) and write(2), as `cp` without sharing extents.
    Cp,
    /// The same after all its blocks were reserved: lost, or the test proves nothing.
    Reserved,
    Chosen,
    Forced(Backend),
    Cached(Cache),
    /// In pieces, dropped before its end.
    Dropped,
    Pipe(u64),
    Tcp(u64),
    Unix(u64),
}

fn all() -> Vec<By> {
    let mut all = vec![
        By::Cp,
        By::Reserved,
        By::Chosen,
        By::Dropped,
        By::Cached(Cache::DropBehind),
        By::Cached(Cache::Bypass),
    ];
    let files = [
        Backend::CopyFileRange,
        Backend::Sendfile,
        Backend::Splice,
        Backend::Mmap,
        Backend::Direct,
        Backend::ReadWrite,
    ];
    all.extend(files.map(By::Forced));
    for len in [LEN as u64, TOLD, u64::MAX] {
        all.extend([By::Pipe(len), By::Tcp(len), By::Unix(len)]);
    }
    all
}

/// Feeds a stream with the content and closes it.
fn feed(mut to: impl Write + Send + 'static, content: &[u8]) -> thread::JoinHandle<()> {
    let content = content.to_vec();
    thread::spawn(move || to.write_all(&content).expect("it is read"))
}

/// Bytes that were written.
fn write(by: By, src: &Path, content: &[u8], dst: &File) -> usize {
    let stream = |src: OwnedFd, len, feeding: thread::JoinHandle<()>| {
        let report = zcio::transfer(src, dst, len).expect("room");
        feeding.join().expect("fed");
        report.bytes as usize
    };
    let file = File::open(src).expect("a source");
    match by {
        By::Cp | By::Reserved => {
            if by == By::Reserved {
                let (mode, len) = (FallocateFlags::FALLOC_FL_KEEP_SIZE, LEN as i64);
                fallocate(dst, mode, 0, len).expect("room");
            }
            let mut buf = vec![0; 256 << 10];
            let (mut file, mut dst) = (file, dst);
            loop {
                match file.read(&mut buf).expect("a source") {
                    0 => return LEN,
                    n => dst.write_all(&buf[..n]).expect("room"),
                }
            }
        }
        By::Chosen => zcio::transfer(&file, dst, u64::MAX).expect("room").bytes as usize,
        By::Forced(backend) => {
            let report = TransferOptions::new()
                .backend(backend)
                .transfer(&file, dst, u64::MAX);
            report.expect("room").bytes as usize
        }
        By::Cached(cache) => {
            let report = TransferOptions::new()
                .cache(cache)
                .transfer(&file, dst, u64::MAX);
            report.expect("room").bytes as usize
        }
        By::Dropped => {
            let mut transfer = TransferOptions::new()
                .start(&file, dst, u64::MAX)
                .expect("fit");
            while transfer.delivered() < 5 << 20 {
                transfer.advance().expect("room");
            }
            transfer.delivered() as usize
        }
        By::Pipe(len) => {
            let (reader, writer) = make::pipe();
            stream(reader, len, feed(File::from(writer), content))
        }
        By::Tcp(len) => {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("listens");
            let (far, _) = listener.accept().expect("connected");
            stream(far.into(), len, feed(near, content))
        }
        By::Unix(len) => {
            let (near, far) = UnixStream::pair().expect("a pair");
            stream(far.into(), len, feed(near, content))
        }
    }
}

fn replace(by: By, how: How, src: &Path, old: &Path, content: &[u8]) -> usize {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let path = match how {
        How::Renamed => old.with_extension("new"),
        How::InPlace => old.to_owned(),
    };
    let dst = options.open(&path).expect("a file");
    let written = write(by, src, content, &dst);
    assert!(dst.as_fd().try_clone_to_owned().is_ok());
    drop(dst);
    if how == How::Renamed {
        fs::rename(&path, old).expect("rename(2)");
    }
    written
}

pub(crate) fn crash(pulse: &Pulse) {
    pulse.at("the disk".to_owned());
    let disk = match Disk::new(Fs::Ext4, "crash", 1200) {
        Ok(disk) => disk,
        Err(reason) => return skipped("root crash", reason),
    };
    disk.commit_every(1).expect("remounted");
    let content = Data::new(11).bytes(0, LEN);
    let old = Data::new(12).bytes(0, LEN / 3);
    let src = disk.dir.join("source");
    fs::write(&src, &content).expect("room");
    let mut cases: Vec<(By, How, PathBuf, usize)> = Vec::new();
    for by in all() {
        for how in [How::Renamed, How::InPlace] {
            let path = disk.dir.join(format!("old-{}", cases.len()));
            fs::write(&path, &old).expect("room");
            cases.push((by, how, path, 0));
        }
    }
    disk.sync();
    for (by, how, path, written) in &mut cases {
        pulse.at(format!("{by:?}, {how:?}"));
        *written = replace(*by, *how, &src, path, &content);
    }
    pulse.at("the crash".to_owned());
    thread::sleep(WAIT);
    disk.shut_down().expect("it goes down");
    disk.mount_again().expect("its journal is replayed");
    let mut lost = Vec::new();
    let (mut whole, mut bites) = (0, false);
    for (by, how, path, written) in cases {
        let found = fs::read(&path).unwrap_or_default();
        let good = found == content[..written] || how == How::Renamed && found == old;
        let line = format!(
            "{by:?}, {how:?}: {} of {written} bytes, whole: {good}",
            found.len()
        );
        eprintln!("{line}");
        match by {
            By::Reserved => bites |= !good,
            By::Cp if !good => return skipped("root crash", format!("cp itself loses: {line}")),
            _ if good => whole += 1,
            _ => lost.push(line),
        }
    }
    if !bites {
        return skipped("root crash", "what is reserved to its end is not lost here");
    }
    assert!(
        lost.is_empty() && whole > 30,
        "worse off than after cp: {lost:#?}"
    );
}
