//! Opens paths that other users or programs may write: the ring's name, a directory of recordings, the files that
//! options name. `tests/tidy` rejects any other code that opens a file.
//!
//! Such a path may refer to a named pipe, a device, a socket, a directory, a symbolic link, a file with a lease, or a
//! sparse file of many gigabytes. An ordinary `open` follows the link, or blocks until the other end of the pipe opens
//! or the lease is broken. Every function here therefore opens without blocking, closes the descriptor on exec, and
//! returns an error unless the path refers to a regular file. Reading into memory has a bound.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, Stat, fcntl_setfl, fstat, open as open_path};
use rustix::io::Errno;
use rustix::shm;

/// How a file is opened.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    ReadWrite,
    /// For reading and writing. A missing file is created with mode 0666 less the umask.
    ReadWriteOrCreate,
}

/// Opens a regular file. A symbolic link in the last part of `path` is an error, because it may lead to another
/// directory.
///
/// # Errors
/// The error of the kernel, or an error for which [`is_not_regular`] returns true.
pub fn open(path: &Path, how: How) -> io::Result<File> {
    let flags = match how {
        How::Read => OFlags::RDONLY,
        How::ReadWrite => OFlags::RDWR,
        How::ReadWriteOrCreate => OFlags::RDWR | OFlags::CREATE,
    };
    open_regular(path, flags | OFlags::NOFOLLOW)
}

/// Opens a regular file that an option names, for reading. Symbolic links are followed: the operator has chosen the
/// path, and certificates (Let's Encrypt) and secrets (Kubernetes) usually are links.
///
/// # Errors
/// The error of the kernel, or an error for which [`is_not_regular`] returns true.
pub fn open_configured(path: &Path) -> io::Result<File> {
    open_regular(path, OFlags::RDONLY)
}

/// Creates a file with these permission bits, for reading and writing. An existing file, link or pipe is an error.
///
/// # Errors
/// The error of the kernel.
pub fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    Ok(open_path(path, flags, Mode::from_raw_mode(mode))?.into())
}

/// Reads a whole file that [`open`] opens.
///
/// # Errors
/// The errors of [`open`] and of reading, and an error if the file has more than `bytes_max` bytes.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_bounded(open(path, How::Read)?, bytes_max)
}

/// Reads a whole file that an option names as text. Follows symbolic links, see [`open_configured`].
///
/// # Errors
/// The errors of [`open_configured`] and of reading, and an error if the file has more than `bytes_max` bytes or is
/// not UTF-8.
pub fn read_configured_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let bytes = read_bounded(open_configured(path)?, bytes_max)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text"))
}

