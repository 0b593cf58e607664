//! What a caller may ask of a transfer beyond its bytes.

/// Whether what was delivered may still change when the source is written afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// The cheapest way, zero copy included. What sits in a pipe or a socket buffer after
    /// sendfile(2) or splice(2) *is* the file's page: a write to the file before the reader takes
    /// it shows through.
    #[default]
    Aliased,
    /// What counts as delivered no longer depends on the source. Every backend that would hand
    /// the file's own pages to a pipe or a socket is left out; a memfd sealed against writing and
    /// shrinking keeps them all.
    Snapshot,
}

/// What a transfer leaves in the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Cache {
    /// As the kernel sees fit.
    #[default]
    Normal,
    /// Pages are dropped behind the transfer: by `RWF_DONTCACHE` (Linux 6.14) where read/write is
    /// at work, else by sync_file_range(2) and posix_fadvise(2), which drop pages that others had
    /// cached as well. For a large copy that nobody reads again soon.
    DropBehind,
    /// O_DIRECT, by the [`Direct`](crate::backend::Direct) backend, where a side is a file that
    /// can do it and has no record locks (see [Hazards](crate#hazards)); else as `DropBehind`.
    Bypass,
}

/// Whether a copy between files may share the source's extents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reflink {
    /// Shared where the filesystem can, copied where not.
    #[default]
    Auto,
    /// Shared, or an error.
    Always,
    /// Copied: the destination gets blocks of its own. Leaves out copy_file_range(2) too on
    /// filesystems that can share, since there it shares when it likes.
    Never,
}
