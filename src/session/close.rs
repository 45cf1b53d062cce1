//! Why a session ended: the reason for the log, the metrics and `/api/viewers`, and the DTLS alert that tells the viewer.

use crate::metrics::status::EndReason;

/// Why a session ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// No authenticated STUN request has arrived within [`HANDSHAKE_TIMEOUT`](crate::base::limits::HANDSHAKE_TIMEOUT).
    NoStun,
    /// STUN has arrived, but the DTLS handshake did not finish within
    /// [`HANDSHAKE_TIMEOUT`](crate::base::limits::HANDSHAKE_TIMEOUT).
    HandshakeTimeout,
    /// Neither authentic STUN nor authentic SRTCP has arrived for
    /// [`CONSENT_TIMEOUT`](crate::base::limits::CONSENT_TIMEOUT).
    ConsentExpired,
    /// The viewer closed the DTLS connection, or deleted the session over HTTP.
    PeerClosed,
    /// The server is stopping.
    Local,
    /// The login that the session belongs to has ended.
    LoggedOut,
    /// The session had received no STUN, and its place was needed for another viewer.
    GaveWay,
    /// The viewer has no certificate that DTLS can verify. Only ECDSA certificates are supported.
    UnsupportedCertificate,
    /// The viewer's certificate does not have the fingerprint of the offer.
    FingerprintMismatch,
    /// The DTLS handshake finished without an SRTP profile that both sides support.
    NoSrtpProfile,
    /// The viewer's DTLS version, cipher suites or curves have nothing in common with ours.
    IncompatibleDtls,
    /// The viewer ended DTLS with this fatal alert (RFC 8446 section 6).
    PeerAlert(u8),
    /// The DTLS handshake failed in another way.
    Failed,
}

/// Fatal alerts of DTLS (RFC 8446 section 6.2).
pub(super) mod alert {
    pub(in crate::session) const HANDSHAKE_FAILURE: u8 = 40;
    pub(in crate::session) const BAD_CERTIFICATE: u8 = 42;
    pub(in crate::session) const UNSUPPORTED_CERTIFICATE: u8 = 43;
    pub(in crate::session) const USER_CANCELED: u8 = 90;
}

impl CloseReason {
    /// Returns the reason as the API and the metrics name it.
    pub fn end_reason(self) -> EndReason {
        match self {
            Self::NoStun => EndReason::NoStun,
            Self::HandshakeTimeout => EndReason::HandshakeTimeout,
            Self::ConsentExpired => EndReason::ConsentExpired,
            Self::PeerClosed => EndReason::ViewerClosed,
            Self::Local => EndReason::ServerStopping,
            Self::LoggedOut => EndReason::LoginEnded,
            Self::GaveWay => EndReason::GaveWay,
            Self::UnsupportedCertificate => EndReason::UnsupportedCertificate,
            Self::FingerprintMismatch => EndReason::FingerprintMismatch,
            Self::NoSrtpProfile => EndReason::NoSrtpProfile,
            Self::IncompatibleDtls => EndReason::IncompatibleDtls,
            Self::PeerAlert(_) => EndReason::ViewerAlert,
            Self::Failed => EndReason::DtlsFailed,
        }
    }

    /// Says what happened and what to do. `port` is the server's UDP port.
    pub(super) fn explain(self, port: u16) -> String {
        let text = match self {
            Self::NoStun => {
                return format!(
                    "no STUN arrived from the viewer on UDP port {port}: a firewall or NAT may block the port, or the \
                     viewer cannot reach the addresses in the answer (see --advertise)"
                );
            }
            Self::PeerAlert(code) => {
                return format!("the viewer ended DTLS with the fatal alert {code} ({})", alert_name(code));
            }
            Self::HandshakeTimeout => {
                "STUN arrived, but the viewer did not finish the DTLS handshake in time"
            }
            Self::ConsentExpired => "nothing authentic arrived from the viewer any more",
            Self::PeerClosed => "the viewer closed the session",
            Self::Local => "the server is stopping",
            Self::LoggedOut => "the login has ended",
            Self::GaveWay => "no STUN had arrived from the viewer, and another viewer needed the place",
            Self::UnsupportedCertificate => {
                "the viewer has no certificate that this server can verify, probably because it is an RSA \
                 certificate. Give the viewer an ECDSA certificate (P-256); for GStreamer's webrtcbin set the property \
                 pem of its dtlssrtpdec (see the README)"
            }
            Self::FingerprintMismatch => {
                "the viewer's certificate does not have the fingerprint of its offer"
            }
            Self::NoSrtpProfile => {
                "the viewer offers no SRTP profile that this server supports (AEAD_AES_256_GCM, AEAD_AES_128_GCM, \
                 AES128_CM_SHA1_80)"
            }
            Self::IncompatibleDtls => "the viewer's DTLS has nothing in common with this server's",
            Self::Failed => "the DTLS handshake failed",
        };
        text.to_owned()
    }

