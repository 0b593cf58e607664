//! O_DIRECT on each filesystem: heads and tails that fill no block.

use nix::fcntl::OFlag;
use zcio::{Backend, Cache};

use super::cell::{Cell, Ends, content, is_unfit, is_whole, outcome};
use super::disk::{Disk, Fs};
use super::plain::on_each;
use crate::common::{Destination, Pulse, Source, make};

/// Below a block, below the buffer, and above it; none a multiple of 512.
const SIZES: [u64; 3] = [700, (1 << 20) + 513, (5 << 20) + 4095];

/// Which sides have O_DIRECT already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Has {
    Source,
    Destination,
    Both,
    /// Neither: it is the cache policy that asks.
    Neither,
}

/// Every backend, with O_DIRECT set by the caller on one side or both, or asked for by the options.
pub(crate) fn unaligned(pulse: &Pulse) {
    on_each("O_DIRECT", pulse, &Fs::ALL, 96, |disk, sheet| {
        if !disk.takes_direct {
            return;
        }
        for size in SIZES {
            drop(disk.source(content(size)));
        }
        for ends in [Ends::Same, Ends::ToPipe, Ends::FromPipe, Ends::FromMemfd] {
            for has in [Has::Source, Has::Destination, Has::Both, Has::Neither] {
                let source_on_disk = ends.source_is_file() && ends != Ends::FromMemfd;
                let possible = match has {
                    Has::Source => source_on_disk,
                    Has::Destination => ends.destination_is_file(),
                    Has::Both => ends == Ends::Same,
                    Has::Neither => true,
                };
                if !possible {
                    continue;
                }
                let name = format!("{} {has:?}", ends.name());
                sheet.row(disk.fs.name(), &name, |backend| {
                    let direct = backend.is_none_or(|b| b == Backend::Direct);
                    // What is refused is refused at any size.
                    let sizes = if direct { &SIZES[..] } else { &SIZES[1..2] };
                    let mut word = String::new();
                    for size in sizes.iter().copied() {
                        for offsets in [(None, None), (Some(101), Some(77))] {
                            word = one(disk, ends, has, backend, size, offsets)
                                .map_err(|e| format!("{size} bytes at {offsets:?}: {e}"))?;
                        }
                    }
                    Ok(word)
                });
            }
        }
    });
}

fn one(
    disk: &Disk,
    ends: Ends,
    has: Has,
    backend: Option<Backend>,
    size: u64,
    (from, to): (Option<u64>, Option<u64>),
) -> Result<String, String> {
    let content = content(size);
    let mut source = ends.source(disk, &content);
    let mut destination = ends.destination(disk);
    let direct = has != Has::Neither;
    if matches!(has, Has::Source | Has::Both) {
        reopen_source(&mut source);
    }
    if matches!(has, Has::Destination | Has::Both) {
        reopen_destination(&mut destination);
    }
    let mut cell = Cell::new(ends, backend);
    let from = from.filter(|_| ends.source_is_file());
    let to = to.filter(|_| ends.destination_is_file());
    cell.offsets = (from, to);
    if !direct {
        cell.options.cache(Cache::Bypass);
    }
    let result = cell.run(source, destination)?;
    let by_offset = to.is_some();
    let unaligned = from.is_some() || to.is_some();
    let served = match backend {
        None | Some(Backend::Direct) => true,
        Some(Backend::Reflink) => ends.served_by(Backend::Reflink, disk, false) && !unaligned,
        // The kernel's other calls want whole blocks, and are not asked.
        Some(backend) => !direct && ends.served_by(backend, disk, by_offset),
    };
    if served {
        is_whole(&result, size.saturating_sub(from.unwrap_or(0)))?;
    } else {
        is_unfit(&result)?;
    }
    Ok(outcome(backend, &result))
}

fn reopen_source(source: &mut Source) {
    let fd = make::reopen(&source, OFlag::O_RDONLY | OFlag::O_DIRECT);
    source.fd = fd.expect("O_DIRECT is taken");
}

fn reopen_destination(destination: &mut Destination) {
    let fd = make::reopen(&destination, OFlag::O_RDWR | OFlag::O_DIRECT);
    destination.fd = fd.expect("O_DIRECT is taken");
}
