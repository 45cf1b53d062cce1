//! Writes log lines to stderr, without ever blocking the thread that logs.
//!
//! A record is formatted and queued. A thread of its own, "log", writes the queue to stderr. If stderr is a pipe that is
//! not read, only that thread blocks. Lines that find the queue full are dropped and counted. As soon as the queue has
//! room again, a line reports how many were dropped. If stderr is the journal, each line starts with journald's
//! priority prefix.
//!
//! Libraries may write to file descriptor 2 on their own: may_minihttp does for each malformed request. Such a write would
//! block its thread if stderr is not read. So the log keeps stderr under another number, and descriptor 2 becomes
//! /dev/null.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::limits;

/// The lines of this process.
static QUEUE: Queue = Queue::new();

/// The stderr with which the process was started. Not set before [`start`].
static STDERR: OnceLock<OwnedFd> = OnceLock::new();

/// Formats log records and queues them. Each record is written with one call, so that lines of different threads do
/// not mix.
struct Logger {
    journald: bool,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The library may_minihttp logs an error for every closed connection, so its records are dropped.
        if metadata.target().starts_with("may_minihttp") {
            return false;
        }
        // Records of other libraries are logged only if they are warnings or errors.
        metadata.target().starts_with("streaming_server") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        if !is_noise(record.target(), &text) {
            QUEUE.push(Line { text: formatted(record.level(), text, self.journald), output: Output::Stderr });
        }
    }

    fn flush(&self) {
        flush();
    }
}

/// Returns a line for stderr.
fn formatted(level: Level, mut text: String, journald: bool) -> String {
    text.truncate(text.floor_char_boundary(limits::LOG_LINE_BYTES_MAX));
    if journald { format!("<{}>{text}\n", syslog_priority(level)) } else { format!("{level:<5} {text}\n") }
}

/// Returns true for the error that the library `may` logs when the CPU profiler's signal interrupts its wait. The error
/// is harmless, because `may` repeats the wait.
fn is_noise(target: &str, text: &str) -> bool {
    target.starts_with("may::") && (text.contains("Interrupted") || text.contains("EINTR"))
}

/// Returns the priority number of sd-daemon(3) for a log level.
fn syslog_priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Starts the thread "log" and logging at `level`. From then on, panics are logged too, with the lines of `stack`, which
/// returns the stack of the calling thread. Only the log writes to stderr then. Further calls have no effect.
///
/// # Errors
/// The system cannot create the thread or duplicate stderr.
pub fn start(level: LevelFilter, stack: fn() -> Vec<String>) -> io::Result<()> {
    let journald = std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stderr(&stream));
    if log::set_boxed_logger(Box::new(Logger { journald })).is_ok() {
        QUEUE.journald.store(journald, Ordering::Relaxed);
        let body = || QUEUE.write_all(|line| ControlFlow::Continue(write_to_process(line)));
        std::thread::Builder::new().name("log".to_owned()).stack_size(limits::LOG_STACK_BYTES).spawn(body)?;
        // Not before the thread exists: otherwise the error that it cannot be made would be lost.
        keep_stderr()?;
        log::set_max_level(level);
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            let text = panic.to_string().replace('\n', " ");
            log::error!("thread {}: {text}", thread.name().unwrap_or("without a name"));
            // std's backtrace needs unwind tables, which the released binaries do not have (scripts/build).
            for frame in stack() {
                log::error!("  in {frame}");
            }
            flush();
        }));
    }
    Ok(())
}

/// Moves stderr to another descriptor, and replaces descriptor 2 by /dev/null.
fn keep_stderr() -> io::Result<()> {
    let stderr = rustix::io::fcntl_dupfd_cloexec(io::stderr(), 3)?;
    if STDERR.set(stderr).is_ok() {
        // If a container has no /dev/null, descriptor 2 stays the original stderr.
        if let Ok(null) = std::fs::File::create("/dev/null") {
            rustix::stdio::dup2_stderr(null)?;
        }
    }
    Ok(())
}

/// Returns the descriptor of stderr. This function may be called in a signal handler.
#[must_use]
pub fn stderr_descriptor() -> RawFd {
    STDERR.get().map_or_else(|| io::stderr().as_raw_fd(), AsRawFd::as_raw_fd)
}

/// Queues a line for stdout. Like a log line, it is dropped if the output is not read.
pub fn print(text: &str) {
    QUEUE.push(Line { text: format!("{text}\n"), output: Output::Stdout });
}

