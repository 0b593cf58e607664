//! `MSG_ZEROCOPY` (B36): every completion is taken, merged ones count for all, copied ones turn it
//! off, ENOBUFS falls back, and no buffer is freed before the kernel is done with it.
//!
//! On loopback the kernel copies whatever it sends, and says so. Where a test needs a kernel that
//! does not, the notification is edited on its way.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBuf, ReceiveTimestamp};
use zcio::message::Sending;
use zcio::{Message, Status};

use crate::common::{Data, make, within};
use crate::hooks::{Answer, Site, Stage};
use crate::lane::{Kind, Lane, content, file};

/// Memory that says when it is freed.
struct Tracked {
    bytes: Vec<u8>,
    freed: Arc<AtomicBool>,
}

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.freed.store(true, Ordering::SeqCst);
    }
}

fn tracked(len: usize) -> (Bytes, impl Fn() -> bool) {
    let freed = Arc::new(AtomicBool::new(false));
    let bytes = Data::new(8).bytes(0, len);
    let owner = Tracked {
        bytes,
        freed: Arc::clone(&freed),
    };
    (Bytes::from_owner(owner), move || {
        freed.load(Ordering::SeqCst)
    })
}

/// A sending by zero copy on a socket of its own descriptor.
fn start<'a>(lane: &Lane, message: &Message<'a>) -> Sending<'a, OwnedFd> {
    let mut sending = message.start(lane.dst.try_clone().unwrap()).unwrap();
    sending.zerocopy().expect("SO_ZEROCOPY on TCP");
    assert!(sending.is_zerocopy());
    sending
}

/// Advances until the peer, which takes nothing, has the sending blocked.
fn fill(sending: &mut Sending<'_, OwnedFd>) {
    while let Status::Moved(_) = sending.advance().unwrap() {}
}

fn zerocopy_sends(stage: &Stage<'_>) -> usize {
    let sends = stage
        .calls
        .iter()
        .filter(|c| c.flags & libc::MSG_ZEROCOPY != 0);
    sends.filter(|c| c.result.is_ok()).count()
}

/// `struct sock_extended_err` within a notification.
fn extended(header: &mut libc::msghdr) -> &mut [u32; 4] {
    // SAFETY: recvmsg(2) has filled the header.
    let first = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: there is a control message, a notification.
    let data = unsafe { libc::CMSG_DATA(first) };
    // SAFETY: it is one `sock_extended_err`: an errno, four bytes, and two numbers, aligned as those.
    unsafe { &mut *data.cast() }
}

/// Says that the kernel did not copy.
fn as_if_not_copied(header: &mut libc::msghdr) {
    // The third of the four bytes is the code.
    extended(header)[1] &= !0x00ff_0000;
}

/// The same, with numbers that start over.
fn around_the_end(header: &mut libc::msghdr) {
    as_if_not_copied(header);
    let words = extended(header);
    words[2] = words[2].wrapping_sub(2);
    words[3] = words[3].wrapping_sub(2);
}

/// `SO_ZEROCOPY`.
fn is_allowed(socket: &OwnedFd) -> bool {
    let (mut allowed, mut len) = (0_i32, 4_u32);
    // SAFETY: the value has room for what the length says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw mut allowed).cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0);
    allowed != 0
}

/// Asked for twice, it stays on, and the socket's option is put back as it was; also where two sendings
/// use it, and the one that has allowed it ends first.
#[test]
fn asked_for_twice_it_stays_as_it_is() {
    within(20, |_| {
        let lane = Lane::new(Kind::Tcp);
        let allowed = || is_allowed(&lane.dst);
        let (bytes, _) = tracked(100_000);
        let message = Message::new().bytes(bytes);
        let mut first = start(&lane, &message);
        first.zerocopy().expect("again");
        assert!(first.is_zerocopy() && allowed());
        drop(first);
        assert!(!allowed(), "as it was before");
        let first = start(&lane, &message);
        let second = start(&lane, &message);
        drop(first);
        assert!(
            second.is_zerocopy() && allowed(),
            "the other one still uses it"
        );
        drop(second);
        assert!(!allowed(), "as it was before");
    });
}

