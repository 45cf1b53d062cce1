//! Errors of a driver, with advice for the operator. This module is pure, except that it reads one file in `/proc/sys`.

use std::io;

use crate::base::limits::EVENTFDS_MAX;

/// Reason why a driver could not be set up or stopped working.
#[derive(Debug, thiserror::Error)]
pub enum UdpDriverError {
    /// This process may not use io_uring.
    #[error("io_uring is not allowed here ({source}): {advice}")]
    Forbidden {
        /// Error of the system call.
        source: io::Error,
        /// The setting that forbids io_uring, and what the operator can do.
        advice: &'static str,
    },
    /// The kernel's io_uring lacks a feature that the driver needs. The text names the feature and the Linux version
    /// that introduced it.
    #[error("this kernel's io_uring lacks {0}; Linux 6.1 or newer is recommended")]
    TooOld(&'static str),
    /// There is not enough memory for the ring.
    #[error(
        "no memory for io_uring ({0}): before Linux 5.12 its queues count against the limit of locked memory; \
         raise it (`ulimit -l`, systemd: LimitMEMLOCK=), lower --max-viewers, or free memory"
    )]
    Memory(#[source] io::Error),
    /// `io_uring_setup` failed for a reason that no other variant covers.
    #[error("cannot set up io_uring: {0}")]
    Setup(#[source] io::Error),
    /// The configuration has this number of eventfds, which is more than a driver can read.
    #[error("{0} eventfds, but a driver reads at most {EVENTFDS_MAX}")]
    Eventfds(usize),
    /// The socket or an eventfd cannot be used.
    #[error("cannot use the {what}: {source}")]
    Descriptor {
        /// Name of the descriptor, for the log.
        what: &'static str,
        /// Error of the system call.
        source: io::Error,
    },
    /// `io_uring_enter` failed.
    #[error("io_uring_enter failed: {0}")]
    Enter(#[source] io::Error),
}

impl UdpDriverError {
    /// Returns the driver's error for an error of `io_uring_setup`.
    pub(super) fn of_setup(source: io::Error) -> UdpDriverError {
        let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        match advice(source.raw_os_error(), sysctl.as_deref().map(str::trim)) {
            Some(advice) => UdpDriverError::Forbidden { source, advice },
            None if source.raw_os_error() == Some(libc::ENOMEM) => UdpDriverError::Memory(source),
            None => UdpDriverError::Setup(source),
        }
    }

    /// Returns the driver's error for an error of `io_uring_enter`. A seccomp filter may forbid only this call.
    pub(super) fn of_enter(source: io::Error) -> UdpDriverError {
        match advice(source.raw_os_error(), None) {
            Some(advice) => UdpDriverError::Forbidden { source, advice },
            None => UdpDriverError::Enter(source),
        }
    }
}

/// Returns advice about a refused call, given the call's error number and the value of `kernel.io_uring_disabled`.
/// Returns `None` if the error does not mean that io_uring is forbidden.
fn advice(errno: Option<i32>, sysctl: Option<&str>) -> Option<&'static str> {
    match (errno?, sysctl) {
        (libc::EPERM, Some("2")) => {
            Some("kernel.io_uring_disabled is 2; run `sysctl -w kernel.io_uring_disabled=0` as root")
        }
        (libc::EPERM, Some("1")) => Some(
            "kernel.io_uring_disabled is 1; set it to 0, or run the server in the group of \
             kernel.io_uring_group or with CAP_SYS_ADMIN",
        ),
        (libc::EPERM | libc::EACCES, _) => Some(
            "a seccomp filter or security module forbids it; allow io_uring_setup, io_uring_enter and \
             io_uring_register (Docker and Podman: --security-opt seccomp=PROFILE, systemd: SystemCallFilter=)",
        ),
        (libc::ENOSYS, _) => Some(
            "the kernel is older than 5.11, built without CONFIG_IO_URING, or a seccomp filter hides it; allow \
             io_uring_setup, io_uring_enter and io_uring_register, or use Linux 6.1 or newer",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_names_the_setting_and_what_to_do() {
        assert!(
            advice(Some(libc::EPERM), Some("2")).unwrap().contains("sysctl -w kernel.io_uring_disabled=0")
        );
        assert!(advice(Some(libc::EPERM), Some("1")).unwrap().contains("io_uring_group"));
        assert!(advice(Some(libc::EPERM), Some("0")).unwrap().contains("seccomp"));
        assert!(advice(Some(libc::EPERM), None).unwrap().contains("seccomp"));
        assert!(advice(Some(libc::ENOSYS), None).unwrap().contains("seccomp"));
        assert_eq!(advice(Some(libc::ENOMEM), Some("2")), None);
    }

    #[test]
    fn lack_of_memory_names_the_limit_and_forbidden_enter_names_the_filter() {
        let error = |errno| io::Error::from_raw_os_error(errno);
        assert!(UdpDriverError::of_setup(error(libc::ENOMEM)).to_string().contains("LimitMEMLOCK"));
        assert!(UdpDriverError::of_enter(error(libc::EPERM)).to_string().contains("seccomp"));
        assert!(matches!(UdpDriverError::of_enter(error(libc::EBADF)), UdpDriverError::Enter(_)));
    }
}
