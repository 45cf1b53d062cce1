//! The CPU profile. A timer on the CPU clock of each thread triggers samples. The stacks of the samples are counted and
//! written as a profile. While no profile is being taken, there is no cost.

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use super::pprof::{self, Description, Sample};
use super::signal::Session;
use super::table::{Table, Trigger};
use super::timers::Timer;
use super::{ProfileError, symbols, tasks};
use crate::base::clock;
use crate::base::limits;

/// The threads that the running profile samples.
#[derive(Default)]
struct SampledThreads {
    /// Timer of each thread; `None` if the kernel refused it.
    timers: HashMap<i32, Option<Timer>>,
    names: HashMap<i32, String>,
    unsampled_max: usize,
}

impl SampledThreads {
    /// Starts timers for new threads and drops the timers of threads that ended.
    fn scan(&mut self, period_ns: i64) {
        let ids = tasks::ids();
        self.timers.retain(|id, _| ids.contains(id));
        let mut beyond = 0;
        for id in ids {
            if self.timers.contains_key(&id) {
                continue;
            }
            if self.timers.len() >= limits::PROFILE_THREADS_MAX {
                beyond += 1;
                continue;
            }
            match Timer::start(id, period_ns) {
                Ok(timer) => drop(self.timers.insert(id, Some(timer))),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ESRCH)) => {} // the thread ended
                Err(_) => drop(self.timers.insert(id, None)),
            }
        }
        let refused = self.timers.values().filter(|timer| timer.is_none()).count();
        self.unsampled_max = self.unsampled_max.max(refused + beyond);
        self.read_names();
    }

    /// Reads the names of all threads. This is repeated at every scan, because a new thread sets its name a little
    /// after its start.
    fn read_names(&mut self) {
        for id in self.timers.keys() {
            let name = tasks::name(*id);
            let has_room = self.names.len() < 4 * limits::PROFILE_THREADS_MAX || self.names.contains_key(id);
            if !name.is_empty() && has_room {
                self.names.insert(*id, name);
            }
        }
    }
}

/// Samples the CPU time of all threads for `duration`, `frequency_hz` times per CPU second of each thread. Returns a
/// gzip-compressed profile.proto. Blocks the calling thread for the duration. A thread that starts during the profile
/// is sampled within 100 ms after its start. Each sample carries the name of its thread as the label `thread`.
///
/// The kernel checks CPU timers once per tick. If `frequency_hz` is above its tick rate (100 to 1000 Hz), one signal
/// stands for several periods and counts as so many samples.
///
/// # Errors
/// Returns [`ProfileError::Busy`] while another profile or thread list is being taken. Returns [`ProfileError::Range`]
/// if the duration or frequency is 0 or above its bound in `limits`, and [`ProfileError::Signal`] if the kernel refuses
/// the handler.
pub fn cpu_profile(duration: Duration, frequency_hz: u32) -> Result<Vec<u8>, ProfileError> {
    if duration.is_zero() || duration > limits::PROFILE_DURATION_MAX {
        return Err(ProfileError::Range("duration"));
    }
    if frequency_hz == 0 || frequency_hz > limits::PROFILE_FREQUENCY_HZ_MAX {
        return Err(ProfileError::Range("frequency"));
    }
    let period_ns = 1_000_000_000 / i64::from(frequency_hz);
    let session = Session::start(Trigger::Timer, symbols::own_text())?;
    let start_ns = clock::monotonic_ns();
    let until_ns = start_ns + i64::try_from(duration.as_nanos()).unwrap_or(0);
    let mut threads = SampledThreads::default();
    loop {
        threads.scan(period_ns);
        let left_ns = u64::try_from(until_ns - clock::monotonic_ns()).unwrap_or(0);
        if left_ns == 0 {
            break;
        }
        thread::sleep(Duration::from_nanos(left_ns).min(limits::PROFILE_THREAD_SCAN));
    }
    threads.timers.clear();
    let duration_ns = clock::monotonic_ns() - start_ns;
    let table = session.stop();
    Ok(encode(&table, &threads, period_ns, duration_ns))
}

fn encode(table: &Table, threads: &SampledThreads, period_ns: i64, duration_ns: i64) -> Vec<u8> {
    let mut comments = vec![format!("CPU time of user and kernel code, one sample per {period_ns} ns")];
    if table.lost() > 0 {
        comments.push(format!("{} samples did not fit into the table and are missing", table.lost()));
    }
    if threads.unsampled_max > 0 {
        comments.push(format!("up to {} threads at a time were not sampled", threads.unsampled_max));
    }
    let description = Description {
        sample_types: vec![("samples", "count"), ("cpu", "nanoseconds")],
        default_type: "cpu",
        period_type: ("cpu", "nanoseconds"),
        period: period_ns,
        duration_ns,
        comments,
        ..Description::default()
    };
    pprof::encode(&description, &|visit| {
        for seen in table.stacks() {
            let count = i64::try_from(seen.count).unwrap_or(i64::MAX);
            let name = threads.names.get(&seen.thread).map_or("", String::as_str);
            let values = [count, count.saturating_mul(period_ns)];
            visit(&Sample { frames: &seen.frames, values: &values, labels: &[("thread", name)] });
        }
    })
}
