//! Starts child processes and reads their CPU time in nanoseconds, memory and context switches from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::Fallible;

/// Maximum number of output lines kept per child.
const LINES_MAX: usize = 10_000;
const EXIT_PATIENCE: Duration = Duration::from_secs(10);

/// A running child. Dropping it sends SIGTERM, then SIGKILL after a timeout.
pub(crate) struct Process {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    pub(crate) started: Instant,
}

impl Process {
    pub(crate) fn spawn(name: &str, command: &mut Command, shielded: bool) -> Fallible<Process> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        crate::socket::end_with_us(command, shielded);
        let started = Instant::now();
        let mut child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        if let Some(output) = child.stdout.take() {
            collect(output, Arc::clone(&lines));
        }
        if let Some(output) = child.stderr.take() {
            collect(output, Arc::clone(&lines));
        }
        Ok(Process { name: name.to_owned(), child, lines, started })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the last 20 lines that the child wrote to stdout and stderr.
    pub(crate) fn tail(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let first = lines.len().saturating_sub(20);
        lines[first..].join("\n")
    }

    /// Waits until the child prints a line that contains `marker`, and returns the rest of that line. Returns an error
    /// if the child ends or `patience` passes before.
    pub(crate) fn wait_for(&mut self, marker: &str, patience: Duration) -> Fallible<String> {
        let deadline = Instant::now() + patience;
        loop {
            {
                let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
                let found = lines.iter().find_map(|line| line.split_once(marker));
                if let Some((_, rest)) = found {
                    return Ok(rest.trim().to_owned());
                }
            }
            self.check()?;
            if Instant::now() > deadline {
                return Err(format!("{}: no line contains `{marker}`:\n{}", self.name, self.tail()).into());
            }
            thread::sleep(Duration::from_micros(500));
        }
    }

    /// Returns an error if the process has ended.
    pub(crate) fn check(&mut self) -> Fallible<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                thread::sleep(Duration::from_millis(50)); // gives the last lines time to arrive
                Err(format!("{} ended, {status}:\n{}", self.name, self.tail()).into())
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(id) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
            && matches!(self.child.try_wait(), Ok(None))
        {
            let _ = kill_process(id, Signal::TERM);
            let deadline = Instant::now() + EXIT_PATIENCE;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(from: impl Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() < LINES_MAX {
                lines.push(line);
            }
        }
    });
}

/// Resources that a process has used so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    /// CPU time per thread in ns.
    run_ns: BTreeMap<u32, u64>,
    user_ticks: u64,
    system_ticks: u64,
    /// Voluntary and involuntary context switches, per thread.
    switches: BTreeMap<u32, (u64, u64)>,
}

/// The difference of two [`Usage`]s.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) run_ns: u64,
    pub(crate) user_ns: u64,
    pub(crate) system_ns: u64,
    pub(crate) voluntary_switches: u64,
    pub(crate) involuntary_switches: u64,
}

fn number_after(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

impl Usage {
    /// Reads the counters of all threads of `process`. The CPU time comes from schedstat, which counts nanoseconds. The
    /// user and system times come from stat, which counts ticks.
    pub(crate) fn of_process(process: u32) -> Usage {
        let mut usage = Usage::default();
        let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return usage };
        for thread in threads.flatten() {
            let Some(id) = thread.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            usage.add_thread(process, id);
        }
        usage
    }

    /// Reads the counters of one thread of `process`.
    pub(crate) fn of_thread(process: u32, thread: u32) -> Usage {
        let mut usage = Usage::default();
        usage.add_thread(process, thread);
        usage
    }

    fn add_thread(&mut self, process: u32, thread: u32) {
        let read =
            |file| fs::read_to_string(format!("/proc/{process}/task/{thread}/{file}")).unwrap_or_default();
        let schedstat = read("schedstat");
        let run_ns = schedstat.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0);
        self.run_ns.insert(thread, run_ns);
        let stat = read("stat");
        // Field 14 of /proc/<pid>/task/<tid>/stat is the user time, field 15 the system time. The thread name (field 2)
        // may contain spaces and parentheses. So we split only the text after its closing `)`: field 3 has index 0.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |index: usize| fields.get(index).and_then(|text| text.parse().ok()).unwrap_or(0);
        self.user_ticks += ticks(11);
        self.system_ticks += ticks(12);
        let status = read("status");
        let voluntary = number_after(&status, "voluntary_ctxt_switches:");
        self.switches.insert(thread, (voluntary, number_after(&status, "nonvoluntary_ctxt_switches:")));
    }

    /// Returns the usage since `before`. Threads that ended meanwhile are not counted.
    pub(crate) fn since(&self, before: &Usage) -> Used {
        let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        let ticks = |now: u64, then: u64| now.saturating_sub(then) * tick_ns;
        let run = self.run_ns.iter().map(|(id, ns)| ns.saturating_sub(*before.run_ns.get(id).unwrap_or(&0)));
        let switched = self.switches.iter().map(|(id, (voluntary, involuntary))| {
            let (v, i) = before.switches.get(id).copied().unwrap_or_default();
            (voluntary.saturating_sub(v), involuntary.saturating_sub(i))
        });
        let (voluntary_switches, involuntary_switches) =
            switched.fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
        Used {
            run_ns: run.sum(),
            user_ns: ticks(self.user_ticks, before.user_ticks),
            system_ns: ticks(self.system_ticks, before.system_ticks),
            voluntary_switches,
            involuntary_switches,
        }
    }
}

/// Memory of a process in kB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Private memory, which is the heap and the stacks.
    pub(crate) anon_kb: u64,
    /// Memory pages of the program file.
    pub(crate) file_kb: u64,
    /// Touched pages of the camera's ring. This memory belongs to the camera.
    pub(crate) shmem_kb: u64,
}

impl Memory {
    pub(crate) fn of(process: u32) -> Memory {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        Memory {
            anon_kb: number_after(&status, "RssAnon:"),
            file_kb: number_after(&status, "RssFile:"),
            shmem_kb: number_after(&status, "RssShmem:"),
        }
    }
}

/// Returns the time of all cores since boot in ticks, as (all, idle, stolen by the hypervisor).
pub(crate) fn machine_ticks() -> (u64, u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|text| text.parse().ok()).collect();
    let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
    (ticks.iter().take(8).sum(), at(3) + at(4), at(7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cpu_time_is_counted() {
        let before = Usage::of_process(std::process::id());
        let begin = Instant::now();
        let mut sum = 0u64;
        while begin.elapsed() < Duration::from_millis(30) {
            sum = sum.wrapping_mul(31).wrapping_add(7);
        }
        std::hint::black_box(sum);
        thread::yield_now();
        let used = Usage::of_process(std::process::id()).since(&before);
        assert!(used.run_ns > 1_000_000, "{used:?}");
        assert!(Memory::of(std::process::id()).anon_kb > 0);
    }

    #[test]
    fn marker_line_is_found_and_an_early_exit_is_an_error() {
        let mut child =
            Process::spawn("sh", Command::new("sh").args(["-c", "echo listening: x; sleep 60"]), false)
                .unwrap();
        assert_eq!(child.wait_for("listening: ", Duration::from_secs(60)).unwrap(), "x");
        child.check().unwrap();
        let mut child =
            Process::spawn("sh", Command::new("sh").args(["-c", "echo why; exit 3"]), false).unwrap();
        let error = child.wait_for("listening: ", Duration::from_secs(60)).unwrap_err().to_string();
        assert!(error.contains("why"), "{error}");
    }
}
