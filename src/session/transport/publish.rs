//! Makes the offer of a publisher, and turns the answer of the WHIP server into the transport and the stream parameters of
//! the session. It does no I/O.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use str0m::config::{DtlsVersion, Fingerprint};
use str0m::{IceCreds, Rtc};

use super::accept::{configure, internal, new_credentials, new_stream, new_transport, random};
use super::agent::Agent;
use super::answer::{Candidates, LocalDescription};
use super::answer_error::AnswerError;
use super::dtls::{self, DtlsLink};
use super::offer::{self, MID};
use super::offer_error::OfferError;
use super::paths::Paths;
use super::remote_answer::{self, Accepted};
use super::{IceKeys, Transport};
use crate::base::limits;
use crate::session::context::SessionContext;
use crate::session::media::StreamParameters;

/// An offer of ours that has no answer yet.
pub struct PublishOffer {
    context: Arc<SessionContext>,
    id: u32,
    rtc: Rtc,
    dtls: DtlsLink,
    credentials: IceCreds,
    stream: StreamParameters,
    profiles: Vec<u32>,
}

impl PublishOffer {
    /// Makes an offer and returns it with its SDP. `profile_level_id` is that of the camera's parameter sets, if it is
    /// known.
    ///
    /// # Errors
    /// Returns an error if there is no certificate or no random number.
    pub fn new(
        context: &Arc<SessionContext>,
        id: u32,
        profile_level_id: Option<u32>,
        now: Instant,
    ) -> Result<(PublishOffer, String), OfferError> {
        let credentials = new_credentials(id)?;
        let stream = new_stream(MID.to_owned())?;
        let profiles = offer::profiles(profile_level_id);
        // WHIP servers support DTLS 1.2. A server that is not a browser may not understand an offer of both versions.
        let config = configure(context, &credentials, DtlsVersion::Dtls12)?;
        let (mut rtc, dtls) = dtls::with_link(|| config.build(now));
        for candidate in &context.candidates {
            rtc.add_local_candidate(candidate.clone());
        }
        let fingerprint = rtc.direct_api().local_dtls_fingerprint().bytes.clone();
        let local = LocalDescription {
            session_id: u64::from_be_bytes(random()?) >> 2,
            credentials: &credentials,
            fingerprint: &fingerprint,
            // The offer lists no TCP candidates: WHIP servers do not connect to them.
            candidates: Candidates { addresses: &context.announced, has_tcp: false },
            stream: &stream,
        };
        let sdp = offer::write(&profiles, &local);
        let context = Arc::clone(context);
        Ok((PublishOffer { context, id, rtc, dtls, credentials, stream, profiles }, sdp))
    }

    /// Reads the answer and prepares ICE and DTLS.
    pub(in crate::session) fn accept(
        self,
        answer_sdp: &str,
        now: Instant,
    ) -> Result<(Arc<SessionContext>, Transport, StreamParameters), AnswerError> {
        let PublishOffer { context, id, mut rtc, dtls, credentials, stream, profiles } = self;
        let has_family =
            |ip: IpAddr| context.candidates.iter().any(|local| local.addr().is_ipv4() == ip.is_ipv4());
        let Accepted { remote, fingerprint, dtls_client, video, extensions, candidates } =
            remote_answer::read(answer_sdp, &profiles, has_family)?;
        let mut api = rtc.direct_api();
        // str0m does not do ICE here either. It believes in one path that the far end has nominated.
        api.set_ice_controlling(false);
        api.set_remote_ice_credentials(remote.clone());
        api.set_remote_fingerprint(Fingerprint { hash_func: "sha-256".into(), bytes: fingerprint.to_vec() });
        api.start_dtls(dtls_client).map_err(internal)?;
        let ice = IceKeys::new(&credentials, &remote, random()?, true);
        let mut paths = Paths::controlling();
        let mut due = now;
        for candidate in candidates {
            paths.add_candidate(now, candidate, due, random()?);
            due += limits::CANDIDATE_PACE;
        }
        let mut transport = new_transport((id, &context), (rtc, dtls), ice, paths, now);
        transport.agent = Some(Agent::new(now, random()?));
        Ok((context, transport, stream.with_formats(video.payload_type, video.rtx, extensions)))
    }
}
