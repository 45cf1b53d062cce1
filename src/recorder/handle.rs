//! The interface of the recorder for the rest of the program. Requests about the running recording go through a bounded
//! channel to the recorder's thread, which replies. Requests about files go to `library.rs`, on threads of their own.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

use super::counters::RecorderCounters;
use super::engine::{Command, Engine};
use super::file_threads::{FileThreads, RecorderThreads};
use super::library::{Download, Library};
use super::pieces::Pieces;
use super::types::{
    Event, RecordedEvent, RecorderConfig, RecorderError, RecordingFilter, RecordingInfo, StartReply,
    StartRequest, Status, StopReply,
};
use crate::base::limits;
use crate::camera::{Camera, Wakeup};
use crate::h264::Assembler;

/// Why the recorder could not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The kernel refused io_uring.
    #[error(
        "the recorder needs io_uring, and the kernel refuses it: {0}. Allow it (sysctl kernel.io_uring_disabled=0; \
         in a container a seccomp profile that permits io_uring_setup, io_uring_enter and io_uring_register)"
    )]
    Uring(io::Error),
    /// A thread could not be created.
    #[error("could not create a thread for the recorder: {0}")]
    Thread(io::Error),
}

struct UnitWakeup(Arc<Notify>);

impl Wakeup for UnitWakeup {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// Number of threads that [`spawn`] makes: the recorder's, one for its system calls on the disk, one for the requests
/// about files, those for downloads, one that repairs files, and one of the kernel.
pub const START_THREADS: usize = limits::READ_THREADS + 5;

/// Starts the recorder's thread. A second, temporary thread repairs files that a crash left unfinished.
///
/// The recorder's thread ends after [`RecorderHandle::shutdown`] or when all handles are dropped. Before it ends, it
/// finishes a running recording.
///
/// # Errors
/// Returns a [`SpawnError`] if the kernel refuses io_uring or a thread. The text of the error says how to
/// allow io_uring.
pub fn spawn(
    camera: &Camera,
    config: RecorderConfig,
) -> Result<(RecorderHandle, JoinHandle<()>), SpawnError> {
    let library = Library::new(&config.directory, Arc::default());
    let (sender, commands) = mpsc::channel(limits::RECORDER_COMMANDS_MAX);
    let (shutdown_sender, shutdown) = watch::channel(false);
    let unit_published = Arc::new(Notify::new());
    camera.add_wakeup(Arc::new(UnitWakeup(Arc::clone(&unit_published))));
    // No recording has started yet, so every unfinished file was left by a crash.
    repair_in_background(&library).map_err(SpawnError::Thread)?;
    let files = Files {
        operations: FileThreads::start("recordings", 1, limits::LIBRARY_JOBS_MAX)
            .map_err(SpawnError::Thread)?,
        reads: FileThreads::start("downloads", limits::READ_THREADS, limits::READS_QUEUED_MAX)
            .map_err(SpawnError::Thread)?,
        listings: Arc::new(Semaphore::new(limits::LISTINGS_MAX)),
        pieces: Arc::default(),
    };
    let threads = RecorderThreads {
        operations: files.operations.clone(),
        disk: FileThreads::start("recorder-disk", 1, limits::DISK_JOBS_MAX).map_err(SpawnError::Thread)?,
    };
    let (camera, engine_library) = (camera.clone(), library.clone());
    let (started, is_started) = std::sync::mpsc::sync_channel(1);
    let body = move || match tokio_uring::Runtime::new(tokio_uring::builder().entries(64)) {
        Ok(runtime) => {
            let ready = runtime.block_on(start_kernel_thread()).map_err(SpawnError::Thread);
            let is_ready = ready.is_ok();
            let _received_below = started.send(ready);
            if !is_ready {
                return;
            }
            let engine =
                Engine::new(camera, engine_library, config, commands, shutdown, unit_published, threads);
            runtime.block_on(engine.run());
        }
        Err(error) => {
            let _received_below = started.send(Err(SpawnError::Uring(error)));
        }
    };
    let thread =
        thread::Builder::new().name("recorder".to_owned()).spawn(body).map_err(SpawnError::Thread)?;
    let started = is_started.recv().map_err(|_| SpawnError::Thread(io::ErrorKind::BrokenPipe.into()))?;
    started?;
    Ok((RecorderHandle { commands: sender, shutdown: Arc::new(shutdown_sender), library, files }, thread))
}

/// Makes the kernel create the thread on which io_uring carries out operations that block. The kernel keeps its last
/// such thread. Without this call, the kernel creates it for the first sync of a recording. If that is refused
/// (`TasksMax=`), the operation fails with ECANCELED.
async fn start_kernel_thread() -> io::Result<()> {
    let file = rustix::fs::memfd_create("recorder-start", rustix::fs::MemfdFlags::CLOEXEC)?;
    let file = tokio_uring::fs::File::from_std(file.into());
    file.sync_data().await.map_err(|error| match error.raw_os_error() {
        // The kernel could not create its thread.
        Some(libc::ECANCELED) => io::Error::from_raw_os_error(libc::EAGAIN),
        _ => error,
    })?;
    file.close().await
}

fn repair_in_background(library: &Library) -> io::Result<()> {
    let unfinished = library.unfinished();
    let library = library.clone();
    let repair = move || {
        library.remove_orphans();
        for name in unfinished {
            match library.repair(&name) {
                Ok(true) => log::info!("recording {name} was left unfinished by a crash; it is now repaired"),
                Ok(false) => log::info!(
                    "recording {name} was left unfinished by a crash; it was not repaired, because it holds no whole \
                     access unit or another process uses it"
                ),
                Err(error) => log::error!("recording {name} could not be repaired: {error}"),
            }
        }
    };
    thread::Builder::new().name("repair".to_owned()).spawn(repair).map(drop)
}

/// Sends commands to the recorder's thread. The async methods need a tokio runtime with a timer.
#[derive(Clone, Debug)]
pub struct RecorderHandle {
    commands: mpsc::Sender<Command>,
    shutdown: Arc<watch::Sender<bool>>,
    library: Library,
    files: Files,
}

/// What requests about files need. All threads are made at start.
#[derive(Clone, Debug)]
struct Files {
    /// Opens, lists and deletes recordings.
    operations: FileThreads,
    /// Reads recordings for downloads.
    reads: FileThreads,
    /// Limits the listings in memory.
    listings: Arc<Semaphore>,
    pieces: Arc<Pieces>,
}

impl RecorderHandle {
    /// Starts a recording. Returns when the file is created.
    ///
    /// # Errors
    /// A recording already runs, or the name or a number is not valid. Or the name is in use, no camera writes to the
    /// ring, the disk is full, or the directory cannot be used.
    pub async fn start(&self, request: StartRequest) -> Result<StartReply, RecorderError> {
        self.request(|reply| Command::Start(request, reply)).await
    }