    /// Says what happened in the session with a WHIP server, and what to do.
    pub(super) fn explain_publishing(self) -> String {
        let text = match self {
            Self::NoStun => {
                "none of the addresses in the WHIP server's answer has answered STUN: a firewall may block UDP to them, or \
                 the server announces addresses that this machine cannot reach"
            }
            Self::HandshakeTimeout => {
                "the WHIP server answered STUN, but did not finish the DTLS handshake in time"
            }
            Self::ConsentExpired => "nothing authentic arrived from the WHIP server any more",
            Self::PeerClosed => "the WHIP server closed the session",
            Self::UnsupportedCertificate => {
                "the WHIP server has no certificate for DTLS that this program can verify"
            }
            Self::FingerprintMismatch => {
                "the WHIP server's certificate for DTLS does not have the fingerprint of its answer"
            }
            Self::NoSrtpProfile => "the WHIP server supports no SRTP profile that this program supports",
            Self::IncompatibleDtls => "the WHIP server's DTLS has nothing in common with this program's",
            Self::PeerAlert(code) => {
                return format!(
                    "the WHIP server ended DTLS with the fatal alert {code} ({})",
                    alert_name(code)
                );
            }
            Self::Local | Self::LoggedOut | Self::GaveWay => "this program is stopping",
            Self::Failed => "the DTLS handshake with the WHIP server failed",
        };
        text.to_owned()
    }

    /// Returns the alert that tells the viewer about the end of an unfinished handshake. Returns `None` if the viewer
    /// knows already.
    pub(super) fn alert(self) -> Option<u8> {
        match self {
            Self::NoStun | Self::PeerClosed | Self::PeerAlert(_) => None,
            Self::UnsupportedCertificate => Some(alert::UNSUPPORTED_CERTIFICATE),
            Self::FingerprintMismatch => Some(alert::BAD_CERTIFICATE),
            Self::Local | Self::LoggedOut | Self::GaveWay => Some(alert::USER_CANCELED),
            _ => Some(alert::HANDSHAKE_FAILURE),
        }
    }
}

fn alert_name(code: u8) -> &'static str {
    match code {
        10 => "unexpected_message",
        20 => "bad_record_mac",
        alert::HANDSHAKE_FAILURE => "handshake_failure",
        alert::BAD_CERTIFICATE => "bad_certificate",
        alert::UNSUPPORTED_CERTIFICATE => "unsupported_certificate",
        45 => "certificate_expired",
        46 => "certificate_unknown",
        47 => "illegal_parameter",
        48 => "unknown_ca",
        49 => "access_denied",
        50 => "decode_error",
        51 => "decrypt_error",
        70 => "protocol_version",
        71 => "insufficient_security",
        80 => "internal_error",
        alert::USER_CANCELED => "user_canceled",
        109 => "missing_extension",
        116 => "certificate_required",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explanation_names_the_port_and_the_alert() {
        assert!(CloseReason::NoStun.explain(8189).contains("UDP port 8189"));
        assert!(CloseReason::PeerAlert(46).explain(1).contains("46 (certificate_unknown)"));
        assert!(CloseReason::UnsupportedCertificate.explain(1).contains("ECDSA"));
    }
}
