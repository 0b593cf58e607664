//! The other end of a pair, in a process of its own, so that its work is not counted.
//!
//! A bench starts itself again. What the child drains is its stdin, what it feeds its stdout,
//! whatever those are; a socket beside them takes orders and gives counts. It ends when that does.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::{env, process, thread};

use nix::sys::socket::{Shutdown, shutdown};

use super::clock;

const ORDERS: &str = "ZCIO_BENCH_PEER";
const BLOCK: usize = 256 << 10;

/// Until the end, for [`Peer::go`].
pub(crate) const TO_THE_END: u64 = u64::MAX;

/// The child, as its parent holds it.
pub(crate) struct Peer {
    child: Child,
    orders: UnixStream,
}

impl Peer {
    /// Starts a child that drains `drained` and feeds `fed`.
    pub(crate) fn start(drained: Option<OwnedFd>, fed: Option<OwnedFd>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("zcio-bench-{}-{count}", process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name for the orders");
        let listener = UnixListener::bind_addr(&address).expect("a socket for the orders");
        let stdio = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
        let child = Command::new("/proc/self/exe")
            .env(ORDERS, &name)
            .stdin(stdio(drained))
            .stdout(stdio(fed))
            .spawn()
            .expect("this program starts itself again");
        let (orders, _) = listener.accept().expect("the child connects");
        Self { child, orders }
    }

    /// Tells it to feed and to drain so many bytes. To drain [`TO_THE_END`] means to shut down what
    /// was fed, and what was drained once that ends.
    pub(crate) fn go(&mut self, feed: u64, drain: u64) {
        let mut order = [0; 16];
        order[..8].copy_from_slice(&feed.to_le_bytes());
        order[8..].copy_from_slice(&drain.to_le_bytes());
        self.orders.write_all(&order).expect("the child lives");
    }

    /// Waits until it is done: how many bytes it has drained.
    pub(crate) fn done(&mut self) -> u64 {
        let mut answer = [0; 8];
        self.orders
            .read_exact(&mut answer)
            .expect("the child answers");
        u64::from_le_bytes(answer)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.orders.shutdown(std::net::Shutdown::Both);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the child: does its work, and does not come back.
pub(crate) fn serve_if_asked() {
    let Ok(name) = env::var(ORDERS) else { return };
    let address = SocketAddr::from_abstract_name(&name).expect("the name of the orders");
    let orders = UnixStream::connect_addr(&address).expect("the parent listens");
    clock::pin(clock::THEIRS);
    // The parent may go away at any time: that is the end, and no failure.
    let _ = serve(orders);
    process::exit(0);
}

fn serve(mut orders: UnixStream) -> io::Result<()> {
    let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
    let (mut drained, mut fed) = (own(io::stdin().as_fd())?, own(io::stdout().as_fd())?);
    let (feed, amounts) = channel::<(u64, bool)>();
    thread::spawn(move || {
        let block = vec![0x5a; BLOCK];
        for (mut left, ends) in amounts {
            while left > 0 {
                let len = left.min(BLOCK as u64) as usize;
                if fed.write_all(&block[..len]).is_err() {
                    return;
                }
                left -= len as u64;
            }
            if ends {
                let _ = shutdown(fed.as_raw_fd(), Shutdown::Write);
            }
        }
    });
    let mut block = vec![0; BLOCK];
    loop {
        let mut order = [0; 16];
        orders.read_exact(&mut order)?;
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        let (amount, wanted) = (number(&order[..8]), number(&order[8..]));
        let _ = feed.send((amount, wanted == TO_THE_END));
        let mut count = 0;
        while count < wanted {
            let most = (wanted - count).min(BLOCK as u64) as usize;
            match drained.read(&mut block[..most])? {
                0 => break,
                n => count += n as u64,
            }
        }
        if wanted == TO_THE_END {
            let _ = shutdown(drained.as_raw_fd(), Shutdown::Write);
        }
        orders.write_all(&count.to_le_bytes())?;
    }
}
