//! One topic's log: files of whole batches, each named by its first offset, with an index in memory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Buf;
use kafka_protocol::error::ResponseError;

use crate::Args;
use crate::wire::LONGEST;

/// A batch's header: first offset, length of what follows that, leader epoch, magic, CRC-32C of
/// what follows that, attributes, last offset, timestamps, producer, number of records.
const HEADER: usize = 61;
/// An index entry stands for at least so many bytes, and for whole batches.
const INDEX_STEP: u64 = 4096;

/// What a batch's header says.
#[derive(Clone, Copy, Debug)]
struct Batch {
    first: i64,
    len: usize,
    crc: u32,
    attributes: i16,
    records: i32,
    newest: i64,
}

impl Batch {
    /// The bytes that the CRC does not cover, at a batch's start.
    const UNCOVERED: usize = 21;

    fn parse(mut header: &[u8]) -> Result<Self, ResponseError> {
        if header.len() < HEADER {
            return Err(ResponseError::CorruptMessage);
        }
        let first = header.get_i64();
        let len = usize::try_from(header.get_i32()).unwrap_or(0) + 12;
        let (_epoch, magic, crc) = (header.get_i32(), header.get_i8(), header.get_u32());
        let (attributes, last) = (header.get_i16(), header.get_i32());
        let (_oldest, newest) = (header.get_i64(), header.get_i64());
        header.advance(14);
        let records = header.get_i32();
        if magic != 2 {
            return Err(ResponseError::UnsupportedForMessageFormat);
        }
        if !(HEADER..=LONGEST).contains(&len) || last.checked_add(1) != Some(records) {
            return Err(ResponseError::CorruptMessage);
        }
        let batch = Self {
            first,
            len,
            crc,
            attributes,
            records,
            newest,
        };
        if records < 1 {
            Err(ResponseError::InvalidRecord)
        } else {
            Ok(batch)
        }
    }

    /// What `records` consist of: whole batches whose CRC is right, outside of any transaction.
    fn all(mut records: &[u8]) -> Result<Vec<Self>, ResponseError> {
        let mut batches = Vec::new();
        while !records.is_empty() {
            let batch = Self::parse(records)?;
            let covered = records.get(Self::UNCOVERED..batch.len);
            if covered.map(crc32c::crc32c) != Some(batch.crc) {
                return Err(ResponseError::CorruptMessage);
            }
            if batch.attributes & 0x30 != 0 {
                return Err(ResponseError::InvalidRecord);
            }
            records.advance(batch.len);
            batches.push(batch);
        }
        if batches.is_empty() {
            Err(ResponseError::InvalidRecord)
        } else {
            Ok(batches)
        }
    }

    fn next(&self) -> i64 {
        self.first + i64::from(self.records)
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: i64,
    position: u64,
    /// The newest timestamp up to the next entry.
    newest: i64,
}

#[derive(Debug)]
struct Segment {
    file: Arc<File>,
    first: i64,
    next: i64,
    len: u64,
    index: Vec<Entry>,
}

impl Segment {
    fn open(dir: &Path, first: i64) -> io::Result<Self> {
        let path = dir.join(format!("{first:020}.log"));
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let file = Arc::new(file);
        Ok(Self {
            file,
            first,
            next: first,
            len: 0,
            index: Vec::new(),
        })
    }

    /// Takes note of a batch at the end.
    fn note(&mut self, batch: &Batch) {
        match self.index.last_mut() {
            Some(last) if self.len - last.position < INDEX_STEP => {
                last.newest = last.newest.max(batch.newest);
            }
            _ => self.index.push(Entry {
                offset: batch.first,
                position: self.len,
                newest: batch.newest,
            }),
        }
        self.len += batch.len as u64;
        self.next = batch.next();
    }

    /// Finds the batches that the file holds, up to the first that is not whole; where `check`,
    /// that their CRC is right too. The bytes behind them.
    fn scan(&mut self, check: bool) -> io::Result<u64> {
        let size = self.file.metadata()?.len();
        let mut buf = vec![0; if check { 1 << 20 } else { HEADER }];
        while size - self.len >= HEADER as u64 {
            self.file.read_exact_at(&mut buf[..HEADER], self.len)?;
            let Ok(batch) = Batch::parse(&buf) else { break };
            if batch.first != self.next || batch.len as u64 > size - self.len {
                break;
            }
            let (mut done, mut crc) = (Batch::UNCOVERED, 0);
            while check && done < batch.len {
                let piece = buf.len().min(batch.len - done);
                self.file
                    .read_exact_at(&mut buf[..piece], self.len + done as u64)?;
                crc = crc32c::crc32c_append(crc, &buf[..piece]);
                done += piece;
            }
            if check && crc != batch.crc {
                break;
            }
            self.note(&batch);
        }
        Ok(size - self.len)
    }
}

/// Whole batches of one file.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) file: Arc<File>,
    pub(crate) range: Range<u64>,
    /// There are none behind them yet.
    pub(crate) is_last: bool,
}

