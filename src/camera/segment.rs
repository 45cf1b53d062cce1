//! Opens a shared-memory segment and identifies its layout. This module maps nothing.

use rustix::fd::OwnedFd;
use rustix::io::Errno;

use super::layout::{Layout, LayoutError};
use super::lease_header::{Geometry, HEADER_COPY_BYTES, HeaderError};
use crate::base::foreign_file;
use crate::base::limits::MAPPED_RANGES_MAX;

/// Reason why a segment cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// No segment has this name: the camera is not running.
    #[error("there is no shared memory {0}")]
    Missing(String),
    /// The segment cannot be opened.
    #[error("cannot open shared memory {name}: {errno}")]
    Open {
        /// Name of the segment.
        name: String,
        /// The kernel's error.
        errno: Errno,
    },
    /// The name refers to a pipe, a link, a directory or the like.
    #[error("{0} is not shared memory: another program has put a pipe, a link or a directory in its place")]
    NotSegment(String),
    /// The segment has no known layout.
    #[error("shared memory {name}: {error}")]
    Layout {
        /// Name of the segment.
        name: String,
        /// Reason why no layout matches.
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
    #[error("the lease ring {0} has no camera: its writer has ended")]
    NoWriter(String),
    /// Every reader number of the lease ring is in use.
    #[error("the lease ring {0} already has its maximum number of readers")]
    ReadersMax(String),
    /// The process has too many mapped ranges, because consumers still borrow from old mappings.
    #[error("cannot map shared memory {0}: {MAPPED_RANGES_MAX} ranges are mapped already")]
    Full(String),
}

impl MappingError {
    /// Returns true if the kernel refused read-write access. Read-only access may still be allowed.
    #[must_use]
    pub(super) fn is_permission(&self) -> bool {
        matches!(self, MappingError::Open { errno: Errno::ACCESS | Errno::PERM | Errno::ROFS, .. })
    }
}

/// Identity and size of the segment that a name or descriptor refers to.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentIdentity {
    /// `st_dev` and `st_ino` of the segment.
    pub(super) inode: (u64, u64),
    /// Bytes of the segment.
    pub(super) bytes: u64,
}

impl SegmentIdentity {
    /// Returns the identity of the segment that is called `name` now. The segment is opened but not mapped.
    pub(super) fn of_name(name: &str) -> Result<SegmentIdentity, MappingError> {
        open_segment(name, false).map(|(_, identity)| identity)
    }
}

/// Opens the segment called `name`. Returns the open file and the segment's identity.
pub(super) fn open_segment(
    name: &str,
    is_writable: bool,
) -> Result<(OwnedFd, SegmentIdentity), MappingError> {
    let failed = |error: std::io::Error| match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => MappingError::Missing(name.to_owned()),
        _ if foreign_file::is_not_regular(&error) => MappingError::NotSegment(name.to_owned()),
        errno => MappingError::Open { name: name.to_owned(), errno: errno.unwrap_or(Errno::IO) },
    };
    let (file, status) = foreign_file::open_shared_memory(name, is_writable).map_err(failed)?;
    let bytes = u64::try_from(status.st_size).unwrap_or(0);
    Ok((file, SegmentIdentity { inode: (status.st_dev, status.st_ino), bytes }))
}

/// Returns the layout of a segment. A segment that starts with the magic of a lease ring is a lease ring. For any other
/// segment, the size decides.
pub(super) fn detect_layout(file: &OwnedFd, segment_bytes: u64) -> Result<Layout, LayoutError> {
    let mut header = [0; HEADER_COPY_BYTES];
    let geometry = match rustix::io::pread(file, &mut header, 0) {
        Ok(HEADER_COPY_BYTES) => Geometry::read(&header, segment_bytes),
        // The segment is too short for a header, or unreadable, so it is not a lease ring and its size decides.
        _ => Err(HeaderError::Magic),
    };
    match geometry {
        Ok(geometry) => Ok(Layout::Lease(geometry)),
        Err(HeaderError::Magic) => Layout::detect(segment_bytes),
        Err(error) => Err(LayoutError::Lease(error)),
    }
}
