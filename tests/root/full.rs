//! Destinations that have no room: the error's count is what lies there.

use zcio::{Backend, Side};

use super::cell::{Cell, Ends, Sheet, content, fails, is_unfit, is_whole, outcome};
use super::child::run;
use super::disk::{Disk, Fs};
use super::plain::on_each;
use crate::common::{Content, Pulse};

/// Room left on a filesystem that is filled up.
const LEFT: u64 = 2 << 20;

/// What does not fit.
const LEN: u64 = (5 << 20) + 777;

/// ENOSPC in the midst of a transfer, by every backend, from a file, a pipe and a socket, and
/// between two files of the full filesystem itself.
pub(crate) fn filesystem(pulse: &Pulse) {
    on_each("full", pulse, &Fs::ALL, 64, |disk, sheet| {
        let small = content(LEN);
        drop(disk.source(small.clone()));
        disk.fill(LEFT);
        no_room(disk, sheet, &Ends::INTO_IT, &small, libc::ENOSPC);
        no_room(disk, sheet, &[Ends::Same], &small, libc::ENOSPC);
    });
    // The smallest that there is, with nothing else in it.
    on_each("1 MiB", pulse, &[Fs::Tmpfs], 1, |disk, sheet| {
        no_room(disk, sheet, &Ends::INTO_IT, &content(LEN), libc::ENOSPC);
    });
}

/// EDQUOT, by a limit on a btrfs subvolume.
pub(crate) fn quota(pulse: &Pulse) {
    on_each("quota", pulse, &[Fs::Btrfs], 256, |disk, sheet| {
        let dir = disk.dir.to_str().expect("a plain path");
        let limit = || {
            run("btrfs", &["quota", "enable", dir])?;
            run("btrfs", &["qgroup", "limit", "2M", "0/5", dir])
        };
        if let Err(reason) = limit() {
            return crate::common::skipped("root quota on btrfs", reason);
        }
        no_room(disk, sheet, &Ends::INTO_IT, &content(LEN), libc::EDQUOT);
    });
}

fn no_room(disk: &Disk, sheet: &mut Sheet, all: &[Ends], content: &Content, errno: i32) {
    for ends in all {
        sheet.row(disk.fs.name(), ends.name(), |backend| {
            let destination = ends.destination(disk);
            let result = Cell::new(*ends, backend).run(ends.source(disk, content), destination);
            disk.remove("destination");
            let result = result?;
            let served = backend.is_none_or(|b| ends.served_by(b, disk, false));
            if !served {
                is_unfit(&result)?;
            } else if *ends == Ends::Same && disk.fs.shares() && shares_by_itself(backend) {
                is_whole(&result, LEN)?;
            } else {
                let delivered = fails(&result, Side::Destination, &[errno])?;
                // A file's length is known, and that there is no room for it may be said at once.
                if delivered == 0 && !ends.source_is_file() {
                    return Err("nothing at all was delivered".to_owned());
                }
            }
            Ok(outcome(backend, &result))
        });
    }
}

/// What shares extents on a filesystem that can, and so needs neither room nor reading: the probe's
/// choice as well.
pub(crate) fn shares_by_itself(backend: Option<Backend>) -> bool {
    use Backend::{CopyFileRange, Reflink};
    backend.is_none_or(|backend| matches!(backend, Reflink | CopyFileRange))
}
