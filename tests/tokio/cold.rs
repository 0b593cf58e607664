//! Files that are not in the page cache never hold up the reactor's thread.

use std::ffi::{c_int, c_long, c_void};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zcio::Backend;
use zcio::tokio::{drive, start};

use crate::common::{Data, make, skipped};
use crate::forms::{single, unix};
use crate::rig::within;

/// Several times what is looked for in the page cache at once, and no multiple of it.
const LEN: u64 = (37 << 20) + 12_345;

/// The file that is looked at, by inode; 0 for none.
static WATCHED: AtomicU64 = AtomicU64::new(0);

/// Held by the test whose file that is.
static WATCHING: Mutex<()> = Mutex::new(());

/// What was done with it.
static LOG: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

#[derive(Clone, Copy, Debug)]
enum Entry {
    /// Bytes read, which brings them into the cache, and how many of their pages were missing.
    Fetched(ThreadId, u64, u64),
    /// Bytes sent, and how many of their pages were missing just before.
    Sent(ThreadId, u64, u64),
}

fn is_watched(fd: c_int) -> bool {
    let watched = WATCHED.load(Ordering::Relaxed);
    // SAFETY: the descriptor belongs to the call that is under way.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    watched != 0 && nix::sys::stat::fstat(fd).is_ok_and(|stat| stat.st_ino == watched)
}

/// In front of libc's.
///
/// # Safety
/// As pread(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pread64(
    fd: c_int,
    buf: *mut c_void,
    count: usize,
    offset: libc::off64_t,
) -> isize {
    let watched = is_watched(fd);
    let missing = match watched {
        true => missing(fd, offset.unsigned_abs(), 1).unwrap_or(0),
        false => 0,
    };
    // SAFETY: the caller's own arguments, for the very call that it meant.
    let result = unsafe { libc::syscall(libc::SYS_pread64, fd, buf, count, offset) };
    if result > 0 && watched {
        let entry = Entry::Fetched(thread::current().id(), result.unsigned_abs(), missing);
        LOG.lock().expect("no panic").push(entry);
    }
    result as isize
}

/// In front of libc's.
///
/// # Safety
/// As sendfile(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sendfile64(
    fd_out: c_int,
    fd_in: c_int,
    offset: *mut libc::off64_t,
    count: usize,
) -> isize {
    let send = || -> c_long {
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_sendfile, fd_out, fd_in, offset, count) }
    };
    if !is_watched(fd_in) || offset.is_null() {
        return send() as isize;
    }
    // SAFETY: not null, and the caller's to read.
    let at = unsafe { *offset }.unsigned_abs();
    let len = (count as u64).min(LEN.saturating_sub(at));
    let missing = missing(fd_in, at, len).unwrap_or(0);
    let result = send();
    let sent = u64::try_from(result).unwrap_or(0);
    let entry = Entry::Sent(thread::current().id(), sent, missing);
    LOG.lock().expect("no panic").push(entry);
    result as isize
}

