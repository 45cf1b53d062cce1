//! Bounds of starting and stopping.

use std::time::Duration;

/// Maximum time that the start waits for a UDP port that is in use. The port of a killed server becomes free after
/// about 30 ms.
pub const UDP_PORT_PATIENCE: Duration = Duration::from_secs(2);

/// Maximum milliseconds for which a stopping worker waits until its last datagrams are sent.
pub const STOP_MS_MAX: u64 = 1_000;

/// Number of heartbeats sent to the service manager within its watchdog timeout.
pub const SIGNS_OF_LIFE_PER_WATCHDOG: u32 = 4;

/// Time between two status updates to a service manager that has no watchdog for this process.
pub const STATUS_PERIOD: Duration = Duration::from_secs(5);

/// Maximum bytes of a configuration file or a token file.
pub const CONFIG_FILE_BYTES_MAX: u64 = 256 * 1024;

/// Maximum bytes of log lines that wait to be written to stderr. Further lines are dropped and counted.
pub const LOG_QUEUE_BYTES_MAX: usize = 256 * 1024;

/// Maximum bytes of one log line. Longer lines are cut off.
pub const LOG_LINE_BYTES_MAX: usize = 8 * 1024;

/// Stack bytes of the thread that writes the log.
pub const LOG_STACK_BYTES: usize = 128 * 1024;

/// Maximum time for which the end of the process waits until the last log lines are written.
pub const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Seconds after a memory fault in which the message about it must be written. Then the process ends without it.
pub const FAULT_MESSAGE_S: u32 = 2;

/// Maximum number of UDP ports that are tried at start until the TCP port of the same number is free, if the kernel
/// chooses the port (`--udp IP:0`).
pub const PORT_TRIES_MAX: u32 = 8;

/// Maximum time that the start waits for the TCP port of ICE-TCP. It is short, because the server can do without it.
pub const TCP_PORT_PATIENCE: Duration = Duration::from_millis(200);
