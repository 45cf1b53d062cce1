//! LOOP: each worker is one thread that runs camera cursor, h264, sessions and io_uring in turns. A turn reaps
//! completions, handles input, fans out new units, drains the sessions and submits. A worker blocks only in
//! `io_uring_enter`.
//!
//! ```text
//!   camera wake-up ──┐                       ┌─► session 0 ─┐
//!   mailbox wake-up ─┼─► turn: cursor ► h264 ┼─► session 1 ─┼─► uring ► UDP
//!   datagrams ───────┘                       └─► session k ─┘
//! ```

mod catch_up;
pub mod commands;
mod gop;
mod idr_budget;
mod inline_wait;
mod registry;
mod routes;
#[cfg(test)]
mod simulated_day;
mod source;
mod tcp;
mod timing;
mod totals;
mod turn;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::base::limits;
use crate::camera::Camera;
use crate::camera::waiter::WaiterHandoff;
use crate::metrics::WorkerCounters;
use crate::uring::{Features, UdpDriver, UdpDriverConfig, UdpDriverError};
use crate::worker::commands::{Mailbox, MailboxReader, mailbox};

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The kernel refused a thread.
    #[error("cannot create a worker thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The kernel refused an eventfd.
    #[error("cannot create an eventfd for a worker: {0}")]
    Eventfd(#[source] std::io::Error),
    /// io_uring is not available; the text says what to do.
    #[error(transparent)]
    Driver(#[from] UdpDriverError),
    /// The thread ended before it was ready.
    #[error("worker {0} ended while starting")]
    Ended(usize),
}

/// Configuration of all workers.
pub struct WorkersConfig {
    /// Number of workers, at least 1.
    pub count: usize,
    /// Source of the access units.
    pub camera: Camera,
    /// The UDP socket that all workers share.
    pub socket: Arc<OwnedFd>,
    /// The TCP socket on which the first worker accepts connections; `None` without ICE-TCP.
    pub listener: Option<OwnedFd>,
    /// Most viewers of the process at a time. Determines the number of send operations.
    pub viewers_max: usize,
    /// The camera wait, which the first worker runs. If io_uring has no futex wait (before Linux 6.7), the fallback
    /// thread gets it instead.
    pub camera_wait: Option<WaiterHandoff>,
}

/// What only the first worker gets.
struct First {
    camera_wait: Option<WaiterHandoff>,
    listener: Option<OwnedFd>,
}

/// Mailboxes, counters and threads of the running workers.
pub struct Workers {
    /// One mailbox per worker, in order.
    pub mailboxes: Vec<Mailbox>,
    /// One set of counters per worker, in order.
    pub counters: Vec<Arc<WorkerCounters>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts the workers and waits until each has its ring.
    ///
    /// # Errors
    /// Returns a [`WorkerError`] if a thread, an eventfd or io_uring is refused. Workers that were already started end
    /// when their mailboxes are dropped.
    pub fn start(mut config: WorkersConfig) -> Result<Workers, WorkerError> {
        let mut workers = Workers { mailboxes: Vec::new(), counters: Vec::new(), threads: Vec::new() };
        let mut readers = Vec::new();
        for _ in 0..config.count.max(1) {
            let (mailbox, reader) = mailbox().map_err(WorkerError::Eventfd)?;
            config.camera.add_wakeup(reader.camera_wakeup());
            workers.counters.push(Arc::default());
            workers.mailboxes.push(mailbox);
            readers.push(reader);
        }
        for (index, reader) in readers.into_iter().enumerate() {
            let first = First { camera_wait: config.camera_wait.take(), listener: config.listener.take() };
            workers.spawn(&config, index, reader, first)?;
        }
        Ok(workers)
    }

    fn spawn(
        &mut self,
        config: &WorkersConfig,
        index: usize,
        reader: MailboxReader,
        First { camera_wait, listener }: First,
    ) -> Result<(), WorkerError> {
        let (ready, started) = sync_channel(1);
        let seed = turn::Seed {
            index,
            camera: config.camera.clone(),
            peers: self.mailboxes.clone(),
            counters: self.counters.get(index).cloned().unwrap_or_default(),
            reader,
            camera_wait,
        };
        let driver_config = UdpDriverConfig {
            socket: Arc::clone(&config.socket),
            receives: index == 0,
            eventfds: vec![seed.reader.eventfd()],
            sends_max: limits::SEND_OPERATIONS_PER_VIEWER * config.viewers_max.max(1)
                + limits::SEND_OPERATIONS_MIN,
        };
        let pin_to = (config.count > 1).then_some(index);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .stack_size(limits::WORKER_STACK_BYTES)
            .spawn(move || run(seed, driver_config, listener, pin_to, &ready))
            .map_err(WorkerError::Thread)?;
        self.threads.push(thread);
        match started.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(WorkerError::Driver(error)),
            Err(_) => Err(WorkerError::Ended(index)),
        }
    }

    /// Waits until every worker has closed its sessions and ended. The caller must send [`commands::Command::Stop`]
    /// first.
    pub fn join(&mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a worker thread panicked");
            }
        }
    }
}

fn run(
    mut seed: turn::Seed,
    config: UdpDriverConfig,
    listener: Option<OwnedFd>,
    pin_to: Option<usize>,
    ready: &SyncSender<Result<(), UdpDriverError>>,
) {
    if let Some(index) = pin_to {
        pin(index);
    }
    match UdpDriver::new(config) {
        Ok(mut driver) => {
            if let Some(listener) = listener {
                driver.listen(listener);
            }
            seed.camera_wait = seed.camera_wait.filter(|_| driver.features().contains(Features::FUTEX));
            if seed.camera_wait.is_some() {
                seed.reader.skip_camera_wakeup_here();
            }
            let _ = ready.send(Ok(()));
            seed.counters.uring_features.set(driver.features().bits());
            turn::Worker::new(seed, driver).run();
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
}

/// Pins this thread to one of the cores that it may use, chosen by `index`. A single worker is not pinned, because it
/// would have to wait for other threads on its core.
fn pin(index: usize) {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return };
    let cores: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
    let Some(&core) = cores.get(index % cores.len().max(1)) else { return };
    let mut only = rustix::thread::CpuSet::new();
    only.set(core);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &only) {
        log::warn!("worker {index}: not pinned to core {core}: {error}");
    }
}
