//! The bytes that are moved, and the checksum that both ends compute over them.

/// Bytes made or checked at a time. A last piece may be shorter.
pub(crate) const BLOCK: usize = 256 << 10;
const PAGE: usize = 4096;

/// A stream of bytes of which no two pages are alike, so that a page lost, doubled or moved shows.
pub(crate) struct Pattern {
    block: Vec<u8>,
    pages: u64,
}

impl Pattern {
    pub(crate) fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut block = Vec::with_capacity(BLOCK);
        while block.len() < BLOCK {
            // xorshift64: cheap, and no filesystem compresses it.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        Self { block, pages: 0 }
    }

    /// The next block: the same noise each time, each page stamped with its number.
    pub(crate) fn next_block(&mut self) -> &[u8] {
        for page in self.block.chunks_exact_mut(PAGE) {
            page[..8].copy_from_slice(&self.pages.to_le_bytes());
            self.pages += 1;
        }
        &self.block
    }

    /// The pieces that the first `bytes` bytes of the stream consist of.
    pub(crate) fn for_each<E>(
        bytes: u64,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut pattern = Self::new();
        let mut left = bytes;
        while left > 0 {
            let len = left.min(BLOCK as u64);
            // At most BLOCK, so it fits.
            each(&pattern.next_block()[..len as usize])?;
            left -= len;
        }
        Ok(())
    }
}

/// A checksum of position and value, several bytes a cycle so that the receiver keeps up with the
/// sender. Each piece must be a whole block, but for the last.
pub(crate) struct Checksum {
    lanes: [u64; 8],
}

impl Checksum {
    pub(crate) fn new() -> Self {
        Self {
            lanes: [1, 2, 3, 4, 5, 6, 7, 8],
        }
    }

    pub(crate) fn add(&mut self, piece: &[u8]) {
        let mut rows = piece.chunks_exact(64);
        for row in &mut rows {
            for (lane, word) in self.lanes.iter_mut().zip(row.chunks_exact(8)) {
                let word = word.try_into().map_or(0, u64::from_le_bytes);
                *lane = mix(*lane, word);
            }
        }
        for &byte in rows.remainder() {
            self.lanes[0] = mix(self.lanes[0], u64::from(byte) + 256);
        }
    }

    pub(crate) fn finish(&self) -> u64 {
        self.lanes.iter().fold(0, |sum, lane| mix(sum, *lane))
    }

    /// The checksum of the first `bytes` bytes of the pattern.
    pub(crate) fn of_pattern(bytes: u64) -> u64 {
        let mut sum = Self::new();
        let Ok(()) = Pattern::for_each(bytes, |piece| {
            sum.add(piece);
            Ok::<_, std::convert::Infallible>(())
        });
        sum.finish()
    }
}

/// Odd, so that the product loses nothing; rotated, so that the high bits count as well.
fn mix(state: u64, word: u64) -> u64 {
    (state ^ word)
        .wrapping_mul(0x9fb2_1c65_1e98_df25)
        .rotate_left(29)
}