#[test]
fn it_turns_itself_off_where_the_kernel_copies() {
    let (large, freed) = tracked(8 << 20);
    let message = Message::new().bytes("header").bytes(large).bytes("trailer");
    let all = content(&message);
    let mut lane = Lane::new(Kind::Tcp);
    let mut sending = start(&lane, &message);
    let (result, stage) = lane.run(|_| {}, |_| sending.finish());
    assert_eq!(result.unwrap().bytes, message.len());
    assert!(!sending.is_zerocopy(), "loopback copies");
    assert_eq!(sending.outstanding(), 0);
    assert!(zerocopy_sends(&stage) >= 1);
    lane.assert_landed("by zero copy", &all);
    drop((sending, message));
    assert!(freed(), "every completion was taken");
}

#[test]
fn it_stays_on_where_the_kernel_does_not() {
    for notice in [as_if_not_copied as fn(&mut libc::msghdr), around_the_end] {
        let (large, freed) = tracked(8 << 20);
        let file = file(1, 100_000);
        let message = Message::new()
            .bytes("header")
            .bytes(large.clone())
            .file(&file, 0..100_000)
            .bytes(large.slice(5..1 << 20))
            .file(&file, 0..100)
            .bytes("trailer");
        drop(large);
        let all = content(&message);
        let mut lane = Lane::new(Kind::Tcp);
        let mut sending = start(&lane, &message);
        let edit = |stage: &mut Stage<'_>| stage.notice = Some(notice);
        let (result, stage) = lane.run(edit, |_| sending.finish());
        assert_eq!(result.unwrap().bytes, message.len());
        assert!(sending.is_zerocopy());
        assert_eq!(
            sending.outstanding(),
            0,
            "merged ranges count for all their sends"
        );
        let sends = zerocopy_sends(&stage);
        assert!(sends >= 8, "{sends} sends by zero copy");
        eprintln!(
            "{sends} sends, {} reads of the error queue",
            stage.seen(Site::Reap)
        );
        lane.assert_landed("by zero copy", &all);
        drop((sending, message));
        assert!(freed(), "every completion was taken");
    }
}

#[test]
fn small_parts_and_read_files_are_copied() {
    let file = file(1, 100);
    let (part, freed) = tracked(10_000);
    let large = vec![1; 100_000];
    for message in [
        Message::new().bytes(part),
        Message::new()
            .bytes("header")
            .file(&file, 0..100)
            .bytes(large),
    ] {
        let mut lane = Lane::new(Kind::Tcp);
        let mut sending = start(&lane, &message);
        let (result, stage) = lane.run(|_| {}, |_| sending.advance());
        result.unwrap();
        assert_eq!(zerocopy_sends(&stage), 0, "{message:?}");
        assert_eq!(sending.outstanding(), 0);
    }
    assert!(freed());
}

#[test]
fn nothing_is_asked_where_it_was_not_opted_in() {
    let message = Message::new().bytes(vec![3; 4 << 20]);
    let mut lane = Lane::new(Kind::Tcp);
    let (result, stage) = lane.run(|_| {}, |dst| message.send(dst));
    result.unwrap();
    assert_eq!((zerocopy_sends(&stage), stage.seen(Site::Reap)), (0, 0));
    assert_eq!(allowed(&lane.dst), 0, "the socket option is not touched");
}

