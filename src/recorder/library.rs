//! The directory of recordings: lists recordings, opens them for download, deletes them, applies the retention rules,
//! and repairs files after a crash. Most methods of [`Library`] do file I/O and block, so `handle.rs` runs them on a
//! blocking thread. Files that are being written belong to `disk.rs`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use tokio::sync::watch;

use super::counters::RecorderCounters;
use super::detection_log;
use super::finished_view::{FinishedView, IndexCache};
use super::format::fmp4::{self, Form};
use super::format::moov::{self, Notes};
use super::format::recovery::{WholeFragments, fill_at, whole_fragments};
use super::format::{TIMESCALE, annexb};
use super::log_file;
use super::names::{self, Format, Zone};
use super::retention::{ListedFile, Retention, to_retire};
use super::sidecar::Sidecar;
use super::types::{Progress, RecorderError, RecordingFilter, RecordingInfo};
use crate::base::foreign_file::{self, How};
use crate::base::limits;

/// The recordings in one directory. All clones share one list of the files that are being written.
#[derive(Clone, Debug)]
pub struct Library {
    directory: Arc<Path>,
    /// The files that are being written, by file name.
    running: Arc<Mutex<HashMap<String, Running>>>,
    index_cache: Arc<IndexCache>,
    pub(super) counters: Arc<RecorderCounters>,
}

/// A file that is being written.
#[derive(Clone, Debug)]
struct Running {
    identity: FileIdentity,
    progress: watch::Receiver<Progress>,
}

/// Device and inode of a file. They show if a path still leads to the same file.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct FileIdentity(u64, u64);

impl FileIdentity {
    pub(super) fn of(file: &File) -> io::Result<FileIdentity> {
        let metadata = file.metadata()?;
        Ok(FileIdentity(metadata.dev(), metadata.ino()))
    }

    /// Returns true if this file is at `path`. A symbolic link at `path` is not followed.
    pub(super) fn is_at(self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|found| FileIdentity(found.dev(), found.ino()) == self)
    }
}

/// Result of locking a file. Each server holds the lock of the file that it records, so that no other server on the same
/// directory repairs or deletes the file.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    Taken,
    /// Another open file has the lock.
    Held,
    /// The file system has no locks, so the file is not protected.
    Unsupported,
}

impl Lock {
    /// Locks the file without waiting. Closing the file releases the lock.
    pub(super) fn try_take(file: &File) -> Lock {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Lock::Taken,
            Err(rustix::io::Errno::WOULDBLOCK) => Lock::Held,
            Err(_) => Lock::Unsupported,
        }
    }

    pub(super) fn release(file: &File) {
        let _unsupported_is_ignored = flock(file, FlockOperation::Unlock);
    }
}

/// A recording opened for reading.
#[derive(Debug)]
pub struct Download {
    file: File,
    /// The first bytes of a file that was still being written when it was opened. They are served instead of the bytes
    /// on disk, which change when the file is finished.
    first_bytes: Vec<u8>,
    /// Set if a part of a growing file is read as a finished file.
    view: Option<FinishedView>,
    /// File name.
    pub name: String,
    /// Bytes that can be read now.
    pub bytes: u64,
    /// False if the file was still being written when it was opened.
    pub complete: bool,
    /// Strong HTTP validator, including its quotes. While the file is being written, the validator stays the same
    /// although `bytes` grows. This is allowed, because bytes that were already served never change under the same
    /// validator.
    pub etag: String,
    /// HTTP media type: `video/mp4`, `video/h264`, or `application/x-ndjson` for a detection log.
    pub content_type: &'static str,
    /// Time of the last write to the file.
    pub modified: SystemTime,
    /// Reports the growth of the file, so that a download with `?follow=1` can wait for more bytes. `None` if the file
    /// was not being written when it was opened.
    pub progress: Option<watch::Receiver<Progress>>,
}

impl Download {
    /// Reads bytes of the file from `offset` into `out`. Returns the number of bytes read, 0 at the end of the file.
    /// Blocks until the disk answers. The caller must stay below `bytes`, or below the committed bytes of `progress`.
    ///
    /// # Errors
    /// The error of the failed read.
    pub fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        // When the recorder finishes the file, it changes the first bytes on disk. This download must not mix the two
        // forms, so it continues with the first bytes of the unfinished form.
        let first = usize::try_from(offset).ok().and_then(|offset| self.first_bytes.get(offset..));
        match (first.filter(|first| !first.is_empty()), &self.view) {
            (Some(mut first), _) => first.read(out),
            (None, Some(view)) => view.read_at(&self.file, out, offset),
            (None, None) => self.file.read_at(out, offset),
        }
    }

    /// Returns the offset to which a growing MP4 can be read as a finished file now (`until` of [`Library::open`]).
    /// Returns `None` for any other file.
    #[must_use]
    pub fn finished_until(&self) -> Option<u64> {
        let progress = self.progress.as_ref()?.borrow();
        let has_view = progress.units.as_ref().is_some_and(FinishedView::exists);
        (self.view.is_none() && !progress.finished && has_view).then_some(progress.committed_bytes)
    }
}