    /// Records an event of this class, from `pre_roll_s` seconds before now on. Returns when the file is created.
    ///
    /// # Errors
    /// See [`RecorderHandle::start`].
    pub async fn start_event(&self, label: String, pre_roll_s: f64) -> Result<StartReply, RecorderError> {
        self.request(|reply| Command::StartEvent(label, pre_roll_s, reply)).await
    }

    /// Adds an event to the detection log of the running recording. Ends the recording if
    /// [`RecorderHandle::start_event`] started it and no request has taken it over. Returns the name of the recording and
    /// the event in it, or `None` if no recording runs.
    ///
    /// # Errors
    /// [`RecorderError::Unresponsive`] if the recorder's thread does not reply in time.
    pub async fn end_event(&self, event: Event) -> Result<Option<(String, RecordedEvent)>, RecorderError> {
        self.request(|reply| Command::EndEvent(event, reply)).await
    }

    /// Stops the recording. Returns when the file is finished and durable.
    ///
    /// # Errors
    /// No recording runs, it is already being stopped, or a file operation failed.
    pub async fn stop(&self) -> Result<StopReply, RecorderError> {
        self.request(Command::Stop).await
    }

    /// Restarts the heartbeat timeout, whose length is `heartbeat_s` of the start request.
    ///
    /// # Errors
    /// No recording runs.
    pub async fn heartbeat(&self) -> Result<(), RecorderError> {
        self.request(Command::Heartbeat).await
    }

