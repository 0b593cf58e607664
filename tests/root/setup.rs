//! What cannot be set up, or only in another way: no /proc, huge pages.
// A mapping that is written to has no safe maker.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::thread;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use zcio::backend::Unfit;
use zcio::{Backend, Cache, Consistency, TransferOptions, map_file};

use super::child::{ROOM, run};
use crate::common::oracle::position;
use crate::common::{Data, Pulse, make, skipped};

const LEN: usize = 9 << 20;
const DATA: Data = Data::new(0xb6);

fn file_in_room() -> File {
    tempfile::tempfile_in(ROOM).expect("a tmpfs of our own")
}

fn holds(case: &str, file: &File, from: u64, len: usize) {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).expect(case);
    assert_eq!(DATA.check(from, &bytes), Ok(()), "{case}");
    assert_eq!(
        file.metadata().expect("fstat(2)").len(),
        len as u64,
        "{case}"
    );
}

/// As in a chroot(2) that has none.
pub(crate) fn without_proc(pulse: &Pulse) {
    let image = file_in_room();
    image.write_all_at(&DATA.bytes(0, LEN), 0).expect("room");
    let device = match make::loop_device(&image) {
        Ok(device) => device,
        Err(e) => return skipped("root no /proc", format!("no loop device: {e}")),
    };
    let on_disk = make::disk_file();
    let direct = make::reopen(&on_disk, OFlag::O_RDWR | OFlag::O_DIRECT);
    let plain = make::disk_file();
    // Over it, an empty directory.
    let covered = run("mount", &["-t", "tmpfs", "zcio", "/proc"]);
    covered.expect("in a namespace of our own");
    assert!(File::open("/proc/self/stat").is_err(), "there is one");

    for backend in [Some(Backend::Mmap), None] {
        for (explicit, from) in [(false, 0), (false, 4097), (true, 0), (true, 4097)] {
            let case = format!("{backend:?}, explicit {explicit}, from {from}");
            pulse.at(&case);
            let dst = file_in_room();
            make::seek(&device, if explicit { 77 } else { from });
            let mut options = TransferOptions::new();
            backend.map(|backend| options.backend(backend));
            explicit.then(|| options.src_offset(from));
            let report = options.transfer(&device, &dst, u64::MAX);
            let report = report.unwrap_or_else(|e| panic!("{case}: {e}"));
            assert_eq!(report.bytes, LEN as u64 - from, "{case}");
            let stands = if explicit { 77 } else { LEN as u64 };
            assert_eq!(position(&device), stands, "{case}");
            holds(&case, &dst, from, LEN - from as usize);
        }
    }
    pulse.at("a snapshot to a socket");
    let (near, mut far) = make::unix();
    let drain = thread::spawn(move || {
        let mut all = Vec::new();
        far.read_to_end(&mut all).expect("a socket");
        all
    });
    let mut options = TransferOptions::new();
    options.consistency(Consistency::Snapshot).src_offset(0);
    let report = options
        .transfer(&device, &near, u64::MAX)
        .expect("a device");
    assert_eq!((report.bytes, report.backend), (LEN as u64, Backend::Mmap));
    drop(near);
    assert_eq!(DATA.check(0, &drain.join().expect("no panic")), Ok(()));

    pulse.at("around the page cache");
    make::seek(&device, 0);
    let mut options = TransferOptions::new();
    let report = options
        .cache(Cache::Bypass)
        .transfer(&device, &plain, u64::MAX);
    let report = report.expect("through the page cache");
    let refused = [(Backend::Direct, Unfit::Refused(libc::ENOENT))];
    assert_eq!(report.refused(), refused);
    holds("around the page cache", &plain, 0, LEN);
    let Ok(direct) = direct.map(File::from) else {
        return skipped("root no /proc", "the temporary directory takes no O_DIRECT");
    };
    make::seek(&device, 0);
    let report = zcio::transfer(&device, &direct, u64::MAX).expect("whole blocks");
    assert_eq!(
        (report.bytes, report.backend),
        (LEN as u64, Backend::Direct)
    );
    holds("O_DIRECT", &on_disk, 0, LEN);
}

const HUGE: usize = 2 << 20;

/// Pages of 2 MiB of this machine, as long as it lives.
struct HugePages(u64);

const POOL: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    /// At least so many. They are the whole machine's: what there was is there again afterwards.
    fn new(wanted: u64) -> Result<Self, String> {
        let told = |e| format!("{POOL}: {e}");
        let now = || fs::read_to_string(POOL).map(|text| text.trim().parse().unwrap_or(0));
        let before: u64 = now().map_err(told)?;
        let this = Self(before);
        fs::write(POOL, (before + wanted).to_string()).map_err(told)?;
        match now().map_err(told)? {
            got if got >= before + wanted => Ok(this),
            got => Err(format!("the kernel has room for {got} huge pages")),
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(POOL, self.0.to_string());
    }
}

/// How often a file of this name is mapped.
fn mappings(name: &str) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("procfs");
    maps.lines().filter(|line| line.contains(name)).count()
}

/// Files on huge pages are mapped and unmapped by whole pages.
pub(crate) fn huge_pages(pulse: &Pulse) {
    const NAME: &str = "zcio-huge";
    let _pages = match HugePages::new(8) {
        Ok(pages) => pages,
        Err(reason) => return skipped("root huge pages", reason),
    };
    let flags = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB | MFdFlags::MFD_ALLOW_SEALING;
    let file = match memfd_create(NAME, flags) {
        Ok(file) => File::from(file),
        Err(e) => return skipped("root huge pages", e),
    };
    let len = 2 * HUGE;
    file.set_len(len as u64).expect("ftruncate(2)");
    // write(2) cannot be had of these.
    // SAFETY: nobody else has the file.
    let mut map = unsafe { memmap2::MmapOptions::new().len(len).map_mut(&file) }.expect("mmap(2)");
    map.copy_from_slice(&DATA.bytes(0, len));
    drop(map);
    assert_eq!(mappings(NAME), 0);
    let ranges: [Range<u64>; 6] = [
        0..len as u64,
        5..105,
        4096..4097,
        4101..(HUGE as u64 + 3),
        HUGE as u64 - 3..HUGE as u64 + 6,
        HUGE as u64..len as u64,
    ];
    for Range { start, end } in ranges.clone() {
        for backend in [Some(Backend::Mmap), None] {
            for explicit in [false, true] {
                let case = format!("{start}..{end} by {backend:?}, explicit {explicit}");
                pulse.at(&case);
                let dst = file_in_room();
                let mut options = TransferOptions::new();
                backend.map(|backend| options.backend(backend));
                match explicit {
                    true => drop(options.src_offset(start)),
                    false => make::seek(&file, start),
                }
                let report = options.transfer(&file, &dst, end - start);
                let report = report.unwrap_or_else(|e| panic!("{case}: {e}"));
                assert_eq!(report.bytes, end - start, "{case}");
                holds(&case, &dst, start, (end - start) as usize);
                assert_eq!(mappings(NAME), 0, "{case}");
            }
        }
    }
    let error = map_file(&file, 0..5).expect_err("not sealed");
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK;
    fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals)).expect("F_ADD_SEALS");
    for Range { start, end } in ranges {
        pulse.at(format!("{start}..{end} mapped"));
        let bytes = map_file(&file, start..end).expect("sealed");
        assert_eq!(bytes.len() as u64, end - start);
        assert_eq!(DATA.check(start, &bytes), Ok(()), "{start}..{end}");
        assert_eq!(mappings(NAME), 1);
        drop(bytes);
        assert_eq!(mappings(NAME), 0, "{start}..{end}");
    }
}
