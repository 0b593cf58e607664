//! A header and a range of a file to a TCP socket: `Message` against the bare calls, against a
//! `writev` after a read, and against `std`. Each header is one write of its own where nothing joins
//! it to the file.
//!
//! `cargo bench --bench message -- [--quick] [--rounds N] [--json FILE]`

mod support;

use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{MsgFlags, send};
use support::{End, KIB, Link, MIB, Way, judge, size, take_turns};
use zcio::Message;

const HEADER: &[u8] = &[b'h'; 200];

/// Sends the header and `len` bytes of the file from `at` on.
type Send = fn(&File, u64, u64, &File);

fn main() {
    let args = support::begin();
    let (batch, sizes) = if args.quick {
        (MIB, &[4 * KIB, 64 * KIB][..])
    } else {
        (64 * MIB, &[4 * KIB, 16 * KIB, 64 * KIB, MIB, 16 * MIB][..])
    };
    let source = support::source(batch);
    println!("{}", support::machine());
    let all: [(&str, Send); 4] = [
        ("zcio::Message", by_message),
        ("bare send(MSG_MORE), sendfile", by_sendfile),
        ("bare pread, writev", by_writev),
        ("write_all, std::io::copy", by_std),
    ];
    let mut rows = Vec::new();
    for &len in sizes {
        let count = (batch / len).min(4096);
        let bytes = count * (len + HEADER.len() as u64);
        let mut link = Link::new(End::File, End::Tcp, &source);
        let mut ways: Vec<Way<Send>> = all.iter().map(|(n, w)| Way::new(*n, *w)).collect();
        take_turns(&mut ways, args.rounds(15), |work| {
            let work = *work;
            link.run(bytes, |src, dst| {
                for message in 0..count {
                    work(src, message * len, len, dst);
                }
                bytes
            })
        });
        let name = format!("message, header and {} of a file", size(len));
        rows.push(judge(&name, bytes, &ways, &[]));
        args.write(&rows);
    }
}

fn by_message(src: &File, at: u64, len: u64, dst: &File) {
    let message = Message::new().bytes(HEADER).file(src, at..at + len);
    let report = message.send(dst).expect("sent");
    assert_eq!(report.bytes, message.len());
}

fn by_sendfile(src: &File, at: u64, len: u64, dst: &File) {
    let more = MsgFlags::from_bits_retain(libc::MSG_MORE);
    let sent = send(dst.as_raw_fd(), HEADER, more);
    assert_eq!(sent, Ok(HEADER.len()), "room for a header");
    let (mut at, end) = (at as i64, (at + len) as i64);
    while at < end {
        let count = (end - at).min(2 << 20) as usize;
        sendfile64(dst, src, Some(&mut at), count).expect("sendfile");
    }
}

fn by_writev(src: &File, at: u64, len: u64, mut dst: &File) {
    let mut buf = vec![0; len.min(256 * KIB) as usize];
    let mut header = HEADER;
    let mut sent = 0;
    while sent < len {
        let piece = (len - sent).min(buf.len() as u64) as usize;
        src.read_exact_at(&mut buf[..piece], at + sent)
            .expect("pread");
        let pieces = [IoSlice::new(header), IoSlice::new(&buf[..piece])];
        let n = dst.write_vectored(&pieces).expect("writev");
        let rest = (header.len() + piece) - n;
        dst.write_all(&buf[piece - rest..piece]).expect("write");
        header = &[];
        sent += piece as u64;
    }
}

fn by_std(mut src: &File, at: u64, len: u64, mut dst: &File) {
    use std::io::{Read, Seek, SeekFrom, copy};
    dst.write_all(HEADER).expect("write");
    src.seek(SeekFrom::Start(at)).expect("seek");
    copy(&mut src.take(len), &mut dst).expect("std::io::copy");
}
