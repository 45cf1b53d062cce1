//! All bounds of the program. Const asserts check the relations between them. A user cannot configure a bound.

mod camera;
mod control;
mod detections;
mod h264;
mod http;
mod live;
mod memory;
mod metrics;
mod profiling;
mod publish;
mod recorder;
mod security;
mod session;
mod start_stop;
mod uring;
mod worker;

pub use camera::*;
pub use control::*;
pub use detections::*;
pub use h264::*;
pub use http::*;
pub use live::*;
pub use memory::*;
pub use metrics::*;
pub use profiling::*;
pub use publish::*;
pub use recorder::*;
pub use security::*;
pub use session::*;
pub use start_stop::*;
pub use uring::*;
pub use worker::*;

const _: () = assert!(
    PARAMETER_SET_BYTES_MAX < RTP_PAYLOAD_BYTES_MAX - RTP_EXTENSIONS_BYTES_MAX,
    "a parameter set never needs fragments"
);
const _: () = assert!(RTP_PAYLOAD_BYTES_MAX <= u16::MAX as usize, "STAP-A sizes have 16 bits");
const _: () = assert!(
    SLOT_DATA_BYTES_MAX / (FULL_PAYLOADS_OF_BUFFER * (RTP_PAYLOAD_BYTES_MAX - 2))
        * (FULL_PAYLOADS_OF_BUFFER * RTP_PAYLOAD_BYTES_MAX + PAYLOAD_BUFFER_OVERHEAD_BYTES)
        < PAYLOAD_POOL_BYTES_MAX,
    "the fragments of the largest unit fit; so do 3 s at 8 Mbps"
);
const _: () = assert!(WRITE_PARTS_MAX <= 1_024, "IOV_MAX");
const _: () = assert!(RECORDING_BYTES_SOFT + 64 * (SLOT_DATA_BYTES_MAX as u64) < RECORDING_BYTES_MAX);
const _: () = assert!(RECORDING_BYTES_MAX < 1 << 32, "32-bit chunk offsets suffice");
const _: () = assert!(
    CAMERA_CHECK_SILENT_NS <= CAMERA_WAIT_MAX_NS && CAMERA_CHECK_NS <= CAMERA_SILENT_NS,
    "a restart of the camera is noticed while it is silent"
);
const _: () =
    assert!(COMMIT_STABLE_NS >= 2 * POLL_STEP_NS, "a slot is polled twice before it counts as committed");
const _: () = assert!(LEASE_SLOT_BYTES as usize == SLOT_DATA_BYTES_MAX, "a unit of a legacy slot fits");
const _: () = assert!(PRE_IMAGE_BYTES_MAX <= SLOT_DATA_BYTES_MAX, "the pre-image lies inside the slot");
const _: () = assert!(GSO_SEGMENTS_MAX <= 64, "UDP_MAX_SEGMENTS");
const _: () = assert!(RECEIVE_BUFFERS.is_power_of_two(), "io_uring_register_buf_ring(3)");
const _: () = assert!(RECEIVE_OPERATIONS <= RECEIVE_BUFFERS, "one bound covers both ways of receiving");
const _: () = assert!(
    SENDS_MAX + EVENTFDS_MAX + (RECEIVE_BUFFERS as usize) + 2 * TCP_CONNECTIONS_MAX + 1 < 8_192,
    "every operation's completion fits in the completion queue at once"
);
const _: () = assert!(
    (RTP_PAYLOAD_BYTES_MAX + RTP_OVERHEAD_BYTES_MAX) * GSO_SEGMENTS_MAX <= GSO_BYTES_MAX,
    "a full batch of full packets is one GSO send"
);
const _: () = assert!(GOP_BYTES_MAX > SLOT_DATA_BYTES_MAX, "the largest IDR fits");
const _: () = assert!(
    LIVE_BYTES_SOFT + SLOT_DATA_BYTES_MAX + 4 * NAL_UNITS_MAX + LIVE_UNIT_OVERHEAD_BYTES < LIVE_BYTES_MAX,
    "viewers over HTTP that are late end before units are refused"
);
const _: () = assert!(LIVE_START_TIMEOUT.as_secs() < BACKEND_TIMEOUT.as_secs(), "its own answer comes first");
const _: () =
    assert!(LIVE_RETRY_AFTER_S as i64 * 1_000_000_000 < LIVE_LINGER_NS, "the reader still runs then");
const _: () =
    assert!(REPLAY_IN_FLIGHT_MAX < VIEWER_IN_FLIGHT_MAX / 2, "a replay never congests its viewer's gate");
const _: () = assert!(OFFER_BYTES_MAX <= BODY_BYTES_MAX, "an offer arrives as one request body");
const _: () = assert!(
    HEADER_BYTES_MAX < CONNECTION_BUFFER_BYTES_MAX,
    "a head that is too long is refused before the buffer is full"
);
const _: () = assert!(TRACE_UNITS_MAX >= 30 * 60, "the flight recorder holds a minute");
const _: () = assert!(
    TRACE_UNITS_MAX.is_multiple_of(TRACE_CHUNK) && TRACE_WRITES_MAX.is_multiple_of(TRACE_CHUNK),
    "a flight recorder is whole chunks"
);
const _: () = assert!(RECORDER_REPLY_S < BACKEND_TIMEOUT.as_secs(), "the recorder's own answer comes first");
