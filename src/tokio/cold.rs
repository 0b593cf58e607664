//! Files that are not in the page cache: what is missing is fetched on the blocking pool.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use ::tokio::task::spawn_blocking;

use super::{Readiness, Stride};
use crate::driver::{Driver, FAIR};
use crate::sys::call;

/// Brings what the next piece needs into the page cache, on the blocking pool, if it is not there,
/// and limits the piece to that.
pub(super) async fn warm_up<S>(driver: &mut Driver, src: &S, stride: &mut Stride<'_>)
where
    S: Readiness + ?Sized,
{
    let mut most = FAIR;
    if let Some((offset, len)) = driver.next_range(src.fd()) {
        if !stride.warm.contains(&offset) {
            stride.warm = offset..fetch_cold(src.fd(), offset, len).await;
        }
        most = most.min(stride.warm.end - offset);
    }
    driver.at_most(most);
}

/// Pieces of a file that are looked for in the page cache at once.
const PIECES: u64 = 4;

/// Brings a range of a file into the page cache, if it is not there. The end of what is there.
pub(super) async fn fetch_cold(file: BorrowedFd<'_>, offset: u64, len: u64) -> u64 {
    // What lies beyond the end is not missing.
    let size = call::stat(file).map_or(0, |stat| stat.size);
    let rest = size.saturating_sub(offset);
    if rest == 0 {
        return offset + len;
    }
    let (near, far) = (len.min(rest), (len * PIECES).min(rest));
    if call::is_cached(file, offset, far) {
        return offset + far.max(len);
    }
    if !call::is_cached(file, offset, near) {
        fetch(file, offset, near).await;
    }
    offset + near
}

/// Brings a range of a file into the page cache, on the blocking pool. What fails here fails in the
/// transfer too, which reports it.
pub(super) async fn fetch(file: BorrowedFd<'_>, offset: u64, len: u64) {
    // Closing a second descriptor would drop record locks: fcntl(2).
    let own = match call::has_record_locks(file) {
        true => None,
        false => file.try_clone_to_owned().ok(),
    };
    let Some(own) = own else {
        return fetch_by_advice(file, offset, len).await;
    };
    let fetch = move || drop(call::fetch(own.as_fd(), offset, len));
    let _ = spawn_blocking(fetch).await;
}

/// Milliseconds that are waited for a piece at most. It is read by the reactor's thread then.
const PATIENCE: u32 = 1000;

/// The same without a descriptor for the pool: the kernel is asked to read, and then whether it has.
async fn fetch_by_advice(file: BorrowedFd<'_>, offset: u64, len: u64) {
    call::will_need(file, offset, len);
    for _ in 0..PATIENCE {
        // The runtime may have no timers.
        let slept = spawn_blocking(|| thread::sleep(Duration::from_millis(1)));
        if slept.await.is_err() || call::is_cached(file, offset, len) {
            break;
        }
    }
}
