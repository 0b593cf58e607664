//! A transfer and a second writer, who take turns: what must be in both files after each turn is
//! known to the byte.
//!
//! The rule: what is delivered is what the source holds at that moment, and afterwards it is
//! anybody's. So whatever the second writer appends, writes or punches stays, unless a piece that is
//! delivered later covers it; and what he has reserved and nothing was delivered to stays reserved.

#[path = "at_once.rs"]
mod at_once;
#[path = "scene.rs"]
mod scene;
#[path = "seeds.rs"]
mod seeds;

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use proptest::prelude::*;
use proptest::test_runner::TestError;
use zcio::{Backend, End, ErrorKind, Status, Transfer, TransferOptions};

use crate::common::{Data, make, oracle};
pub(crate) use at_once::at_once;
use scene::{Act, Scene};
pub(crate) use seeds::{cases, runner, seed};

type Verdict = Result<(), TestCaseError>;

const BLOCK: u64 = 4096;

/// What holes are punched with, and blocks reserved.
const PUNCH: FallocateFlags =
    FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);
const RESERVE: FallocateFlags = FallocateFlags::FALLOC_FL_KEEP_SIZE;

/// A file as others reach it, and what it must hold.
struct Twin {
    file: File,
    bytes: Vec<u8>,
}

impl Twin {
    fn new(of: &File) -> Self {
        let file = make::reopen(of, OFlag::O_RDWR).expect("a second description");
        let (file, bytes) = (file.into(), Vec::new());
        Self { file, bytes }
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn resize(&mut self, len: u64) {
        self.file.set_len(len).expect("ftruncate(2)");
        self.expect_len(len);
    }

    fn expect_len(&mut self, len: u64) {
        let more = vec![0; (len.saturating_sub(self.len())) as usize];
        self.bytes.truncate(len as usize);
        self.bytes.extend_from_slice(&more);
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).expect("room");
        self.expect(at, bytes);
    }

    fn expect(&mut self, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        if !bytes.is_empty() {
            self.expect_len(self.len().max(end));
            self.bytes[at as usize..end as usize].copy_from_slice(bytes);
        }
    }

    fn punch(&mut self, at: u64, len: u64) {
        fallocate(&self.file, PUNCH, at as i64, len as i64).expect("a hole");
        let end = self.len().min(at + len) as usize;
        let hole = self.bytes.get_mut(at as usize..end);
        hole.unwrap_or_default().fill(0);
    }

    /// Whether the file holds just that.
    fn check(&self) -> Verdict {
        let size = self.file.metadata().expect("fstat(2)").len();
        let mut held = vec![0; size as usize];
        self.file.read_exact_at(&mut held, 0).expect("readable");
        if held == self.bytes {
            return Ok(());
        }
        let mut pairs = held.iter().zip(&self.bytes);
        let wrong = pairs.position(|(one, other)| one != other);
        let expected = self.len();
        Err(TestCaseError::fail(format!(
            "{size} bytes for {expected}, {wrong:?} differs"
        )))
    }
}

/// The files of a scene, and how far it has come.
struct Stage {
    src: Twin,
    dst: Twin,
    appender: File,
    /// Blocks of the destination that the second writer has reserved and nothing has become of.
    reserved: Vec<bool>,
    from: u64,
    to: u64,
    delivered: u64,
    /// Bytes written so far: no two pieces are alike.
    written: u64,
    cut: bool,
}

