//! Opens a shared-memory segment and identifies its layout. This module maps nothing.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::shm;

use super::layout::{Layout, LayoutError};
use super::lease_header::{Geometry, HEADER_COPY_BYTES, HeaderError};
use crate::base::limits::MAPPED_RANGES_MAX;

/// Why a segment is not mapped.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// No segment has this name: the camera is not running.
    #[error("there is no shared memory {name}")]
    Missing {
        /// Name of the segment.
        name: String,
    },
    /// The segment cannot be opened.
    #[error("cannot open shared memory {name}: {errno}")]
    Open {
        /// Name of the segment.
        name: String,
        /// The kernel's error.
        errno: Errno,
    },
    /// The segment has no known layout.
    #[error("shared memory {name}: {error}")]
    Layout {
        /// Name of the segment.
        name: String,
        /// The size found and the known sizes.
        error: LayoutError,
    },
    /// The kernel refused the mapping.
    #[error("cannot map shared memory {name}: {error}")]
    Map {
        /// Name of the segment.
        name: String,
        /// The kernel's error.
        error: std::io::Error,
    },
    /// The lease ring has no living writer.
    #[error("the lease ring {name} has no camera: its writer has ended")]
    NoWriter {
        /// Name of the segment.
        name: String,
    },
    /// Every reader number of the lease ring is in use.
    #[error("the lease ring {name} already has its maximum number of readers")]
    ReadersMax {
        /// Name of the segment.
        name: String,
    },
    /// Too many old mappings are still borrowed from.
    #[error("cannot map shared memory {name}: {MAPPED_RANGES_MAX} ranges are mapped already")]
    Full {
        /// Name of the segment.
        name: String,
    },
}

impl MappingError {
    /// Returns true if the kernel refused read-write access; read-only access may still be allowed.
    #[must_use]
    pub(super) fn is_permission(&self) -> bool {
        matches!(self, MappingError::Open { errno: Errno::ACCESS | Errno::PERM | Errno::ROFS, .. })
    }
}

/// Which segment a name or descriptor refers to.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentIdentity {
    /// `st_dev` and `st_ino`.
    pub(super) inode: (u64, u64),
    /// Bytes of the segment.
    pub(super) bytes: u64,
}

impl SegmentIdentity {
    /// Asks the kernel which segment is called `name`, without mapping it.
    pub(super) fn of_name(name: &str) -> Result<SegmentIdentity, MappingError> {
        let file = open_segment(name, shm::OFlags::RDONLY)?;
        SegmentIdentity::of_file(&file).map_err(|errno| MappingError::Open { name: name.to_owned(), errno })
    }

    /// Asks the kernel about an open segment.
    pub(super) fn of_file(file: &OwnedFd) -> Result<SegmentIdentity, Errno> {
        let stat = rustix::fs::fstat(file)?;
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(SegmentIdentity { inode: (stat.st_dev, stat.st_ino), bytes })
    }
}

/// Opens the segment called `name`.
pub(super) fn open_segment(name: &str, flags: shm::OFlags) -> Result<OwnedFd, MappingError> {
    shm::open(name, flags, shm::Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => MappingError::Missing { name: name.to_owned() },
        errno => MappingError::Open { name: name.to_owned(), errno },
    })
}

/// Returns identity and layout of an open segment.
pub(super) fn identify(name: &str, file: &OwnedFd) -> Result<(SegmentIdentity, Layout), MappingError> {
    let open = |errno| MappingError::Open { name: name.to_owned(), errno };
    let identity = SegmentIdentity::of_file(file).map_err(open)?;
    let layout = detect_layout(file, identity.bytes)
        .map_err(|error| MappingError::Layout { name: name.to_owned(), error })?;
    Ok((identity, layout))
}

/// Finds the layout of a segment: by the magic of the lease ring first, then by its size.
pub(super) fn detect_layout(file: &OwnedFd, segment_bytes: u64) -> Result<Layout, LayoutError> {
    match read_geometry(file, segment_bytes) {
        Ok(geometry) => Ok(Layout::Lease(geometry)),
        Err(HeaderError::Magic) => Layout::detect(segment_bytes),
        Err(error) => Err(LayoutError::Lease(error)),
    }
}

/// Reads the header of a lease ring from the file.
fn read_geometry(file: &OwnedFd, segment_bytes: u64) -> Result<Geometry, HeaderError> {
    let mut header = [0; HEADER_COPY_BYTES];
    match rustix::io::pread(file, &mut header, 0) {
        Ok(HEADER_COPY_BYTES) => Geometry::read(&header, segment_bytes),
        // Too short for a header, or unreadable: not a lease ring. The caller then detects the layout by the size.
        _ => Err(HeaderError::Magic),
    }
}
