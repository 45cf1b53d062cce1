//! UNSAFE: locks on single bytes of a segment. The writer and each reader of a lease ring lock one byte, so that other
//! processes see that they live. This module must not map or read a segment. `lease_header.rs` defines which byte has
//! which meaning.
#![expect(unsafe_code, reason = "fcntl for open file description locks; no safe API has it")]

use std::os::fd::AsRawFd as _;

use rustix::fd::OwnedFd;

/// Locks the byte at `offset` for this open file, which must be writable. Returns false if another open file holds the
/// lock. The kernel releases the lock when the file's last descriptor and mapping are gone, even if the process is
/// killed.
pub(super) fn lock_byte(file: &OwnedFd, offset: i64) -> bool {
    byte_lock(file, offset, libc::F_OFD_SETLK, libc::F_WRLCK).is_some()
}

/// Unlocks the byte at `offset`.
pub(super) fn unlock_byte(file: &OwnedFd, offset: i64) {
    // The result is ignored: unlocking a byte that is not locked is no error.
    let _ = byte_lock(file, offset, libc::F_OFD_SETLK, libc::F_UNLCK);
}

/// Returns true if another open file holds the lock on the byte at `offset`. Returns false if the system does not
/// support such locks.
pub(super) fn is_byte_locked(file: &OwnedFd, offset: i64) -> bool {
    byte_lock(file, offset, libc::F_OFD_GETLK, libc::F_RDLCK)
        .is_some_and(|found| i32::from(found) != libc::F_UNLCK)
}

/// Calls `fcntl` for the lock on one byte. Returns the lock type that the kernel left in the request, or `None` if the
/// kernel refused the call.
fn byte_lock(file: &OwnedFd, offset: i64, command: i32, kind: i32) -> Option<i16> {
    // SAFETY: all-zero bytes are a valid `flock`. For open file description locks, `l_pid` must be 0.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = i16::try_from(kind).unwrap_or_default();
    request.l_whence = i16::try_from(libc::SEEK_SET).unwrap_or_default();
    request.l_start = offset;
    request.l_len = 1;
    // SAFETY: the descriptor is open while `file` is borrowed. `request` outlives the call, which reads it and, for
    // GETLK, writes it.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut request) };
    (result == 0).then_some(request.l_type)
}

#[cfg(test)]
mod tests {
    use rustix::shm;

    use super::*;

    #[test]
    fn lock_is_visible_to_other_files_and_ends_with_its_file() {
        let name = format!("/ss-test-{}-locks", std::process::id());
        let open = || {
            let flags = shm::OFlags::RDWR | shm::OFlags::CREATE;
            shm::open(name.as_str(), flags, shm::Mode::RUSR | shm::Mode::WUSR).unwrap()
        };
        let (first, second) = (open(), open());
        assert!(!is_byte_locked(&second, 100));
        assert!(lock_byte(&first, 100));
        assert!(is_byte_locked(&second, 100) && !is_byte_locked(&second, 101));
        assert!(!is_byte_locked(&first, 100), "a file does not see its own lock");
        assert!(!lock_byte(&second, 100));
        assert!(lock_byte(&second, 101));
        unlock_byte(&first, 100);
        assert!(lock_byte(&second, 100));
        drop(second);
        assert!(lock_byte(&first, 100) && lock_byte(&first, 101));
        shm::unlink(name.as_str()).unwrap();
    }
}