#[test]
fn no_buffer_is_freed_before_the_kernel_is_done() {
    within(60, |_| {
        let (large, freed) = tracked(32 << 20);
        let message = Message::new().bytes("header").bytes(large);
        let all = content(&message);
        let mut lane = Lane::new(Kind::Tcp);
        let mut sending = start(&lane, &message);
        fill(&mut sending);
        let delivered = sending.delivered();
        assert!(sending.outstanding() > 0);
        drop((message, sending));
        assert!(!freed(), "the kernel still sends from it");

        // What is left behind is taken over by the next one on the same socket.
        let rest = Message::new().bytes(vec![1; 100]);
        let mut next = start(&lane, &rest);
        assert!(next.outstanding() > 0);
        let (result, _) = lane.run(|_| {}, |_| next.finish());
        result.unwrap();
        assert!(freed(), "every completion was taken");
        let expected = [&all[..delivered as usize], &[1; 100]].concat();
        lane.assert_landed("what had been queued, and the rest", &expected);
    });
}

#[test]
fn delivered_is_not_done() {
    within(60, |_| {
        let (large, freed) = tracked(256 << 10);
        let message = Message::new().bytes(large);
        let (dst, from) = make::tcp();
        dst.set_nonblocking(true).unwrap();
        // All of it goes into the queue here, and little to the peer.
        setsockopt(&from, RcvBuf, &4096).unwrap();
        let mut sending = message.start(&dst).unwrap();
        sending.zerocopy().unwrap();
        while sending.remaining() > 0 {
            assert!(matches!(sending.advance().unwrap(), Status::Moved(_)));
        }
        drop(message);
        assert!(matches!(sending.advance().unwrap(), Status::Blocked(_)));
        assert!(
            sending.outstanding() > 0 && !freed(),
            "not all is acknowledged"
        );
        let reader = std::thread::spawn(move || {
            setsockopt(&from, RcvBuf, &(1 << 20)).unwrap();
            let mut taken = 0;
            let mut buf = vec![0; 64 << 10];
            while taken < 256 << 10 {
                taken += nix::unistd::read(&from, &mut buf).unwrap();
            }
        });
        sending.finish().unwrap();
        assert_eq!(sending.outstanding(), 0);
        drop(sending);
        assert!(freed());
        reader.join().unwrap();
    });
}

#[test]
fn a_connection_broken_off_frees_at_once() {
    let (large, freed) = tracked(32 << 20);
    let message = Message::new().bytes(large);
    let mut lane = Lane::new(Kind::Tcp);
    let mut sending = start(&lane, &message);
    fill(&mut sending);
    drop(message);
    assert!(sending.outstanding() > 0 && !freed());
    sending.abort().unwrap();
    assert!(freed());
    let mut buf = vec![0; 1 << 20];
    let end = loop {
        match nix::unistd::read(&lane.dst, &mut buf) {
            Ok(n @ 1..) => assert!(n > 0),
            other => break other,
        }
    };
    assert_ne!(
        end,
        Err(nix::errno::Errno::EAGAIN),
        "the connection is gone"
    );
    lane.taker.landed.clear();
}

#[test]
fn a_peer_that_resets_frees_too() {
    let (large, freed) = tracked(32 << 20);
    let message = Message::new().bytes(large);
    let lane = Lane::new(Kind::Tcp);
    let mut sending = start(&lane, &message);
    fill(&mut sending);
    drop(message);
    // Closed with bytes unread: a reset.
    drop(lane);
    let error = sending.finish().unwrap_err();
    assert_eq!(error.delivered(), sending.delivered());
    drop(sending);
    assert!(freed());
}

