//! The memory that callers can make this program hold: the sum of other bounds. ARCHITECTURE.md shows the same table.

use super::*;

/// One row of the table of held memory.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// What is held.
    pub what: &'static str,
    /// Maximum number of places.
    pub places: usize,
    /// Maximum bytes of one place.
    pub bytes: usize,
}

const fn held(what: &'static str, places: usize, bytes: usize) -> Held {
    Held { what, places, bytes }
}

/// What callers of the HTTP endpoints can make the program hold.
pub const HELD_BY_HTTP: &[Held] = &[
    held("HTTP connections: socket buffers", CONNECTIONS_MAX, SOCKET_BYTES),
    held("HTTP connections: head and state", CONNECTIONS_MAX, CONNECTION_BUFFER_BYTES_MAX + STATE_BYTES),
    held("HTTP connections: TLS", CONNECTIONS_MAX, TLS_CONNECTION_BYTES),
    held("refused HTTP connections", REFUSALS_MAX, 2 * CONNECTION_RECEIVE_BYTES + STATE_BYTES),
    held("bodies of requests and answers", 1, MESSAGES_BYTES_MAX),
    held("short bodies", CONNECTIONS_MAX, MESSAGE_BYTES_SHORT),
    held("listing that is being made", LISTINGS_MAX, LISTING_BYTES),
    held("downloads", DOWNLOADS_MAX, DOWNLOAD_PIECES_MAX * DOWNLOAD_PIECE_BYTES),
    held("buffers kept for downloads", DOWNLOAD_PIECES_KEPT, DOWNLOAD_PIECE_BYTES),
    held("index of a growing recording", 1, 20 * FINISHED_VIEW_UNITS_MAX),
    held("events", EVENT_LISTENERS_MAX + EVENTS_KEPT + 2 * DETECTIONS_KEPT, DETECTIONS_EVENT_BYTES_MAX),
    held(
        "logouts, attempts, TLS sessions",
        LOGOUTS_MAX + ATTEMPT_ADDRESSES_MAX + TLS_SESSIONS_MAX,
        ENTRY_BYTES,
    ),
    held("log lines that wait", 1, LOG_QUEUE_BYTES_MAX),
    held("control endpoint: answers", LOCAL_CONNECTIONS_MAX, LOCAL_CONNECTION_BYTES_MAX + LOCAL_STACK_BYTES),
    held("control endpoint: requests", 1, LOCAL_GROWTH_BYTES_MAX),
];

/// What viewers, and senders of other datagrams, can make the program hold with one worker and the default of
/// `--max-viewers`.
pub const HELD_BY_VIEWERS: &[Held] = &[
    held("sessions: ICE, DTLS, SRTP, retransmission", VIEWERS_DEFAULT, SESSION_BYTES),
    held("sessions: media that is not sent yet", VIEWERS_DEFAULT, UNSENT_BYTES_MAX),
    held("sessions that have ended", ENDED_SESSIONS_MAX, ENTRY_BYTES),
    held("shared payloads", 1, PAYLOAD_POOL_BYTES_MAX),
    held("copy of the current GOP", 1, GOP_BYTES_MAX),
    held("HTTP live: access units", 1, LIVE_BYTES_MAX),
    held("UDP socket buffers", 2, 2 * SOCKET_BUFFER_BYTES),
    held("TCP connections", VIEWERS_DEFAULT * TCP_PER_VIEWER_MAX + TCP_UNCLAIMED_MAX, TCP_BYTES),
    held("TCP connections: media in the socket buffers", VIEWERS_DEFAULT, 2 * TCP_SEND_BYTES),
    held("received datagrams", RECEIVE_BUFFERS as usize + FORWARDED_DATAGRAMS_MAX, RECEIVE_BUFFER_BYTES),
];

/// What the program holds without callers: code, threads, buffers that are made at start.
pub const HELD_ALONE: &[Held] = &[
    held("the program itself", 1, PROGRAM_BYTES),
    held("pre-roll of events", 1, PRE_ROLL_BYTES_DEFAULT),
    held("results of the detector", LOGGED_RESULTS_WAITING_MAX, ENTRY_BYTES),
];