/// Reads the rest of an open file.
///
/// # Errors
/// The error of reading, and an error if more than `bytes_max` bytes are left.
pub fn read_bounded(file: File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// Opens the shared memory called `name`, a slash and a name without a slash. Returns the file and its status. Creates
/// nothing.
///
/// # Errors
/// The error of the kernel, or an error for which [`is_not_regular`] returns true.
pub fn open_shared_memory(name: &str, is_writable: bool) -> io::Result<(OwnedFd, Stat)> {
    let access = if is_writable { shm::OFlags::RDWR } else { shm::OFlags::RDONLY };
    // rustix adds O_CLOEXEC, but neither O_NOFOLLOW nor O_NONBLOCK.
    let flags = access | shm::OFlags::from_bits_retain((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits());
    let file = shm::open(name, flags, shm::Mode::empty())?;
    let status = fstat(&file)?;
    check_regular(&status)?;
    Ok((file, status))
}

/// Creates shared memory called `name` with these permission bits and size 0. An existing name is an error.
///
/// # Errors
/// The error of the kernel.
pub fn create_shared_memory(name: &str, mode: u32) -> io::Result<OwnedFd> {
    let flags = shm::OFlags::RDWR | shm::OFlags::CREATE | shm::OFlags::EXCL;
    Ok(shm::open(name, flags, Mode::from_raw_mode(mode))?)
}

/// Returns true if a function of this module refused the path because it does not refer to a regular file.
#[must_use]
pub fn is_not_regular(error: &io::Error) -> bool {
    let by_kernel = [Errno::LOOP, Errno::ISDIR, Errno::NXIO, Errno::NODEV].map(Errno::raw_os_error);
    error.get_ref().is_some_and(|inner| inner.is::<NotRegular>())
        || error.raw_os_error().is_some_and(|code| by_kernel.contains(&code))
}

/// A path refers to something that is not a regular file.
#[derive(Debug, thiserror::Error)]
#[error("it is {0}, not a regular file")]
struct NotRegular(&'static str);

fn open_regular(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = open_path(path, flags, Mode::from_raw_mode(0o666))?;
    check_regular(&fstat(&file)?)?;
    // With O_NONBLOCK, io_uring returns EAGAIN on file systems that cannot read without waiting.
    fcntl_setfl(&file, OFlags::empty())?;
    Ok(file.into())
}

fn check_regular(status: &Stat) -> io::Result<()> {
    let kind = match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => return Ok(()),
        FileType::Directory => "a directory",
        FileType::Fifo => "a pipe",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Socket => "a socket",
        _ => "something else",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, NotRegular(kind)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use rustix::fs::{CWD, mknodat};

    use super::*;

    /// A directory with one path of each kind. The drop removes it.
    struct Paths(PathBuf);

    impl Paths {
        fn new(name: &str) -> Paths {
            let directory = std::env::temp_dir().join(format!("ss-test-{}-{name}", std::process::id()));
            std::fs::create_dir_all(directory.join("directory")).unwrap();
            let paths = Paths(directory);
            std::fs::write(paths.at("file"), "content").unwrap();
            symlink(paths.at("file"), paths.at("link")).unwrap();
            symlink("/dev/zero", paths.at("link to a device")).unwrap();
            mknodat(CWD, paths.at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
            UnixListener::bind(paths.at("socket")).unwrap();
            paths
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Paths {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_a_regular_file_is_opened_and_nothing_blocks() {
        let paths = Paths::new("kinds");
        for how in [How::Read, How::ReadWrite, How::ReadWriteOrCreate] {
            assert!(open(&paths.at("file"), how).is_ok());
            for name in ["link", "link to a device", "pipe", "socket", "directory"] {
                let error = open(&paths.at(name), how).unwrap_err();
                assert!(is_not_regular(&error), "{name} {how:?}: {error}");
            }
            let error = open(Path::new("/dev/zero"), how).unwrap_err();
            assert!(is_not_regular(&error), "{error}");
        }
        for name in ["file", "link", "link to a device", "pipe", "socket", "directory"] {
            assert!(create_new(&paths.at(name), 0o600).is_err(), "{name}");
        }
    }

    #[test]
    fn missing_file_is_created_only_on_request() {
        let paths = Paths::new("missing");
        for how in [How::Read, How::ReadWrite] {
            let error = open(&paths.at("new"), how).unwrap_err();
            assert!(error.kind() == io::ErrorKind::NotFound && !is_not_regular(&error), "{error}");
        }
        assert!(open(&paths.at("new"), How::ReadWriteOrCreate).is_ok());
        assert!(open(&paths.at("new"), How::Read).is_ok());
        assert!(create_new(&paths.at("newer"), 0o600).is_ok());
    }

    #[test]
    fn path_of_an_option_may_be_a_link_but_not_a_device_or_pipe() {
        let paths = Paths::new("options");
        assert_eq!(read_configured_text(&paths.at("link"), 7).unwrap(), "content");
        for name in ["link to a device", "pipe", "socket", "directory"] {
            let error = read_configured_text(&paths.at(name), 7).unwrap_err();
            assert!(is_not_regular(&error), "{name}: {error}");
        }
    }

    #[test]
    fn large_sparse_file_is_refused_after_a_bounded_read() {
        let paths = Paths::new("sparse");
        File::create(paths.at("sparse")).unwrap().set_len(1 << 40).unwrap();
        for bytes_max in [0, 4096] {
            let error = read(&paths.at("sparse"), bytes_max).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{error}");
        }
        assert_eq!(read(&paths.at("file"), 7).unwrap(), b"content");
        assert!(read(&paths.at("file"), 6).is_err());
    }

    #[test]
    fn opened_file_blocks_as_usual_so_that_io_uring_can_use_it() {
        let paths = Paths::new("flags");
        let file = open(&paths.at("file"), How::ReadWrite).unwrap();
        assert!(!rustix::fs::fcntl_getfl(&file).unwrap().contains(OFlags::NONBLOCK));
        assert!(rustix::io::fcntl_getfd(&file).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn shared_memory_must_be_a_regular_file() {
        let name = format!("/ss-test-{}-foreign", std::process::id());
        let path = PathBuf::from(format!("/dev/shm{name}"));
        assert_eq!(open_shared_memory(&name, false).unwrap_err().kind(), io::ErrorKind::NotFound);
        let make: [&dyn Fn(); 3] = [
            &|| mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap(),
            &|| symlink("/dev/zero", &path).unwrap(),
            &|| drop(UnixListener::bind(&path).unwrap()),
        ];
        for make in make {
            make();
            for is_writable in [false, true] {
                let error = open_shared_memory(&name, is_writable).unwrap_err();
                assert!(is_not_regular(&error), "{error}");
            }
            assert!(create_shared_memory(&name, 0o600).is_err());
            shm::unlink(name.as_str()).unwrap();
        }
        create_shared_memory(&name, 0o600).unwrap();
        assert_eq!(open_shared_memory(&name, true).unwrap().1.st_size, 0);
        shm::unlink(name.as_str()).unwrap();
    }
}
