//! I/O on the files that are being written. `Disk` carries out the operations that `recording.rs` requests. Every
//! operation ends in exactly one completion. All recorded video is written through io_uring (tokio-uring).
//!
//! Opening, locking and truncating are plain system calls: they move no data, and tokio-uring has no safe function for
//! them. A thread of their own makes these calls, because a disk can make each of them wait. The recorder's thread waits
//! for no disk.

use std::cell::RefCell;
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

use super::file_threads::FileThreads;
use super::format::fmp4::START_UNFINISHED;
use super::library::{FileIdentity, Library, Lock};
use super::log_file;
use super::names::{Format, Stem};
use super::operation::{Completion, FileEnding, FileFate, FileId, Output};
use super::sidecar::Sidecar;
use super::types::{Progress, RecorderError};
use crate::base::clock::monotonic_ns;
use crate::base::{foreign_file, limits};

/// The files that are open for writing.
pub(super) struct Disk {
    library: Library,
    files: Rc<RefCell<HashMap<FileId, Rc<OpenFile>>>>,
    threads: FileThreads,
    completions: mpsc::UnboundedSender<(FileId, Completion)>,
    /// Number of operations without a completion.
    pending: usize,
    /// When the last operation completed, or when the first of those that are pending began.
    answered_ns: i64,
}

/// One open file with two descriptors: one for io_uring, one for plain system calls.
struct OpenFile {
    ring: tokio_uring::fs::File,
    plain: Arc<PlainFile>,
    progress: watch::Sender<Progress>,
}

/// The descriptor for system calls that may wait for the disk.
struct PlainFile {
    file: fs::File,
    name: String,
    identity: FileIdentity,
}

/// A file that was just created.
struct Created {
    plain: PlainFile,
    ring: fs::File,
    progress: watch::Sender<Progress>,
    /// The number in its name.
    number: u32,
}

impl Disk {
    /// Returns the disk and the receiver of its completions. The channel between them is unbounded, but never holds
    /// much: at most one write or reservation, one sync and [`limits::FINISHING_MAX`] endings are in flight.
    pub(super) fn new(
        library: Library,
        threads: FileThreads,
    ) -> (Disk, mpsc::UnboundedReceiver<(FileId, Completion)>) {
        let (completions, receiver) = mpsc::unbounded_channel();
        let disk = Disk { library, files: Rc::default(), threads, completions, pending: 0, answered_ns: 0 };
        (disk, receiver)
    }

    /// Must be called for each completion that was received.
    pub(super) fn note_completion(&mut self, now_ns: i64) {
        self.pending = self.pending.saturating_sub(1);
        self.answered_ns = now_ns;
    }

    /// Returns true if operations are pending and none has completed for [`limits::DISK_ANSWER_NS_MAX`].
    pub(super) fn is_stuck(&self, now_ns: i64) -> bool {
        self.pending > 0 && now_ns.saturating_sub(self.answered_ns) > limits::DISK_ANSWER_NS_MAX
    }