/// Maximum bytes that all callers of the HTTP endpoints hold together.
pub const HTTP_HELD_BYTES_MAX: u64 = sum(HELD_BY_HTTP);

/// `MemoryMax` of the systemd unit in bytes.
pub const UNIT_MEMORY_BYTES: u64 = 296 << 20;

const _: () = assert!(
    sum(HELD_BY_HTTP) + sum(HELD_BY_VIEWERS) + sum(HELD_ALONE) < UNIT_MEMORY_BYTES,
    "no caller can make the kernel kill the program"
);

/// Returns the bytes of all places of all rows.
#[must_use]
pub const fn sum(mut rows: &[Held]) -> u64 {
    let mut bytes = 0;
    while let [row, rest @ ..] = rows {
        bytes += row.places as u64 * row.bytes as u64;
        rows = rest;
    }
    bytes
}

/// Default of `--max-viewers`.
pub const VIEWERS_DEFAULT: usize = 32;

/// The kernel doubles the numbers of `SO_SNDBUF` and `SO_RCVBUF`, to have room for its own headers.
const SOCKET_BYTES: usize = 2 * (CONNECTION_SEND_BYTES + CONNECTION_RECEIVE_BYTES);

/// Bytes of a connection besides its buffers: task, parser, and the kernel's objects.
const STATE_BYTES: usize = 16 * 1024;

/// Bytes of a TLS connection: a record in each direction, what waits to be sent, and the keys.
const TLS_CONNECTION_BYTES: usize = TLS_BUFFER_BYTES + 2 * 17 * 1024 + 6 * 1024;

/// Bytes of a listing with the maximum number of recordings while its JSON is made.
const LISTING_BYTES: usize = 12 << 20;

/// Bytes of a small entry of a table, such as an address.
const ENTRY_BYTES: usize = 1_024;

/// Bytes of one session, without the payloads, which sessions share.
const SESSION_BYTES: usize = 256 * 1024;

/// Bytes of a TCP connection without media: small socket buffers, buffers for frames, and the kernel's objects.
const TCP_BYTES: usize =
    2 * (2 * TCP_SMALL_BUFFER_BYTES) + RECEIVE_BUFFER_BYTES + TCP_MEDIA_BYTES_MIN + 4 * 1024;

/// Resident private bytes after start.
const PROGRAM_BYTES: usize = 12 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_in_the_architecture_is_the_sum_of_the_bounds() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md")).unwrap();
        let kilobytes = |bytes: u64| bytes.div_ceil(1_024);
        let mut expected = Vec::new();
        for rows in [HELD_BY_HTTP, HELD_BY_VIEWERS, HELD_ALONE] {
            for Held { what, places, bytes } in rows {
                let (each, all) = (kilobytes(*bytes as u64), kilobytes((*places * *bytes) as u64));
                expected.push(format!("| {what} | {places} | {each} | {all} |"));
            }
        }
        let all = sum(HELD_BY_HTTP) + sum(HELD_BY_VIEWERS) + sum(HELD_ALONE);
        expected.push(format!("| all | | | {} |", kilobytes(all)));
        let missing: Vec<&String> = expected.iter().filter(|row| !text.contains(row.as_str())).collect();
        assert!(missing.is_empty(), "ARCHITECTURE.md lacks these rows:\n{}", expected.join("\n"));
        assert!(all < UNIT_MEMORY_BYTES, "{all}");
    }

    #[test]
    fn the_sum_stays_below_the_limit_of_the_unit() {
        let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/systemd/streaming-server.service");
        let text = std::fs::read_to_string(unit).unwrap();
        let limit = text.lines().find_map(|line| line.strip_prefix("MemoryMax=")).unwrap();
        assert_eq!(limit, format!("{}M", UNIT_MEMORY_BYTES >> 20));
    }
}
