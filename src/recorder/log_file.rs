//! The files of the detection logs, see `detection_log.rs`. They lie beside their recordings. Each file is checked before
//! it is used: another program may have put a file with the same name there. All functions may block.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::detection_log::{self, HEAD_BYTES, Head, LogLines};
use crate::base::foreign_file::{self, How};

/// Appends lines to the log of a recording.
///
/// # Errors
/// The error of the disk, or that another program's file is in the way.
pub(super) fn append(directory: &Path, recording: &str, lines: &LogLines) -> io::Result<()> {
    let path = directory.join(detection_log::name_of(recording));
    let file = if lines.is_first {
        // An older recording of the same name may have left its log.
        remove(directory, recording);
        foreign_file::create_new(&path, 0o666)?
    } else {
        foreign_file::open(&path, How::ReadWrite)?
    };
    file.write_all_at(&lines.head, 0)?;
    // After a crash a line without its end may be last. It is not repaired: readers skip it.
    file.write_all_at(&lines.lines, file.metadata()?.len())
}

/// Opens a log for reading.
///
/// # Errors
/// The error of the kernel, or that the file is not a log.
pub(super) fn open(directory: &Path, name: &str) -> io::Result<File> {
    let file = foreign_file::open(&directory.join(name), How::Read)?;
    head_of(&file)
        .filter(|head| detection_log::name_of(&head.recording) == name)
        .map(|_| file)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// A log that was found.
pub(super) struct Found {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) head: Head,
}

/// Finds the log of a recording. Returns `None` if the recording has no log.
pub(super) fn of(directory: &Path, recording: &str) -> Option<Found> {
    let name = detection_log::name_of(recording);
    let file = foreign_file::open(&directory.join(&name), How::Read).ok()?;
    let head = head_of(&file).filter(|head| head.recording == recording)?;
    Some(Found { name, bytes: file.metadata().ok()?.len(), head })
}

/// Removes the log of a recording if there is one.
pub(super) fn remove(directory: &Path, recording: &str) {
    if let Some(Found { name, .. }) = of(directory, recording) {
        let _ignored_if_it_fails = fs::remove_file(directory.join(name));
    }
}

/// Removes each log whose recording no longer exists.
pub(super) fn remove_orphans(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| detection_log::is_name(name)) else { continue };
        let Ok(file) = open(directory, name) else { continue };
        let is_missing = head_of(&file).is_some_and(|head| {
            fs::symlink_metadata(directory.join(head.recording))
                .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        });
        if is_missing {
            let _ignored_if_it_fails = fs::remove_file(entry.path());
        }
    }
}

fn head_of(file: &File) -> Option<Head> {
    let mut bytes = [0; HEAD_BYTES];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Head::parse(&bytes)
}
