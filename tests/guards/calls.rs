//! The system calls of a transfer, each by its name and in order, against `calls.txt` beside this
//! file. With `ZCIO_BLESS=1` in the environment, that is written anew.

use std::ffi::c_long;
use std::fmt::Write as _;
use std::io::{Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::{env, fs};

use zcio::{Backend, Message, Status, TransferOptions};

use crate::common::{POLL, make, skipped, within};
use crate::interpose::{self, Answer, kernel};
use crate::pair::{End, PAIRS, Pair};

/// Writes each call down.
#[derive(Default)]
struct Recorder(Vec<&'static str>);

impl interpose::Stage for Recorder {
    fn answer(&mut self, nr: c_long, args: [usize; 6]) -> Answer {
        // The standard library, where it is built with assertions, asks before it closes.
        let asserts = nr == libc::SYS_fcntl && args[1] as i32 == libc::F_GETFD;
        if !asserts {
            self.0.push(name(nr, &args));
        }
        kernel(nr, args)
    }
}

fn name(nr: c_long, args: &[usize; 6]) -> &'static str {
    match nr {
        libc::SYS_fcntl => match args[1] as i32 {
            libc::F_GETFL => "F_GETFL",
            libc::F_SETPIPE_SZ => "F_SETPIPE_SZ",
            libc::F_GETPIPE_SZ => "F_GETPIPE_SZ",
            _ => "fcntl",
        },
        libc::SYS_getsockopt if args[1] as i32 == libc::IPPROTO_TCP => match args[2] as i32 {
            libc::TCP_CORK => "TCP_CORK",
            _ => "TCP_NODELAY",
        },
        libc::SYS_getsockopt => match args[2] as i32 {
            libc::SO_TYPE => "SO_TYPE",
            libc::SO_DOMAIN => "SO_DOMAIN",
            _ => "getsockopt",
        },
        libc::SYS_statx => "statx",
        libc::SYS_fstatfs => "fstatfs",
        libc::SYS_lseek => "lseek",
        libc::SYS_read => "read",
        libc::SYS_write => "write",
        libc::SYS_sendto => "send",
        libc::SYS_pread64 => "pread",
        libc::SYS_pwrite64 => "pwrite",
        libc::SYS_sendfile => "sendfile",
        libc::SYS_splice => "splice",
        libc::SYS_copy_file_range => "copy_file_range",
        libc::SYS_pipe2 => "pipe2",
        libc::SYS_sendmsg => "sendmsg",
        libc::SYS_writev => "writev",
        libc::SYS_fallocate => "fallocate",
        POLL => "poll",
        _ => "another",
    }
}

/// The calls of `work`.
fn calls_of<T>(work: impl FnOnce() -> T) -> (T, Vec<&'static str>) {
    let mut recorder = Recorder::default();
    let result = interpose::run(&mut recorder, work);
    (result, recorder.0)
}

/// In one line; what is made several times over, once, with how often.
fn line(calls: &[&str]) -> String {
    let (mut text, mut at) = (String::new(), 0);
    while at < calls.len() {
        let repeats = |period: usize| {
            let first = &calls[at..(at + period).min(calls.len())];
            calls[at..]
                .chunks(period)
                .take_while(|c| *c == first)
                .count()
        };
        let (period, times) = match (repeats(1), repeats(2)) {
            (1, pairs @ 2..) => (2, pairs),
            (times, _) => (1, times),
        };
        let first = calls[at..at + period].join(" ");
        let _ = match (period, times) {
            (_, 1) => write!(text, " {first}"),
            (1, _) => write!(text, " {first}×{times}"),
            (_, _) => write!(text, " ({first})×{times}"),
        };
        at += period * times;
    }
    text
}

/// Looks: what is asked before a byte moves.
const LOOKS: [&str; 8] = [
    "TCP_NODELAY",
    "F_GETPIPE_SZ",
    "F_GETFL",
    "statx",
    "SO_TYPE",
    "SO_DOMAIN",
    "fstatfs",
    "lseek",
];

/// One transfer of `len` bytes, and what the report says of it.
fn one_shot(pair: (End, End), len: usize) -> String {
    let made = Pair::new(pair, len);
    let (report, calls) = calls_of(|| zcio::transfer(&made.src, made.dst(), len as u64));
    let report = report.unwrap();
    // What SIGPIPE does is asked by sigaction(2), which nobody can stand in for: the C library's
    // structure is not the kernel's. What is sent by send(2) never raises it.
    let sent = pair.1 != End::Pipe && report.backend == Backend::ReadWrite;
    let unseen = u64::from(pair.1 != End::File && !sent);
    assert_eq!(report.syscalls(), calls.len() as u64 + unseen, "{calls:?}");
    let looks = calls.iter().filter(|call| LOOKS.contains(call)).count();
    assert!(looks <= 8, "{looks} looks: {calls:?}");
    let text = format!("{:<14}{}", report.backend, line(&calls));
    made.arrived(len);
    text
}

/// The calls of one more advance of a transfer that is extended, after the first.
fn extended(pair: (End, End), len: usize) -> Vec<&'static str> {
    let made = Pair::new(pair, 3 * len);
    let mut transfer = TransferOptions::new()
        .start(&made.src, made.dst(), len as u64)
        .unwrap();
    let mut moved = Vec::new();
    for _ in 0..3 {
        let before = transfer.report().syscalls();
        let (status, calls) = calls_of(|| transfer.advance());
        assert!(
            matches!(status, Ok(Status::Moved(n)) if n.get() == len),
            "{status:?}"
        );
        assert_eq!(
            transfer.report().syscalls() - before,
            calls.len() as u64,
            "{calls:?}"
        );
        moved.push(calls);
        transfer.extend(len as u64);
    }
    drop(transfer);
    made.arrived(3 * len);
    assert_eq!(moved[1], moved[2], "an advance costs what the last one did");
    moved.remove(2)
}

