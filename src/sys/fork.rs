//! Which process this is. fork(2) makes another with the same memory and the same descriptors: what
//! only one of them may use remembers whose it is.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::call::count;

/// A word in a page that every child finds zeroed (`MADV_WIPEONFORK`). Mapped once, for the life of
/// the process.
static WORD: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

/// The last number given. A child goes on from its parent's, so its number is none of its forebears'.
static LAST: AtomicU64 = AtomicU64::new(0);

/// This process's number: another one after each fork(2). (getpid(2) would be a system call, and the
/// first process of a PID namespace has the number that its parent has in its own.)
#[inline]
pub(crate) fn process() -> u64 {
    let word = WORD.load(Ordering::Acquire);
    if word.is_null() {
        return begin();
    }
    // SAFETY: once set, it leads to a page that stays mapped, and was zeroed or written as a word.
    let word = unsafe { &*word };
    match word.load(Ordering::Relaxed) {
        0 => renew(word),
        number => number,
    }
}

/// A number for a process that has none yet.
#[cold]
fn renew(word: &AtomicU64) -> u64 {
    let new = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    let order = Ordering::Relaxed;
    word.compare_exchange(0, new, order, order)
        .map_or_else(|theirs| theirs, |_| new)
}

/// Maps the page. Where none is to be had, the process's own number has to do.
#[cold]
fn begin() -> u64 {
    // SAFETY: takes nothing and cannot fail.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.unsigned_abs() as usize;
    let (access, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    count(2);
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let page = unsafe { libc::mmap(ptr::null_mut(), size, access, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return std::process::id().into();
    }
    // SAFETY: the range is the mapping of above.
    let wiped = unsafe { libc::madvise(page, size, libc::MADV_WIPEONFORK) } == 0;
    let (none, word) = (ptr::null_mut(), page.cast::<AtomicU64>());
    let order = (Ordering::AcqRel, Ordering::Acquire);
    if wiped && WORD.compare_exchange(none, word, order.0, order.1).is_ok() {
        return process();
    }
    count(1);
    // SAFETY: the mapping of above, which nobody else knows.
    unsafe { libc::munmap(page, size) };
    if wiped {
        // Another thread was first.
        return process();
    }
    std::process::id().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_keeps_its_number() {
        let numbers: Vec<u64> = (0..4)
            .map(|_| std::thread::spawn(process))
            .map(|thread| thread.join().unwrap())
            .collect();
        assert_eq!(numbers, [process(); 4]);
        assert_ne!(process(), 0);
    }
}
