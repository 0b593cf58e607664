//! The loops that a user would write over one system call, without a thought for errors: what the
//! crate is measured against. Each moves `len` bytes at the descriptors' own positions.

use std::fs::File;
use std::io::{Read, Write};

use nix::fcntl::{
    FallocateFlags, FcntlArg, OFlag, SpliceFFlags, copy_file_range, fallocate, fcntl, splice,
};
use nix::sys::sendfile::sendfile64;
use nix::unistd::{pipe2, write};

/// What is asked for in one call where the kernel takes any amount.
const CHUNK: u64 = 2 << 20;

pub(crate) type Loop = fn(&File, &File, u64) -> u64;

pub(crate) fn by_sendfile(src: &File, dst: &File, len: u64) -> u64 {
    let mut left = len;
    while left > 0 {
        let n = sendfile64(dst, src, None, left.min(CHUNK) as usize).expect("sendfile");
        assert_ne!(n, 0, "the source is long enough");
        left -= n as u64;
    }
    len
}

pub(crate) fn by_copy_file_range(src: &File, dst: &File, len: u64) -> u64 {
    let mut left = len;
    while left > 0 {
        let n = copy_file_range(src, None, dst, None, left.min(1 << 30) as usize);
        left -= n.expect("copy_file_range") as u64;
    }
    len
}

/// Straight, where a side is a pipe.
pub(crate) fn by_splice(src: &File, dst: &File, len: u64) -> u64 {
    let mut left = len;
    while left > 0 {
        let count = left.min(CHUNK) as usize;
        let n = splice(src, None, dst, None, count, SpliceFFlags::empty()).expect("splice");
        assert_ne!(n, 0, "the source is long enough");
        left -= n as u64;
    }
    len
}

/// Through a pipe of so many bytes.
pub(crate) fn by_splice_through<const CAPACITY: usize>(src: &File, dst: &File, len: u64) -> u64 {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(CAPACITY as i32)).expect("a pipe of that size");
    let none = SpliceFFlags::empty();
    let mut left = len;
    while left > 0 {
        let count = left.min(CAPACITY as u64) as usize;
        let n = splice(src, None, &writer, None, count, none).expect("splice into the pipe");
        assert_ne!(n, 0, "the source is long enough");
        let mut held = n;
        while held > 0 {
            held -= splice(&reader, None, dst, None, held, none).expect("splice out of the pipe");
        }
        left -= n as u64;
    }
    len
}

pub(crate) fn by_read_write<const BUFFER: usize>(mut src: &File, dst: &File, len: u64) -> u64 {
    let mut buf = vec![0; BUFFER];
    let mut left = len;
    while left > 0 {
        let most = left.min(BUFFER as u64) as usize;
        let n = src.read(&mut buf[..most]).expect("read");
        assert_ne!(n, 0, "the source is long enough");
        let mut rest = &buf[..n];
        while !rest.is_empty() {
            let n = write(dst, rest).expect("write");
            rest = &rest[n..];
        }
        left -= n as u64;
    }
    len
}

/// With the destination's blocks allocated first.
pub(crate) fn allocated_read_write<const N: usize>(src: &File, dst: &File, len: u64) -> u64 {
    allocate(dst, len);
    by_read_write::<N>(src, dst, len)
}

/// With the destination's blocks allocated first.
pub(crate) fn allocated_splice_through<const N: usize>(src: &File, dst: &File, len: u64) -> u64 {
    allocate(dst, len);
    by_splice_through::<N>(src, dst, len)
}

/// With the destination's blocks allocated first.
pub(crate) fn allocated_splice(src: &File, dst: &File, len: u64) -> u64 {
    allocate(dst, len);
    by_splice(src, dst, len)
}

fn allocate(dst: &File, len: u64) {
    let _ = fallocate(dst, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, len as i64);
}

pub(crate) fn by_std_copy(src: &File, mut dst: &File, len: u64) -> u64 {
    std::io::copy(&mut src.take(len), &mut dst).expect("std::io::copy")
}

/// What the message's header stands for in a bare program.
pub(crate) fn write_all(mut dst: &File, bytes: &[u8]) {
    dst.write_all(bytes).expect("write");
}