fn sizes(from: End) -> &'static [usize] {
    match from {
        End::File => &[1, 4 << 10, 64 << 10, 1 << 20],
        // What a stream holds before anybody takes it: all of it is there when it begins.
        _ => &[1, 4 << 10, 32 << 10],
    }
}

fn page() -> String {
    let mut text = String::from(
        "The system calls of a transfer, in order, for files in memory: of one that is probed, and of\n\
         an advance after `extend`. Written by `ZCIO_BLESS=1 cargo test --test guards calls`.\n",
    );
    for pair in PAIRS {
        let _ = writeln!(text, "\n{} to {}", pair.0, pair.1);
        for len in sizes(pair.0) {
            let _ = writeln!(text, "{len:>9}  {}", one_shot(pair, *len));
        }
        let again = extended(pair, 4 << 10);
        assert!(again.len() <= 2, "{pair:?} after extend: {again:?}");
        let _ = writeln!(text, "   extend  {:<14}{}", "", line(&again));
    }
    text
}

#[test]
fn every_call_of_a_transfer_is_accounted_for() {
    if !cfg!(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64"
    )) {
        return skipped(
            "calls",
            "here sockets and pipes are not told by their flags",
        );
    }
    let made = within(60, |_| page());
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/guards/calls.txt");
    if env::var_os("ZCIO_BLESS").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap();
    for (is, was) in made.lines().zip(written.lines()) {
        assert_eq!(is, was, "ZCIO_BLESS=1 writes it anew");
    }
    assert_eq!(made.lines().count(), written.lines().count());
}

#[test]
fn a_transfer_of_nothing_makes_no_call() {
    let made = Pair::new((End::File, End::Pipe), 1);
    let (report, calls) = calls_of(|| zcio::transfer(&made.src, made.dst(), 0));
    assert_eq!((report.unwrap().bytes, calls.len()), (0, 0));
    made.arrived(0);
}

/// Linux 5.10 holds a piece back that is shorter than it was asked for. Read from its middle, a file's
/// last piece is; and whoever is stopped after it makes no other call that would find the end.
#[test]
fn a_last_piece_that_is_short_is_pushed() {
    within(60, |_| {
        let mut file = make::memfd();
        file.set_len(100_000).unwrap();
        let (dst, _far) = make::tcp();
        // Whether the caller has corked it is asked before it is pushed, which nobody stands in for.
        for (from, calls_after) in [
            (0, &["sendfile"][..]),
            (90_000, &["sendfile", "statx", "lseek", "TCP_CORK"]),
        ] {
            file.seek(SeekFrom::Start(from)).unwrap();
            let stop = |_| ControlFlow::Break(());
            let (report, calls) =
                calls_of(|| TransferOptions::new().transfer_with(&file, &dst, 99_999, stop));
            assert_eq!(report.unwrap().bytes, 99_999.min(100_000 - from));
            let first = calls.iter().position(|call| *call == "sendfile").unwrap();
            assert_eq!(calls[first..], *calls_after);
        }
    });
}

#[test]
fn a_small_message_is_one_call_after_extend() {
    within(60, |_| {
        let file = make::memfd();
        file.set_len(64 << 10).unwrap();
        let (dst, mut from) = make::tcp();
        let memory = Message::new()
            .bytes("header")
            .bytes("body")
            .bytes("trailer");
        let with_file = Message::new().bytes("header").file(&file, 5..4101);
        let (sending, first) = calls_of(|| {
            let mut sending = memory.start(&dst)?;
            sending.finish()?;
            Ok::<_, zcio::Error>(sending)
        });
        let mut sending = sending.unwrap();
        assert_eq!(first, ["F_GETFL", "TCP_NODELAY", "sendmsg"]);
        for (message, expected) in [
            (&memory, &["sendmsg"][..]),
            (&with_file, &["pread", "sendmsg"]),
            (&memory, &["sendmsg"]),
        ] {
            let (report, calls) = calls_of(|| {
                sending.extend(message);
                sending.finish()
            });
            report.unwrap();
            assert_eq!(calls, expected);
        }
        let len = 3 * memory.len() + with_file.len();
        from.read_exact(&mut vec![0; len as usize]).unwrap();
    });
}
