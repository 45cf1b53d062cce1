//! Metrics of the process, read from the kernel at each scrape. Prometheus' client libraries use the same names.

use crate::metrics::Exposition;

/// Adds the `process_*` metrics to `text`. Metrics whose values cannot be read are omitted.
pub fn expose(text: &mut Exposition) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (field, name, help) in [
        (
            "VmRSS:",
            "process_resident_memory_bytes",
            "Resident memory, including used pages of the camera's ring.",
        ),
        ("RssAnon:", "process_anonymous_memory_bytes", "Resident memory without the camera's ring."),
        ("RssShmem:", "process_shared_memory_bytes", "Used pages of the camera's ring."),
        ("VmSize:", "process_virtual_memory_bytes", "Virtual memory."),
    ] {
        if let Some(kibibytes) = number_after(&status, field) {
            text.gauge(name, help).value(kibibytes * 1024);
        }
    }
    if let Some(threads) = number_after(&status, "Threads:") {
        text.gauge("process_threads", "Threads.").value(threads);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        text.gauge("process_open_fds", "Open file descriptors.").value(entries.count());
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(limit) = limit {
        text.gauge("process_max_fds", "File descriptors allowed.").value(limit);
    }
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    let seconds = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
    text.counter("process_cpu_seconds_total", "User and system time used.")
        .value(format_args!("{seconds:.3}"));
}

fn number_after(text: &str, field: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(field))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_process_metric_is_exposed() {
        let mut text = Exposition::new();
        expose(&mut text);
        let text = text.finish();
        for name in
            ["resident_memory_bytes", "anonymous_memory_bytes", "open_fds", "max_fds", "cpu_seconds_total"]
        {
            let sample = text.lines().find(|line| line.starts_with(&format!("process_{name} "))).unwrap();
            let value: f64 = sample.split(' ').next_back().unwrap().parse().unwrap();
            assert!(value > 0.0, "{sample}");
        }
    }
}
