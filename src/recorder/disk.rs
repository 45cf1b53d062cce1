//! The recorder's only I/O on the file at hand: carries out what recording.rs wants, with io_uring
//! (tokio-uring) for all file data. Decides nothing; every operation ends in one completion.
//!
//! Opening, locking and cutting a file are plain system calls: they touch no data and tokio-uring has
//! no safe way to them.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use tokio::sync::{mpsc, watch};
use tokio_uring::buf::BoundedBuf as _;

use super::counters::RecorderCounters;
use super::library::{Library, Progress};
use super::names::{Format, Stem};
use super::operation::{Completion, Ending, FileId, Output};
use super::sidecar::Sidecar;
use super::types::RecorderError;
use crate::base::clock::monotonic_ns;
use crate::base::limits;

/// The files being written and finished.
pub(super) struct Disk {
    library: Library,
    counters: Arc<RecorderCounters>,
    files: HashMap<FileId, Rc<OpenFile>>,
    completions: mpsc::UnboundedSender<(FileId, Completion)>,
}

/// One file under two handles of the same open file: one for io_uring, one for plain calls.
struct OpenFile {
    ring: tokio_uring::fs::File,
    plain: fs::File,
    name: String,
    format: Format,
    progress: watch::Sender<Progress>,
}

impl Disk {
    /// At most one write or reservation, one sync and a few endings are under way at a time, so the
    /// channel of completions is bounded by them.
    pub(super) fn new(
        library: Library,
        counters: Arc<RecorderCounters>,
    ) -> (Disk, mpsc::UnboundedReceiver<(FileId, Completion)>) {
        let (completions, receiver) = mpsc::unbounded_channel();
        (Disk { library, counters, files: HashMap::new(), completions }, receiver)
    }

    /// Carries out an output that is about a file. `still_intact` is asked when a write has completed.
    pub(super) fn execute(&mut self, output: Output, still_intact: impl FnOnce() -> bool + 'static) {
        match output {
            Output::Create { file, stem, number, exact } => self.create(file, &stem, number, exact),
            Output::Write { file, offset, parts } => self.write(file, offset, parts, still_intact),
            Output::Allocate { file, offset, bytes } => self.run(file, move |open| async move {
                Completion::Allocated(open.ring.fallocate(offset, bytes, libc::FALLOC_FL_KEEP_SIZE).await)
            }),
            Output::Truncate { file, bytes } => {
                self.run(file, move |open| async move { Completion::Truncated(open.plain.set_len(bytes)) })
            }
            Output::Sync { file } => self.run(file, |open| async move {
                let synced = open.ring.sync_data().await;
                Completion::Synced(synced.and_then(|()| Ok(open.plain.metadata()?.nlink() > 0)))
            }),
            Output::Finish { file, ending } => self.finish(file, ending),
            Output::Discard { file } => self.discard(file),
            Output::Started(_) | Output::Stopped(_) => debug_assert!(false, "answers are not for the disk"),
        }
    }

    /// Tells readers how far the file is.
    pub(super) fn show_progress(&self, file: FileId, progress: Progress) {
        if let Some(open) = self.files.get(&file) {
            open.progress.send_replace(progress);
        }
    }

    fn complete(&self, file: FileId, completion: Completion) {
        // The receiver lives as long as the recorder's loop.
        let _loop_is_gone = self.completions.send((file, completion));
    }

    /// Runs an operation beside the loop; its completion comes through the channel.
    fn run<F: Future<Output = Completion> + 'static>(
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
            let _loop_is_gone = completions.send((file, completion));
        });
    }

    fn write(
        &self,
        file: FileId,
        offset: u64,
        parts: Vec<Bytes>,
        still_intact: impl FnOnce() -> bool + 'static,
    ) {
        let counters = Arc::clone(&self.counters);
        let submitted_ns = monotonic_ns();
        self.run(file, move |open| async move {
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
            let opened =
                OpenOptions::new().read(true).write(true).create_new(true).open(self.library.path(&name));
            match opened {
                Ok(plain) => return self.set_up(plain, name, stem.format).map(|open| (open, number)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if exact {
                        return Err(RecorderError::Exists { name });
                    }
                }
                Err(error) => return Err(self.library.directory_error(&error)),
            }
        }
        Err(RecorderError::TooManyFiles)
    }

    fn set_up(&self, plain: fs::File, name: String, format: Format) -> Result<OpenFile, RecorderError> {
        // The lock tells a second server, and a repair after a restart, that somebody writes here. File
        // systems without locks are none the worse.
        let _unlocked = flock(&plain, FlockOperation::NonBlockingLockExclusive);
        let set_up = || {
            if format == Format::H264 {
                Sidecar::default().overwrite(self.library.directory(), &name)?;
            }
            plain.try_clone()
        };
        match set_up() {
            Ok(second) => {
                let progress = self.library.register(&name);
                Ok(OpenFile { ring: tokio_uring::fs::File::from_std(second), plain, name, format, progress })
            }
            Err(error) => {
                let _empty_file_stays = fs::remove_file(self.library.path(&name));
                let _no_note = fs::remove_file(Sidecar::path(self.library.directory(), &name));
                Err(RecorderError::io("creating the file", &error))
            }
        }
    }

    fn finish(&mut self, file: FileId, ending: Ending) {
        let library = self.library.clone();
        self.run(file, move |open| async move {
            let result = open.finish(ending, &library).await;
            open.close(&library);
            Completion::Finished(result)
        });
        self.files.remove(&file);
    }

    fn discard(&mut self, file: FileId) {
        let Some(open) = self.files.remove(&file) else { return };
        let removed = fs::remove_file(self.library.path(&open.name));
        if open.format == Format::H264 {
            let _no_note = fs::remove_file(Sidecar::path(self.library.directory(), &open.name));
        }
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
    /// Appends the index, makes it durable, and only then turns the switch: a crash or an error before
    /// leaves the unfinished form, which plays as well.
    async fn finish(&self, ending: Ending, library: &Library) -> Result<(), RecorderError> {
        let failed = |error: io::Error| RecorderError::io("finishing the file", &error);
        let end = ending.committed + ending.tail.len() as u64;
        let note = Sidecar {
            started_at_s: ending.started_at_s,
            duration_s: Some(ending.duration_s),
            complete: true,
            recovered: false,
            dropped_units: ending.dropped_units,
        };
        if let Err(error) = self.write_all(ending.tail, ending.committed).await {
            self.plain.set_len(ending.committed).map_err(failed)?;
            self.ring.sync_data().await.map_err(failed)?;
            return Err(failed(error));
        }
        // Frees what was reserved, and whatever a torn unit left behind the last whole one.
        self.plain.set_len(end).map_err(failed)?;
        self.ring.sync_data().await.map_err(failed)?;
        if let Some((offset, switch)) = ending.switch {
            self.write_all(switch.to_vec(), offset).await.map_err(failed)?;
            self.ring.sync_data().await.map_err(failed)?;
        }
        if self.format == Format::H264 {
            note.overwrite(library.directory(), &self.name).map_err(failed)?;
        }
        Ok(())
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

    /// Readers see the finished file from now on.
    fn close(&self, library: &Library) {
        library.unregister(&self.name);
        self.progress.send_modify(|progress| progress.finished = true);
    }
}