#[test]
fn enobufs_falls_back() {
    let message = Message::new().bytes(vec![3; 6 << 20]);
    let all = content(&message);
    // At the first send nothing is outstanding: it will never do.
    let mut lane = Lane::new(Kind::Tcp);
    let mut sending = start(&lane, &message);
    let refuse = (Site::Gather, 1, Answer::Errno(libc::ENOBUFS));
    let (result, stage) = lane.run(|stage| stage.fault = Some(refuse), |_| sending.finish());
    assert_eq!(result.unwrap().bytes, message.len());
    assert!(!sending.is_zerocopy());
    assert_eq!((zerocopy_sends(&stage), sending.outstanding()), (0, 0));
    lane.assert_landed("without zero copy", &all);

    // Later it is for what is pinned already: that piece is copied, and no other. Each send but
    // the first finds its predecessors outstanding here, since no notification is let through.
    let mut lane = Lane::new(Kind::Tcp);
    let mut sending = start(&lane, &message);
    let mut first = true;
    while sending.remaining() > 0 {
        let at = if first { usize::MAX } else { 1 };
        let refuse = (Site::Gather, at, Answer::Errno(libc::ENOBUFS));
        let (result, _) = lane.run(
            |stage| {
                stage.fault = Some(refuse);
                stage.reap_nothing = true;
            },
            |_| sending.advance(),
        );
        result.unwrap();
        assert!(sending.is_zerocopy());
        first = false;
    }
    assert_eq!(sending.outstanding(), 1);
    lane.run(|_| {}, |_| sending.finish()).0.unwrap();
    lane.assert_landed("with zero copy and without", &all);
}

#[test]
fn faults_of_the_send_are_no_completions() {
    let message = Message::new().bytes(vec![3; 6 << 20]);
    let all = content(&message);
    for errno in [
        libc::EAGAIN,
        libc::EINTR,
        libc::EPIPE,
        libc::ENOMEM,
        libc::EIO,
    ] {
        let mut lane = Lane::new(Kind::Tcp);
        let mut sending = start(&lane, &message);
        let fault = (Site::Gather, 2, Answer::Errno(errno));
        let (result, _) = lane.run(
            |stage| {
                stage.fault = Some(fault);
                stage.notice = Some(as_if_not_copied);
            },
            |_| sending.finish(),
        );
        match result {
            Ok(report) => assert_eq!(report.bytes, message.len(), "{errno}"),
            Err(error) => assert_eq!(error.delivered(), sending.delivered(), "{errno}"),
        }
        lane.run(|_| {}, |_| sending.finish()).0.unwrap();
        assert_eq!(sending.outstanding(), 0, "{errno}");
        lane.assert_landed(errno, &all);
    }
}

#[test]
fn what_cannot_do_it_says_so_and_sends_all_the_same() {
    let message = Message::new().bytes(vec![3; 1 << 20]);
    let all = content(&message);
    for kind in [Kind::Unix, Kind::Pipe, Kind::File] {
        let mut lane = Lane::new(kind);
        let mut sending = message.start(lane.dst.try_clone().unwrap()).unwrap();
        let error = sending.zerocopy().unwrap_err();
        let raw = error.raw_os_error();
        assert!(
            matches!(raw, Some(libc::EOPNOTSUPP | libc::ENOTSOCK)),
            "{kind:?}: {error}"
        );
        assert!(!sending.is_zerocopy());
        lane.run(|_| {}, |_| sending.finish()).0.unwrap();
        lane.assert_landed(kind, &all);
    }
}

/// Whoever has asked for timestamps is told them along with each notification, which must not be cut
/// off for that.
#[test]
fn notifications_come_whole_beside_timestamps() {
    within(20, |_| {
        let (dst, from) = make::tcp();
        setsockopt(&dst, ReceiveTimestamp, &true).unwrap();
        let reader = std::thread::spawn(move || {
            let mut buf = vec![0; 64 << 10];
            while nix::unistd::read(&from, &mut buf).unwrap() > 0 {}
        });
        let message = Message::new().bytes(Data::new(8).bytes(0, 256 << 10));
        let mut sending = message.start(dst).unwrap();
        sending.zerocopy().unwrap();
        sending.finish().unwrap();
        assert_eq!(sending.outstanding(), 0);
        drop(sending);
        reader.join().unwrap();
    });
}

