//! A gibibyte through every backend of every pair, each byte compared with the source's:
//! `cargo test --release --test large -- --ignored --nocapture`, some minutes and 3 GiB of disk.
// The tests' toolchain is newer than the one that the library asks for.
#![allow(clippy::incompatible_msrv)]

mod common;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use common::Data;
use zcio::{Backend, End, TransferOptions};

const LEN: u64 = 1 << 30;
const DATA: Data = Data::new(1);
const PIECE: usize = 1 << 20;

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn write_all(mut to: impl Write) {
    let mut buf = vec![0; PIECE];
    for at in (0..LEN).step_by(PIECE) {
        DATA.fill(at, &mut buf);
        to.write_all(&buf).unwrap();
    }
}

/// Compares everything that comes with the source, and says how much came.
fn check(mut from: impl Read) -> u64 {
    let mut buf = vec![0; PIECE];
    let mut at = 0;
    loop {
        match from.read(&mut buf).unwrap() {
            0 => return at,
            n => {
                DATA.check(at, &buf[..n])
                    .unwrap_or_else(|wrong| panic!("wrong at byte {wrong}"));
                at += n as u64;
            }
        }
    }
}

fn source_file() -> File {
    let file = tempfile::tempfile().unwrap();
    write_all(&file);
    file
}

enum Far {
    Reader(JoinHandle<u64>),
    File(File),
}

fn destinations() -> Vec<(&'static str, OwnedFd, Far)> {
    let (tcp_near, tcp_far) = tcp();
    let (unix_near, unix_far) = UnixStream::pair().unwrap();
    let (pipe_far, pipe_near) = io::pipe().unwrap();
    let here = tempfile::tempfile().unwrap();
    let mut all: Vec<(_, OwnedFd, _)> = vec![
        (
            "a TCP socket",
            tcp_near.into(),
            Far::Reader(thread::spawn(|| check(tcp_far))),
        ),
        (
            "a UNIX socket",
            unix_near.into(),
            Far::Reader(thread::spawn(|| check(unix_far))),
        ),
        (
            "a pipe",
            pipe_near.into(),
            Far::Reader(thread::spawn(|| check(pipe_far))),
        ),
        ("a file", here.try_clone().unwrap().into(), Far::File(here)),
    ];
    match tempfile::tempfile_in("/dev/shm") {
        Ok(other) => {
            all.push((
                "a file on another filesystem",
                other.try_clone().unwrap().into(),
                Far::File(other),
            ));
        }
        Err(e) => common::skipped("a file on another filesystem", e),
    }
    all
}

fn run(src: impl AsFd, dst: OwnedFd, far: Far, backend: Option<Backend>, name: &str) {
    let mut options = TransferOptions::new();
    if let Some(backend) = backend {
        options.backend(backend);
    }
    let report = options.transfer(&src, &dst, LEN).unwrap();
    assert_eq!((report.bytes, report.end), (LEN, End::Complete), "{name}");
    drop(dst);
    let received = match far {
        Far::Reader(reader) => reader.join().unwrap(),
        Far::File(file) => {
            let mut buf = vec![0; PIECE];
            for at in (0..LEN).step_by(PIECE) {
                file.read_exact_at(&mut buf, at).unwrap();
                DATA.check(at, &buf)
                    .unwrap_or_else(|wrong| panic!("{name}: wrong at byte {wrong}"));
            }
            file.metadata().unwrap().len()
        }
    };
    assert_eq!(received, LEN, "{name}");
    let chosen = if backend.is_none() { " (chosen)" } else { "" };
    eprintln!(
        "RAN {name} by {}{chosen}: {} system calls",
        report.backend,
        report.syscalls()
    );
}

/// Every backend that fits, and the probe's own choice.
fn backends(src: impl AsFd, dst: impl AsFd) -> Vec<Option<Backend>> {
    let fit = Backend::ALL.into_iter().filter(|backend| {
        let probe = TransferOptions::new()
            .backend(*backend)
            .probe(&src, &dst)
            .unwrap();
        probe.verdict(*backend).is_ok()
    });
    fit.map(Some).chain([None]).collect()
}

#[test]
#[ignore = "large: moves 30 GiB"]
fn a_gibibyte_from_a_file() {
    let src = source_file();
    for place in 0..destinations().len() {
        let (_, dst, _) = destinations().swap_remove(place);
        for backend in backends(&src, &dst) {
            let (name, dst, far) = destinations().swap_remove(place);
            (&src).rewind().unwrap();
            run(&src, dst, far, backend, &format!("a file to {name}"));
        }
    }
}

#[test]
#[ignore = "large: moves 8 GiB"]
fn a_gibibyte_from_tcp() {
    for place in [0, 3] {
        let (_, dst, _) = destinations().swap_remove(place);
        for backend in backends(tcp().0, &dst) {
            let (near, far_end) = tcp();
            let writer = thread::spawn(|| write_all(near));
            let (name, dst, far) = destinations().swap_remove(place);
            run(
                &far_end,
                dst,
                far,
                backend,
                &format!("a TCP socket to {name}"),
            );
            writer.join().unwrap();
        }
    }
}

#[test]
#[ignore = "large: 5 GiB + 1, sparse"]
fn five_gibibytes_and_one_in_one_call() {
    const LEN: u64 = (5 << 30) + 1;
    let src = tempfile::tempfile().unwrap();
    src.set_len(LEN).unwrap();
    let marks = [0, (2 << 30) - 1, 2 << 30, 4 << 30, LEN - 1];
    for at in marks {
        src.write_all_at(b"m", at).unwrap();
    }
    let pipe_to = |backend: Option<Backend>| {
        let (mut far, near) = io::pipe().unwrap();
        let reader = thread::spawn(move || {
            let (mut at, mut found) = (0_u64, Vec::new());
            let mut buf = vec![0; PIECE];
            loop {
                match far.read(&mut buf).unwrap() {
                    0 => return (at, found),
                    n => {
                        let seen = buf[..n].iter().enumerate().filter(|(_, byte)| **byte != 0);
                        found.extend(seen.map(|(i, _)| at + i as u64));
                        at += n as u64;
                    }
                }
            }
        });
        let mut options = TransferOptions::new();
        options.src_offset(0);
        if let Some(backend) = backend {
            options.backend(backend);
        }
        let report = options.transfer(&src, &near, u64::MAX).unwrap();
        drop(near);
        assert_eq!((report.bytes, report.end), (LEN, End::SourceEnded));
        assert_eq!(
            reader.join().unwrap(),
            (LEN, marks.to_vec()),
            "{}",
            report.backend
        );
    };
    pipe_to(None);
    pipe_to(Some(Backend::ReadWrite));
    let dst = tempfile::tempfile().unwrap();
    let report = zcio::transfer(&src, &dst, LEN).unwrap();
    assert_eq!(report.bytes, LEN);
    assert_eq!(dst.metadata().unwrap().len(), LEN);
    for at in marks {
        let mut byte = [0];
        dst.read_exact_at(&mut byte, at).unwrap();
        assert_eq!(&byte, b"m", "at {at}");
    }
}