impl Stage {
    fn new(scene: &Scene, src: &File, dst: &File) -> Self {
        let append = make::reopen(dst, OFlag::O_WRONLY | OFlag::O_APPEND);
        let mut stage = Self {
            src: Twin::new(src),
            dst: Twin::new(dst),
            appender: append.expect("a description that appends").into(),
            reserved: Vec::new(),
            from: scene.from.0,
            to: scene.to.0,
            delivered: 0,
            written: 0,
            cut: false,
        };
        for (is_data, len) in &scene.source {
            let end = stage.src.len() + len;
            if *is_data {
                let bytes = stage.bytes(*len as usize);
                stage.src.write(end - len, &bytes);
            }
            stage.src.resize(end);
        }
        let old = stage.bytes(scene.old as usize);
        stage.dst.write(0, &old);
        make::seek(src, stage.from);
        make::seek(dst, stage.to);
        stage
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        self.written += len as u64;
        let mut bytes = Data::new(7).bytes(self.written, len);
        // Nothing that is written looks like a hole.
        bytes.iter_mut().for_each(|byte| *byte |= 1);
        bytes
    }

    /// What was reserved there is gone, rightly.
    fn release(&mut self, at: u64, end: u64) {
        let (first, last) = ((at / BLOCK) as usize, end.div_ceil(BLOCK) as usize);
        let last = last.min(self.reserved.len());
        let blocks = self.reserved.get_mut(first..last);
        blocks.unwrap_or_default().fill(false);
    }

    fn advance(
        &mut self,
        transfer: &mut Transfer<&File, &File>,
        scene: &Scene,
    ) -> Result<bool, TestCaseError> {
        let result = transfer.advance();
        let (before, delivered) = (self.delivered, transfer.delivered());
        let (start, end) = (self.from + before, self.from + delivered);
        if delivered > before {
            prop_assert!(end <= self.src.len(), "{end} of {}", self.src.len());
            let bytes = self.src.bytes[start as usize..end as usize].to_vec();
            self.dst.expect(self.to + before, &bytes);
            self.release(self.to + before, self.to + delivered);
        }
        self.delivered = delivered;
        let ended = match result {
            Ok(Status::Moved(bytes)) => {
                prop_assert_eq!(bytes.get() as u64, delivered - before);
                false
            }
            Ok(Status::Finished(End::SourceEnded)) => {
                prop_assert!(end >= self.src.len(), "{} of {}", end, self.src.len());
                // It may grow, and then goes on.
                false
            }
            Ok(Status::Finished(End::Complete)) => {
                prop_assert_eq!(delivered, scene.len);
                true
            }
            Ok(status) => return Err(TestCaseError::fail(format!("{status:?}"))),
            Err(error) => {
                prop_assert_eq!(error.delivered(), delivered, "{}", error);
                prop_assert!(error.undelivered().is_empty(), "{}", error);
                let expected = match error.kind() {
                    ErrorKind::Unfit => scene.backend.is_some(),
                    ErrorKind::SourceTruncated => self.cut,
                    // It takes whole blocks only, and has nothing to give way to.
                    ErrorKind::Io => scene.backend == Some(Backend::Reflink),
                    _ => false,
                };
                prop_assert!(expected, "{}", error);
                true
            }
        };
        Ok(ended)
    }

    /// The second writer's turn.
    fn act(&mut self, act: Act, taken: u64) {
        let (delivered, taken) = (self.to + self.delivered, self.from + taken);
        match act {
            Act::Advance => {}
            Act::Append(len) => {
                let bytes = self.bytes(len);
                (&self.appender).write_all(&bytes).expect("room");
                self.dst.expect(self.dst.len(), &bytes);
            }
            Act::Delivered(back, len) => {
                let at = delivered.saturating_sub(back).max(self.to);
                let bytes = self.bytes(len.min((delivered - at) as usize));
                self.dst.write(at, &bytes);
            }
            Act::Ahead(on, len) => {
                let bytes = self.bytes(len);
                self.dst.write(delivered + on, &bytes);
            }
            Act::Punch(at, len) => {
                self.dst.punch(at, len);
                self.release(at, at + len);
            }
            Act::Reserve(on, len) => {
                let at = self.dst.len() + on;
                // Where there is no room, there is no reservation.
                if fallocate(&self.dst.file, RESERVE, at as i64, len as i64).is_ok() {
                    let (first, last) = (at.div_ceil(BLOCK) as usize, (at + len) / BLOCK);
                    let blocks = self.reserved.len().max(last as usize);
                    self.reserved.resize(blocks, false);
                    self.reserved[first..last as usize].fill(true);
                }
            }
            Act::Grow(gap, len) => {
                let bytes = self.bytes(len);
                self.src.write(self.src.len() + gap, &bytes);
            }
            Act::Fill(on, len) => {
                let room = self.src.len().saturating_sub(taken + on);
                let bytes = self.bytes(len.min(room as usize));
                self.src.write(taken + on, &bytes);
            }
            Act::Empty(on, len) => self.src.punch(taken + on, len),
            Act::Cut(on) if taken + on < self.src.len() => {
                self.src.resize(taken + on);
                self.cut = true;
            }
            Act::Cut(_) => {}
        }
    }

