//! UNSAFE. A timer on a thread's CPU clock that sends SIGPROF to that very thread. May not know what the signal
//! does.
#![expect(unsafe_code, reason = "POSIX timers have no safe binding")]

use std::io;
use std::ptr;

/// Deleted when dropped.
#[derive(Debug)]
pub(super) struct Timer(libc::timer_t);

impl Timer {
    /// Starts a timer that fires whenever `thread` of this process has used `period_ns` more CPU time.
    ///
    /// # Errors
    /// EINVAL or ESRCH when there is no such thread any more, EAGAIN when the user may have no more timers
    /// (RLIMIT_SIGPENDING).
    pub(super) fn start(thread: i32, period_ns: i64) -> io::Result<Timer> {
        // SAFETY: `sigevent` is a plain C struct of integers and a value; zero is valid for each.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGPROF;
        event.sigev_notify_thread_id = thread;
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: both pointers are valid for the call. A clock or thread that does not exist is an error.
        let created = unsafe { libc::timer_create(cpu_clock(thread), &raw mut event, &raw mut timer) };
        if created != 0 {
            return Err(io::Error::last_os_error());
        }
        let timer = Timer(timer);
        let period = libc::timespec { tv_sec: period_ns / 1_000_000_000, tv_nsec: period_ns % 1_000_000_000 };
        let times = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: the timer was created above and is not deleted before `drop`; `times` is valid for the call and
        // the old times are not asked for.
        let set = unsafe { libc::timer_settime(timer.0, 0, &raw const times, ptr::null_mut()) };
        if set == 0 { Ok(timer) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: created in `start`, deleted only here. The thread may be gone; the timer is still ours.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// The clock of a thread's CPU time (kernel: `make_thread_cpuclock`, CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED).
fn cpu_clock(thread: i32) -> libc::clockid_t {
    (!thread << 3) | 4 | 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_not_there_is_an_error() {
        let error = Timer::start(i32::MAX / 16, 10_000_000).expect_err("no such thread");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