/// How many pages of a range are not in the page cache, by cachestat(2); of those that are, whether
/// the last one has arrived from the disk.
fn missing(fd: c_int, at: u64, len: u64) -> io::Result<u64> {
    if len == 0 {
        return Ok(0);
    }
    let range = [at, len];
    let mut stat = [0_u64; 5];
    // SAFETY: two numbers of 64 bits are read and five are written.
    let result = unsafe { libc::syscall(451, fd, range.as_ptr(), stat.as_mut_ptr(), 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let pages = (at + len).div_ceil(4096) - at / 4096;
    let missing = pages.saturating_sub(stat[0]);
    Ok(if missing == 0 && is_arriving(fd, at + len - 1) {
        1
    } else {
        missing
    })
}

/// Whether reading one byte would wait for the disk.
fn is_arriving(fd: c_int, at: u64) -> bool {
    let mut byte = 0_u8;
    let iov = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // SAFETY: the one iovec covers `byte`.
    let read = unsafe { libc::preadv2(fd, &raw const iov, 1, at as i64, libc::RWF_NOWAIT) };
    read < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
}

/// Drops what can be dropped from the page cache; whether the file is cold then.
fn chill(file: &File) -> Result<(), String> {
    file.sync_all().map_err(|e| e.to_string())?;
    // SAFETY: no pointer is passed.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let len = file.metadata().map_err(|e| e.to_string())?.len();
    match missing(file.as_raw_fd(), 0, len) {
        Ok(missing) if missing >= len / 4096 => Ok(()),
        Ok(missing) => Err(format!("only {missing} pages leave the cache")),
        Err(e) => Err(format!("cachestat(2): {e}")),
    }
}

#[test]
fn what_is_cold_is_fetched_off_the_reactors_thread() {
    within(60, || {
        let _watching = WATCHING.lock();
        let (data, file) = (Data::new(9), make::disk_file());
        for at in (0..LEN).step_by(1 << 20) {
            let piece = data.bytes(at, (LEN - at).min(1 << 20) as usize);
            file.write_all_at(&piece, at).expect("room");
        }
        if let Err(reason) = chill(&file) {
            return skipped("cold files", reason);
        }
        WATCHED.store(file.metadata().expect("a file").ino(), Ordering::Relaxed);
        let (ours, mut theirs) = make::unix();
        make::set_nonblocking(&ours, true);
        let draining = thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).expect("a writer");
            all
        });
        single().block_on(async {
            let dst = unix(ours.into());
            let mut options = zcio::TransferOptions::new();
            options.src_offset(0).backend(Backend::Sendfile);
            let mut transfer = start(&options, &file, &dst, u64::MAX).expect("two ends");
            assert_eq!(drive(&mut transfer).await.expect("two ends").bytes, LEN);
        });
        WATCHED.store(0, Ordering::Relaxed);
        assert_eq!(
            draining.join().expect("drained"),
            data.bytes(0, LEN as usize)
        );
        let here = thread::current().id();
        let (mut fetched, mut sent, mut waits) = (0, 0, 0);
        for entry in LOG.lock().expect("no panic").drain(..) {
            match entry {
                Entry::Fetched(who, bytes, _) => {
                    // One byte is how the end of a source is asked for.
                    assert!(who != here || bytes == 1, "fetched on the reactor's thread");
                    fetched += bytes;
                }
                Entry::Sent(who, bytes, missing) => {
                    assert_eq!(who, here);
                    waits += u64::from(missing > 0);
                    sent += bytes;
                }
            }
        }
        println!("{fetched} bytes fetched beside, {sent} sent, {waits} sends of pages not there");
        // How far the kernel reads ahead by itself is its own affair.
        assert!(
            fetched >= 2 << 20,
            "it was cold: only {fetched} bytes fetched"
        );
        assert_eq!(
            (sent, waits),
            (LEN, 0),
            "a send would have waited for the disk"
        );
    });
}

#[test]
fn a_small_file_of_a_message_is_read_where_it_does_not_wait() {
    within(60, || {
        let _watching = WATCHING.lock();
        let (data, file) = (Data::new(4), make::disk_file());
        file.write_all_at(&data.bytes(0, 4096), 0).expect("room");
        if let Err(reason) = chill(&file) {
            return skipped("cold files", reason);
        }
        WATCHED.store(file.metadata().expect("a file").ino(), Ordering::Relaxed);
        let (ours, mut theirs) = make::unix();
        make::set_nonblocking(&ours, true);
        let message = zcio::Message::new().bytes("header").file(&file, 1..4000);
        single().block_on(async {
            let dst = unix(ours.into());
            // The first finds it cold, the second warm.
            for _ in 0..2 {
                let report = zcio::tokio::send(&message, &dst).await;
                assert_eq!(report.expect("two ends").bytes, 6 + 3999);
            }
        });
        WATCHED.store(0, Ordering::Relaxed);
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).expect("a writer");
        let once = [&b"header"[..], &data.bytes(1, 3999)].concat();
        assert!(got == [&once[..], &once].concat());
        let here = thread::current().id();
        let mut beside = 0;
        for entry in LOG.lock().expect("no panic").drain(..) {
            match entry {
                Entry::Fetched(who, _, missing) if who == here => {
                    assert_eq!(missing, 0, "read from the disk on the reactor's thread");
                }
                Entry::Fetched(..) => beside += 1,
                Entry::Sent(..) => panic!("a small file goes along with its header"),
            }
        }
        // That it was asked for at hand has started the kernel's reading: what counts is who waits. A
        // kernel may have it there before anybody has to (7.2, from a disk in memory).
        match beside {
            0 => skipped("a read beside the reactor", "the file was there at once"),
            reads => assert_eq!(reads, 1, "for one of two messages"),
        }
    });
}

