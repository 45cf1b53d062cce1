//! A fixed number of threads for file operations that block: those of the recorder, reads of downloads, listings,
//! deletions. The threads are made at start, so a flood of requests can neither exhaust the process's threads nor make
//! one fail later.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// Sends jobs to the threads. The threads end when all clones are dropped.
#[derive(Clone, Debug)]
pub(super) struct FileThreads {
    jobs: SyncSender<Job>,
}

/// The threads that make blocking file calls for the recorder, so that its own thread never blocks.
pub(super) struct RecorderThreads {
    /// Applies the retention rules. Requests about files use it too.
    pub(super) operations: FileThreads,
    /// Makes the system calls for the files that are being written.
    pub(super) disk: FileThreads,
}

impl FileThreads {
    /// Starts `count` threads with a queue of at most `queued_max` jobs.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(super) fn start(name: &str, count: usize, queued_max: usize) -> io::Result<FileThreads> {
        let (jobs, receiver) = sync_channel(queued_max);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..count {
            let receiver = Arc::clone(&receiver);
            thread::Builder::new().name(name.to_owned()).spawn(move || run_jobs(&receiver))?;
        }
        Ok(FileThreads { jobs })
    }

    /// Runs `work` on one of the threads and returns its result. Returns `None` if the queue is full.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, done) = oneshot::channel();
        let job = move || {
            let _ignored_if_caller_left = sender.send(work());
        };
        self.jobs.try_send(Box::new(job)).ok()?;
        done.await.ok()
    }
}

fn run_jobs(receiver: &Mutex<Receiver<Job>>) {
    loop {
        // The lock is held while this thread waits, so exactly one idle thread waits for the next job.
        let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    #[expect(
        clippy::await_holding_lock,
        reason = "the lock keeps the jobs from ending, and no future waits for it"
    )]
    #[test]
    fn jobs_run_on_the_threads_made_at_start_and_a_full_queue_refuses() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let threads = FileThreads::start("files", 2, 8).unwrap();
        let gate = Arc::new(Mutex::new(()));
        let ids: Vec<_> = runtime.block_on(async {
            let closed = gate.lock().unwrap();
            let job = |gate: Arc<Mutex<()>>| move || (drop(gate.lock()), thread::current().id()).1;
            let mut running: Vec<_> =
                (0..200).map(|_| Box::pin(threads.run(job(Arc::clone(&gate))))).collect();
            // The first poll of each future queues its job.
            let mut refused = 0;
            for run in &mut running {
                let first = poll_fn(|context| Poll::Ready(run.as_mut().poll(context))).await;
                refused += usize::from(matches!(first, Poll::Ready(None)));
            }
            assert!((190..=192).contains(&refused), "two jobs run, eight are queued, {refused} are refused");
            drop(closed);
            let mut ids = Vec::new();
            for _ in 0..100 {
                let id = threads.run(job(Arc::clone(&gate))).await;
                ids.extend(id);
            }
            ids
        });
        assert!(ids.iter().collect::<HashSet<_>>().len() <= 2, "{ids:?}");
    }
}