impl Library {
    /// Creates a library for `directory`, which need not exist yet.
    #[must_use]
    pub fn new(directory: &Path, counters: Arc<RecorderCounters>) -> Library {
        Library {
            directory: directory.into(),
            running: Arc::default(),
            index_cache: Arc::default(),
            counters,
        }
    }

    /// Returns the path of the directory that holds the recordings.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Creates the directory with mode 0755 if it does not exist.
    ///
    /// # Errors
    /// [`RecorderError::Directory`] or [`RecorderError::DiskFull`] if the directory cannot be created.
    pub fn create_directory(&self) -> Result<(), RecorderError> {
        let created = fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.directory);
        created.map_err(|error| self.directory_error(&error))
    }

    /// Returns all recordings, newest first.
    ///
    /// # Errors
    /// [`RecorderError::Directory`] if the directory cannot be read. A directory that does not exist yet counts as
    /// empty.
    pub fn list(&self) -> Result<Vec<RecordingInfo>, RecorderError> {
        Ok(newest_first(self.entries()?).collect())
    }

    /// Returns the recordings that pass the filter, newest first, and the number that would be without `offset` and
    /// `limit`.
    ///
    /// # Errors
    /// As [`Library::list`].
    pub fn find(&self, filter: &RecordingFilter) -> Result<(Vec<RecordingInfo>, usize), RecorderError> {
        let zone = Zone::local();
        let mut entries = self.entries()?;
        entries.retain(|ListedFile { info, started_at_s, .. }| {
            filter.kind.is_none_or(|kind| kind == info.kind)
                && filter.label.as_ref().is_none_or(|label| info.labels.contains(label))
                && filter.day.is_none_or(|day| zone.day(*started_at_s) == Some(day))
        });
        let count = entries.len();
        let limit = filter.limit.unwrap_or(usize::MAX);
        Ok((newest_first(entries).skip(filter.offset).take(limit).collect(), count))
    }

    /// Opens a recording or its detection log for download. A file that is still being written can be read up to its
    /// last whole unit. With `until`, the bytes before this offset of a growing MP4 are read as a finished file, whose
    /// index is made for the reader. A file that is not growing ignores `until`.
    ///
    /// # Errors
    /// The name is not valid, no recording has this name, no unit ends at `until`, or a file operation failed.
    pub fn open(&self, name: &str, until: Option<u64>) -> Result<Download, RecorderError> {
        if detection_log::is_name(name) {
            return self.open_log(name);
        }
        let format = names::validate_existing(name)?;
        let running = self.running(name);
        let file = self.open_file(name, How::Read).map_err(|error| file_error(name, "opening", &error))?;
        let identity =
            FileIdentity::of(&file).map_err(|error| RecorderError::io("reading the file", &error))?;
        if running.as_ref().is_some_and(|running| running.identity != identity) {
            return Err(RecorderError::NotFound(name.to_owned())); // another program has replaced the file
        }
        let progress = running.map(|running| running.progress);
        let metadata = file.metadata().map_err(|error| RecorderError::io("reading the file", &error))?;
        let mut first_bytes = Vec::new();
        let mut bytes = metadata.len();
        let mut view = None;
        let mut etag = etag(&metadata);
        if let Some(progress) = &progress {
            let progress = progress.borrow().clone();
            bytes = progress.committed_bytes;
            etag = format!("\"{:x}-live\"", metadata.ino());
            match (until, progress.units) {
                (Some(until), Some(units)) => {
                    let opened = FinishedView::new(&units, metadata.ino(), until, &self.index_cache);
                    let opened = opened.ok_or(RecorderError::Until)?;
                    bytes = opened.bytes();
                    etag = format!("\"{:x}-until-{until:x}\"", metadata.ino());
                    first_bytes.extend_from_slice(&FinishedView::first_bytes(until));
                    view = Some(opened);
                }
                _ if format == Format::Mp4 && bytes > 0 => {
                    first_bytes.extend_from_slice(&fmp4::START_UNFINISHED);
                }
                _ => {}
            }
        }
        Ok(Download {
            file,
            first_bytes,
            view,
            name: name.to_owned(),
            bytes,
            complete: progress.is_none(),
            etag,
            content_type: format.content_type(),
            modified: metadata.modified().unwrap_or(UNIX_EPOCH),
            progress,
        })
    }

    fn open_log(&self, name: &str) -> Result<Download, RecorderError> {
        names::validate_log(name)?;
        let failed = |error: io::Error| file_error(name, "opening", &error);
        let file = log_file::open(&self.directory, name).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        Ok(Download {
            file,
            first_bytes: Vec::new(),
            view: None,
            name: name.to_owned(),
            bytes: metadata.len(),
            complete: true,
            etag: etag(&metadata),
            content_type: "application/x-ndjson",
            modified: metadata.modified().unwrap_or(UNIX_EPOCH),
            progress: None,
        })
    }

    /// Deletes a recording that is not being written.
    ///
    /// # Errors
    /// The name is not valid, no recording has this name, the file is being written, or a file operation failed.
    pub fn delete(&self, name: &str) -> Result<(), RecorderError> {
        names::validate_existing(name)?;
        if self.running(name).is_some() {
            return Err(RecorderError::InUse(name.to_owned()));
        }
        let failed = |error: io::Error| file_error(name, "deleting", &error);
        let file = self.open_file(name, How::Read).map_err(failed)?;
        if Lock::try_take(&file) == Lock::Held {
            return Err(RecorderError::InUse(name.to_owned())); // another server records to the file
        }
        self.remove_ours(name, &file).map_err(failed)
    }

    /// Removes a file, if its path still leads to the open file `file`. Also removes its sidecar and its detection log.
    pub(super) fn remove_ours(&self, name: &str, file: &File) -> io::Result<()> {
        let path = self.path(name);
        if !FileIdentity::of(file)?.is_at(&path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        fs::remove_file(&path)?;
        log_file::remove(&self.directory, name);
        if Format::of(name) == Some(Format::H264) {
            let _ignored_if_missing = fs::remove_file(Sidecar::path(&self.directory, name));
        }
        Ok(())
    }

    /// Deletes recordings as the retention rules demand, the oldest first. Returns the names of the deleted files.
    /// Never deletes a file that is being written, is unfinished, or was not written by this recorder.
    ///
    /// # Errors
    /// [`RecorderError::Directory`] if the directory cannot be read.
    pub fn retain(&self, rules: &Retention, now_s: u64) -> Result<Vec<String>, RecorderError> {
        if rules.is_empty() {
            return Ok(Vec::new());
        }
        let mut deleted = to_retire(self.entries()?, rules, self.free_bytes(), now_s);
        deleted.retain(|name| self.delete(name).is_ok());
        self.counters.retired.add_shared(deleted.len() as u64);
        Ok(deleted)
    }

    /// Returns the free bytes of the file system that holds the directory, or `None` if they are unknown.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        let system = rustix::fs::statvfs(&*self.directory).ok()?;
        Some(system.f_bavail.saturating_mul(system.f_frsize))
    }

    /// Returns the names of the files that a crash left unfinished. Must be called before the first recording starts,
    /// because a file that is being written looks the same.
    #[must_use]
    pub fn unfinished(&self) -> Vec<String> {
        let is_unfinished = |name: &String| match Format::of(name) {
            Some(Format::Mp4) => self
                .open_file(name, How::Read)
                .is_ok_and(|file| read_form(&file).is_ok_and(|form| form == Form::Unfinished)),
            Some(Format::H264) => {
                Sidecar::read(&self.directory, name).is_some_and(|sidecar| !sidecar.complete)
            }
            None => false,
        };
        self.names().unwrap_or_default().into_iter().filter(is_unfinished).collect()
    }

    /// Repairs a file that a crash left unfinished: truncates the file after its last whole unit and finishes it.
    /// Removes a file without a whole unit, unless it is so large that another program may have written it, or is not a
    /// file of this recorder. Does nothing if another process has locked the file, because that process may still write
    /// to it.
    ///
    /// Returns true if the file is a finished recording now.
    ///
    /// # Errors
    /// A file operation failed. The file can then still be played as far as before.
    pub fn repair(&self, name: &str) -> Result<bool, RecorderError> {
        let repaired =
            self.try_repair(name).map_err(|error| RecorderError::io("repairing the file", &error))?;
        self.counters.recovered.add_shared(u64::from(repaired));
        Ok(repaired)
    }

    fn try_repair(&self, name: &str) -> io::Result<bool> {
        let file = self.open_file(name, How::ReadWrite)?;
        if !lock_with_retries(&file) {
            return Ok(false);
        }
        // The process that had the lock may have finished or replaced the file meanwhile.
        if !FileIdentity::of(&file)?.is_at(&self.path(name)) {
            return Ok(false);
        }
        let bytes = file.metadata()?.len();
        if Format::of(name) == Some(Format::H264) {
            // Only the sidecar shows that this recorder wrote the file.
            if Sidecar::read(&self.directory, name).is_none_or(|sidecar| sidecar.complete) {
                return Ok(false);
            }
            if bytes == 0 {
                self.remove_ours(name, &file)?;
                return Ok(false);
            }
            self.repair_h264(name, &file, bytes)?;
            return Ok(true);
        }
        if read_form(&file)? != Form::Unfinished {
            return Ok(false);
        }
        match whole_fragments(&file)? {
            Some(WholeFragments { track, index, fragments_offset, end }) => {
                file.set_len(end)?;
                let notes = Notes { recovered: true, dropped_units: 0 };
                let tail = moov::finished(&track, &index, fragments_offset, notes);
                if let Err(error) = file.write_all_at(&tail, end).and_then(|()| file.sync_data()) {
                    file.set_len(end)?;
                    return Err(error);
                }
                file.write_all_at(&fmp4::mdat_header(end), fmp4::MDAT_HEADER_OFFSET)?;
                file.sync_data()?;
                Ok(true)
            }
            // The file has no whole unit and is smaller than two slots of the ring, so nothing was recorded: remove it.
            // A larger file is kept, because another program may have written it.
            None if bytes < 2 * limits::SLOT_DATA_BYTES_MAX as u64 => {
                self.remove_ours(name, &file)?;
                Ok(false)
            }
            None => Ok(false),
        }
    }

    fn repair_h264(&self, name: &str, file: &File, bytes: u64) -> io::Result<()> {
        let mut tail_bytes = bytes.min(1 << 18);
        let end = loop {
            let mut tail = vec![0; usize::try_from(tail_bytes).unwrap_or(0)];
            let start = bytes - tail_bytes;
            fill_at(file, &mut tail, start)?;
            if let Some(end) = annexb::last_unit_start(&tail) {
                break start + end as u64;
            }
            if tail_bytes == bytes || tail_bytes >= limits::RECOVERY_TAIL_BYTES_MAX {
                break bytes;
            }
            tail_bytes = (tail_bytes * 4).min(bytes).min(limits::RECOVERY_TAIL_BYTES_MAX);
        };
        // `set_len` also releases the space reserved after the end, so it is needed even if the length does not change.
        file.set_len(end)?;
        file.sync_data()?;
        let mut sidecar = Sidecar::read(&self.directory, name).unwrap_or_default();
        (sidecar.complete, sidecar.recovered, sidecar.duration_s) = (true, true, None);
        sidecar.overwrite(&self.directory, name)
    }

    /// Removes each sidecar and each detection log whose recording no longer exists.
    pub(super) fn remove_orphans(&self) {
        log_file::remove_orphans(&self.directory);
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str().and_then(Sidecar::recording_of) else { continue };
            let is_missing = fs::symlink_metadata(self.path(name))
                .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
            if is_missing && Sidecar::read(&self.directory, name).is_some() {
                let _ignored_if_it_fails = fs::remove_file(entry.path());
            }
        }
    }

    /// Adds a file to the list of files being written. Returns the sender through which the writer publishes its
    /// progress.
    pub(super) fn register(&self, name: &str, identity: FileIdentity) -> watch::Sender<Progress> {
        let (sender, progress) = watch::channel(Progress::default());
        self.lock().insert(name.to_owned(), Running { identity, progress });
        sender
    }

    /// Removes a file from the list of files being written.
    pub(super) fn unregister(&self, name: &str) {
        self.lock().remove(name);
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn directory_error(&self, error: &io::Error) -> RecorderError {
        match RecorderError::io("", error) {
            RecorderError::DiskFull => RecorderError::DiskFull,
            _ => RecorderError::Directory(error.to_string()),
        }
    }

    fn running(&self, name: &str) -> Option<Running> {
        self.lock().get(name).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_file(&self, name: &str, how: How) -> io::Result<File> {
        foreign_file::open(&self.path(name), how)
    }

    fn names(&self) -> Result<Vec<String>, RecorderError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.directory_error(&error)),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names
            .filter(|name| names::validate_existing(name).is_ok())
            .take(limits::RECORDINGS_LISTED_MAX)
            .collect())
    }

    fn entries(&self) -> Result<Vec<ListedFile>, RecorderError> {
        Ok(self.names()?.into_iter().filter_map(|name| self.inspect(name)).collect())
    }

    fn inspect(&self, name: String) -> Option<ListedFile> {
        let file = self.open_file(&name, How::Read).ok()?;
        let metadata = file.metadata().ok()?;
        let mut info =
            RecordingInfo { name, bytes: metadata.len(), complete: true, ..RecordingInfo::default() };
        let mut started_at_s = None;
        let mut is_ours = false;
        let running = self.running(&info.name);
        let is_same =
            |running: &Running| FileIdentity::of(&file).is_ok_and(|found| found == running.identity);
        if let Some(progress) = running.filter(is_same).map(|running| running.progress.borrow().clone()) {
            (info.complete, info.recording, info.bytes) = (false, true, progress.committed_bytes);
            info.duration = Some(progress.duration_s);
            started_at_s = Some(progress.started_at_s);
        } else if Format::of(&info.name) == Some(Format::H264) {
            if let Some(sidecar) = Sidecar::read(&self.directory, &info.name) {
                is_ours = sidecar.complete;
                (info.complete, info.recovered, info.duration) =
                    (sidecar.complete, sidecar.recovered, sidecar.duration_s);
                started_at_s = Some(sidecar.started_at_s);
            }
        } else {
            let form = read_form(&file).ok()?;
            let moov_offset = match form {
                Form::Finished { index_offset } => Some(index_offset),
                Form::Unfinished => Some(48),
                Form::Foreign => None,
            };
            let mut moov = [0; moov::SUMMARY_BYTES];
            let filled = moov_offset.is_some_and(|offset| fill_at(&file, &mut moov, offset).unwrap_or(false));
            let summary = moov::summary(&moov).filter(|_| filled);
            is_ours = matches!(form, Form::Finished { .. }) && summary.is_some();
            info.complete = form != Form::Unfinished && metadata.len() > 0;
            info.recovered = summary.and_then(|summary| summary.notes).is_some_and(|notes| notes.recovered);
            info.duration =
                summary.filter(|_| is_ours).map(|summary| summary.duration_90k as f64 / f64::from(TIMESCALE));
            started_at_s = summary.map(|summary| summary.started_at_s);
        }
        // Before the first unit the start is not known, and a board without a battery starts in 1970.
        let started_at_s = started_at_s.filter(|started_at_s| *started_at_s >= limits::AGE_KNOWN_SINCE_S);
        let mut disk_bytes = info.bytes;
        if let Some(log) = log_file::of(&self.directory, &info.name) {
            disk_bytes += log.bytes;
            (info.kind, info.labels, info.events) = (log.head.kind, log.head.labels, log.head.events);
            info.detections = Some(log.name);
        }
        info.started_at = started_at_s.and_then(names::rfc3339);
        let modified_s = u64::try_from(metadata.mtime()).unwrap_or(0);
        Some(ListedFile {
            started_at_s: started_at_s.unwrap_or(modified_s),
            is_ours_and_complete: is_ours,
            disk_bytes,
            info,
        })
    }
}

