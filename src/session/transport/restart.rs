//! Fragments of the viewer, and ICE restarts (RFC 8445 section 9, RFC 9725 section 4.3.2). Does no I/O.
//!
//! ```text
//!  fragment ─► ufrag of the viewer unchanged, or an earlier one ─► candidates: nothing to do
//!          └─► new ufrag ─► restart: new keys on both sides, the old ones last until the viewer uses the new ones
//! ```
//!
//! A session restarts at most once in [`limits::ICE_RESTART_INTERVAL`]. Paths, DTLS and media stay as they are. The
//! viewer's checks with the new credentials then add and select paths, as checks do at any other time.

use std::time::Instant;

use str0m::IceCreds;

use super::accept::new_credentials;
use super::answer::{self, Candidates};
use super::fragment::{FragmentError, IceFragment};
use super::paths::Request;
use super::sdp::ice_credentials;
use super::stun::stun_ufrag;
use super::{IceKeys, Transport};
use crate::base::limits;
use crate::session::Destination;

/// An ICE restart that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IceRestart {
    /// The server's fragment, with its new credentials.
    pub fragment: String,
    /// Names the new generation of ICE. It is the server's new ufrag.
    pub tag: String,
}

impl Transport {
    /// Returns the name of the current generation of ICE: our ufrag.
    pub(in crate::session) fn ice_tag(&self) -> &str {
        &self.ice.ufrag
    }

    /// Returns our ufrags that the viewer may use: the current one, and the one from before an ICE restart.
    pub(in crate::session) fn local_ufrags(&self) -> impl Iterator<Item = &str> {
        self.all_ice().map(|keys| keys.ufrag.as_str())
    }

    /// Handles a fragment for the m-line `mid`. Restarts ICE if the fragment has a new ufrag. `if_match` lists the tags
    /// of the generations that the fragment may be for; `*` is any, and `None` if the viewer did not say.
    pub(in crate::session) fn handle_fragment(
        &mut self,
        now: Instant,
        fragment: &IceFragment,
        mid: &str,
        if_match: Option<&[String]>,
    ) -> Result<Option<IceRestart>, FragmentError> {
        let is_current = |tag: &String| tag == "*" || *tag == self.ice.ufrag;
        if if_match.is_some_and(|tags| !tags.iter().any(is_current)) {
            return Err(FragmentError::OtherTag);
        }
        let (ufrag, password) = fragment.credentials(mid);
        let is_known = |ufrag: &str| {
            ufrag == self.ice.remote_ufrag || self.earlier_ufrags.iter().any(|earlier| earlier == ufrag)
        };
        if ufrag.is_none_or(is_known) {
            return Ok(None);
        }
        if if_match.is_none() {
            return Err(FragmentError::TagRequired);
        }
        if fragment.is_ice_lite {
            return Err(FragmentError::Unsupported(
                "it is ICE-lite, as this server is, so neither side would send connectivity checks",
            ));
        }
        let credentials = ice_credentials(ufrag, password)?;
        // Each restart makes random credentials, and every worker updates its routes.
        if self.restarted_at.is_some_and(|at| now < at + limits::ICE_RESTART_INTERVAL) {
            return Err(FragmentError::TooSoon);
        }
        let restart = self.restart_ice(&credentials, mid)?;
        self.restarted_at = Some(now);
        Ok(Some(restart))
    }

    fn restart_ice(&mut self, remote: &IceCreds, mid: &str) -> Result<IceRestart, FragmentError> {
        let local = new_credentials(self.id)?;
        let keys = IceKeys::new(&local, remote, self.ice.tie_breaker, false);
        // str0m needs the new credentials if the constant path is not open yet.
        let mut api = self.rtc.direct_api();
        api.set_local_ice_credentials(local.clone());
        api.set_remote_ice_credentials(remote.clone());
        let replaced = std::mem::replace(&mut self.ice, keys);
        if self.earlier_ufrags.len() >= limits::EARLIER_UFRAGS_MAX {
            self.earlier_ufrags.remove(0);
        }
        self.earlier_ufrags.push(replaced.remote_ufrag.clone());
        // If the viewer has not used the replaced keys, it still uses those before them.
        self.previous_ice.get_or_insert_with(|| Box::new(replaced));
        let candidates = Candidates { addresses: &self.context.announced, has_tcp: self.context.has_tcp };
        let fragment = answer::write_fragment(mid, &local, candidates);
        log::debug!("viewer {}: the viewer has restarted ICE", self.id);
        Ok(IceRestart { fragment, tag: local.ufrag })
    }

    /// Returns the current keys, then those from before an ICE restart.
    pub(super) fn all_ice(&self) -> impl Iterator<Item = &IceKeys> {
        std::iter::once(&self.ice).chain(self.previous_ice.as_deref())
    }

    /// Authenticates a request with the keys that belong to its ufrag. The first request with new keys ends the old
    /// ones.
    pub(super) fn authenticate(&mut self, from: Destination, bytes: &[u8]) -> Option<(Request, bool)> {
        if let Some(found) = self.ice.authenticate(from, bytes) {
            if self.previous_ice.take().is_some() {
                self.paths.on_new_keys();
            }
            return Some(found);
        }
        self.previous_ice.as_ref()?.authenticate(from, bytes)
    }

    /// Returns the keys that have authenticated a request.
    pub(super) fn keys_of(&self, request: &[u8]) -> &IceKeys {
        let ufrag = stun_ufrag(request);
        self.previous_ice.as_deref().filter(|keys| Some(keys.ufrag.as_str()) == ufrag).unwrap_or(&self.ice)
    }
}
