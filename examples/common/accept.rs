//! A server's accept loop, for examples.
//!
//! On SIGTERM or SIGINT it accepts no more connections, lets those under way come to their end, and
//! returns; a second signal ends it at once.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

/// Whether the server is to end.
pub(crate) type Ending = watch::Receiver<bool>;

/// Listens at an address: a host's name or number, and a port.
pub(crate) async fn listen(address: &str) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|e| io::Error::new(e.kind(), format!("cannot listen at {address}: {e}")))
}

/// Runs `connection` for each client, at most so many at once; more wait to be accepted.
pub(crate) async fn serve<C>(
    listener: TcpListener,
    at_once: u32,
    connection: impl Fn(TcpStream, SocketAddr, Ending) -> C,
) -> io::Result<()>
where
    C: Future<Output = ()> + Send + 'static,
{
    let mut signals = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    // A connection takes several descriptors, and many a shell gives 1024 in all.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let (end, ending) = watch::channel(false);
    let slots = Arc::new(Semaphore::new(at_once as usize));
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            next = next => next,
            () = any(&mut signals) => break,
        };
        match accepted {
            Ok((client, from)) => {
                let connection = connection(client, from, ending.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(e) => {
                // No descriptor left, as a rule: there will be, when a connection ends.
                eprintln!("accept: {e}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    end.send_replace(true);
    // All slots can be had once all connections have ended.
    tokio::select! {
        _ = slots.acquire_many(at_once) => Ok(()),
        () = any(&mut signals) => Err(io::Error::other("ended before all connections had")),
    }
}

/// Waits for either signal.
async fn any(signals: &mut (Signal, Signal)) {
    tokio::select! {
        _ = signals.0.recv() => {}
        _ = signals.1.recv() => {}
    }
}
