//! UNSAFE. A timer that counts the CPU time of a thread and sends SIGPROF to that thread. The handler is in `signal`.
#![expect(unsafe_code, reason = "POSIX timers have no safe binding")]

use std::io;
use std::ptr;

/// A running timer. Dropping it deletes the timer.
#[derive(Debug)]
pub(super) struct Timer(libc::timer_t);

impl Timer {
    /// Starts a timer that fires each time `thread` of this process has used another `period_ns` of CPU time.
    ///
    /// # Errors
    /// Returns EINVAL or ESRCH if the thread no longer exists, and EAGAIN if the user has too many timers
    /// (RLIMIT_SIGPENDING).
    pub(super) fn start(thread: i32, period_ns: i64) -> io::Result<Timer> {
        // SAFETY: `sigevent` is a plain C struct of integers and a value. Zero is valid for each of them.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGPROF;
        event.sigev_notify_thread_id = thread;
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: both pointers are valid during the call. The call returns an error if the clock or the thread does
        // not exist.
        let created = unsafe { libc::timer_create(cpu_clock(thread), &raw mut event, &raw mut timer) };
        if created != 0 {
            return Err(io::Error::last_os_error());
        }
        let timer = Timer(timer);
        let period = libc::timespec { tv_sec: period_ns / 1_000_000_000, tv_nsec: period_ns % 1_000_000_000 };
        let times = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: the timer was created above and is not deleted before `drop`; `times` is valid for the call, and
        // the old times are not requested.
        let set = unsafe { libc::timer_settime(timer.0, 0, &raw const times, ptr::null_mut()) };
        if set == 0 { Ok(timer) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer was created in `start` and is deleted only here. It exists even if its thread has ended.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Returns the CPU-time clock of a thread (kernel: `make_thread_cpuclock`, CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED).
fn cpu_clock(thread: i32) -> libc::clockid_t {
    (!thread << 3) | 4 | 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timer_for_a_missing_thread_is_an_error() {
        let error = Timer::start(i32::MAX / 16, 10_000_000).expect_err("no such thread");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
