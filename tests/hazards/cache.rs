//! What [`Cache`](zcio::Cache) leaves in the page cache, by mincore(2). The numbers are printed; what
//! is asserted is wide, because the kernel promises to drop clean pages and nothing more.
// mmap(2) and mincore(2) have no safe calls among the dependencies that fit.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;

use zcio::{Backend, Cache, TransferOptions};

use crate::common::{Data, make, skipped, within};
use crate::lane::contents;

/// Several windows of what is dropped at a time.
const TOTAL: usize = 72 << 20;

/// How many MiB of a file are in the page cache.
fn resident(file: &File) -> usize {
    let len = usize::try_from(file.metadata().expect("fstat(2)").len()).expect("a test's size");
    if len == 0 {
        return 0;
    }
    let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, file.as_raw_fd(), 0) };
    assert_ne!(start, libc::MAP_FAILED);
    let mut pages = vec![0_u8; len.div_ceil(4096)];
    // SAFETY: the range is the mapping, and `pages` has a byte for each of its pages.
    let asked = unsafe { libc::mincore(start, len, pages.as_mut_ptr()) };
    // SAFETY: the mapping of above, of which nothing was kept.
    unsafe { libc::munmap(start, len) };
    assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
    (pages.iter().filter(|page| **page & 1 == 1).count() * 4096) >> 20
}

/// Writes it back and drops what is cached of it.
fn make_cold(file: &File) {
    file.sync_all().expect("fsync(2)");
    let advice = libc::POSIX_FADV_DONTNEED;
    // SAFETY: no pointer is passed.
    let done = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, advice) };
    assert_eq!(done, 0);
}

#[test]
fn a_large_copy_leaves_little_in_the_cache() {
    within(60, |pulse| {
        let data = Data::new(72);
        let mut src = make::disk_file();
        src.write_all(&data.bytes(0, TOTAL))
            .expect("room on the disk");
        make_cold(&src);
        if resident(&src) * 4 > TOTAL >> 20 {
            let reason = "the temporary directory's filesystem keeps its pages in any case";
            return skipped("what stays in the page cache", reason);
        }
        let cases = [
            (Cache::DropBehind, None),
            (Cache::DropBehind, Some(Backend::Splice)),
            (Cache::DropBehind, Some(Backend::Sendfile)),
            (Cache::DropBehind, Some(Backend::Mmap)),
            (Cache::DropBehind, Some(Backend::CopyFileRange)),
            (Cache::Bypass, None),
        ];
        for (cache, engine) in cases {
            let case = format!("{cache:?} by {engine:?}");
            pulse.at(&case);
            make_cold(&src);
            src.rewind().expect("files seek");
            let dst = make::disk_file();
            let mut options = TransferOptions::new();
            options.cache(cache);
            if let Some(backend) = engine {
                options.backend(backend);
            }
            let report = options.transfer(&src, &dst, u64::MAX).expect(&case);
            let (of_src, of_dst) = (resident(&src), resident(&dst));
            println!(
                "{case}: {} MiB by {}, cached afterwards: source {of_src} MiB, destination {of_dst} MiB",
                report.bytes >> 20,
                report.backend
            );
            assert_eq!(report.bytes, TOTAL as u64, "{case}");
            let little = (TOTAL / 4) >> 20;
            assert!(
                of_src <= little && of_dst <= little,
                "{case}: {of_src}, {of_dst} MiB"
            );
            assert_eq!(data.check(0, &contents(&dst)), Ok(()), "{case}");
        }
    });
}

/// Pages that others have dirtied are never lost by being dropped.
#[test]
fn dropping_loses_no_dirty_page() {
    within(60, |_| {
        let data = Data::new(16);
        let len = 16 << 20;
        let mut src = make::disk_file();
        src.write_all(&data.bytes(0, len))
            .expect("room on the disk");
        src.rewind().expect("files seek");
        let dst = make::disk_file();
        let report = TransferOptions::new()
            .cache(Cache::DropBehind)
            .transfer(&src, &dst, u64::MAX)
            .expect("a copy");
        assert_eq!(report.bytes, len as u64);
        for file in [&src, &dst] {
            make_cold(file);
            assert_eq!(data.check(0, &contents(file)), Ok(()));
        }
    });
}
