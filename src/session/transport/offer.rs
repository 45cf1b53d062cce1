//! Writes the SDP offer of a publisher (RFC 9725 section 4.2): one m-line that sends H.264.

use super::answer::{LocalDescription, STREAM_ID, TRACK_ID, push_sources, push_transport};
use super::section::{URI_CAPTURE_TIME, URI_MID, URI_TRANSPORT};
use crate::session::media::{Extensions, StreamParameters};

/// The `mid` of the offered m-line.
pub(super) const MID: &str = "0";

/// First payload type of the offer. Each format takes two: one for H.264, and the next one for its retransmissions.
const FIRST_PAYLOAD_TYPE: u8 = 96;

/// Constrained Baseline at level 3.1, which every WebRTC endpoint supports (RFC 7742 section 6.2).
const CONSTRAINED_BASELINE: u32 = 0x42_e01f;

/// Header extensions of the offer.
pub(super) const OFFERED: Extensions =
    Extensions { mid: Some(1), playout_delay: None, capture_time: Some(2), transport: Some(3) };

/// Returns the values of `profile-level-id` to offer, the camera's own first. Servers compare the first two bytes, so
/// an unusual combination of constraints is followed by the usual one. Constrained Baseline comes last: some servers
/// accept nothing else.
pub(super) fn profiles(camera: Option<u32>) -> Vec<u32> {
    let usual = camera.map(|id| match id >> 16 {
        0x64 => 0x64_001f,
        0x4d => 0x4d_001f,
        _ => CONSTRAINED_BASELINE,
    });
    let mut profiles: Vec<u32> = Vec::new();
    for id in camera.into_iter().chain(usual).chain([CONSTRAINED_BASELINE]) {
        if profiles.iter().all(|known| known >> 8 != id >> 8) {
            profiles.push(id);
        }
    }
    profiles
}

/// Writes the offer with one format for each of `profiles`.
pub(super) fn write(profiles: &[u32], local: &LocalDescription<'_>) -> String {
    let StreamParameters { ssrc, cname, .. } = local.stream;
    let formats: Vec<(u8, u8, u32)> = profiles
        .iter()
        .zip((FIRST_PAYLOAD_TYPE..).step_by(2))
        .map(|(id, payload_type)| (payload_type, payload_type + 1, *id))
        .collect();
    let numbers: Vec<String> = formats.iter().map(|(number, rtx, _)| format!("{number} {rtx}")).collect();
    let mut lines = vec![
        format!("v=0\r\no=- {} 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0", local.session_id),
        format!("a=group:BUNDLE {MID}\r\na=msid-semantic: WMS {STREAM_ID}"),
        format!("m=video 9 UDP/TLS/RTP/SAVPF {}", numbers.join(" ")),
        "c=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0".to_owned(),
    ];
    push_transport(&mut lines, "actpass", local);
    lines.push(format!("a=mid:{MID}"));
    let extensions = [
        (OFFERED.mid, URI_MID),
        (OFFERED.capture_time, URI_CAPTURE_TIME),
        (OFFERED.transport, URI_TRANSPORT),
    ];
    for (id, uri) in extensions {
        lines.extend(id.map(|id| format!("a=extmap:{id} {uri}")));
    }
    lines.push(format!("a=sendonly\r\na=msid:{STREAM_ID} {TRACK_ID}\r\na=rtcp-mux\r\na=rtcp-rsize"));
    for (number, rtx, id) in formats {
        lines.push(format!("a=rtpmap:{number} H264/90000"));
        for feedback in ["ccm fir", "nack", "nack pli", "transport-cc"] {
            lines.push(format!("a=rtcp-fb:{number} {feedback}"));
        }
        lines.push(format!(
            "a=fmtp:{number} level-asymmetry-allowed=1;packetization-mode=1;profile-level-id={id:06x}"
        ));
        lines.push(format!("a=rtpmap:{rtx} rtx/90000\r\na=fmtp:{rtx} apt={number}"));
    }
    push_sources(&mut lines, *ssrc, Some(ssrc + 1), cname);
    lines.join("\r\n") + "\r\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offered_profiles_begin_with_the_cameras_and_end_with_the_one_that_all_accept() {
        assert_eq!(profiles(None), [CONSTRAINED_BASELINE]);
        assert_eq!(profiles(Some(0x42_e028)), [0x42_e028]);
        assert_eq!(profiles(Some(0x42_001e)), [0x42_001e, CONSTRAINED_BASELINE]);
        assert_eq!(profiles(Some(0x64_0028)), [0x64_0028, CONSTRAINED_BASELINE]);
        assert_eq!(profiles(Some(0x64_0c28)), [0x64_0c28, 0x64_001f, CONSTRAINED_BASELINE]);
        assert_eq!(profiles(Some(0x4d_4028)), [0x4d_4028, 0x4d_001f, CONSTRAINED_BASELINE]);
    }
}