    fn check(&self) -> Verdict {
        for (twin, name) in [(&self.src, "source"), (&self.dst, "destination")] {
            twin.check()
                .map_err(|e| TestCaseError::fail(format!("{name}: {e}")))?;
        }
        let there = self.dst.file.metadata().expect("fstat(2)").blocks() * 512;
        let reserved = self.reserved.iter().filter(|block| **block).count() as u64 * BLOCK;
        prop_assert!(
            there >= reserved,
            "{there} bytes of blocks, {reserved} reserved"
        );
        Ok(())
    }
}

fn run(scene: &Scene, src: &File, dst: &File) -> Verdict {
    let mut stage = Stage::new(scene, src, dst);
    let mut options = TransferOptions::new();
    if let Some(backend) = scene.backend {
        options.backend(backend);
    }
    if let (from, true) = scene.from {
        options.src_offset(from);
        make::seek(src, 0);
    }
    if let (to, true) = scene.to {
        options.dst_offset(to);
        make::seek(dst, 0);
    }
    if let Some(chunk) = scene.chunk.and_then(NonZeroUsize::new) {
        options.chunk_size(chunk);
    }
    let mut transfer = match options.start(src, dst, scene.len) {
        Ok(transfer) => transfer,
        Err(error) => {
            let forced = scene.backend.is_some() && error.kind() == ErrorKind::Unfit;
            prop_assert!(forced, "{}", error);
            return Ok(());
        }
    };
    let mut ended = false;
    for act in &scene.acts {
        if matches!(act, Act::Advance) && !ended {
            ended = stage.advance(&mut transfer, scene)?;
        }
        stage.act(*act, stage.delivered + transfer.in_flight());
        stage.check()?;
    }
    while scene.to_end && !ended {
        let before = stage.delivered;
        ended = stage.advance(&mut transfer, scene)? || stage.delivered == before;
        stage.check()?;
    }
    drop(transfer);
    stage.check()?;
    let at = |(at, explicit): (u64, bool)| if explicit { 0 } else { at + stage.delivered };
    prop_assert_eq!(
        oracle::position(src),
        at(scene.from),
        "the source's position"
    );
    prop_assert_eq!(
        oracle::position(dst),
        at(scene.to),
        "the destination's position"
    );
    stage.act(Act::Append(1000), 0);
    stage.check()
}

/// Runs scenes on files that `make` makes, both on one filesystem.
pub(crate) fn in_turns(place: &str, usual: u32, make: impl Fn() -> File) {
    let (seed, cases) = (seed(), cases(usual));
    print!("{place}: ");
    let turns = Cell::new(0);
    let result = runner(seed, cases).run(&scene::scene(), |scene| {
        turns.set(turns.get() + scene.acts.len());
        run(&scene, &make(), &make())
    });
    if let Err(TestError::Fail(reason, scene)) = result {
        panic!("ZCIO_MODEL_SEED={seed}: {place}: {reason}\n{scene:#?}");
    }
    println!("{} turns", turns.get());
    assert!(turns.get() >= cases as usize, "{result:?}");
}
