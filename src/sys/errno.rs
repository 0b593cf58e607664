//! What an error number means for a mechanism that has moved nothing by the call that failed.

use std::io;

/// The call that failed: some numbers mean "not this way" from one call and a fault from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Splice,
    Sendfile,
    CopyFileRange,
    Clone,
    /// read(2) where another way may read: with O_DIRECT, or of what is mapped.
    Read,
    /// Setting a mechanism up: mmap(2), open(2) of a second description, the position or the size of
    /// a file of which it needs that.
    SetUp,
}

/// Whether `error` says that this mechanism cannot serve the pair, so that another one may.
///
/// It is safe to be generous here: read/write stands at the end of every order, and gives the true
/// error where the fault lies with a descriptor and not with the mechanism.
pub(crate) fn is_unfit(call: Call, error: &io::Error) -> bool {
    let Some(number) = error.raw_os_error() else {
        return false;
    };
    match number {
        // Whatever it is that cannot be had, there are mechanisms that need none of it.
        libc::ENOSPC | libc::EDQUOT | libc::EPIPE | libc::ECONNRESET => false,
        _ if call == Call::SetUp => true,
        // The descriptor has no such operation, or the kernel has no such call. EPERM and EACCES
        // come from seccomp profiles as well as from immutable files; read/write tells which.
        libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM | libc::EACCES => true,
        // A file that does not seek takes no offset from these, or from nobody.
        libc::ESPIPE => true,
        // Answered for ever: read/write tells which side it is of.
        libc::EINTR => true,
        // The call's own resources, not the caller's.
        libc::ENOMEM => call != Call::CopyFileRange && call != Call::Clone,
        // Lustre answers ENODATA; an offset near the end of the range answers EOVERFLOW.
        libc::ENODATA | libc::EOVERFLOW => true,
        // Other filesystem, swap file, O_APPEND set behind our back (EBADF).
        libc::EXDEV | libc::ETXTBSY | libc::EBADF | libc::ENOTTY => {
            matches!(call, Call::CopyFileRange | Call::Clone)
        }
        // CIFS answers EIO and ENOENT, kernel 6.17 a spurious EFBIG at the end of the range.
        libc::EIO | libc::ENOENT | libc::EFBIG if call == Call::CopyFileRange => true,
        // A lock lease or a file lock in the way: the slow way waits for it, or says it better.
        libc::EAGAIN => matches!(call, Call::CopyFileRange | Call::Clone),
        _ => false,
    }
}

/// Whether the kernel has no such call, or a seccomp profile keeps it to itself.
pub(crate) fn is_forbidden(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSYS | libc::EPERM | libc::EACCES)
    )
}

/// The kind of an error that leaves this crate. Neither EAGAIN nor EINTR is one that a caller may wait or
/// call once more for: that has been done.
pub(crate) fn told_kind(error: &io::Error) -> io::ErrorKind {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => io::ErrorKind::ResourceBusy,
        kind => kind,
    }
}

/// An error as it leaves this crate: see [`told_kind`].
pub(crate) fn told(error: io::Error) -> io::Error {
    match told_kind(&error) {
        kind if kind == error.kind() => error,
        kind => io::Error::new(kind, error),
    }
}

/// Whether `error` is EAGAIN.
pub(crate) fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Whether only a destination gives this error, so that a call that names both sides still tells.
pub(crate) fn is_destinations(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EPIPE
                | libc::ECONNRESET
                | libc::ENOSPC
                | libc::EDQUOT
                | libc::EFBIG
                | libc::EROFS
                | libc::EDESTADDRREQ
                | libc::ENOBUFS
        )
    )
}

/// Whether what lies behind a file gave this error, a device, a filesystem or a server: it speaks of
/// one side and not of the mechanism.
pub(crate) fn is_of_storage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EIO
                | libc::EREMOTEIO
                | libc::EUCLEAN
                | libc::EBADMSG
                | libc::ESTALE
                | libc::ENOLINK
                | libc::EHOSTDOWN
        )
    )
}

/// Whether only a file gives this error, or what lies behind it: no pipe and no socket does.
pub(crate) fn is_of_a_file(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENOSPC
                | libc::EDQUOT
                | libc::EFBIG
                | libc::EROFS
                | libc::ENOENT
                | libc::ESTALE
                | libc::EUCLEAN
                | libc::EISDIR
        )
    )
}

/// Whether a connection gave this error: of a socket and a pipe or a file, it speaks of the socket.
pub(crate) fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNRESET
                | libc::ECONNABORTED
                | libc::ECONNREFUSED
                | libc::ENOTCONN
                | libc::ETIMEDOUT
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::ENETDOWN
                | libc::ENETRESET
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_of_the_destination_is_never_a_reason_to_try_another_way() {
        let calls = [
            Call::Splice,
            Call::Sendfile,
            Call::CopyFileRange,
            Call::Clone,
            Call::Read,
            Call::SetUp,
        ];
        for call in calls {
            for number in [libc::ENOSPC, libc::EDQUOT, libc::EPIPE, libc::ECONNRESET] {
                let error = io::Error::from_raw_os_error(number);
                assert!(!is_unfit(call, &error), "{call:?} {error}");
                assert!(is_destinations(&error));
            }
        }
    }

    #[test]
    fn eio_is_a_fault_except_from_copy_file_range() {
        let eio = io::Error::from_raw_os_error(libc::EIO);
        assert!(is_unfit(Call::CopyFileRange, &eio));
        assert!(!is_unfit(Call::Sendfile, &eio));
        assert!(!is_unfit(Call::Splice, &eio));
        assert!(!is_unfit(Call::Read, &eio));
        assert!(!is_destinations(&eio));
    }

    #[test]
    fn what_cannot_be_set_up_is_unfit_whatever_the_number() {
        for number in [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOENT,
            libc::ENOTDIR,
            libc::ESPIPE,
            libc::ENOTTY,
            libc::ETXTBSY,
            libc::EIO,
            libc::EINTR,
            libc::EAGAIN,
        ] {
            let error = io::Error::from_raw_os_error(number);
            assert!(is_unfit(Call::SetUp, &error), "{error}");
        }
    }
}
