//! A destination file on a full filesystem (B25): the error's count is exact, and delivered and
//! handed back is all that was taken.

use std::path::Path;

use zcio::{Backend, ErrorKind, Side, TransferOptions};

use crate::child;
use crate::common::{
    Before, Claim, Data, DestinationKind, SourceKind, kernel_can, make, skipped, within,
};
use crate::lane::by;

const ROOM: u64 = 1 << 20;
const TOTAL: u64 = 3 << 20;

#[test]
fn what_does_not_fit_is_handed_back() {
    child::on_small_tmpfs("full::what_does_not_fit_is_handed_back", ROOM, |mount| {
        let mount = mount.to_owned();
        within(20, move |pulse| {
            assert_eq!(std::env::temp_dir(), mount);
            for source in [
                SourceKind::ShmFile,
                SourceKind::Memfd,
                SourceKind::Pipe,
                SourceKind::Tcp,
                SourceKind::Unix,
            ] {
                for destination in [DestinationKind::DiskFile, DestinationKind::DirectFile] {
                    let sample = source.make(Data::new(24), 10).expect("a source");
                    let room = match destination.make() {
                        Ok(room) => room,
                        Err(e) => {
                            skipped(&format!("{destination:?} on a full tmpfs"), e);
                            continue;
                        }
                    };
                    let able = |engine: &Option<Backend>| {
                        engine.is_none_or(|backend| kernel_can(backend, &sample, &room))
                    };
                    for engine in serving(source, destination).into_iter().filter(able) {
                        let case = format!("{source:?} to {destination:?} by {engine:?}");
                        pulse.at(&case);
                        overfill(&case, source, destination, engine);
                    }
                }
            }
            copied_within(&mount);
        });
    });
}

/// `None` for the probe's choice, and what must be able to serve, written out.
fn serving(source: SourceKind, destination: DestinationKind) -> Vec<Option<Backend>> {
    use Backend::{Direct, Mmap, ReadWrite, Sendfile, Splice};
    let forced: &[Backend] = match (source.is_stream(), destination) {
        (_, DestinationKind::DirectFile) => &[Direct],
        (true, _) => &[Splice, Direct, ReadWrite],
        (false, _) => &[Sendfile, Splice, Mmap, Direct, ReadWrite],
    };
    let forced = forced.iter().copied().map(Some);
    std::iter::once(None).chain(forced).collect()
}

fn overfill(case: &str, source: SourceKind, destination: DestinationKind, engine: Option<Backend>) {
    // Where the last page begins is nobody's business but the filesystem's.
    for (dst_offset, nonblocking) in [(None, false), (Some(0), false), (None, true)] {
        if dst_offset.is_some() && engine == Some(Backend::Sendfile) {
            continue;
        }
        let case = format!("{case}, offset {dst_offset:?}, nonblocking {nonblocking}");
        let source = source.make(Data::new(25), TOTAL).expect(&case);
        let destination = destination.make().expect(&case);
        make::set_nonblocking(&source, nonblocking);
        let before = Before::new(&source, &destination);
        let mut options = by(engine);
        if let Some(offset) = dst_offset {
            options.dst_offset(offset);
        }
        let result = options.transfer(&source, &destination, u64::MAX);
        let error = result.as_ref().expect_err(&case);
        let number = error.io_error().and_then(std::io::Error::raw_os_error);
        assert_eq!(number, Some(libc::ENOSPC), "{case}: {error}");
        assert_eq!(error.kind(), ErrorKind::Io, "{case}: {error}");
        assert_eq!(error.side(), Some(Side::Destination), "{case}: {error}");
        let delivered = error.delivered();
        assert!((ROOM / 2..=ROOM).contains(&delivered), "{case}: {error}");
        let claim = Claim::from(&result);
        before.judge(&case, source, destination, (None, dst_offset), 0, &claim);
    }
}

/// Both files on the full filesystem, as copy_file_range(2) needs them.
fn copied_within(mount: &Path) {
    let len = ROOM * 5 / 8;
    for backend in [
        Backend::CopyFileRange,
        Backend::Sendfile,
        Backend::Splice,
        Backend::Mmap,
        Backend::Direct,
        Backend::ReadWrite,
    ] {
        let case = format!("within {} by {backend}", mount.display());
        let source = SourceKind::DiskFile.make(Data::new(26), len).expect(&case);
        let destination = DestinationKind::DiskFile.make().expect(&case);
        if !kernel_can(backend, &source, &destination) {
            continue;
        }
        let before = Before::new(&source, &destination);
        let result =
            TransferOptions::new()
                .backend(backend)
                .transfer(&source, &destination, u64::MAX);
        let error = result.as_ref().expect_err(&case);
        let number = error.io_error().and_then(std::io::Error::raw_os_error);
        assert_eq!(number, Some(libc::ENOSPC), "{case}: {error}");
        assert_eq!(error.side(), Some(Side::Destination), "{case}: {error}");
        let claim = Claim::from(&result);
        before.judge(&case, source, destination, (None, None), 0, &claim);
    }
}