fn newest_first(mut entries: Vec<ListedFile>) -> impl Iterator<Item = RecordingInfo> {
    entries.sort_unstable_by(|a, b| (b.started_at_s, &b.info.name).cmp(&(a.started_at_s, &a.info.name)));
    entries.into_iter().map(|entry| entry.info)
}

/// Returns a strong validator that changes with the content of a file.
fn etag(metadata: &fs::Metadata) -> String {
    let (bytes, inode) = (metadata.len(), metadata.ino());
    format!("\"{inode:x}-{bytes:x}-{:x}.{:x}\"", metadata.mtime(), metadata.mtime_nsec())
}

/// Reads the start of an MP4 file and returns its form. A file shorter than the start that this recorder writes is
/// foreign.
fn read_form(file: &File) -> io::Result<Form> {
    let mut start = [0; 48];
    Ok(if fill_at(file, &mut start, 0)? { fmp4::form(&start) } else { Form::Foreign })
}

/// Locks the file. Returns false if another process holds the lock, even after some retries. The retries are needed
/// because the kernel keeps the lock of a killed process until the last writes of that process are done.
fn lock_with_retries(file: &File) -> bool {
    (0..limits::REPAIR_LOCK_ATTEMPTS).any(|attempt| {
        if attempt > 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
        Lock::try_take(file) != Lock::Held
    })
}

fn file_error(name: &str, doing: &'static str, error: &io::Error) -> RecorderError {
    // A link, pipe or device is never a recording, so it counts as not found.
    if error.kind() == io::ErrorKind::NotFound || foreign_file::is_not_regular(error) {
        return RecorderError::NotFound(name.to_owned());
    }
    RecorderError::io(doing, error)
}