/// Of a small file the first page is at hand and the others are not.
#[test]
fn a_small_file_that_is_half_there_is_read_where_it_does_not_wait() {
    const SMALL: u64 = 16 << 10;
    within(60, || {
        let _watching = WATCHING.lock();
        let (data, file) = (Data::new(4), make::disk_file());
        file.write_all_at(&data.bytes(0, SMALL as usize), 0)
            .expect("room");
        if let Err(reason) = chill(&file) {
            return skipped("cold files", reason);
        }
        // SAFETY: no pointer is passed.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
        file.read_at(&mut [0], 0).expect("a file");
        if missing(file.as_raw_fd(), 0, SMALL).expect("cachestat(2)") == 0 {
            return skipped("a file of which a part is cached", "all of it is");
        }
        WATCHED.store(file.metadata().expect("a file").ino(), Ordering::Relaxed);
        let (ours, mut theirs) = make::unix();
        make::set_nonblocking(&ours, true);
        single().block_on(async {
            let message = zcio::Message::new().file(&file, 0..SMALL);
            let report = zcio::tokio::send(&message, &unix(ours.into())).await;
            assert_eq!(report.expect("two ends").bytes, SMALL);
        });
        WATCHED.store(0, Ordering::Relaxed);
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).expect("a writer");
        assert!(got == data.bytes(0, SMALL as usize));
        let here = thread::current().id();
        for entry in LOG.lock().expect("no panic").drain(..) {
            if let Entry::Fetched(who, _, lacking) = entry {
                assert!(
                    who != here || lacking == 0,
                    "read from the disk on the reactor's thread"
                );
            }
        }
    });
}

/// O_DIRECT goes around the page cache, and so does what prepares for it.
#[test]
fn bypassing_the_page_cache_leaves_it_alone() {
    const MUCH: u64 = 8 << 20;
    within(60, || {
        let (data, src) = (Data::new(4), make::disk_file());
        src.write_all_at(&data.bytes(0, MUCH as usize), 0)
            .expect("room");
        if let Err(reason) = chill(&src) {
            return skipped("cold files", reason);
        }
        let dst = make::disk_file();
        let mut options = zcio::TransferOptions::new();
        options.cache(zcio::Cache::Bypass).src_offset(0);
        let report = single().block_on(async {
            let mut transfer = start(&options, &src, &dst, u64::MAX).expect("two files");
            drive(&mut transfer).await.expect("two files")
        });
        assert_eq!(report.bytes, MUCH);
        if report.backend != Backend::Direct {
            return skipped("O_DIRECT", "this filesystem cannot do it");
        }
        let missing = missing(src.as_raw_fd(), 0, MUCH).expect("cachestat(2)");
        assert_eq!(
            missing,
            MUCH / 4096,
            "pages of the source that are not cached"
        );
    });
}

/// What polling a future took: the longest poll, and how often the thread was put to sleep in one.
#[derive(Debug, Default)]
struct Polls {
    longest: Duration,
    slept: i64,
}

/// Counts a future's polls.
async fn counted<T>(polls: &Mutex<Polls>, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        let (before, began) = (sleeps(), Instant::now());
        let outcome = future.as_mut().poll(cx);
        let mut polls = polls.lock().expect("no panic");
        polls.longest = polls.longest.max(began.elapsed());
        polls.slept += sleeps() - before;
        outcome
    })
    .await
}

/// How often this thread has given the processor up because it had to wait.
fn sleeps() -> i64 {
    // SAFETY: a `rusage` is integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: there is room for one `rusage`.
    let got = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    assert_eq!(got, 0);
    usage.ru_nvcsw
}

