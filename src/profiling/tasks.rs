//! Reads the threads of this process from /proc.

use std::fs;

/// State of one thread, from its files below /proc/self/task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) id: i32,
    pub(super) name: String,
    /// State letter as in `ps`: R for running, S for sleeping, D for uninterruptible sleep, and others.
    pub(super) state: char,
    pub(super) user_ms: u64,
    pub(super) system_ms: u64,
    /// Kernel function in which the thread sleeps; empty if unknown.
    pub(super) wait_channel: String,
}

/// Returns the ids of all threads, in no particular order.
pub(super) fn ids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Returns the name of a thread, or an empty string if the thread has ended.
pub(super) fn name(id: i32) -> String {
    let name = fs::read(format!("/proc/self/task/{id}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end().to_owned()
}

/// Returns the name, state and CPU times of a thread, or `None` if the thread has ended.
pub(super) fn task(id: i32) -> Option<Task> {
    let stat = fs::read(format!("/proc/self/task/{id}/stat")).ok()?;
    let wait_channel = fs::read_to_string(format!("/proc/self/task/{id}/wchan")).unwrap_or_default();
    let mut task = parse_stat(&String::from_utf8_lossy(&stat))?;
    task.id = id;
    task.wait_channel = if wait_channel == "0" { String::new() } else { wait_channel };
    Some(task)
}

/// Parses a line of /proc/PID/stat, `id (name) state ppid ...` (see proc(5)). The name may contain any characters, also
/// spaces and parentheses.
fn parse_stat(stat: &str) -> Option<Task> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let mut fields = after.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let ticks_to_ms = 1_000 / rustix::param::clock_ticks_per_second().max(1);
    let user: u64 = fields.nth(10)?.parse().ok()?; // field 14 of the line
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Task {
        name: name.to_owned(),
        state,
        user_ms: user * ticks_to_ms,
        system_ms: system * ticks_to_ms,
        ..Task::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_name_with_parentheses_is_parsed() {
        let task = parse_stat("7 (a) S (b) R 1 7 7 0 -1 64 90 0 0 0 150 30 0 0 20 0 3 0 1").expect("stat");
        assert_eq!((task.name.as_str(), task.state), ("a) S (b", 'R'));
        assert_eq!(task.user_ms, 5 * task.system_ms);
        for wrong in ["", "7", "7 (", "7 (a)", "7 (a) R 1", ")("] {
            assert_eq!(parse_stat(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn own_thread_is_listed_by_name() {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (begun, named) = std::sync::mpsc::channel::<()>();
        let body = move || begun.send(()).is_ok() && wait.recv().is_ok(); // a thread names itself
        let thread =
            std::thread::Builder::new().name("task-list-test".to_owned()).spawn(body).expect("thread");
        named.recv().expect("begun");
        let names: Vec<String> = ids().into_iter().filter_map(task).map(|task| task.name).collect();
        assert!(names.iter().any(|name| name == "task-list-test"), "{names:?}");
        drop(done);
        assert!(!thread.join().expect("join"));
    }
}
