//! The blocking form: a thread for each direction, and this one to watch the clock.

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::socket::Shutdown;

use super::pump::Order;
use super::{Direction, Relay, RelayEnd, RelayError, RelayReport};
use crate::error::{Error, ErrorKind};
use crate::sys::call;

/// Why it is over before both directions have ended.
enum Cause {
    Failed(Direction, Error),
    Idle,
    Deadline,
}

pub(super) fn run<A: AsFd, B: AsFd>(
    relay: &mut Relay<A, B>,
) -> std::result::Result<RelayReport, RelayError> {
    let (idle, deadline) = (relay.options.idle, relay.options.limits.deadline);
    let close_both = relay.options.closes_both();
    let (a, b) = (relay.a.as_fd(), relay.b.as_fd());
    let (there, back) = match (Order::new(), Order::new()) {
        (Ok(there), Ok(back)) => (there, back),
        (Err(e), _) | (_, Err(e)) => {
            return Err(RelayError::at_start(Error::io(ErrorKind::Io, None, e)));
        }
    };
    let pulse = &relay.pulse;
    let directions = [
        (Direction::AToB, &mut relay.a_to_b, a, b, &there),
        (Direction::BToA, &mut relay.b_to_a, b, a, &back),
    ];
    let mut cause = None;
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let mut threads = Vec::new();
        for (direction, pump, src, dst, order) in directions {
            let tell = tell.clone();
            let work = move || {
                // This thread listens until both have gone.
                let _ = tell.send((direction, pump.run(src, dst, order)));
            };
            match thread::Builder::new().spawn_scoped(scope, work) {
                Ok(thread) => threads.push(thread),
                Err(e) => {
                    cause = Some(Cause::Failed(direction, Error::io(ErrorKind::Io, None, e)));
                }
            }
        }
        drop(tell);
        let wake = || {
            for thread in &threads {
                thread.thread().unpark();
            }
        };
        let end_all = || {
            there.leave();
            back.leave();
            // A call that waits to write to either comes back.
            let _ = call::shutdown(a, Shutdown::Write);
            let _ = call::shutdown(b, Shutdown::Write);
            wake();
        };
        if cause.is_some() {
            end_all();
        }
        loop {
            let idle_left = idle.map(|limit| limit.saturating_sub(pulse.quiet()));
            let time_left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            let wait = match &cause {
                None => idle_left.into_iter().chain(time_left).min(),
                Some(_) => None,
            };
            // Without a limit, long enough to stand for ever.
            match told.recv_timeout(wait.unwrap_or(Duration::from_secs(3600))) {
                Ok((direction, Ok(()))) => {
                    if close_both && cause.is_none() {
                        match direction {
                            Direction::AToB => back.stop(),
                            Direction::BToA => there.stop(),
                        }
                        wake();
                    }
                }
                Ok((direction, Err(error))) => {
                    if cause.is_none() {
                        cause = Some(Cause::Failed(direction, error));
                        end_all();
                    }
                }
                Err(RecvTimeoutError::Timeout) if cause.is_some() => {}
                Err(RecvTimeoutError::Timeout) => {
                    let is_over = |left: Option<Duration>| left == Some(Duration::ZERO);
                    if is_over(deadline.map(|d| d.saturating_duration_since(Instant::now()))) {
                        cause = Some(Cause::Deadline);
                        end_all();
                    } else if is_over(idle.map(|limit| limit.saturating_sub(pulse.quiet()))) {
                        cause = Some(Cause::Idle);
                        end_all();
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    match cause {
        None => Ok(relay.report(RelayEnd::Stopped)),
        Some(Cause::Idle) => Ok(relay.report(RelayEnd::Idle)),
        Some(Cause::Failed(direction, error)) => Err(relay.failed(direction, error)),
        Some(Cause::Deadline) => {
            let error = Error::io(ErrorKind::Io, None, io::ErrorKind::TimedOut.into())
                .after(relay.a_to_b.driver().delivered(), Bytes::new());
            Err(relay.failed(Direction::AToB, error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C10: a thread that cannot be had (EAGAIN) is no state to wait in.
    #[test]
    fn a_thread_refused_is_no_state_to_wait_in() {
        let refused = io::Error::from_raw_os_error(libc::EAGAIN);
        let error = RelayError::at_start(Error::io(ErrorKind::Io, None, refused));
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::ResourceBusy);
    }
}