/// Reads all of them until they end, on one thread.
fn drain(mut sinks: Vec<UnixStream>) {
    let mut buf = vec![0; 256 << 10];
    for sink in &sinks {
        make::set_nonblocking(sink.as_fd(), true);
    }
    while !sinks.is_empty() {
        let mut fds: Vec<_> = sinks
            .iter()
            .map(|sink| PollFd::new(sink.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut fds, PollTimeout::NONE).expect("poll(2)");
        sinks.retain(|mut sink| !matches!(sink.read(&mut buf), Ok(0)));
    }
}

/// How late a tick of one millisecond comes on the reactor's thread while 64 cold files stream. With
/// as many threads beside the reactor as `zcio::tokio` advises: all compete for the processors.
///
/// How long the thread stood in line for a processor is told apart (`/proc/thread-self/schedstat`):
/// what is left is what the transfers have taken, or waits for the disk, or other guests of the host.
/// Those make single rounds late, whatever runs here, so that the median round is judged.
#[test]
#[ignore = "a measurement: needs 2 GiB of disk and a machine with nothing else to do"]
fn ticks_stay_on_time_while_cold_files_stream() {
    const FILES: usize = 64;
    const EACH: u64 = 32 << 20;
    const ROUNDS: usize = 5;
    const BOUND: Duration = Duration::from_millis(10);
    within(600, || {
        let piece = Data::new(1).bytes(0, 1 << 20);
        let files: Vec<File> = (0..FILES)
            .map(|_| {
                let file = make::disk_file();
                for at in (0..EACH).step_by(1 << 20) {
                    file.write_all_at(&piece, at).expect("room on the disk");
                }
                file
            })
            .collect();
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            let cold = files.iter().map(chill).collect::<Result<Vec<()>, _>>();
            if let Err(reason) = cold {
                return skipped("cold files", reason);
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .max_blocking_threads(2 * processors)
                .enable_all()
                .build()
                .expect("a runtime");
            let polls = Arc::new(Mutex::new(Polls::default()));
            // Opened beforehand: where the table of descriptors has to grow, the kernel waits for
            // all processors, which takes 10 ms and more.
            make::room_for_descriptors(8 * FILES);
            let (sources, sinks): (Vec<_>, Vec<_>) = files
                .iter()
                .map(|file| {
                    let (ours, theirs) = make::unix();
                    make::set_nonblocking(ours.as_fd(), true);
                    ((file.try_clone().expect("dup(2)"), ours), theirs)
                })
                .unzip();
            let began = Instant::now();
            let (late, own) = runtime.block_on(async {
                let over = AtomicBool::new(false);
                let sending = async {
                    let mut tasks = Vec::new();
                    for (file, ours) in sources {
                        let polls = Arc::clone(&polls);
                        tasks.push(tokio::spawn(async move {
                            let dst = unix(ours.into());
                            let mut options = zcio::TransferOptions::new();
                            options.src_offset(0);
                            let mut transfer =
                                start(&options, &file, &dst, u64::MAX).expect("two ends");
                            let report = counted(&polls, drive(&mut transfer)).await;
                            report.expect("two ends").bytes
                        }));
                    }
                    let draining = thread::spawn(move || drain(sinks));
                    for task in tasks {
                        assert_eq!(task.await.expect("no panic"), EACH);
                    }
                    draining.join().expect("drained");
                    over.store(true, Ordering::Relaxed);
                };
                tokio::join!(ticks(&over), sending).0
            });
            println!(
                "round {round}: {} ticks in {:?}\n    late by {late}\n    without waiting for a processor {own}\n    {:?}",
                late.count,
                began.elapsed(),
                polls.lock().expect("no panic"),
            );
            rounds.push(late.p999);
        }
        rounds.sort();
        assert!(rounds[ROUNDS / 2] < BOUND, "p99.9 by round: {rounds:?}");
    });
}

/// Ticks every millisecond: how late they came, and how late without standing in line.
async fn ticks(over: &AtomicBool) -> (Lateness, Lateness) {
    let period = Duration::from_millis(1);
    let (mut all, mut own) = (Vec::new(), Vec::new());
    let mut stood = standing();
    let mut due = Instant::now() + period;
    while !over.load(Ordering::Relaxed) {
        tokio::time::sleep_until(due.into()).await;
        let now = Instant::now();
        let late = now.saturating_duration_since(due);
        let before = std::mem::replace(&mut stood, standing());
        all.push(late);
        own.push(late.saturating_sub(stood.saturating_sub(before)));
        due = now + period;
    }
    (Lateness::of(all), Lateness::of(own))
}

/// How long this thread has stood in line for a processor so far; nothing where the kernel does not
/// say.
fn standing() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split_whitespace().nth(1).and_then(|n| n.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

struct Lateness {
    count: usize,
    p50: Duration,
    p99: Duration,
    p999: Duration,
    most: Duration,
}

impl Lateness {
    fn of(mut late: Vec<Duration>) -> Self {
        late.sort();
        let at = |part: f64| late[((late.len() - 1) as f64 * part) as usize];
        Self {
            count: late.len(),
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            most: at(1.0),
        }
    }
}

impl std::fmt::Display for Lateness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            p50,
            p99,
            p999,
            most,
            ..
        } = self;
        write!(
            f,
            "{p50:.1?} (median), {p99:.1?} (p99), {p999:.1?} (p99.9), {most:.1?} (most)"
        )
    }
}
