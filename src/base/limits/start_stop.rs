//! The bounds of starting and stopping.

use std::time::Duration;

/// How long a UDP port in use is waited for at start: a killed server's is free some 30 ms after it.
pub const UDP_PORT_PATIENCE: Duration = Duration::from_secs(2);

/// Milliseconds a stopping worker waits for its last datagrams to leave.
pub const STOP_MS_MAX: u64 = 1_000;