/// Waits until all queued lines are written, at most [`limits::LOG_FLUSH_TIMEOUT`]. Must be called before the process
/// ends.
pub fn flush() {
    QUEUE.flush(limits::LOG_FLUSH_TIMEOUT);
}

/// Returns the number of lines that were dropped because stderr or stdout could not be written.
#[must_use]
pub fn dropped_lines() -> u64 {
    QUEUE.dropped_lines.load(Ordering::Relaxed)
}

/// Where a line is written.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Output {
    Stderr,
    Stdout,
}

/// A line with its line feed.
struct Line {
    text: String,
    output: Output,
}

/// Lines that wait to be written.
struct Queue {
    state: Mutex<State>,
    /// Notified when a line was queued.
    filled: Condvar,
    /// Notified when all lines are written.
    emptied: Condvar,
    dropped_lines: AtomicU64,
    /// True if stderr is the journal.
    journald: AtomicBool,
}

struct State {
    lines: VecDeque<Line>,
    /// Bytes of `lines` and of the line that is being written.
    bytes: usize,
    /// Number of dropped lines that no line reports yet.
    unreported: u64,
}

impl State {
    fn push(&mut self, line: Line) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
    }
}

impl Queue {
    const fn new() -> Queue {
        Queue {
            state: Mutex::new(State { lines: VecDeque::new(), bytes: 0, unreported: 0 }),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            dropped_lines: AtomicU64::new(0),
            journald: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a line, or drops it if the queue is full.
    fn push(&self, line: Line) {
        let mut state = self.lock();
        if state.bytes + line.text.len() > limits::LOG_QUEUE_BYTES_MAX {
            state.unreported += 1;
            self.dropped_lines.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.report_dropped(&mut state);
        state.push(line);
        drop(state);
        self.filled.notify_one();
    }

    /// Queues the line about dropped lines if there are any. This line may exceed the limit of the queue.
    fn report_dropped(&self, state: &mut State) {
        if state.unreported > 0 {
            let text =
                format!("{} log lines were dropped: the log output was not read in time", state.unreported);
            let text = formatted(Level::Warn, text, self.journald.load(Ordering::Relaxed));
            state.push(Line { text, output: Output::Stderr });
            state.unreported = 0;
        }
    }

    /// Writes all lines with `write`, as they are queued. Returns only if `write` returns `Break`.
    fn write_all(&self, mut write: impl FnMut(&Line) -> ControlFlow<(), io::Result<()>>) {
        loop {
            let line = self.next();
            let ControlFlow::Continue(written) = write(&line) else { return };
            if written.is_err() {
                // The reader has closed the output, or the disk is full.
                self.dropped_lines.fetch_add(1, Ordering::Relaxed);
            }
            let mut state = self.lock();
            state.bytes -= line.text.len();
            if state.bytes == 0 && state.unreported == 0 {
                self.emptied.notify_all();
            }
        }
    }

    /// Waits for a line.
    fn next(&self) -> Line {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                return line;
            }
            if state.unreported > 0 {
                self.report_dropped(&mut state);
            } else {
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Waits until all lines are written, at most `timeout`. Returns true if they are.
    fn flush(&self, timeout: Duration) -> bool {
        let is_pending = |state: &mut State| state.bytes > 0 || state.unreported > 0;
        let waited = self.emptied.wait_timeout_while(self.lock(), timeout, is_pending);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

/// Writes a line to stderr or stdout of this process. Blocks as long as the output takes no bytes.
fn write_to_process(line: &Line) -> io::Result<()> {
    match line.output {
        Output::Stderr => match STDERR.get() {
            Some(stderr) => write_whole(stderr, line.text.as_bytes()),
            None => write_whole(io::stderr(), line.text.as_bytes()),
        },
        Output::Stdout => write_whole(io::stdout(), line.text.as_bytes()),
    }
}

/// Writes all bytes. Another process that shares the output may have made it non-blocking, so this function waits if
/// the output takes no bytes now.
fn write_whole(output: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&output, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(&output, PollFlags::OUT)], None)?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Returns true if this process's stderr is the journal. `stream` is the value of `JOURNAL_STREAM`: the "device:inode"
/// of the journal (systemd.exec(5)). The variable alone proves nothing, because a process with redirected output
/// inherits it too.
fn is_stderr(stream: &str) -> bool {
    rustix::fs::fstat(io::stderr()).is_ok_and(|file| stream == format!("{}:{}", file.st_dev, file.st_ino))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    #[test]
    fn interrupted_waits_of_may_are_not_logged_but_other_errors_are() {
        let interrupted = std::io::Error::from_raw_os_error(4);
        let denied = std::io::Error::from_raw_os_error(13);
        assert!(is_noise("may::io::event_loop", &format!("select error = {interrupted:?}")));
        assert!(!is_noise("may::io::event_loop", &format!("select error = {denied:?}")));
        assert!(!is_noise("streaming_server::recorder", &format!("{interrupted:?}")));
    }

    #[test]
    fn redirected_stderr_is_not_the_journal() {
        let file = rustix::fs::fstat(std::io::stderr()).unwrap();
        assert!(is_stderr(&format!("{}:{}", file.st_dev, file.st_ino)));
        for other in ["", "9:9999999", "nonsense"] {
            assert!(!is_stderr(other), "{other}");
        }
    }

    #[test]
    fn line_has_a_priority_in_the_journal_and_a_bounded_length() {
        assert_eq!(formatted(Level::Warn, "text".into(), true), "<4>text\n");
        assert_eq!(formatted(Level::Warn, "text".into(), false), "WARN  text\n");
        let long = formatted(Level::Error, "é".repeat(limits::LOG_LINE_BYTES_MAX), false);
        assert!(long.len() <= limits::LOG_LINE_BYTES_MAX + 7 && long.ends_with("é\n"), "{}", long.len());
    }

    /// A queue whose output is read by the test: a line is written when the test receives it.
    struct Scene {
        queue: &'static Queue,
        written: Receiver<String>,
        go: Sender<()>,
    }

    impl Scene {
        fn new() -> Scene {
            let queue: &'static Queue = Box::leak(Box::new(Queue::new()));
            let ((sender, written), (go, gone)) = (channel(), channel::<()>());
            std::thread::spawn(move || {
                queue.write_all(|line| match gone.recv() {
                    Ok(()) => ControlFlow::Continue(sender.send(line.text.clone()).map_err(io::Error::other)),
                    Err(_) => ControlFlow::Break(()),
                });
            });
            Scene { queue, written, go }
        }

        fn push(&self, text: &str) {
            self.queue.push(Line { text: text.to_owned(), output: Output::Stderr });
        }

        /// Lets the output take one line and returns it.
        fn read(&self) -> String {
            self.go.send(()).unwrap();
            self.written.recv().unwrap()
        }
    }

    #[test]
    fn unread_output_does_not_block_and_dropped_lines_are_reported_in_their_place() {
        let scene = Scene::new();
        let kilobyte = "x".repeat(1_000);
        let fit = limits::LOG_QUEUE_BYTES_MAX / kilobyte.len();
        for _ in 0..fit + 12 {
            scene.push(&kilobyte);
        }
        assert_eq!(scene.queue.dropped_lines.load(Ordering::Relaxed), 12);
        assert!(!scene.queue.flush(Duration::from_millis(1)), "the flush ends although nothing is read");
        assert_eq!(scene.read(), kilobyte);
        // The writer has freed the space of a line when it asks for the next one.
        scene.go.send(()).unwrap();
        scene.written.recv().unwrap();
        scene.push("after");
        for _ in 2..fit {
            assert_eq!(scene.read(), kilobyte);
        }
        assert!(scene.read().starts_with("WARN  12 log lines were dropped"));
        assert_eq!(scene.read(), "after");
        assert!(scene.queue.flush(Duration::from_secs(60)));
    }

    #[test]
    fn dropped_lines_are_reported_even_if_no_line_follows() {
        let scene = Scene::new();
        scene.push("first");
        scene.push(&"x".repeat(limits::LOG_QUEUE_BYTES_MAX));
        assert_eq!(scene.read(), "first");
        assert!(scene.read().starts_with("WARN  1 log lines were dropped"));
    }

    #[test]
    fn pipe_that_was_made_nonblocking_loses_nothing() {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
        let bytes = vec![7; 300_000];
        let expected = bytes.len();
        let writing = std::thread::spawn(move || write_whole(writer, &bytes));
        let mut read = Vec::new();
        io::Read::read_to_end(&mut reader, &mut read).unwrap();
        assert_eq!(read.len(), expected);
        writing.join().unwrap().unwrap();
    }
}
