//! Two peers with a relay between them, and what every relay is held to afterwards.
#![allow(dead_code, unreachable_pub)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use zcio::relay::{Flow, RelayError, RelayOptions, RelayReport, RelayStatus, Wait};

use crate::common::watch::patience;
use crate::common::{Data, make};

pub type Outcome = Result<RelayReport, RelayError>;

/// A way to run a relay to its end.
pub struct Form {
    pub name: &'static str,
    /// Whether the relay's sockets are made non-blocking.
    pub nonblocking: bool,
    pub run: fn(&RelayOptions, OwnedFd, OwnedFd) -> Outcome,
}

/// The blocking call on blocking sockets.
pub const BLOCKING: Form = Form {
    name: "blocking",
    nonblocking: false,
    run: |options, a, b| options.relay(a, b),
};

/// The blocking call on non-blocking sockets.
pub const WAITING: Form = Form {
    name: "blocking call on non-blocking sockets",
    nonblocking: true,
    run: |options, a, b| options.relay(a, b),
};

/// The state machine, driven by poll(2).
pub const BY_POLL: Form = Form {
    name: "by poll",
    nonblocking: true,
    run: by_poll,
};

fn by_poll(options: &RelayOptions, a: OwnedFd, b: OwnedFd) -> Outcome {
    let mut relay = options.start(a, b).expect("two sockets");
    loop {
        match relay.advance()? {
            RelayStatus::Moved => {}
            RelayStatus::Finished => return Ok(relay.into_report()),
            RelayStatus::Blocked { a, b } => {
                let pause = relay
                    .resume_at()
                    .map(|at| at.saturating_duration_since(Instant::now()));
                let idle = relay.idle_left();
                if idle == Some(Duration::ZERO) {
                    return Ok(relay.into_report());
                }
                // The pause's own side is always ready.
                let events = |wait: Wait| match pause {
                    Some(_) => PollFlags::empty(),
                    None => events(wait),
                };
                let mut fds = Vec::new();
                for (fd, events) in [(relay.a(), events(a)), (relay.b(), events(b))] {
                    // What nobody waits for would still report that it was hung up.
                    if !events.is_empty() {
                        fds.push(PollFd::new(fd.as_fd(), events));
                    }
                }
                let limit = pause.into_iter().chain(idle).min();
                let limit = limit.map_or(PollTimeout::NONE, |limit| {
                    let ms = u16::try_from(limit.as_millis() + 1).unwrap_or(u16::MAX);
                    PollTimeout::from(ms)
                });
                poll(&mut fds, limit).expect("poll(2)");
            }
        }
    }
}

pub fn events(wait: Wait) -> PollFlags {
    let mut events = PollFlags::empty();
    events.set(PollFlags::POLLIN, wait.readable);
    events.set(PollFlags::POLLOUT, wait.writable);
    events
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    Tcp,
    Unix,
}

pub const NETS: [(Net, Net); 3] = [
    (Net::Tcp, Net::Tcp),
    (Net::Unix, Net::Unix),
    (Net::Tcp, Net::Unix),
];

/// A connected pair with small buffers, so that little piles up in the kernel: (relay's, peer's).
pub fn pair(net: Net) -> (OwnedFd, OwnedFd) {
    let (ours, theirs): (OwnedFd, OwnedFd) = match net {
        Net::Tcp => {
            let (one, other) = make::tcp();
            one.set_nodelay(true).expect("TCP_NODELAY");
            other.set_nodelay(true).expect("TCP_NODELAY");
            (one.into(), other.into())
        }
        Net::Unix => {
            let (one, other) = make::unix();
            (one.into(), other.into())
        }
    };
    for fd in [&ours, &theirs] {
        setsockopt(fd, sockopt::SndBuf, &(128 << 10)).expect("SO_SNDBUF");
        setsockopt(fd, sockopt::RcvBuf, &(256 << 10)).expect("SO_RCVBUF");
    }
    (ours, theirs)
}

/// A client or a server of the relay; its two halves can be used by a thread each.
#[derive(Debug)]
pub struct Peer {
    pub net: Net,
    pub mouth: Mouth,
    pub ear: Ear,
}

/// What a peer sends.
#[derive(Debug)]
pub struct Mouth {
    fd: File,
    says: Data,
    pub sent: u64,
}

/// What a peer receives, each byte of which is checked.
#[derive(Debug)]
pub struct Ear {
    pub fd: File,
    hears: Data,
    pub received: u64,
}

