//! What works on each filesystem when nothing goes wrong.

use super::cell::{Cell, Ends, Sheet, content, is_unfit, is_whole, outcome};
use super::disk::{Disk, Fs};
use crate::common::{Pulse, skipped};

/// Several times every pipe and buffer, and no multiple of a block.
const LEN: u64 = (3 << 20) + 777;

/// Runs `body` on each of these filesystems that is to be had.
pub(crate) fn on_each(
    what: &'static str,
    pulse: &Pulse,
    all: &[Fs],
    mib: u64,
    body: impl Fn(&Disk, &mut Sheet),
) {
    let mut sheet = Sheet::new(what);
    for fs in all {
        pulse.at(format!("{what} on {}", fs.name()));
        match Disk::new(*fs, what, mib) {
            Ok(disk) => body(&disk, &mut sheet),
            Err(reason) => skipped(&format!("root {what} on {}", fs.name()), reason),
        }
    }
    sheet.conclude();
}

/// Every backend between every two ends, by the files' own positions and by offset. What was
/// written is read back from the device.
pub(crate) fn plain(pulse: &Pulse) {
    on_each("plain", pulse, &Fs::ALL, 64, |disk, sheet| {
        let content = content(LEN);
        drop(disk.source(content.clone()));
        for (ends, by_offset) in Ends::ALL.into_iter().flat_map(|e| [(e, false), (e, true)]) {
            let name = if by_offset { " at" } else { "" };
            let name = format!("{}{name}", ends.name());
            sheet.row(disk.fs.name(), &name, |backend| {
                let mut cell = Cell::new(ends, backend);
                if by_offset {
                    // Whole blocks, which a reflink needs.
                    let from = ends.source_is_file().then_some(3 * 4096);
                    cell.offsets = (from, ends.destination_is_file().then_some(5 * 4096));
                }
                let destination = ends.destination(disk);
                let result = cell.run(ends.source(disk, &content), destination)?;
                match backend {
                    Some(backend) if !ends.served_by(backend, disk, by_offset) => {
                        is_unfit(&result)?;
                    }
                    _ => is_whole(&result, LEN - cell.offsets.0.unwrap_or(0))?,
                }
                Ok(outcome(backend, &result))
            });
        }
    });
}
