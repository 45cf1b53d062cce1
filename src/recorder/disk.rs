//! I/O on the files that are being written. `Disk` carries out the operations that `recording.rs` requests. Every
//! operation ends in exactly one completion. All recorded video is written through io_uring (tokio-uring).
//!
//! Opening, locking and truncating are plain system calls: they move no data, and tokio-uring has no safe function for
//! them.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::SeekFrom;
use tokio::sync::{mpsc, watch};
use tokio_uring::buf::BoundedBuf as _;

use super::format::fmp4::START_UNFINISHED;
use super::library::{FileIdentity, Library, Lock};
use super::names::{Format, Stem};
use super::operation::{Completion, FileEnding, FileFate, FileId, Output};
use super::sidecar::Sidecar;
use super::types::{Progress, RecorderError};
use crate::base::clock::monotonic_ns;
use crate::base::{foreign_file, limits};

/// The files that are open for writing.
pub(super) struct Disk {
    library: Library,
    files: HashMap<FileId, Rc<OpenFile>>,
    completions: mpsc::UnboundedSender<(FileId, Completion)>,
}

/// One open file with two descriptors: one for io_uring, one for plain system calls.
struct OpenFile {
    ring: tokio_uring::fs::File,
    plain: fs::File,
    name: String,
    identity: FileIdentity,
    progress: watch::Sender<Progress>,
}

impl Disk {
    /// Returns the disk and the receiver of its completions. The channel between them is unbounded, but never holds
    /// much: at most one write or reservation, one sync and [`limits::FINISHING_MAX`] endings are in flight.
    pub(super) fn new(library: Library) -> (Disk, mpsc::UnboundedReceiver<(FileId, Completion)>) {
        let (completions, receiver) = mpsc::unbounded_channel();
        (Disk { library, files: HashMap::new(), completions }, receiver)
    }

    /// Carries out a file operation. `still_intact` is called when a write has completed. This closure must return
    /// false if the camera overwrote the written unit in the ring meanwhile.
    pub(super) fn execute(&mut self, output: Output, still_intact: impl FnOnce() -> bool + 'static) {
        match output {
            Output::Create { file, stem, number, exact } => self.create(file, &stem, number, exact),
            Output::Write { file, offset, parts } => self.write(file, offset, parts, still_intact),
            Output::Allocate { file, offset, bytes } => self.spawn(file, move |open| async move {
                Completion::Allocated(open.ring.fallocate(offset, bytes, libc::FALLOC_FL_KEEP_SIZE).await)
            }),
            Output::Truncate { file, bytes } => {
                self.spawn(file, move |open| async move { Completion::Truncated(open.plain.set_len(bytes)) })
            }
            Output::Sync { file, whole } => {
                let path =
                    self.files.get(&file).map(|open| self.library.path(&open.name)).unwrap_or_default();
                self.spawn(file, move |open| async move {
                    let synced = open.ring.sync_data().await;
                    Completion::Synced(synced.and_then(|()| open.fate(&path, &whole)))
                });
            }
            Output::Finish { file, ending } => self.finish(file, ending),
            Output::Discard { file } => self.discard(file),
            Output::Started(_) | Output::Stopped(_) => {
                debug_assert!(false, "replies are not disk operations")
            }
        }
    }

    /// Publishes the progress of a file to the downloads that read it.
    pub(super) fn publish_progress(&self, file: FileId, progress: Progress) {
        if let Some(open) = self.files.get(&file) {
            open.progress.send_replace(progress);
        }
    }

    fn complete(&self, file: FileId, completion: Completion) {
        // The send fails only if the recorder's loop has ended and dropped the receiver.
        let _ignored_after_shutdown = self.completions.send((file, completion));
    }

