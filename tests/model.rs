//! A differential model: sequences of transfers, writes, truncations, punched holes, stores into
//! mappings and seeks on two real files, against two byte vectors. After each operation both agree,
//! bytes and positions.
//!
//! Then the same with a second writer: in turns with the transfer's steps, between any two of its
//! system calls, and at the same time. (On XFS, btrfs and others: the root tier.)
//!
//! `ZCIO_MODEL_SEED` takes the seed that a run printed, `ZCIO_MODEL_CASES` the number of sequences.
//! A sequence that fails is shrunk before it is reported.
// A shared mapping of a file that is written by other ways as well cannot be a safe slice.
#![allow(unsafe_code)]

#[path = "model/between.rs"]
mod between;
mod common;
#[path = "common/interpose.rs"]
mod interpose;
#[path = "model/operations.rs"]
mod operations;
#[path = "model/second.rs"]
mod second;

use std::cell::Cell;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};
use operations::{Move, Operation, Which, operation};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestError;
use zcio::{Backend, End, ErrorKind, TransferOptions};

/// A real file beside what it must be.
struct Twin {
    file: File,
    bytes: Vec<u8>,
    position: u64,
}

impl Twin {
    /// As `Vec::resize`, which without optimisation goes byte by byte.
    fn resize(&mut self, len: usize) {
        let more = len.saturating_sub(self.bytes.len());
        self.bytes.truncate(len);
        self.bytes.extend_from_slice(&vec![0; more]);
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let (at, end) = (at as usize, at as usize + bytes.len());
        self.resize(self.bytes.len().max(end));
        self.bytes[at..end].copy_from_slice(bytes);
    }
}

/// Two files on the same filesystem, or on two.
struct Model {
    twins: [Twin; 2],
    same_filesystem: bool,
    buf: Vec<u8>,
}

/// Bytes that do not repeat with any border.
fn pattern(len: usize, byte: u8) -> Vec<u8> {
    static TABLE: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..41_000_u32).map(|i| (i % 251) as u8).collect());
    TABLE[usize::from(byte)..][..len].to_vec()
}

type Verdict = Result<(), TestCaseError>;

impl Model {
    fn new(place: u8) -> Self {
        let disk = || tempfile::tempfile().expect("a temporary file");
        // Without /dev/shm, all on the disk.
        let shm = || tempfile::tempfile_in("/dev/shm").unwrap_or_else(|_| disk());
        let (a, b) = match place {
            0 => (disk(), disk()),
            1 => (shm(), shm()),
            _ => (disk(), shm()),
        };
        let device = |file: &File| nix::sys::stat::fstat(file).expect("fstat(2)").st_dev;
        let same_filesystem = device(&a) == device(&b);
        let twin = |file| Twin {
            file,
            bytes: Vec::new(),
            position: 0,
        };
        Self {
            twins: [twin(a), twin(b)],
            same_filesystem,
            buf: Vec::new(),
        }
    }

    fn run(&mut self, operation: &Operation) -> Verdict {
        match *operation {
            Operation::Transfer(ref a_move) => self.transfer(a_move)?,
            Operation::Relay {
                from,
                len,
                into,
                out,
            } => self.relay(from, len, into, out)?,
            Operation::Write(which, at, len, byte) => {
                let (twin, bytes) = (&mut self.twins[which as usize], pattern(len, byte));
                twin.file.write_all_at(&bytes, at).expect("room");
                twin.put(at, &bytes);
            }
            Operation::Truncate(which, size) => {
                let twin = &mut self.twins[which as usize];
                twin.file.set_len(size).expect("ftruncate(2)");
                twin.resize(size as usize);
            }
            Operation::Punch(which, at, len) => {
                let mode =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let twin = &mut self.twins[which as usize];
                fallocate(&twin.file, mode, at as i64, len as i64).expect("fallocate(2)");
                let end = twin.bytes.len().min((at + len) as usize);
                twin.bytes
                    .get_mut(at as usize..end)
                    .unwrap_or_default()
                    .fill(0);
            }
            Operation::Store(which, at, len, byte) => {
                let twin = &mut self.twins[which as usize];
                let len = len.min(twin.bytes.len().saturating_sub(at as usize));
                if len > 0 {
                    let bytes = pattern(len, byte);
                    let mut options = memmap2::MmapOptions::new();
                    options.offset(at).len(len);
                    // SAFETY: nobody else writes to the file while the mapping lives, and it is
                    // not cut.
                    let mapping = unsafe { options.map_mut(&twin.file) };
                    mapping.expect("mmap(2)").copy_from_slice(&bytes);
                    twin.put(at, &bytes);
                }
            }
            Operation::Seek(which, at) => {
                let twin = &mut self.twins[which as usize];
                lseek64(&twin.file, at as i64, Whence::SeekSet).expect("lseek(2)");
                twin.position = at;
            }
        }
        self.compare()
    }

