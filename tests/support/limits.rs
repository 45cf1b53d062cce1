//! The limits of the service unit, `MemoryMax=` and `TasksMax=`, as a control group of the test, and what the server holds
//! in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::unique_shm;

/// A control group for one process. It is removed on drop, when the process has ended.
pub struct UnitLimits {
    memory: PathBuf,
    tasks: PathBuf,
    is_version_2: bool,
}

impl UnitLimits {
    /// Makes a control group. Returns `None` if this user may not, which is usual for users other than root.
    pub fn new() -> Option<UnitLimits> {
        let root = Path::new("/sys/fs/cgroup");
        let name = unique_shm().replace('/', "");
        let is_version_2 = root.join("cgroup.controllers").exists();
        let [memory, tasks] = if is_version_2 {
            // This fails if the controllers are on already, or if this user may not. The creation below shows which.
            let _ = fs::write(root.join("cgroup.subtree_control"), "+memory +pids");
            [root.join(&name), root.join(&name)]
        } else {
            [root.join("memory").join(&name), root.join("pids").join(&name)]
        };
        fs::create_dir(&memory).ok()?;
        let limits = UnitLimits { memory, tasks, is_version_2 };
        if !is_version_2 {
            fs::create_dir(&limits.tasks).ok()?;
        }
        fs::metadata(limits.tasks.join("pids.max")).is_ok().then_some(limits)
    }

    /// Returns the same command, but its process starts in this control group.
    pub fn command(&self, command: &Command) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo $$ >\"$0\" && echo $$ >\"$1\" && shift && exec \"$@\""]);
        shell.arg(self.memory.join("cgroup.procs")).arg(self.tasks.join("cgroup.procs"));
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.arg(command.get_program()).args(command.get_args());
        shell
    }

    pub fn set_memory_max(&self, bytes: u64) {
        let file = if self.is_version_2 { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(self.memory.join(file), bytes.to_string()).unwrap();
        if !self.is_version_2 {
            // Version 1 counts the memory of sockets on its own, and only if that has a limit.
            fs::write(self.memory.join("memory.kmem.tcp.limit_in_bytes"), bytes.to_string()).unwrap();
        }
    }

    /// Returns the bytes that only the processes hold: their memory, their sockets, and what the kernel keeps for
    /// them. The cache of files is not included, because the kernel frees it when memory runs short.
    pub fn held_bytes(&self) -> u64 {
        if self.is_version_2 {
            return ["anon ", "sock ", "kernel "].iter().map(|key| self.statistic(key)).sum();
        }
        let kernel = ["memory.kmem.usage_in_bytes", "memory.kmem.tcp.usage_in_bytes"];
        self.statistic("rss ") + kernel.iter().map(|file| self.value(file, "")).sum::<u64>()
    }

    /// Returns how often the kernel killed a process because of the limit of memory.
    pub fn kills(&self) -> u64 {
        let file = if self.is_version_2 { "memory.events" } else { "memory.oom_control" };
        self.value(file, "oom_kill ")
    }

    fn statistic(&self, key: &str) -> u64 {
        self.value("memory.stat", key)
    }

    /// Returns the number after `key` in a file of the memory controller, or 0 if there is none.
    fn value(&self, file: &str, key: &str) -> u64 {
        let text = fs::read_to_string(self.memory.join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()).unwrap_or(0)
    }

    pub fn set_tasks_max(&self, count: u64) {
        fs::write(self.tasks.join("pids.max"), count.to_string()).unwrap();
    }

    /// Returns the number of threads in the group, including those that the kernel has made for io_uring.
    pub fn tasks(&self) -> u64 {
        fs::read_to_string(self.tasks.join("pids.current")).unwrap().trim().parse().unwrap()
    }
}

impl Drop for UnitLimits {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.memory);
        let _ = fs::remove_dir(&self.tasks);
    }
}
