//! Reading ahead through io_uring.

use super::ahead::{BLOCK, BLOCKS, Put, Span};
use crate::sys::ring::Ring;

/// One read of several that fill a block. A larger one the kernel splits, and hands to a thread.
const PIECE: usize = 1 << 20;

/// The ring, made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct RingReads {
    ring: Option<Ring>,
    align: usize,
    /// The kernel refused one: it is not asked again.
    refused: bool,
}

impl RingReads {
    /// As [`Ahead::read`](super::ahead::Ahead::read).
    pub(super) fn read(&mut self, span: Span<'_>, put: Put<'_>) -> bool {
        let fit = self.align == span.align && self.ring.as_ref().is_some_and(Ring::is_usable);
        if !fit {
            self.ring = None;
            if self.refused {
                return false;
            }
            self.align = span.align;
            self.ring = Ring::new(BLOCKS, BLOCK, PIECE.max(span.align), span.align).ok();
        }
        let Some(ring) = &mut self.ring else {
            self.refused = true;
            return false;
        };
        let (mut begun, mut done, mut open) = (0, 0, true);
        loop {
            while open && begun < span.blocks() && begun - done < ring.slots() {
                let (offset, len) = span.block(begun);
                if ring.start(begun % BLOCKS, span.fd, offset, len).is_err() {
                    open = false;
                    break;
                }
                begun += 1;
            }
            if done == begun {
                break;
            }
            let (_, len) = span.block(done);
            match ring.wait(done % BLOCKS) {
                Ok(block) if open => open = !block.is_empty() && put(block) && block.len() == len,
                // What was read for nobody.
                Ok(_) => {}
                Err(_) => open = false,
            }
            done += 1;
        }
        if !ring.is_usable() {
            self.ring = None;
            // It goes on without: at once, where nothing has been handed on.
            self.refused = true;
        }
        begun > 0
    }
}
