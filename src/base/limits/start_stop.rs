//! Bounds of starting and stopping.

use std::time::Duration;

/// Time to wait at start for a UDP port in use. The port of a killed server is free after about 30 ms.
pub const UDP_PORT_PATIENCE: Duration = Duration::from_secs(2);

/// Milliseconds for which a stopping worker waits until its last datagrams are sent.
pub const STOP_MS_MAX: u64 = 1_000;

/// Heartbeat checks within the watchdog timeout of the service manager.
pub const SIGNS_OF_LIFE_PER_WATCHDOG: u32 = 4;

/// Time between two status updates to a service manager without watchdog.
pub const STATUS_PERIOD: Duration = Duration::from_secs(5);