    /// Carries out a file operation. `still_intact` is called when a write has completed. This closure must return
    /// false if the camera overwrote the written unit in the ring meanwhile.
    pub(super) fn execute(&mut self, output: Output, still_intact: impl FnOnce() -> bool + 'static) {
        match output {
            Output::Create { file, stem, number, exact } => self.create(file, stem, number, exact),
            Output::Write { file, offset, parts } => self.write(file, offset, parts, still_intact),
            Output::Allocate { file, offset, bytes } => self.spawn(file, move |open| async move {
                Completion::Allocated(open.ring.fallocate(offset, bytes, libc::FALLOC_FL_KEEP_SIZE).await)
            }),
            Output::Truncate { file, bytes } => {
                let threads = self.threads.clone();
                self.spawn(file, move |open| async move {
                    Completion::Truncated(open.set_len(&threads, bytes).await)
                });
            }
            Output::Sync { file, whole } => {
                let (threads, library) = (self.threads.clone(), self.library.clone());
                self.spawn(file, move |open| async move {
                    let fate = match open.ring.sync_data().await {
                        Ok(()) => open.fate(&threads, &library, whole).await,
                        Err(error) => Err(error),
                    };
                    Completion::Synced(fate)
                });
            }
            Output::AppendLog { file, lines } => {
                let (threads, library) = (self.threads.clone(), self.library.clone());
                self.spawn(file, move |open| async move {
                    let plain = Arc::clone(&open.plain);
                    let append = move || log_file::append(library.directory(), &plain.name, &lines);
                    Completion::Logged(blocking(&threads, append).await)
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
        if let Some(open) = self.files.borrow().get(&file) {
            open.progress.send_replace(progress);
        }
    }

    /// Looks up an open file and starts `operation` on it as an asynchronous task of this thread.
    fn spawn<F: Future<Output = Completion> + 'static>(
        &mut self,
        file: FileId,
        operation: impl FnOnce(Rc<OpenFile>) -> F,
    ) {
        let Some(open) = self.files.borrow().get(&file).map(Rc::clone) else {
            debug_assert!(false, "operation on an unknown file");
            return;
        };
        self.run(file, operation(open));
    }

    /// Runs an operation as a task, which sends its completion to the channel.
    fn run(&mut self, file: FileId, operation: impl Future<Output = Completion> + 'static) {
        if self.pending == 0 {
            self.answered_ns = monotonic_ns();
        }
        self.pending += 1;
        let completions = self.completions.clone();
        tokio_uring::spawn(async move {
            let completion = operation.await;
            // The send fails only if the recorder's loop has ended and dropped the receiver.
            let _ignored_after_shutdown = completions.send((file, completion));
        });
    }

    fn write(
        &mut self,
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

    fn create(&mut self, file: FileId, stem: Stem, number: u32, exact: bool) {
        let (library, threads, files) = (self.library.clone(), self.threads.clone(), Rc::clone(&self.files));
        self.run(file, async move {
            let created = threads.run(move || try_create(&library, &stem, number, exact)).await;
            let created = created.unwrap_or_else(|| Err(RecorderError::io("creating the file", &busy())));
            Completion::Created(created.map(|Created { plain, ring, progress, number }| {
                let (ring, name) = (tokio_uring::fs::File::from_std(ring), plain.name.clone());
                let open = OpenFile { ring, plain: Arc::new(plain), progress };
                files.borrow_mut().insert(file, Rc::new(open));
                (name, number)
            }))
        });
    }

    fn finish(&mut self, file: FileId, ending: FileEnding) {
        let (library, threads) = (self.library.clone(), self.threads.clone());
        self.spawn(file, move |open| async move {
            let result = open.finish(ending, &library, &threads).await;
            open.close(&library);
            if result == Err(RecorderError::Truncated) {
                let plain = Arc::clone(&open.plain);
                let _not_run_if_the_queue_is_full =
                    threads.run(move || repair_truncated(&plain, &library)).await;
            }
            Completion::Finished(result)
        });
        self.files.borrow_mut().remove(&file);
    }

    fn discard(&mut self, file: FileId) {
        let (library, threads) = (self.library.clone(), self.threads.clone());
        self.spawn(file, move |open| async move {
            let (plain, of_plain) = (Arc::clone(&open.plain), library.clone());
            let removed = blocking(&threads, move || of_plain.remove_ours(&plain.name, &plain.file)).await;
            open.close(&library);
            Completion::Finished(match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(RecorderError::io("removing the empty file", &error))
                }
                _ => Ok(()),
            })
        });
        self.files.borrow_mut().remove(&file);
    }
}

/// Runs `work`, which may wait for the disk, on one of the threads.
async fn blocking<T: Send + 'static>(
    threads: &FileThreads,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    threads.run(work).await.unwrap_or_else(|| Err(busy()))
}

/// The error of an operation for which the queue of the thread has no room, because the disk does not answer.
fn busy() -> io::Error {
    io::ErrorKind::ResourceBusy.into()
}

/// Creates a file whose number is `first` or, unless `exact`, the next free one.
fn try_create(library: &Library, stem: &Stem, first: u32, exact: bool) -> Result<Created, RecorderError> {
    library.create_directory()?;
    if library.free_bytes().is_some_and(|bytes| bytes < limits::START_FREE_BYTES_MIN) {
        return Err(RecorderError::DiskFull);
    }
    for number in first..=first.saturating_add(limits::NAME_ATTEMPTS_MAX) {
        let name = stem.numbered(number);
        let path = library.path(&name);
        match foreign_file::create_new(&path, 0o666) {
            // Another server may repair or delete an empty file before it is locked here. The name then counts as
            // taken.
            Ok(file) if Lock::try_take(&file) == Lock::Held || !is_at(&file, &path) => {}
            Ok(file) => return prepare(library, file, name, stem.format, number),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(library.directory_error(&error)),
        }
        if exact {
            return Err(RecorderError::Exists(name));
        }
    }
    Err(RecorderError::TooManyFiles)
}

fn prepare(
    library: &Library,
    mut file: fs::File,
    name: String,
    format: Format,
    number: u32,
) -> Result<Created, RecorderError> {
    let mut prepare = || {
        match format {
            Format::H264 => Sidecar::default().create(library.directory(), &name)?,
            // These bytes show that this recorder created the file. So a repair after a crash deletes no empty file of
            // another program.
            Format::Mp4 => file.write_all(&START_UNFINISHED)?,
        }
        Ok((file.try_clone()?, FileIdentity::of(&file)?))
    };
    let prepared: io::Result<_> = prepare();
    match prepared {
        Ok((ring, identity)) => {
            let progress = library.register(&name, identity);
            Ok(Created { plain: PlainFile { file, name, identity }, ring, progress, number })
        }
        Err(error) => {
            let _ignored_if_it_fails = library.remove_ours(&name, &file);
            Err(RecorderError::io("creating the file", &error))
        }
    }
}

impl OpenFile {
    /// Appends the index, makes it durable, and only then writes the `mdat` header. If a crash or an error prevents
    /// that last write, the file keeps its unfinished form, which players can read too.
    async fn finish(
        &self,
        ending: FileEnding,
        library: &Library,
        threads: &FileThreads,
    ) -> Result<(), RecorderError> {
        let failed = |error: io::Error| RecorderError::io("finishing the file", &error);
        let committed = ending.whole.end;
        let end = committed + ending.tail.len() as u64;
        self.ring.sync_data().await.map_err(failed)?;
        let fate = self.fate(threads, library, ending.whole).await.map_err(failed)?;
        if let Some(error) = fate.error() {
            return Err(error);
        }
        if let Err(error) = self.write_all(ending.tail, committed).await {
            self.set_len(threads, committed).await.map_err(failed)?;
            self.ring.sync_data().await.map_err(failed)?;
            return Err(failed(error));
        }
        // This truncation releases the reserved space. It also removes the rest of a torn unit after the last whole
        // unit.
        self.set_len(threads, end).await.map_err(failed)?;
        self.ring.sync_data().await.map_err(failed)?;
        if let Some((offset, header)) = ending.mdat_header {
            self.write_all(header.to_vec(), offset).await.map_err(failed)?;
            self.ring.sync_data().await.map_err(failed)?;
        }
        if let Some(sidecar) = ending.sidecar {
            let (plain, library) = (Arc::clone(&self.plain), library.clone());
            let overwrite = move || sidecar.overwrite(library.directory(), &plain.name);
            blocking(threads, overwrite).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn set_len(&self, threads: &FileThreads, bytes: u64) -> io::Result<()> {
        let plain = Arc::clone(&self.plain);
        blocking(threads, move || plain.file.set_len(bytes)).await
    }

    /// Returns what [`PlainFile::fate`] returns.
    async fn fate(
        &self,
        threads: &FileThreads,
        library: &Library,
        whole: Range<u64>,
    ) -> io::Result<FileFate> {
        let (plain, path) = (Arc::clone(&self.plain), library.path(&self.plain.name));
        blocking(threads, move || plain.fate(&path, &whole)).await
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
        library.unregister(&self.plain.name);
        self.progress.send_modify(|progress| progress.finished = true);
    }
}

impl PlainFile {
    /// Returns what other programs did to the file. `whole` is the range of bytes that were written since the last
    /// check. Must be called after a sync.
    ///
    /// A write after a truncation makes the file as long as before, with a hole where bytes are missing. The byte before
    /// `whole` is in that hole too if the truncation removed bytes that were checked earlier.
    fn fate(&self, path: &Path, whole: &Range<u64>) -> io::Result<FileFate> {
        let metadata = self.file.metadata()?;
        if metadata.nlink() == 0 || !self.identity.is_at(path) {
            return Ok(FileFate::Removed);
        }
        if whole.end == 0 {
            return Ok(FileFate::Whole);
        }
        let has_hole = match rustix::fs::seek(&self.file, SeekFrom::Hole(whole.start.saturating_sub(1))) {
            Ok(hole) => hole < whole.end,
            // A file system may have no SEEK_HOLE. Then only the length shows a truncation.
            Err(_) => false,
        };
        Ok(if metadata.len() < whole.end || has_hole { FileFate::Truncated } else { FileFate::Whole })
    }
}

fn is_at(file: &fs::File, path: &Path) -> bool {
    FileIdentity::of(file).is_ok_and(|identity| identity.is_at(path))
}

/// Finishes a file that another program has truncated, as after a crash: with the units before the missing bytes. Removes
/// the file if there are none.
fn repair_truncated(plain: &PlainFile, library: &Library) {
    let name = &plain.name;
    Lock::release(&plain.file);
    match library.repair(name) {
        Ok(true) => log::warn!("another program truncated {name}; the units before the cut are kept"),
        Ok(false) => {
            let _ignored_if_it_fails = library.remove_ours(name, &plain.file);
            log::warn!("another program truncated {name}; no whole unit was left, so it was removed");
        }
        Err(error) => log::error!("another program truncated {name}; it could not be repaired: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn disk_that_does_not_answer_holds_up_only_its_own_thread() {
        let directory = std::env::temp_dir().join(format!("ss-test-disk-{}", std::process::id()));
        let library = Library::new(&directory, Arc::default());
        tokio_uring::start(async {
            let threads = FileThreads::start("test-disk", 1, limits::DISK_JOBS_MAX).unwrap();
            // The thread waits, as in a system call that the disk does not answer.
            let (answer, answered) = std::sync::mpsc::channel::<()>();
            let of_job = threads.clone();
            let stuck = tokio_uring::spawn(async move { of_job.run(move || answered.recv().is_ok()).await });
            tokio::task::yield_now().await;
            let (mut disk, mut completions) = Disk::new(library, threads);
            let stem = Stem { stem: "stuck".to_owned(), format: Format::H264 };
            disk.execute(Output::Create { file: 1, stem, number: 1, exact: true }, || true);
            assert!(tokio::time::timeout(Duration::from_millis(50), completions.recv()).await.is_err());
            let begun_ns = monotonic_ns();
            assert!(!disk.is_stuck(begun_ns));
            assert!(disk.is_stuck(begun_ns + limits::DISK_ANSWER_NS_MAX + 1));
            answer.send(()).unwrap();
            let (file, completion) = completions.recv().await.unwrap();
            disk.note_completion(monotonic_ns());
            assert!(matches!(&completion, Completion::Created(Ok((name, 1))) if name == "stuck.h264"));
            assert!(!disk.is_stuck(i64::MAX), "nothing is pending");
            disk.execute(Output::Discard { file }, || true);
            assert!(matches!(completions.recv().await, Some((1, Completion::Finished(Ok(()))))));
            assert_eq!(stuck.await.unwrap(), Some(true));
        });
        std::fs::remove_dir(&directory).unwrap();
    }
}
