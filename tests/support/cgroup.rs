//! A memory cgroup for one server: a limit as systemd sets it, and the memory that the server holds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A cgroup with a memory limit. It is removed on drop, which must come after the end of its processes.
pub struct MemoryCgroup {
    path: PathBuf,
    /// True for the unified hierarchy (cgroup v2). In v1, the memory of sockets has a limit of its own.
    unified: bool,
}

impl MemoryCgroup {
    /// Makes a cgroup with this limit. Returns `None` if this process may not.
    pub fn new(bytes_max: u64) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let root = Path::new("/sys/fs/cgroup");
        let unified = root.join("cgroup.controllers").exists();
        if unified {
            fs::write(root.join("cgroup.subtree_control"), "+memory").ok()?;
        }
        let parent = if unified { root.to_owned() } else { root.join("memory") };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("ss-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let cgroup = MemoryCgroup { path, unified };
        let limits: &[&str] = if unified {
            &["memory.max"]
        } else {
            // The second limit makes the kernel count the memory of sockets.
            &["memory.limit_in_bytes", "memory.kmem.tcp.limit_in_bytes"]
        };
        let is_limited =
            limits.iter().all(|file| fs::write(cgroup.path.join(file), bytes_max.to_string()).is_ok());
        is_limited.then_some(cgroup)
    }

    /// Returns the same command in this cgroup.
    pub fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]);
        inside.arg(self.path.join("cgroup.procs")).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// Returns the bytes that only the processes hold: their memory, their sockets, and what the kernel keeps for
    /// them. The cache of files is not included, because the kernel frees it when memory runs short.
    pub fn held_bytes(&self) -> u64 {
        if self.unified {
            return ["anon ", "sock ", "kernel "].iter().map(|key| self.statistic(key)).sum();
        }
        let kernel = ["memory.kmem.usage_in_bytes", "memory.kmem.tcp.usage_in_bytes"];
        self.statistic("rss ") + kernel.iter().map(|file| self.number(file)).sum::<u64>()
    }

    /// Returns how often the kernel killed a process because of the limit.
    pub fn kills(&self) -> u64 {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        self.value(file, "oom_kill ")
    }

    fn statistic(&self, key: &str) -> u64 {
        self.value("memory.stat", key)
    }

    fn value(&self, file: &str, key: &str) -> u64 {
        let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()).unwrap_or(0)
    }

    fn number(&self, file: &str) -> u64 {
        let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}
