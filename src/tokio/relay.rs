//! The relay, awaiting.

use std::future::poll_fn;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::tokio::time::{Sleep, sleep};

use super::{Advance, Lent, LowWater, Readiness, Stride, next, require_nonblocking};
use crate::backend::Side;
use crate::driver::Driver;
use crate::error::Result;
use crate::relay::{
    Direction, Pulse, Pump, Relay, RelayEnd, RelayError, RelayOptions, RelayReport,
};
use crate::report::Status;

/// Relays both directions between two stream sockets: [`relay`](crate::relay()), awaiting. Whatever
/// ends it, the sockets are the caller's to close.
///
/// Dropping the future breaks the relay off; to know what was in flight, [`drive_relay`] one.
///
/// # Errors
/// As [`relay`](crate::relay()).
pub async fn relay<A: Readiness, B: Readiness>(
    a: &A,
    b: &B,
) -> std::result::Result<RelayReport, RelayError> {
    relay_with(&RelayOptions::new(), a, b).await
}

/// As [`relay`], with options.
///
/// # Errors
/// As [`relay`](crate::relay()).
pub async fn relay_with<A: Readiness, B: Readiness>(
    options: &RelayOptions,
    a: &A,
    b: &B,
) -> std::result::Result<RelayReport, RelayError> {
    match options.start(Lent::new(a), Lent::new(b)) {
        Ok(mut relay) => drive_relay(&mut relay).await,
        Err(error) => Err(RelayError::at_start(error)),
    }
}

/// Advances a relay to its end. Dropping the future leaves it whole.
///
/// While a TCP stream is steady, its socket's `SO_RCVLOWAT` is raised, to be woken less often; it is
/// put back when the stream pauses for a millisecond, and when this future ends or is dropped.
///
/// # Errors
/// As [`relay`](crate::relay()).
///
/// # Panics
/// On a runtime without timers ([`enable_time`](::tokio::runtime::Builder::enable_time)).
pub async fn drive_relay<A, B>(
    relay: &mut Relay<A, B>,
) -> std::result::Result<RelayReport, RelayError>
where
    A: AsFd + Readiness,
    B: AsFd + Readiness,
{
    let facts = (
        relay.a_to_b.driver().src_facts(),
        relay.a_to_b.driver().dst_facts(),
    );
    let nonblocking = require_nonblocking(Side::Source, facts.0)
        .and_then(|()| require_nonblocking(Side::Destination, facts.1));
    if let Err(error) = nonblocking {
        return Err(relay.failed(Direction::AToB, error));
    }
    let close_both = relay.options.closes_both();
    let mut idle = relay
        .options
        .idle_limit()
        .map(|limit| Idle::new(limit, Arc::clone(&relay.pulse)));
    let (stop_there, stop_back) = (AtomicBool::new(false), AtomicBool::new(false));
    let outcome = {
        let (a, b) = (&Lent::new(&relay.a), &Lent::new(&relay.b));
        let mut there = pin!(flow(&mut relay.a_to_b, a, b, &stop_there));
        let mut back = pin!(flow(&mut relay.b_to_a, b, a, &stop_back));
        let (mut there_done, mut back_done) = (false, false);
        poll_fn(|cx| {
            loop {
                let before = (there_done, back_done);
                if !there_done {
                    if let Poll::Ready(result) = there.as_mut().poll(cx) {
                        there_done = true;
                        if let Err(error) = result {
                            return Poll::Ready(Err((Direction::AToB, error)));
                        }
                    }
                }
                if !back_done {
                    if let Poll::Ready(result) = back.as_mut().poll(cx) {
                        back_done = true;
                        if let Err(error) = result {
                            return Poll::Ready(Err((Direction::BToA, error)));
                        }
                    }
                }
                if there_done && back_done {
                    return Poll::Ready(Ok(RelayEnd::Closed));
                }
                if before == (there_done, back_done) || !close_both {
                    break;
                }
                // One has just ended, and the other is to take no more.
                stop_there.store(back_done, Ordering::Relaxed);
                stop_back.store(there_done, Ordering::Relaxed);
            }
            match &mut idle {
                Some(idle) => idle.poll(cx).map(|()| Ok(RelayEnd::Idle)),
                None => Poll::Pending,
            }
        })
        .await
    };
    match outcome {
        Ok(end) => Ok(relay.report(end)),
        Err((direction, error)) => Err(relay.failed(direction, error)),
    }
}

/// The limit on idleness. Its timer is set anew only when it fires, not with each piece that moves.
struct Idle {
    limit: Duration,
    pulse: Arc<Pulse>,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    fn new(limit: Duration, pulse: Arc<Pulse>) -> Self {
        let timer = Box::pin(sleep(limit.saturating_sub(pulse.quiet())));
        Self {
            limit,
            pulse,
            timer,
        }
    }

    /// Ready when the limit is used up.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let left = self.limit.saturating_sub(self.pulse.quiet());
            if left.is_zero() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset((Instant::now() + left).into());
        }
        Poll::Pending
    }
}

impl Advance for Pump {
    fn driver(&mut self) -> &mut Driver {
        self.driver_mut()
    }

    fn advance(&mut self, src: BorrowedFd<'_>, dst: BorrowedFd<'_>) -> Result<Status> {
        Pump::advance(self, src, dst)
    }
}

/// Advances one direction to its end. `stop` makes it take nothing more.
async fn flow<S: Readiness, D: Readiness>(
    pump: &mut Pump,
    src: &S,
    dst: &D,
    stop: &AtomicBool,
) -> Result<()> {
    let mut stride = Stride {
        low_water: LowWater::of(src.fd(), pump.driver()),
        ..Stride::default()
    };
    loop {
        let status = {
            let mut next = pin!(next(pump, src, dst, &mut stride));
            poll_fn(|cx| {
                if stop.swap(false, Ordering::Relaxed) {
                    return Poll::Ready(None);
                }
                next.as_mut().poll(cx).map(Some)
            })
            .await
        };
        match status.map(|result| pump.kept(result)).transpose()? {
            Some(Status::Finished(_)) => return Ok(()),
            Some(_) => {}
            None => drop(pump.stop()),
        }
    }
}