    fn transfer(&mut self, a_move: &Move) -> Verdict {
        let &Move {
            from,
            to,
            backend,
            src_offset,
            dst_offset,
            len,
            ..
        } = a_move;
        let mut options = TransferOptions::new();
        if let Some(backend) = backend {
            options.backend(backend);
        }
        if let Some(offset) = src_offset {
            options.src_offset(offset);
        }
        if let Some(offset) = dst_offset {
            options.dst_offset(offset);
        }
        if let Some(chunk) = a_move.chunk.and_then(NonZeroUsize::new) {
            options.chunk_size(chunk);
        }
        let [src, dst] = [from, to].map(|which| &self.twins[which as usize]);
        let at = src_offset.unwrap_or(src.position);
        // One file under one descriptor has one position.
        let put = dst_offset.unwrap_or(dst.position);
        let same = from == to;
        if same && src_offset.is_none() && dst_offset.is_none() {
            return Ok(());
        }
        let whole = len.min((src.bytes.len() as u64).saturating_sub(at));
        let mut steps = 0;
        let result = options.transfer_with(&src.file, &dst.file, len, |_| {
            steps += 1;
            match a_move.stop_after {
                Some(most) if steps >= most => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        let moved = match result {
            Ok(report) => {
                let bytes = report.bytes;
                prop_assert!(bytes <= whole, "{bytes} of {whole} bytes");
                let end = match report.end {
                    End::Stopped => bytes < len && a_move.stop_after.is_some(),
                    End::Complete => bytes == len,
                    End::SourceEnded => bytes == whole && bytes < len,
                };
                prop_assert!(
                    end,
                    "{:?} after {bytes} of {whole}, {len} asked",
                    report.end
                );
                bytes
            }
            Err(error) => {
                prop_assert!(error.undelivered().is_empty(), "{}", error);
                let over = error.delivered();
                let overlaps = same && whole > at.abs_diff(put);
                let expected = match error.kind() {
                    ErrorKind::InvalidInput => overlaps,
                    ErrorKind::Unfit => self.may_refuse(a_move),
                    _ => false,
                };
                prop_assert!(expected, "{}", error);
                // Where it then has no O_DIRECT, a hole may have been gone over before.
                let hole = backend == Some(Backend::Direct) && over <= whole;
                prop_assert!(over == 0 || hole, "{}", error);
                let passed = &src.bytes[(at as usize).min(src.bytes.len())..][..over as usize];
                prop_assert!(passed.iter().all(|byte| *byte == 0), "{}", error);
                if over == 0 {
                    return Ok(());
                }
                over
            }
        };
        prop_assert!(
            !same || moved <= at.abs_diff(put),
            "overlapping, and not refused"
        );
        let source = &self.twins[from as usize].bytes;
        let start = (at as usize).min(source.len());
        let bytes = source[start..start + moved as usize].to_vec();
        let dst = &mut self.twins[to as usize];
        dst.put(put, &bytes);
        if dst_offset.is_none() {
            dst.position += moved;
        }
        if src_offset.is_none() {
            self.twins[from as usize].position += moved;
        }
        Ok(())
    }

    /// What cannot serve some of these pairs, and says so.
    fn may_refuse(&self, a_move: &Move) -> bool {
        match a_move.backend {
            // The temporary directory's filesystem may share extents or not.
            Some(Backend::Reflink) => true,
            Some(Backend::CopyFileRange) => !self.same_filesystem && a_move.from != a_move.to,
            Some(Backend::Sendfile) => a_move.dst_offset.is_some(),
            // On kernels where tmpfs does not take O_DIRECT.
            Some(Backend::Direct) => true,
            _ => false,
        }
    }

    fn relay(
        &mut self,
        from: Which,
        len: u64,
        into: Option<Backend>,
        out: Option<Backend>,
    ) -> Verdict {
        let to = if from == Which::A { Which::B } else { Which::A };
        let (reader, writer) = nix::unistd::pipe().expect("pipe(2)");
        let [src, dst] = [from, to].map(|which| &self.twins[which as usize]);
        let whole = len.min((src.bytes.len() as u64).saturating_sub(src.position));
        let by = |backend: Option<Backend>| {
            let mut options = TransferOptions::new();
            if let Some(backend) = backend {
                options.backend(backend);
            }
            options
        };
        let moved = match by(into).transfer(&src.file, &writer, len) {
            Ok(report) => report.bytes,
            Err(error) => {
                let between_files = [Some(Backend::Reflink), Some(Backend::CopyFileRange)];
                let expected = between_files.contains(&into) || into == Some(Backend::Direct);
                prop_assert!(expected && error.kind() == ErrorKind::Unfit, "{}", error);
                return Ok(());
            }
        };
        prop_assert_eq!(moved, whole);
        drop(writer);
        let out = by(out).transfer(&reader, &dst.file, u64::MAX);
        // Where the second half is refused, the bytes are in the pipe, and the model goes on as the
        // first half has left it.
        let arrived = match out {
            Ok(report) => report.bytes,
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::Unfit, "{}", error);
                0
            }
        };
        prop_assert!(arrived == moved || arrived == 0);
        let at = self.twins[from as usize].position;
        let source = &self.twins[from as usize].bytes;
        let start = (at as usize).min(source.len());
        let bytes = source[start..start + arrived as usize].to_vec();
        self.twins[from as usize].position += moved;
        let dst = &mut self.twins[to as usize];
        let put = dst.position;
        dst.put(put, &bytes);
        dst.position += arrived;
        Ok(())
    }

    fn compare(&mut self) -> Verdict {
        for (twin, name) in self.twins.iter().zip(["A", "B"]) {
            let position = lseek64(&twin.file, 0, Whence::SeekCur).expect("lseek(2)");
            prop_assert_eq!(position as u64, twin.position, "position of {}", name);
            // A byte more than there should be.
            let most = twin.bytes.len() + 1;
            if self.buf.len() < most {
                self.buf = vec![0; most];
            }
            let mut read = 0;
            while read < most {
                let rest = &mut self.buf[read..most];
                match twin.file.read_at(rest, read as u64).expect("readable") {
                    0 => break,
                    n => read += n,
                }
            }
            if self.buf[..read] != twin.bytes {
                let wrong = self
                    .buf
                    .iter()
                    .zip(&twin.bytes)
                    .position(|(one, other)| one != other);
                let (size, expected) = (read, twin.bytes.len());
                prop_assert!(
                    false,
                    "{name}: {size} bytes for {expected}, {wrong:?} differs"
                );
            }
        }
        Ok(())
    }
}

#[test]
fn files_and_vectors_agree_after_every_operation() {
    let (seed, cases) = (second::seed(), second::cases(1000));
    let mut runner = second::runner(seed, cases);
    let made = Cell::new(0_u64);
    // Lengths that make 10^5 operations of 10^3 sequences, and can shrink.
    let sequences = (0_u8..3, vec(operation(), 1..=220));
    let result = runner.run(&sequences, |(place, operations)| {
        let mut model = Model::new(place);
        for operation in &operations {
            model.run(operation)?;
            made.set(made.get() + 1);
        }
        Ok(())
    });
    if let Err(TestError::Fail(reason, (place, operations))) = result {
        panic!("ZCIO_MODEL_SEED={seed}: {reason}\nplace {place}, {operations:#?}");
    }
    println!("{} operations", made.get());
    assert!(
        made.get() >= u64::from(cases) * 100 || cases < 100,
        "{result:?}"
    );
}

/// The filesystems that are here: under the directory for temporary files, and in memory.
fn on_each(body: impl Fn(&str, &dyn Fn() -> File)) {
    body("the temporary directory", &common::make::disk_file);
    match common::make::shm_file() {
        Ok(_) => body("/dev/shm", &|| {
            common::make::shm_file().expect("made before")
        }),
        Err(e) => common::skipped("a second writer on /dev/shm", e),
    }
}

#[test]
fn a_second_writer_in_turns() {
    on_each(|place, make| second::in_turns(place, 300, make));
}

#[test]
fn a_second_writer_between_any_two_calls() {
    on_each(|place, make| between::between_calls(place, make));
}

#[test]
fn a_second_writer_at_once() {
    on_each(|place, make| second::at_once(place, make));
}

#[test]
fn a_hole_that_was_passed_counts_as_far_as_the_file_is_long() {
    on_each(|place, make| between::faulty(place, make));
}
