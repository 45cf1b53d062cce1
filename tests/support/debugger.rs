//! UNSAFE. Stops one thread of a child process with ptrace(2), because no signal stops a single thread.

#![expect(unsafe_code, reason = "ptrace has no safe wrapper")]

use std::io;
use std::ptr::null_mut;

use super::wait_for;

/// Keeps a thread stopped until this value is dropped. ptrace(2) requires that the same thread creates and drops it.
pub struct Stopped {
    thread: libc::pid_t,
}

impl Stopped {
    /// Stops the thread of `process` that has this name.
    pub fn thread(process: u32, name: &str) -> Stopped {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let mut tasks = tasks.map(|task| task.unwrap().path());
        let has_name = |task: &std::path::PathBuf| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let task = tasks.find(has_name).unwrap_or_else(|| panic!("no thread {name} in process {process}"));
        let thread = task.file_name().unwrap().to_str().unwrap().parse().unwrap();
        ptrace(libc::PTRACE_SEIZE, thread).unwrap_or_else(|error| panic!("{name} cannot be traced: {error}"));
        let stopped = Stopped { thread };
        ptrace(libc::PTRACE_INTERRUPT, thread).unwrap();
        wait_for("the thread is stopped", || {
            let status = std::fs::read_to_string(task.join("status")).ok()?;
            status.lines().any(|line| line.starts_with("State:\tt")).then_some(())
        });
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // ptrace fails here only if the stopped thread has already ended, so the error is ignored.
        let _ = ptrace(libc::PTRACE_DETACH, self.thread);
    }
}

fn ptrace(request: libc::c_uint, thread: libc::pid_t) -> io::Result<()> {
    // SAFETY: none of the three requests reads or writes memory of this process. They take the number of a thread and
    // no address, and no options or signal are passed (null).
    let result = unsafe { libc::ptrace(request, thread, null_mut::<u8>(), null_mut::<u8>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