impl Slice {
    pub(crate) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// One topic's log.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    segment_bytes: u64,
    sync: bool,
    /// Held by whoever appends, for as long as the disk takes.
    turn: Mutex<()>,
    /// What can be read. Never empty, and locked for moments only.
    segments: Mutex<Vec<Segment>>,
}

impl Log {
    /// Opens or creates a log. What a process that was killed left at its end is cut off.
    pub(crate) fn open(dir: PathBuf, args: &Args) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let mut firsts = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".log"));
            let first = number.and_then(|number| number.parse::<i64>().ok());
            firsts.extend(first);
        }
        firsts.sort_unstable();
        if firsts.is_empty() {
            firsts.push(0);
        }
        let mut segments: Vec<Segment> = Vec::new();
        for (i, first) in firsts.iter().enumerate() {
            let mut segment = Segment::open(&dir, *first)?;
            let last = i + 1 == firsts.len();
            let behind = segment.scan(last)?;
            if last && behind > 0 {
                eprintln!(
                    "log_broker: {}: {behind} bytes cut off the end",
                    dir.display()
                );
                segment.file.set_len(segment.len)?;
            }
            let gap = segments.last().is_some_and(|before| before.next != *first);
            if gap || (!last && behind > 0) {
                let text = format!(
                    "{}: damaged at or before offset {}",
                    dir.display(),
                    segment.next
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            segments.push(segment);
        }
        let log = Self {
            dir,
            segment_bytes: args.segment_bytes,
            sync: args.sync,
            turn: Mutex::new(()),
            segments: Mutex::new(segments),
        };
        log.settle()?;
        Ok(log)
    }

    /// Makes sure of the directory's entries.
    fn settle(&self) -> io::Result<()> {
        if self.sync {
            File::open(&self.dir)?.sync_all()
        } else {
            Ok(())
        }
    }

    /// Appends batches and gives them their offsets, of which it returns the first.
    pub(crate) fn append(&self, records: &[u8]) -> Result<i64, ResponseError> {
        let mut batches = Batch::all(records)?;
        let mut records = records.to_vec();
        let _turn = self.turn.lock().unwrap();
        let (mut file, first, mut at) = {
            let segments = self.segments.lock().unwrap();
            let last = &segments[segments.len() - 1];
            (Arc::clone(&last.file), last.next, last.len)
        };
        let (mut next, mut start) = (first, 0);
        for batch in &mut batches {
            batch.first = next;
            next = batch.next();
            records[start..start + 8].copy_from_slice(&batch.first.to_be_bytes());
            // The leader epoch, which never changes here.
            records[start + 12..start + 16].fill(0);
            start += batch.len;
        }
        let mut write = || {
            if at > 0 && at + records.len() as u64 > self.segment_bytes {
                let segment = Segment::open(&self.dir, first)?;
                (file, at) = (Arc::clone(&segment.file), 0);
                self.segments.lock().unwrap().push(segment);
                self.settle()?;
            }
            let written = file.write_all_at(&records, at);
            written.and_then(|()| if self.sync { file.sync_data() } else { Ok(()) })
        };
        if let Err(e) = write() {
            eprintln!("log_broker: {}: {e}", self.dir.display());
            // What was written of it must not be taken for more than a torn end.
            let _ = file.set_len(at);
            return Err(ResponseError::KafkaStorageError);
        }
        let mut segments = self.segments.lock().unwrap();
        let last = segments.len() - 1;
        batches.iter().for_each(|batch| segments[last].note(batch));
        Ok(first)
    }

    /// The first offset, and the one after the last.
    pub(crate) fn offsets(&self) -> Range<i64> {
        let segments = self.segments.lock().unwrap();
        segments[0].first..segments[segments.len() - 1].next
    }

    /// Where the index has something as new as that: an offset and its timestamp.
    pub(crate) fn find(&self, timestamp: i64) -> Option<(i64, i64)> {
        let segments = self.segments.lock().unwrap();
        let mut entries = segments.iter().flat_map(|segment| &segment.index);
        let entry = entries.find(|entry| entry.newest >= timestamp)?;
        Some((entry.offset, entry.newest))
    }

    /// Where the batches from an offset on lie: from the index entry that the offset belongs to up to
    /// the last that ends within `most` bytes, and at least that entry.
    pub(crate) fn locate(&self, offset: i64, most: u64) -> Option<Slice> {
        let segments = self.segments.lock().unwrap();
        let place = segments
            .partition_point(|s| s.first <= offset)
            .checked_sub(1)?;
        let segment = segments.get(place).filter(|s| offset < s.next)?;
        let before = |e: &Entry| e.offset <= offset;
        let entry = segment.index.partition_point(before).checked_sub(1)?;
        let start = segment.index[entry].position;
        let fit = segment
            .index
            .partition_point(|e| e.position <= start + most)
            - 1;
        let end = match segment.index.get(fit.max(entry + 1)) {
            Some(next) if segment.len > start + most => next.position,
            _ => segment.len,
        };
        Some(Slice {
            file: Arc::clone(&segment.file),
            range: start..end,
            is_last: place + 1 == segments.len() && end == segment.len,
        })
    }
}
