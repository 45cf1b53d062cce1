//! How the rest of the program talks to the recorder: a bounded channel of commands in, answers out.
//! Touches no file itself but through library.rs, on a thread that may wait.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::counters::RecorderCounters;
use super::engine::{Command, Engine, Parts};
use super::library::{Download, Library};
use super::names::Format;
use super::retention::Retention;
use super::types::{RecorderError, RecordingInfo, StartReply, StartRequest, Status, StopReply};
use crate::base::limits;
use crate::camera::{Camera, Wakeup};

/// What the recorder needs to know.
#[derive(Clone, Debug)]
pub struct RecorderConfig {
    /// Where files go; created (0755) when the first recording starts.
    pub directory: PathBuf,
    /// What a recording without an extension in its name is.
    pub format: Format,
    /// When old recordings are deleted.
    pub retention: Retention,
}

/// Why there is no recorder.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// io_uring is not to be had.
    #[error(
        "the recorder needs io_uring, and the kernel refuses it: {0}. Allow it (sysctl kernel.io_uring_disabled=0; \
         in a container a seccomp profile that permits io_uring_setup, io_uring_enter and io_uring_register)"
    )]
    Uring(std::io::Error),
    /// No thread.
    #[error("no thread for the recorder: {0}")]
    Thread(std::io::Error),
}

struct UnitWakeup(Arc<Notify>);

impl Wakeup for UnitWakeup {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// Starts the recorder's thread. Files that a crash left are repaired beside it, on a thread that ends
/// when that is done.
///
/// The thread ends after [`RecorderHandle::shutdown`], or when all handles are dropped; a recording
/// that runs is finished first.
///
/// # Errors
/// [`SpawnError`], with what to do about it.
pub fn spawn(
    camera: &Camera,
    config: RecorderConfig,
) -> Result<(RecorderHandle, JoinHandle<()>), SpawnError> {
    let counters = Arc::new(RecorderCounters::default());
    let library = Library::new(&config.directory, Arc::clone(&counters));
    let (sender, commands) = mpsc::channel(limits::RECORDER_COMMANDS_MAX);
    let (ending, shutdown) = watch::channel(false);
    let bell = Arc::new(Notify::new());
    camera.add_wakeup(Arc::new(UnitWakeup(Arc::clone(&bell))));
    // Before the first recording can start: what is unfinished now was left by a crash.
    repair_beside(&library).map_err(SpawnError::Thread)?;
    let parts = Parts {
        camera: camera.clone(),
        commands,
        shutdown,
        bell,
        library: library.clone(),
        counters: Arc::clone(&counters),
        format: config.format,
        retention: config.retention,
    };
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    let body = move || {
        let runtime = tokio_uring::Runtime::new(tokio_uring::builder().entries(64));
        let (runtime, result) = match runtime {
            Ok(runtime) => (Some(runtime), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let _spawn_waits_for_it = ready.send(result);
        if let Some(runtime) = runtime {
            runtime.block_on(Engine::new(parts).run());
        }
    };
    let thread =
        thread::Builder::new().name("recorder".to_owned()).spawn(body).map_err(SpawnError::Thread)?;
    match is_ready.recv() {
        Ok(Ok(())) => {
            let ending = Arc::new(ending);
            Ok((RecorderHandle { commands: sender, ending, library, counters }, thread))
        }
        Ok(Err(error)) => Err(SpawnError::Uring(error)),
        Err(_) => Err(SpawnError::Thread(std::io::ErrorKind::BrokenPipe.into())),
    }
}

fn repair_beside(library: &Library) -> std::io::Result<()> {
    let unfinished = library.unfinished();
    let library = library.clone();
    let repair = move || {
        library.sweep();
        for name in unfinished {
            match library.repair(&name) {
                Ok(true) => log::info!("recording {name} was left unfinished by a crash and is repaired"),
                Ok(false) => log::info!("recording {name} was left unfinished and holds nothing to repair"),
                Err(error) => log::error!("recording {name}: {error}"),
            }
        }
    };
    thread::Builder::new().name("repair".to_owned()).spawn(repair).map(drop)
}

/// The recorder, for everybody who may command it. The waiting methods need a tokio runtime with a
/// timer on the calling side.
#[derive(Clone, Debug)]
pub struct RecorderHandle {
    commands: mpsc::Sender<Command>,
    ending: Arc<watch::Sender<bool>>,
    library: Library,
    counters: Arc<RecorderCounters>,
}

impl RecorderHandle {
    /// Starts a recording: answered when the file is created.
    ///
    /// # Errors
    /// Already recording, bad name or numbers, name taken, no camera, disk full, directory unusable.
    pub async fn start(&self, request: StartRequest) -> Result<StartReply, RecorderError> {
        self.ask(|answer| Command::Start(request, answer)).await
    }

    /// Stops the recording: answered when the file is finished and on the disk.
    ///
    /// # Errors
    /// Not recording, already stopping, or what went wrong with the file.
    pub async fn stop(&self) -> Result<StopReply, RecorderError> {
        self.ask(Command::Stop).await
    }

    /// Tells that somebody still watches (`heartbeat_s` of the start).
    ///
    /// # Errors
    /// Not recording.
    pub async fn heartbeat(&self) -> Result<(), RecorderError> {
        self.ask(Command::Heartbeat).await
    }

    /// How the recording goes, or how the last one went.
    ///
    /// # Errors
    /// [`RecorderError::Unresponsive`].
    pub async fn status(&self) -> Result<Status, RecorderError> {
        self.ask(Command::Status).await
    }

    /// All recordings, newest first.
    ///
    /// # Errors
    /// The directory can't be read.
    pub async fn list(&self) -> Result<Vec<RecordingInfo>, RecorderError> {
        self.beside(Library::list).await
    }

    /// Opens a recording for download; one that runs up to its last whole unit.
    ///
    /// # Errors
    /// Bad or unknown name, or what the system says.
    pub async fn open(&self, name: String) -> Result<Download, RecorderError> {
        self.beside(move |library| library.open(&name)).await
    }

    /// Deletes a recording that doesn't run.
    ///
    /// # Errors
    /// Bad or unknown name, in use, or what the system says.
    pub async fn delete(&self, name: String) -> Result<(), RecorderError> {
        self.beside(move |library| library.delete(&name)).await
    }

    /// Ends the recorder: a running recording is finished, then its thread returns. Doesn't wait:
    /// join the thread.
    pub fn shutdown(&self) {
        self.ending.send_replace(true);
    }

    /// What the recorder did so far.
    #[must_use]
    pub fn counters(&self) -> &RecorderCounters {
        &self.counters
    }

    /// The recordings, for callers on threads that may wait.
    #[must_use]
    pub fn library(&self) -> &Library {
        &self.library
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, RecorderError>>) -> Command,
    ) -> Result<T, RecorderError> {
        let (answer, answered) = oneshot::channel();
        self.commands.try_send(command(answer)).map_err(|_| RecorderError::Unresponsive)?;
        let patience = Duration::from_secs(limits::RECORDER_REPLY_S);
        match tokio::time::timeout(patience, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(RecorderError::Unresponsive),
        }
    }

    async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Library) -> Result<T, RecorderError> + Send + 'static,
    ) -> Result<T, RecorderError> {
        let library = self.library.clone();
        let done = tokio::task::spawn_blocking(move || work(&library)).await;
        done.unwrap_or(Err(RecorderError::Unresponsive))
    }
}
