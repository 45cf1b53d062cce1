//! UNSAFE: locks on single bytes of a segment, by which the writer and the readers of a lease ring know of each
//! other. May not map or read a segment; what a byte means is decided in `lease_header.rs`.
#![expect(unsafe_code, reason = "fcntl of open file description locks, which no safe API has")]

use std::os::fd::AsRawFd as _;

use rustix::fd::OwnedFd;

/// Takes the lock on the byte at `offset` of a file opened for writing, as this open file: it goes with its last
/// descriptor and mapping, however the process ends. `false` if another open file has it.
pub(super) fn lock_byte(file: &OwnedFd, offset: i64) -> bool {
    byte_lock(file, offset, libc::F_OFD_SETLK, libc::F_WRLCK).is_some()
}

/// Gives the lock on the byte back.
pub(super) fn unlock_byte(file: &OwnedFd, offset: i64) {
    // Unlocking what is not locked is no error either.
    let _ = byte_lock(file, offset, libc::F_OFD_SETLK, libc::F_UNLCK);
}

/// Whether another open file has the lock on the byte at `offset`. Where locks are not to be had: no.
pub(super) fn is_byte_locked(file: &OwnedFd, offset: i64) -> bool {
    byte_lock(file, offset, libc::F_OFD_GETLK, libc::F_RDLCK)
        .is_some_and(|found| i32::from(found) != libc::F_UNLCK)
}

/// One `fcntl` on one byte; gives the type that the kernel left in the request, `None` if it refused.
fn byte_lock(file: &OwnedFd, offset: i64, command: i32, kind: i32) -> Option<i16> {
    // SAFETY: all-zero bytes are a valid `flock`; `l_pid` has to be 0 for open file description locks.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = i16::try_from(kind).unwrap_or_default();
    request.l_whence = i16::try_from(libc::SEEK_SET).unwrap_or_default();
    request.l_start = offset;
    request.l_len = 1;
    // SAFETY: the descriptor is open as long as `file` is borrowed, and `request` outlives the call, which reads
    // it and, for GETLK, writes it.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut request) };
    (result == 0).then_some(request.l_type)
}

#[cfg(test)]
mod tests {
    use rustix::shm;

    use super::*;

    #[test]
    fn a_lock_is_seen_by_others_and_goes_with_its_file() {
        let name = format!("/ss-test-{}-locks", std::process::id());
        let open = || {
            let flags = shm::OFlags::RDWR | shm::OFlags::CREATE;
            shm::open(name.as_str(), flags, shm::Mode::RUSR | shm::Mode::WUSR).unwrap()
        };
        let (first, second) = (open(), open());
        assert!(!is_byte_locked(&second, 100));
        assert!(lock_byte(&first, 100));
        assert!(is_byte_locked(&second, 100) && !is_byte_locked(&second, 101));
        assert!(!is_byte_locked(&first, 100), "one's own is none of another");
        assert!(!lock_byte(&second, 100));
        assert!(lock_byte(&second, 101));
        unlock_byte(&first, 100);
        assert!(lock_byte(&second, 100));
        drop(second);
        assert!(lock_byte(&first, 100) && lock_byte(&first, 101));
        shm::unlink(name.as_str()).unwrap();
    }
}