    /// Returns the state of the recorder and the figures of the running or last recording.
    ///
    /// # Errors
    /// [`RecorderError::Unresponsive`] if the recorder's thread does not reply in time.
    pub async fn status(&self) -> Result<Status, RecorderError> {
        self.request(Command::Status).await
    }

    /// Returns an assembler that knows the parameter sets of the stream. Some cameras send them only once.
    ///
    /// # Errors
    /// [`RecorderError::Unresponsive`] if the recorder's thread does not reply in time.
    pub async fn known_sets(&self) -> Result<Assembler, RecorderError> {
        self.request(Command::KnownSets).await
    }

    /// Returns all recordings, newest first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn list(&self) -> Result<Vec<RecordingInfo>, RecorderError> {
        let _permit = self.files.listings.acquire().await;
        self.run(Library::list).await
    }

    /// Returns the recordings that pass the filter, see [`Library::find`].
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn find(&self, filter: RecordingFilter) -> Result<(Vec<RecordingInfo>, usize), RecorderError> {
        let _permit = self.files.listings.acquire().await;
        self.run(move |library| library.find(&filter)).await
    }

    /// Returns the free bytes of the file system of the recordings, or `None` if they are unknown.
    pub async fn free_bytes(&self) -> Option<u64> {
        self.run(|library| Ok(library.free_bytes())).await.ok().flatten()
    }

    /// Opens a recording for download, see [`Library::open`].
    ///
    /// # Errors
    /// The name is not valid, no recording has this name, no unit ends at `until`, or a file operation failed.
    pub async fn open(&self, name: String, until: Option<u64>) -> Result<Download, RecorderError> {
        self.run(move |library| library.open(&name, until)).await
    }

    /// Reads bytes of a recording from `offset` on: at least one and at most `bytes_max`, or none at the end of the
    /// file. The caller must stay below the limit that [`Download::read_at`] names.
    ///
    /// # Errors
    /// The error of the failed read.
    pub async fn read(&self, download: Arc<Download>, offset: u64, bytes_max: u64) -> io::Result<Bytes> {
        let pieces = Arc::clone(&self.files.pieces);
        let read = move || pieces.fill(bytes_max, |out| download.read_at(out, offset));
        self.files.reads.run(read).await.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
    }

    /// Deletes a recording that is not being written.
    ///
    /// # Errors
    /// The name is not valid, no recording has this name, the file is being written, or a file operation failed.
    pub async fn delete(&self, name: String) -> Result<(), RecorderError> {
        self.run(move |library| library.delete(&name)).await
    }

    /// Requests the end of the recorder: its thread finishes a running recording, then returns. This function does not
    /// wait for that. To wait, join the thread.
    pub fn shutdown(&self) {
        self.shutdown.send_replace(true);
    }

    /// Returns the recorder's counters.
    #[must_use]
    pub fn counters(&self) -> &RecorderCounters {
        &self.library.counters
    }

    /// Returns the library, which manages the directory of recordings. The methods of the library block.
    #[must_use]
    pub fn library(&self) -> &Library {
        &self.library
    }

    async fn request<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, RecorderError>>) -> Command,
    ) -> Result<T, RecorderError> {
        let (reply, receiver) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|_| RecorderError::Unresponsive)?;
        let timeout = Duration::from_secs(limits::RECORDER_REPLY_S);
        match tokio::time::timeout(timeout, receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(RecorderError::Unresponsive),
        }
    }

    /// Runs an operation that blocks on the thread for it.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Library) -> Result<T, RecorderError> + Send + 'static,
    ) -> Result<T, RecorderError> {
        let library = self.library.clone();
        self.files.operations.run(move || work(&library)).await.unwrap_or(Err(RecorderError::Unresponsive))
    }
}