impl Peer {
    pub fn new(net: Net, fd: OwnedFd, says: u64, hears: u64) -> Self {
        let fd = File::from(fd);
        let mouth = Mouth {
            fd: fd.try_clone().expect("dup(2)"),
            says: Data::new(says),
            sent: 0,
        };
        let ear = Ear {
            fd,
            hears: Data::new(hears),
            received: 0,
        };
        Self { net, mouth, ear }
    }

    /// Breaks the connection off: by RST, where there is such a thing. What it had sent and received.
    pub fn reset(self) -> Sums {
        if self.net == Net::Tcp {
            set_abrupt(&self.ear.fd);
        }
        self.sums()
    }

    pub fn sums(&self) -> Sums {
        Sums {
            sent: self.mouth.sent,
            received: self.ear.received,
            says: self.mouth.says,
        }
    }
}

impl Mouth {
    /// Sends `len` bytes more; on a non-blocking socket, what it takes. Fails where the connection
    /// is gone.
    pub fn send(&mut self, len: u64) -> io::Result<u64> {
        self.send_in(len, 128 << 10)
    }

    /// The same in calls of `segment` bytes.
    pub fn send_in(&mut self, len: u64, segment: usize) -> io::Result<u64> {
        let before = self.sent;
        let end = self.sent + len;
        while self.sent < end {
            let want = usize::try_from(end - self.sent).map_or(segment, |left| left.min(segment));
            match self.fd.write(&self.says.bytes(self.sent, want)) {
                Ok(n) => self.sent += n as u64,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(self.sent - before)
    }

    /// Sends one byte of urgent data: the stream's next, or one beside it.
    pub fn send_urgent(&mut self, inline: bool) -> io::Result<()> {
        make::send_urgent(&self.fd, self.says.bytes(self.sent, 1)[0])?;
        self.sent += u64::from(inline);
        Ok(())
    }

    /// Says that nothing more will come.
    pub fn end(&self) {
        shutdown(self.fd.as_raw_fd(), Shutdown::Write).expect("shutdown(2)");
    }
}

impl Ear {
    /// Receives up to `len` bytes; fewer where the other side has ended or, on a non-blocking
    /// socket, nothing is there.
    pub fn receive(&mut self, len: u64) -> io::Result<Received> {
        let mut buf = vec![0; 64 << 10];
        let before = self.received;
        let mut ended = false;
        while self.received - before < len {
            let left = len - (self.received - before);
            let want = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
            match self.fd.read(&mut buf[..want]) {
                Ok(0) => {
                    ended = true;
                    break;
                }
                Ok(n) => {
                    let checked = self.hears.check(self.received, &buf[..n]);
                    assert_eq!(checked, Ok(()), "received at {}", self.received);
                    self.received += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        let bytes = self.received - before;
        Ok(Received { bytes, ended })
    }

    /// Receives exactly so much.
    pub fn expect(&mut self, len: u64) {
        let got = self.receive(len).expect("the connection stands");
        assert_eq!(got.bytes, len, "received");
    }

    /// Receives until the other side has ended, which it must do properly. How much came.
    pub fn expect_end(&mut self) -> u64 {
        let got = self.receive(u64::MAX).expect("the connection stands");
        assert!(got.ended, "the end has come");
        got.bytes
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub bytes: u64,
    pub ended: bool,
}

/// Makes close(2) of a TCP socket send RST.
pub fn set_abrupt(fd: &impl AsFd) {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&fd.as_fd(), sockopt::Linger, &at_once).expect("SO_LINGER");
}

/// A relay under way on a thread of its own, its two peers, and its sockets once more.
#[derive(Debug)]
pub struct Rig {
    pub case: String,
    pub a: Peer,
    pub b: Peer,
    pub ends: Ends,
    pub relay: Running,
}

/// The relay's own sockets, the same descriptions: what was not taken is still in them.
#[derive(Debug)]
pub struct Ends {
    pub a: OwnedFd,
    pub b: OwnedFd,
}

#[derive(Debug)]
pub struct Running(JoinHandle<Outcome>);

impl Rig {
    pub fn start(form: &Form, options: &RelayOptions, nets: (Net, Net)) -> Self {
        let case = format!("{}, {:?} to {:?}", form.name, nets.0, nets.1);
        let (a, a_peer) = pair(nets.0);
        let (b, b_peer) = pair(nets.1);
        for fd in [&a, &b] {
            make::set_nonblocking(fd, form.nonblocking);
        }
        let again = |fd: &OwnedFd| fd.try_clone().expect("dup(2)");
        let ends = Ends {
            a: again(&a),
            b: again(&b),
        };
        let (options, run) = (options.clone(), form.run);
        let relay = std::thread::spawn(move || run(&options, a, b));
        Self {
            case,
            a: Peer::new(nets.0, a_peer, 1, 2),
            b: Peer::new(nets.1, b_peer, 2, 1),
            ends,
            relay: Running(relay),
        }
    }
}

impl Running {
    pub fn is_over(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for the relay's end.
    pub fn join(self) -> Outcome {
        let outcome = self.0.join();
        outcome.unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    }
}

/// Which peers' connections were broken, so that the network may have lost something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    pub a: bool,
    pub b: bool,
}

/// Holds a relay's report against what both peers know: every byte sent was delivered, is handed
/// back, or is still in the socket; every byte delivered has arrived.
pub fn judge(case: &str, report: &RelayReport, peers: (&Sums, &Sums), ends: &Ends, lost: Lost) {
    let (a, b) = peers;
    judge_flow(
        &format!("{case}, a to b"),
        &report.a_to_b,
        (a, b),
        &ends.a,
        (lost.a, lost.b),
    );
    judge_flow(
        &format!("{case}, b to a"),
        &report.b_to_a,
        (b, a),
        &ends.b,
        (lost.b, lost.a),
    );
}

/// What a peer has sent and received, and what that was.
#[derive(Clone, Copy, Debug)]
pub struct Sums {
    pub sent: u64,
    pub received: u64,
    says: Data,
}

fn judge_flow(
    case: &str,
    flow: &Flow,
    (from, to): (&Sums, &Sums),
    src: &OwnedFd,
    (from_lost, to_lost): (bool, bool),
) {
    let held = flow.undelivered.len() as u64;
    let checked = from.says.check(flow.bytes, &flow.undelivered);
    assert_eq!(checked, Ok(()), "{case}: undelivered");
    let shares: u64 = flow.shares().iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(shares, flow.bytes, "{case}: {:?}", flow.shares());
    let taken = flow.bytes + held;
    let expected = if from_lost { taken } else { from.sent };
    let rest = rest_of(src, from.says, taken, expected);
    let all = taken + rest;
    if from_lost {
        assert!(all <= from.sent, "{case}: {all} of {}", from.sent);
    } else {
        let parts = format!("{} delivered, {held} handed back, {rest} left", flow.bytes);
        assert_eq!(all, from.sent, "{case}: {parts}");
    }
    if to_lost {
        assert!(to.received <= flow.bytes, "{case}: {} arrived", to.received);
    } else {
        assert_eq!(to.received, flow.bytes, "{case}: arrived");
    }
}

/// How much is left in the relay's socket; each byte is checked. What is still on its way is waited
/// for, up to `expected`.
fn rest_of(src: &OwnedFd, says: Data, mut at: u64, expected: u64) -> u64 {
    let before = at;
    make::set_nonblocking(src, true);
    let mut buf = vec![0; 64 << 10];
    loop {
        match nix::unistd::read(src, &mut buf) {
            Ok(n @ 1..) => {
                assert_eq!(says.check(at, &buf[..n]), Ok(()), "left at {at}");
                at += n as u64;
            }
            Err(nix::errno::Errno::EAGAIN) if at < expected => {
                let mut fds = [PollFd::new(src.as_fd(), PollFlags::POLLIN)];
                if poll(&mut fds, PollTimeout::from(2000_u16)) == Ok(0) {
                    break;
                }
            }
            // An error ends it as well: the connection was reset.
            _ => break,
        }
    }
    at - before
}

/// Runs `body`, and fails where it has not come to its end within `seconds`.
pub fn within(seconds: u64, body: impl FnOnce() + Send + 'static) {
    let (sender, over) = std::sync::mpsc::channel();
    let worker = std::thread::spawn(move || {
        let _sender: std::sync::mpsc::Sender<()> = sender;
        body();
    });
    // Not `common::within`: a relay's pipes are shared by the process, and so must the descriptor
    // table be.
    let seconds = seconds * patience();
    if over.recv_timeout(Duration::from_secs(seconds))
        == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
    {
        panic!("no end after {seconds} s");
    }
    if let Err(cause) = worker.join() {
        std::panic::resume_unwind(cause);
    }
}

/// Waits until a peer can send, for a while.
pub fn writable(fd: &File, ms: u16) {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::from(ms)).expect("poll(2)");
}