/// Whoever has allowed it before may have sends under way: what the kernel says of those would free
/// buffers that it still sends from.
#[test]
fn where_somebody_else_has_allowed_it_everything_is_copied() {
    let (part, freed) = tracked(1 << 20);
    let message = Message::new().bytes(part);
    let all = content(&message);
    let mut lane = Lane::new(Kind::Tcp);
    allow(&lane.dst, 1);
    let mut sending = message.start(lane.dst.try_clone().unwrap()).unwrap();
    sending.zerocopy().unwrap();
    assert!(!sending.is_zerocopy());
    let (result, stage) = lane.run(|_| {}, |_| sending.finish());
    result.unwrap();
    assert_eq!((zerocopy_sends(&stage), sending.outstanding()), (0, 0));
    drop((sending, message));
    assert!(freed());
    lane.assert_landed("copied", &all);
    assert_eq!(allowed(&lane.dst), 1, "it was not ours to forbid");
}

/// One after the other on one connection, each by zero copy, and the option as it was afterwards.
#[test]
fn it_can_be_asked_for_again() {
    let mut lane = Lane::new(Kind::Tcp);
    for round in 0..3 {
        let (part, freed) = tracked(1 << 20);
        let message = Message::new().bytes(part);
        let mut sending = start(&lane, &message);
        let (result, stage) = lane.run(|_| {}, |_| sending.finish());
        result.unwrap();
        assert!(zerocopy_sends(&stage) > 0, "round {round}");
        drop((sending, message));
        assert!(freed());
        assert_eq!(allowed(&lane.dst), 0);
    }
    lane.taker.landed.clear();
}

/// A socket may take the option and refuse the send: kTLS does.
#[test]
fn a_send_that_is_refused_is_copied() {
    let message = Message::new().bytes(vec![3; 1 << 20]);
    let all = content(&message);
    for errno in [libc::EOPNOTSUPP, libc::EINVAL] {
        let mut lane = Lane::new(Kind::Tcp);
        let mut sending = start(&lane, &message);
        let refuse = (Site::Gather, 1, Answer::Errno(errno));
        let (result, stage) = lane.run(|stage| stage.fault = Some(refuse), |_| sending.finish());
        assert_eq!(result.unwrap().bytes, message.len());
        assert!(!sending.is_zerocopy());
        assert_eq!((zerocopy_sends(&stage), sending.outstanding()), (0, 0));
        lane.assert_landed("copied", &all);
    }
}

/// Both directions have ended, of which poll(2) tells at once, and the peer has yet to read.
#[test]
fn waiting_for_pages_does_not_spin() {
    within(60, |_| {
        let (dst, from) = make::tcp();
        dst.set_nonblocking(true).unwrap();
        setsockopt(&from, RcvBuf, &4096).unwrap();
        let message = Message::new().bytes(vec![1; 256 << 10]);
        let mut sending = message.start(&dst).unwrap();
        sending.zerocopy().unwrap();
        while sending.remaining() > 0 {
            assert!(matches!(sending.advance().unwrap(), Status::Moved(_)));
        }
        from.shutdown(std::net::Shutdown::Write).unwrap();
        dst.shutdown(std::net::Shutdown::Write).unwrap();
        let (before, began) = (sending.report().syscalls(), std::time::Instant::now());
        let reader = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            setsockopt(&from, RcvBuf, &(1 << 20)).unwrap();
            std::io::copy(&mut &from, &mut std::io::sink()).unwrap()
        });
        sending.finish().unwrap();
        assert_eq!(reader.join().unwrap(), 256 << 10);
        let calls = sending.report().syscalls() - before;
        // A look at the queue and a poll each millisecond, and no more, however long it takes.
        let most = 100 + 4 * began.elapsed().as_millis() as u64;
        assert!(calls < most, "{calls} system calls, of at most {most}");
    });
}

fn allow(fd: &OwnedFd, value: libc::c_int) {
    // SAFETY: SO_ZEROCOPY is one int, which is read.
    let set = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(set, 0);
}

fn allowed(fd: &OwnedFd) -> libc::c_int {
    let (mut on, mut len) = (7, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: SO_ZEROCOPY is one int, for which there is room.
    let got = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw mut on).cast(),
            &raw mut len,
        )
    };
    assert_eq!(got, 0);
    on
}
