//! The awaiting forms.

use std::future::Future;
use std::io::Read;
use std::net::TcpStream as StdTcp;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBuf;
use tokio::net::{TcpStream, UnixStream, unix::pipe};
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;
use tokio::time::timeout;
use zcio::message::Sending;
use zcio::tokio::{Readiness, drive_sending, send};
use zcio::{ErrorKind, Message, Side};

use crate::common::watch::apart;
use crate::common::{Data, make};
use crate::lane::{self, LARGE, assert_same, content, mixed, mixed_file};

/// Runs `body` on one thread. A table of descriptors of its own would part it from what tokio keeps
/// for the process, so the watchdog is a plain one.
fn run(body: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    watch(&runtime, body);
}

fn watch(runtime: &Runtime, body: impl Future<Output = ()>) {
    let ended = runtime.block_on(async { timeout(Duration::from_secs(60), body).await });
    ended.expect("no end after 60 s");
}

fn tcp() -> (TcpStream, StdTcp) {
    let (dst, from) = make::tcp();
    dst.set_nonblocking(true).unwrap();
    (TcpStream::from_std(dst).unwrap(), from)
}

/// Reads all that comes, in a thread.
fn reader(from: impl Into<OwnedFd>) -> std::thread::JoinHandle<Vec<u8>> {
    apart(from, |mut from| {
        let mut got = Vec::new();
        from.read_to_end(&mut got).unwrap();
        got
    })
}

async fn whole<D: Readiness>(name: &str, dst: D, from: impl Into<OwnedFd>) {
    let file = mixed_file();
    let message = mixed(&file);
    let reader = reader(from);
    let report = send(&message, &dst).await.unwrap();
    assert_eq!(report.bytes, message.len(), "{name}");
    drop(dst);
    assert_same(name, &reader.join().unwrap(), &content(&message));
}

#[test]
fn every_byte_arrives() {
    run(async {
        let (dst, from) = tcp();
        whole("TCP", dst, from).await;
        let (dst, from) = tcp();
        let (_read, write) = dst.into_split();
        whole("half of TCP", write, from).await;
        let (dst, from) = make::unix();
        dst.set_nonblocking(true).unwrap();
        whole("UNIX", UnixStream::from_std(dst).unwrap(), from).await;
        let (from, dst) = make::pipe();
        make::set_nonblocking(&dst, true);
        whole("pipe", pipe::Sender::from_owned_fd(dst).unwrap(), from).await;
    });
}

#[test]
fn a_future_that_is_dropped_leaves_the_sending_whole() {
    run(async {
        let file = mixed_file();
        let message = mixed(&file).chain(Message::new().bytes(vec![1; 8 << 20]));
        let (dst, from) = tcp();
        let mut sending = message.start(&dst).unwrap();
        let mut dropped = 0;
        // Nobody reads: it gets stuck somewhere.
        for turns in [1, 2, 5, 300] {
            tokio::select! {
                biased;
                result = drive_sending(&mut sending) => panic!("{result:?}"),
                () = async { for _ in 0..turns { yield_now().await } } => dropped += 1,
            }
        }
        assert_eq!(dropped, 4);
        let reader = reader(from);
        assert_eq!(
            drive_sending(&mut sending).await.unwrap().bytes,
            message.len()
        );
        drop(sending);
        drop(dst);
        assert_same("after drops", &reader.join().unwrap(), &content(&message));
    });
}

#[test]
fn a_cold_file_is_fetched_off_the_reactor() {
    run(async {
        let file = lane::file(3, 4 << 20);
        file.sync_all().unwrap();
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(file.as_fd(), 0, 0, advice).unwrap();
        let message = Message::new()
            .bytes("header")
            .file(&file, 100..200)
            .file(&file, 0..4 << 20);
        let (dst, from) = tcp();
        let reader = reader(from);
        send(&message, &dst).await.unwrap();
        drop(dst);
        assert_same("cold", &reader.join().unwrap(), &content(&message));
    });
}

#[test]
fn many_connections_in_spawned_tasks() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    watch(&runtime, async {
        let file = Arc::new(lane::file(3, LARGE as usize));
        let message = Message::new()
            .bytes("header")
            .file(Arc::clone(&file), 0..LARGE);
        let expected = content(&message);
        let mut tasks = Vec::new();
        let mut readers = Vec::new();
        for _ in 0..16 {
            let (dst, from) = tcp();
            readers.push(reader(from));
            let message = message.clone();
            tasks.push(tokio::spawn(async move {
                let mut sending: Sending<'_, &TcpStream> = message.start(&dst).unwrap();
                for _ in 0..3 {
                    drive_sending(&mut sending).await.unwrap();
                    sending.extend(&message);
                }
                drive_sending(&mut sending).await.unwrap();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        for reader in readers {
            assert_same("one of 16", &reader.join().unwrap(), &expected.repeat(4));
        }
    });
}

#[test]
fn errors_have_exact_counts() {
    run(async {
        let file = lane::file(3, LARGE as usize);
        let message = Message::new()
            .bytes("header")
            .file(&file, 1..LARGE + 1)
            .bytes("x");
        let (dst, from) = tcp();
        let reader = reader(from);
        let error = send(&message, &dst).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceTruncated);
        assert_eq!(error.delivered(), 6 + LARGE - 1);
        drop(dst);
        assert_eq!(reader.join().unwrap().len() as u64, error.delivered());

        let (dst, from) = tcp();
        let message = Message::new().bytes(vec![0; 64 << 20]);
        let mut sending = message.start(&dst).unwrap();
        tokio::select! {
            biased;
            result = drive_sending(&mut sending) => panic!("{result:?}"),
            () = async { for _ in 0..300 { yield_now().await } } => {}
        }
        drop(from);
        let error = drive_sending(&mut sending).await.unwrap_err();
        assert_eq!(error.side(), Some(Side::Destination));
        assert_eq!(error.delivered(), sending.delivered());
    });
}

#[test]
fn zero_copy_ends_when_the_kernel_is_done() {
    run(async {
        let message = Message::new().bytes(Data::new(5).bytes(0, 256 << 10));
        let (dst, from) = tcp();
        // All of it goes into the queue here, and little to the peer.
        setsockopt(&from, RcvBuf, &4096).unwrap();
        let mut sending = message.start(&dst).unwrap();
        sending.zerocopy().unwrap();
        tokio::select! {
            biased;
            result = drive_sending(&mut sending) => panic!("done before the peer reads: {result:?}"),
            () = async { for _ in 0..300 { yield_now().await } } => {}
        }
        assert!(sending.outstanding() > 0);
        setsockopt(&from, RcvBuf, &(1 << 20)).unwrap();
        let reader = reader(from);
        drive_sending(&mut sending).await.unwrap();
        assert_eq!((sending.outstanding(), sending.remaining()), (0, 0));
        drop(sending);
        drop(dst);
        assert_same("by zero copy", &reader.join().unwrap(), &content(&message));
    });
}
