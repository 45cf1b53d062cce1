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