    /// Runs an operation as a task, which sends its completion to the channel.
    fn spawn<F: Future<Output = Completion> + 'static>(
        &self,
        file: FileId,
        operation: impl FnOnce(Rc<OpenFile>) -> F,
    ) {
        let Some(open) = self.files.get(&file) else {
            debug_assert!(false, "operation on an unknown file");
            return;
        };
        let operation = operation(Rc::clone(open));
        let completions = self.completions.clone();
        tokio_uring::spawn(async move {
            let completion = operation.await;
            let _ignored_after_shutdown = completions.send((file, completion));
        });
    }

    fn write(
        &self,
        file: FileId,
        offset: u64,
        parts: Vec<Bytes>,
        still_intact: impl FnOnce() -> bool + 'static,
    ) {
        let counters = Arc::clone(&self.library.counters);
        let submitted_ns = monotonic_ns();
        self.spawn(file, move |open| async move {
            let (result, parts) = open.ring.writev_at(parts, offset).await;
            counters.write_latency.record(u64::try_from(monotonic_ns() - submitted_ns).unwrap_or(0));
            let intact = still_intact();
            drop(parts);
            Completion::Written { result: result.map(|bytes| bytes as u64), intact }
        });
    }

    fn create(&mut self, file: FileId, stem: &Stem, number: u32, exact: bool) {
        let created = self.try_create(stem, number, exact).map(|(open, number)| {
            let name = open.name.clone();
            self.files.insert(file, Rc::new(open));
            (name, number)
        });
        self.complete(file, Completion::Created(created));
    }

    fn try_create(&self, stem: &Stem, first: u32, exact: bool) -> Result<(OpenFile, u32), RecorderError> {
        self.library.create_directory()?;
        if self.library.free_bytes().is_some_and(|bytes| bytes < limits::START_FREE_BYTES_MIN) {
            return Err(RecorderError::DiskFull);
        }
        for number in first..=first.saturating_add(limits::NAME_ATTEMPTS_MAX) {
            let name = stem.numbered(number);
            let path = self.library.path(&name);
            match foreign_file::create_new(&path, 0o666) {
                // Another server may repair or delete an empty file before it is locked here. The name then counts as
                // taken.
                Ok(plain) if Lock::try_take(&plain) == Lock::Held || !is_at(&plain, &path) => {}
                Ok(plain) => return self.prepare(plain, name, stem.format).map(|open| (open, number)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(self.library.directory_error(&error)),
            }
            if exact {
                return Err(RecorderError::Exists(name));
            }
        }
        Err(RecorderError::TooManyFiles)
    }

    fn prepare(&self, mut plain: fs::File, name: String, format: Format) -> Result<OpenFile, RecorderError> {
        let mut prepare = || {
            match format {
                Format::H264 => Sidecar::default().create(self.library.directory(), &name)?,
                // These bytes show that this recorder created the file. So a repair after a crash deletes no empty
                // file of another program.
                Format::Mp4 => plain.write_all(&START_UNFINISHED)?,
            }
            Ok((plain.try_clone()?, FileIdentity::of(&plain)?))
        };
        let prepared: io::Result<_> = prepare();
        match prepared {
            Ok((second, identity)) => {
                let progress = self.library.register(&name, identity);
                let ring = tokio_uring::fs::File::from_std(second);
                Ok(OpenFile { ring, plain, name, identity, progress })
            }
            Err(error) => {
                let _ignored_if_it_fails = self.library.remove_ours(&name, &plain);
                Err(RecorderError::io("creating the file", &error))
            }
        }
    }

    fn finish(&mut self, file: FileId, ending: FileEnding) {
        let library = self.library.clone();
        self.spawn(file, move |open| async move {
            let result = open.finish(ending, &library).await;
            open.close(&library);
            if result == Err(RecorderError::Truncated) {
                repair_truncated(open, library).await;
            }
            Completion::Finished(result)
        });
        self.files.remove(&file);
    }

    fn discard(&mut self, file: FileId) {
        let Some(open) = self.files.remove(&file) else { return };
        let removed = self.library.remove_ours(&open.name, &open.plain);
        open.close(&self.library);
        let result = match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RecorderError::io("removing the empty file", &error))
            }
            _ => Ok(()),
        };
        self.complete(file, Completion::Finished(result));
    }
}

