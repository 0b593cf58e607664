//! The relay's awaiting form, in the settings that it is used in.
#![allow(unreachable_pub)]

use std::net;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use std::os::fd::AsRawFd;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use zcio::relay::{Relay, RelayOptions};
use zcio::tokio::{Readiness, drive_relay, relay_with};

use crate::rig::{Form, Outcome};

pub fn single() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

pub fn multi() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build();
    runtime.expect("a runtime")
}

/// tokio's streams, on a current-thread runtime.
pub const STREAMS: Form = Form {
    name: "tokio streams",
    nonblocking: true,
    run: |options, a, b| {
        single().block_on(async {
            match (family(&a), family(&b)) {
                (AddressFamily::Unix, AddressFamily::Unix) => with(options, unix(a), unix(b)).await,
                (AddressFamily::Unix, _) => with(options, unix(a), tcp(b)).await,
                (_, AddressFamily::Unix) => with(options, tcp(a), unix(b)).await,
                _ => with(options, tcp(a), tcp(b)).await,
            }
        })
    },
};

/// `AsyncFd`, spawned on a runtime of several threads.
pub const SPAWNED: Form = Form {
    name: "tokio AsyncFd, spawned",
    nonblocking: true,
    run: |options, a, b| {
        let options = options.clone();
        multi().block_on(async move {
            let relay = tokio::spawn(async move { with(&options, watched(a), watched(b)).await });
            relay.await.expect("no panic")
        })
    },
};

/// Dropped every millisecond, and driven anew.
pub const DROPPED: Form = Form {
    name: "tokio, dropped and driven anew",
    nonblocking: true,
    run: |options, a, b| {
        single().block_on(async {
            let mut relay: Relay<_, _> = options
                .start(Fd(watched(a)), Fd(watched(b)))
                .expect("sockets");
            loop {
                if let Ok(outcome) =
                    timeout(Duration::from_millis(1), drive_relay(&mut relay)).await
                {
                    return outcome;
                }
            }
        })
    },
};

async fn with<A: Readiness, B: Readiness>(options: &RelayOptions, a: A, b: B) -> Outcome {
    relay_with(options, &a, &b).await
}

/// `AsyncFd` is no `AsFd`; what it holds is.
pub struct Fd(pub AsyncFd<OwnedFd>);

impl AsFd for Fd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl Readiness for Fd {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.fd()
    }

    fn try_io(
        &self,
        side: zcio::Side,
        op: &mut dyn FnMut() -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        Readiness::try_io(&self.0, side, op)
    }

    fn ready(&self, side: zcio::Side) -> impl Future<Output = std::io::Result<()>> {
        Readiness::ready(&self.0, side)
    }
}

// What replaces it is newer than the oldest tokio that this builds with; an `OwnedFd` is sound in it.
#[allow(deprecated)]
pub fn watched(fd: OwnedFd) -> AsyncFd<OwnedFd> {
    AsyncFd::new(fd).expect("within a runtime")
}

pub fn tcp(fd: OwnedFd) -> TcpStream {
    TcpStream::from_std(net::TcpStream::from(fd)).expect("within a runtime")
}

pub fn unix(fd: OwnedFd) -> UnixStream {
    UnixStream::from_std(unix::net::UnixStream::from(fd)).expect("within a runtime")
}

fn family(fd: &OwnedFd) -> AddressFamily {
    let name: SockaddrStorage = getsockname(fd.as_raw_fd()).expect("a socket");
    name.family().expect("a family")
}
