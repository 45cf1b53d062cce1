//! Counters of a worker and of logins. Any thread may read them.

use std::sync::{Mutex, PoisonError};

use super::rtp_times::RtpTimes;
use super::stages::StageTotals;
use super::status::{EndReason, ViewerStatus};
use super::trace::FlightRecorder;
use crate::base::counters::{Counter, Gauge};

/// Counters of one worker. Only this worker's thread writes them. They are aligned to cache lines, so that the writes
/// of one worker do not slow down another.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Access units taken from the ring.
    pub units_read: Counter,
    /// Bytes of those units.
    pub unit_bytes: Counter,
    /// Access units assembled without an error. They are also packetised if the worker has viewers.
    pub units_processed: Counter,
    /// Access units sent, counted once per viewer.
    pub units_sent: Counter,
    /// Access units not sent to a viewer because of congestion or because an earlier unit was lost, counted once per
    /// viewer.
    pub units_dropped: Counter,
    /// Access units that the camera overwrote while the worker read them.
    pub torn: Counter,
    /// Access units that the worker missed because the camera lapped its cursor.
    pub lapped: Counter,
    /// Slots that were skipped because their metadata is not valid or their format is not H.264.
    pub rejected: Counter,
    /// Access units that were skipped because of a broken NAL unit.
    pub malformed_units: Counter,
    /// IDR access units that were skipped because their parameter sets have never arrived.
    pub missing_parameter_sets: Counter,
    /// Restarts of the camera. A restart is detected by a new shared-memory segment or a write index that jumped back.
    pub restarts: Counter,
    /// Number of slots between the cursor and the newest unit, when the worker last polled the ring.
    pub lag_slots: Gauge,
    /// Average interval between units in nanoseconds, as learned from the capture times. 0 while it is unknown.
    pub unit_interval_ns: Gauge,
    /// Time without a unit, in nanoseconds, after which the camera counts as stalled. 0 before the first unit.
    pub stalled_after_ns: Gauge,
    /// Capture time of the newest IDR, in nanoseconds of CLOCK_MONOTONIC. 0 before the first IDR.
    pub last_idr_at_ns: Gauge,
    /// Time at which the worker read the newest unit, in nanoseconds of CLOCK_MONOTONIC. 0 before the first unit.
    pub last_unit_at_ns: Gauge,
    /// Bytes of filler that were removed from access units.
    pub filler_bytes: Counter,
    /// 1 if the stream has B-frames, which browsers over WebRTC do not reorder.
    pub b_frames: Gauge,
    /// What is wrong with the content of the slots, as the number of an `h264::SlotFault`. 0 if nothing is wrong.
    pub slot_fault: Gauge,
    /// Width of the stream's picture in pixels. 0 while it is unknown.
    pub width: Gauge,
    /// Height of the stream's picture in pixels. 0 while it is unknown.
    pub height: Gauge,
    /// `profile-level-id` of the stream's parameter sets (RFC 6184 section 8.1). 0 while it is unknown.
    pub profile_level_id: Gauge,

    /// Number of sessions, whether they are connected or not.
    pub sessions: Gauge,
    /// Number of connected sessions, whose DTLS handshake is finished.
    pub viewers: Gauge,
    /// Number of connected sessions whose media travels over TCP.
    pub viewers_over_tcp: Gauge,
    /// Number of connected sessions that wait for the camera's next IDR.
    pub viewers_without_idr: Gauge,
    /// Sessions that ended, for any reason.
    pub sessions_closed: Counter,
    /// Those sessions by reason, in the order of [`EndReason::ALL`].
    pub sessions_ended: [Counter; EndReason::ALL.len()],
    /// NACK messages received from viewers.
    pub nacks: Counter,
    /// IDR requests (PLI and FIR messages) received from viewers.
    pub idr_requests: Counter,
    /// RTP packets retransmitted.
    pub retransmits: Counter,
    /// Replays of the current GOP to joining viewers.
    pub replays_of_joins: Counter,
    /// Replays of the current GOP that answer an IDR request.
    pub replays_of_requests: Counter,
    /// Replays that ended early because the camera's next IDR arrived.
    pub replays_cut: Counter,
    /// Access units sent in replays.
    pub units_replayed: Counter,
    /// Times that a viewer had to wait for the camera's next IDR because no replay was possible or worthwhile.
    pub idr_waits: Counter,
    /// GOPs that could not be saved, because the camera overwrote one of their units before.
    pub gops_missed: Counter,
    /// GOPs that were too large to be saved.
    pub gops_too_large: Counter,
    /// RTP payload bytes of the newest GOP, which is saved outside the ring.
    pub gop_bytes: Gauge,

    /// Datagrams received.
    pub datagrams_received: Counter,
    /// Datagrams that belong to no session, because their ICE username fragment or source address is unknown.
    pub datagrams_unclaimed: Counter,
    /// Datagrams handed to another worker.
    pub datagrams_forwarded: Counter,
    /// Datagrams that could not be handed to another worker because the inbox of that worker was full.
    pub inbox_full: Counter,
    /// Receive operations that failed because a datagram was too large, no buffer was free, or for another reason.
    pub receive_errors: Counter,
    /// Datagrams sent.
    pub datagrams_sent: Counter,
    /// Payload bytes of datagrams sent.
    pub bytes_sent: Counter,
    /// Datagrams dropped because a queue of the kernel was full (ENOBUFS, EAGAIN) or no send operation was free.
    pub datagrams_dropped: Counter,
    /// Datagrams whose send failed for another reason.
    pub send_errors: Counter,
    /// GSO sends, which carry more than one datagram.
    pub gso_batches: Counter,
    /// GSO sends that the kernel refused, so that their datagrams were sent one by one.
    pub gso_fallbacks: Counter,
    /// Number of TCP connections (ICE-TCP).
    pub tcp_connections: Gauge,
    /// TCP connections accepted.
    pub tcp_accepted: Counter,
    /// TCP connections closed, because their first frame did not come in time or named no session, or there were too
    /// many.
    pub tcp_refused: Counter,
    /// Frames received over TCP.
    pub tcp_frames_received: Counter,
    /// Frames queued for sending over TCP.
    pub tcp_frames_sent: Counter,
    /// Frames left out, because their TCP connection was closed or full.
    pub tcp_frames_dropped: Counter,
    /// Bytes sent over TCP.
    pub tcp_bytes_sent: Counter,
    /// Calls of `io_uring_enter`.
    pub enters: Counter,
    /// Features of the worker's io_uring, as the bits of `uring::Features`.
    pub uring_features: Gauge,
    /// Turns of the worker's loop.
    pub turns: Counter,
    /// Time spent in busy polling for access units, in nanoseconds.
    pub busy_poll_ns: Counter,
    /// Payload buffers that the packetiser allocated, because it could not reuse one.
    pub payload_allocations: Counter,

    /// RTP times of the newest access units, without the offset of the streams.
    pub rtp_times: RtpTimes,
    /// Latencies of the stages through which access units pass.
    pub stages: StageTotals,
    /// Times at which the access units of the last minute passed the stages.
    pub trace: FlightRecorder,
    /// Statistics of each session, which the worker updates about twice a second.
    pub viewer_statuses: StatusBoard,
}

/// Counters of refused tokens, in logins and in requests.
#[derive(Debug, Default)]
pub struct LoginCounters {
    /// Tokens that were wrong.
    pub wrong: Counter,
    /// Tokens that were not checked, because too many wrong tokens had come from the same address.
    pub too_many: Counter,
}

/// The statistics of a worker's sessions. The worker writes them, and any thread may read them.
#[derive(Debug, Default)]
pub struct StatusBoard(Mutex<Vec<ViewerStatus>>);

impl StatusBoard {
    /// Replaces the stored statistics, and returns the old ones in `statuses`. Never waits: if another thread is
    /// reading, nothing is replaced.
    pub fn put(&self, statuses: &mut Vec<ViewerStatus>) {
        if let Ok(mut board) = self.0.try_lock() {
            std::mem::swap(&mut *board, statuses);
        }
    }

    /// Returns a copy of the latest statistics.
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
