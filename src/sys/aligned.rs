//! A heap buffer at a chosen alignment, as O_DIRECT wants it.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::fmt;
use std::ptr::NonNull;
use std::slice;

/// A zeroed buffer of fixed size and alignment. Large ones come straight from the kernel as
/// untouched pages, so that a part never used costs nothing.
pub(crate) struct AlignedBuf {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its memory exclusively, and bytes have no thread affinity.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access gives only `&[u8]`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A buffer of `len` bytes (at least one) at a multiple of `align`, a power of two.
    pub(crate) fn new(len: usize, align: usize) -> Self {
        let layout = Layout::from_size_align(len.max(1), align)
            .expect("a buffer's length and alignment are bounded by the backends");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, layout }
    }

    pub(crate) fn len(&self) -> usize {
        self.layout.size()
    }

    /// Whether it begins at a multiple of `align` by its making.
    pub(crate) fn is_aligned_to(&self, align: usize) -> bool {
        self.layout.align() >= align
    }

    /// Where it begins, for a kernel that writes to it while nobody else looks.
    #[cfg(feature = "io-uring")]
    pub(super) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` points to `size` initialised bytes that live as long as `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the access exclusive.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

/// The length and alignment of the buffers that go from one use to the next.
pub(crate) const SPARE: usize = 256 << 10;
const PAGE: usize = 4096;

thread_local! {
    static KEPT: Cell<Option<AlignedBuf>> = const { Cell::new(None) };
}

/// A buffer of [`SPARE`] bytes at a page: the one that this thread keeps, or a new one.
pub(crate) fn spare() -> AlignedBuf {
    let kept = KEPT.try_with(Cell::take).ok().flatten();
    kept.unwrap_or_else(|| of(SPARE))
}

/// A buffer of another length, as well aligned as those that are kept.
pub(crate) fn of(len: usize) -> AlignedBuf {
    AlignedBuf::new(len, PAGE)
}

/// Keeps a buffer for this thread's next use. One is kept; a second is freed.
pub(crate) fn keep(buf: AlignedBuf) {
    if buf.len() == SPARE {
        let _ = KEPT.try_with(|kept| kept.set(Some(buf)));
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len", &self.layout.size())
            .field("align", &self.layout.align())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_zeroed_and_writable() {
        for align in [512, 4096, 65536] {
            let mut buf = AlignedBuf::new(3 * align, align);
            assert_eq!(buf.as_slice().as_ptr() as usize % align, 0);
            assert!(buf.as_slice().iter().all(|&b| b == 0));
            buf.as_mut_slice().fill(7);
            assert_eq!(buf.len(), 3 * align);
            assert!(buf.as_slice().iter().all(|&b| b == 7));
        }
    }
}
