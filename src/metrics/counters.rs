//! Counters of a worker and of logins. Each has one writing thread; any thread may read.

use std::sync::{Mutex, PoisonError};

use super::stages::StageTotals;
use super::status::ViewerStatus;
use super::trace::FlightRecorder;
use crate::base::counters::{Counter, Gauge};

/// Counters of one worker. Aligned to cache lines, so that reading them does not slow another worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Access units taken from the ring.
    pub units_read: Counter,
    /// Access units assembled and packetised (without viewers: assembled only).
    pub units_processed: Counter,
    /// Access units sent, counted once per viewer.
    pub units_sent: Counter,
    /// Access units not sent to a viewer: gate closed, congestion, or loss before it.
    pub units_dropped: Counter,
    /// Access units overwritten by the camera while they were read.
    pub torn: Counter,
    /// Access units missed because the camera lapped the cursor.
    pub lapped: Counter,
    /// Slots refused: invalid metadata (sizes, dimensions) or another format than H.264.
    pub rejected: Counter,
    /// Access units refused: no slice, broken NAL units.
    pub malformed_units: Counter,
    /// IDR access units whose parameter sets were never seen.
    pub missing_parameter_sets: Counter,
    /// Restarts of the camera: a new segment, or an index that jumped back.
    pub restarts: Counter,
    /// Slots between the cursor and the newest unit at the worker's last poll.
    pub lag_slots: Gauge,
    /// Nanoseconds between the last two units, smoothed (1/8).
    pub unit_interval_ns: Gauge,
    /// CLOCK_MONOTONIC ns of the newest unit; 0 before the first.
    pub last_unit_at_ns: Gauge,
    /// Width of the stream's picture; 0 while unknown.
    pub width: Gauge,
    /// Height of the stream's picture; 0 while unknown.
    pub height: Gauge,

    /// Sessions, connected or not.
    pub sessions: Gauge,
    /// Sessions connected (DTLS done).
    pub viewers: Gauge,
    /// Sessions that ended, for any reason.
    pub sessions_closed: Counter,
    /// NACKed packets reported by viewers.
    pub nacks: Counter,
    /// Picture-loss indications and full-intra requests of viewers.
    pub idr_requests: Counter,
    /// RTP packets retransmitted.
    pub retransmits: Counter,
    /// Replays of the current GOP to joining viewers.
    pub replays_of_joins: Counter,
    /// Replays of the current GOP that answer an IDR request.
    pub replays_of_requests: Counter,
    /// Replays that the camera's next IDR ended early.
    pub replays_cut: Counter,
    /// Access units sent in replays.
    pub units_replayed: Counter,
    /// Viewers that waited for the camera's next IDR.
    pub idr_waits: Counter,
    /// GOPs that the camera overwrote before they were saved.
    pub gops_missed: Counter,
    /// GOPs too large to be saved.
    pub gops_too_large: Counter,
    /// Payload bytes of the newest GOP saved outside the ring.
    pub gop_bytes: Gauge,

    /// Datagrams received.
    pub datagrams_received: Counter,
    /// Datagrams that belong to no session (wrong ufrag, unknown address, noise).
    pub datagrams_unclaimed: Counter,
    /// Datagrams handed to another worker.
    pub datagrams_forwarded: Counter,
    /// Datagrams not handed to another worker because its inbox was full.
    pub inbox_full: Counter,
    /// Datagrams dropped on receipt (truncated, no buffer).
    pub receive_errors: Counter,
    /// Datagrams sent.
    pub datagrams_sent: Counter,
    /// Payload bytes of datagrams sent.
    pub bytes_sent: Counter,
    /// Datagrams dropped before the kernel took them (ENOBUFS, EAGAIN, no free operation).
    pub datagrams_dropped: Counter,
    /// Sends that failed otherwise.
    pub send_errors: Counter,
    /// Sends that carried more than one segment.
    pub gso_batches: Counter,
    /// Routes that fell back to plain sends.
    pub gso_fallbacks: Counter,
    /// `io_uring_enter` calls.
    pub enters: Counter,
    /// Features of the worker's io_uring, one bit each in the order of `uring::Features`.
    pub uring_features: Gauge,
    /// Turns of the worker's loop.
    pub turns: Counter,
    /// Nanoseconds of busy polling for access units.
    pub busy_poll_ns: Counter,
    /// Payload buffers newly allocated by the packetiser.
    pub payload_allocations: Counter,

    /// Latency of each stage.
    pub stages: StageTotals,
    /// Stage timestamps of the last minute.
    pub trace: FlightRecorder,
    /// Statistics of every session, as of the worker's last pass over its sessions.
    pub viewer_statuses: StatusBoard,
}

/// Refused logins and requests.
#[derive(Debug, Default)]
pub struct LoginCounters {
    /// Wrong tokens.
    pub wrong: Counter,
    /// Tokens that were not checked because their address must wait.
    pub too_many: Counter,
}

/// The statistics of a worker's sessions, for a scrape to read.
#[derive(Debug, Default)]
pub struct StatusBoard(Mutex<Vec<ViewerStatus>>);

impl StatusBoard {
    /// Exchanges the statistics for the old ones. Never waits: while a scrape reads, the old ones stay.
    pub fn put(&self, statuses: &mut Vec<ViewerStatus>) {
        if let Ok(mut board) = self.0.try_lock() {
            std::mem::swap(&mut *board, statuses);
        }
    }

    /// Returns the latest statistics.
    pub fn get(&self) -> Vec<ViewerStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_counters_do_not_share_a_cache_line() {
        assert_eq!(align_of::<WorkerCounters>(), 128);
        assert_eq!(size_of::<WorkerCounters>() % 128, 0);
    }
}