impl OpenFile {
    /// Appends the index, makes it durable, and only then writes the `mdat` header. If a crash or an error prevents
    /// that last write, the file keeps its unfinished form, which players can read too.
    async fn finish(&self, ending: FileEnding, library: &Library) -> Result<(), RecorderError> {
        let failed = |error: io::Error| RecorderError::io("finishing the file", &error);
        let committed = ending.whole.end;
        let end = committed + ending.tail.len() as u64;
        self.ring.sync_data().await.map_err(failed)?;
        let fate = self.fate(&library.path(&self.name), &ending.whole).map_err(failed)?;
        if let Some(error) = fate.error() {
            return Err(error);
        }
        if let Err(error) = self.write_all(ending.tail, committed).await {
            self.plain.set_len(committed).map_err(failed)?;
            self.ring.sync_data().await.map_err(failed)?;
            return Err(failed(error));
        }
        // This truncation releases the reserved space. It also removes the rest of a torn unit after the last whole
        // unit.
        self.plain.set_len(end).map_err(failed)?;
        self.ring.sync_data().await.map_err(failed)?;
        if let Some((offset, header)) = ending.mdat_header {
            self.write_all(header.to_vec(), offset).await.map_err(failed)?;
            self.ring.sync_data().await.map_err(failed)?;
        }
        if let Some(sidecar) = ending.sidecar {
            sidecar.overwrite(library.directory(), &self.name).map_err(failed)?;
        }
        Ok(())
    }

    /// Returns what other programs did to the file. `whole` is the range of bytes that were written since the last
    /// check. Must be called after a sync.
    ///
    /// A write after a truncation makes the file as long as before, with a hole where bytes are missing. The byte before
    /// `whole` is in that hole too if the truncation removed bytes that were checked earlier.
    fn fate(&self, path: &Path, whole: &Range<u64>) -> io::Result<FileFate> {
        let metadata = self.plain.metadata()?;
        if metadata.nlink() == 0 || !self.identity.is_at(path) {
            return Ok(FileFate::Removed);
        }
        if whole.end == 0 {
            return Ok(FileFate::Whole);
        }
        let has_hole = match rustix::fs::seek(&self.plain, SeekFrom::Hole(whole.start.saturating_sub(1))) {
            Ok(hole) => hole < whole.end,
            // A file system may have no SEEK_HOLE. Then only the length shows a truncation.
            Err(_) => false,
        };
        Ok(if metadata.len() < whole.end || has_hole { FileFate::Truncated } else { FileFate::Whole })
    }

    async fn write_all(&self, bytes: Vec<u8>, mut offset: u64) -> io::Result<()> {
        let mut rest = bytes.slice_full();
        while rest.bytes_init() > 0 {
            let (result, slice) = self.ring.write_at(rest, offset).submit().await;
            let written = match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
            offset += written as u64;
            rest = slice.slice(written..);
        }
        Ok(())
    }

    /// Reports to downloads that the file is finished, and removes it from the library's list of files being written.
    fn close(&self, library: &Library) {
        library.unregister(&self.name);
        self.progress.send_modify(|progress| progress.finished = true);
    }
}

fn is_at(file: &fs::File, path: &Path) -> bool {
    FileIdentity::of(file).is_ok_and(|identity| identity.is_at(path))
}

/// Finishes a file that another program has truncated, as after a crash: with the units before the missing bytes. Removes
/// the file if there are none.
async fn repair_truncated(open: Rc<OpenFile>, library: Library) {
    let name = open.name.clone();
    let Ok(file) = open.plain.try_clone() else { return };
    let repair = move || {
        Lock::release(&file);
        match library.repair(&name) {
            Ok(true) => log::warn!("another program truncated {name}; its units before that are kept"),
            Ok(false) => {
                let _ignored_if_it_fails = library.remove_ours(&name, &file);
                log::warn!("another program truncated {name}; no whole unit was left, so it was removed");
            }
            Err(error) => log::error!("another program truncated {name}; it could not be repaired: {error}"),
        }
    };
    let _ignored_if_it_panics = tokio::task::spawn_blocking(repair).await;
}
