//! UNSAFE. Stops one thread of a child process as a debugger does: there is no signal for a single thread.

#![expect(unsafe_code, reason = "ptrace has no safe name")]

use std::io;
use std::ptr::null_mut;

use super::wait_for;

/// A thread that stands still until this is dropped. Stays on the thread that made it: so does ptrace(2).
pub struct Stopped {
    thread: libc::pid_t,
}

impl Stopped {
    /// Stops the thread of this name in the process.
    pub fn thread(process: u32, name: &str) -> Stopped {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let mut tasks = tasks.map(|task| task.unwrap().path());
        let has_name = |task: &std::path::PathBuf| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let task = tasks.find(has_name).unwrap_or_else(|| panic!("no thread {name} in process {process}"));
        let thread = task.file_name().unwrap().to_str().unwrap().parse().unwrap();
        ask(libc::PTRACE_SEIZE, thread).unwrap_or_else(|error| panic!("{name} is not to be traced: {error}"));
        let stopped = Stopped { thread };
        ask(libc::PTRACE_INTERRUPT, thread).unwrap();
        wait_for("the thread stands", || {
            let status = std::fs::read_to_string(task.join("status")).ok()?;
            status.lines().any(|line| line.starts_with("State:\tt")).then_some(())
        });
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // A thread that is gone needs no release.
        let _ = ask(libc::PTRACE_DETACH, self.thread);
    }
}

fn ask(request: libc::c_uint, thread: libc::pid_t) -> io::Result<()> {
    // SAFETY: none of the three requests reads or writes memory of this process; they take a thread's number, no
    // address, and no options or signal (null).
    let result = unsafe { libc::ptrace(request, thread, null_mut::<u8>(), null_mut::<u8>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
