//! What str0m is given of cryptography: HMACs with cached keys for STUN, DTLS instances that share one configuration.
//! Implements str0m's provider traits on aws-lc-rs and dimpl.
//!
//! The keys of a handshake go to the session ([`with_handshake`]) and not to str0m: SRTP is `srtp.rs`, and no key has
//! two owners.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use aws_lc_rs::hmac;
use smallvec::SmallVec;
use str0m::config::KeyingMaterial;
use str0m::crypto::dtls::{
    DtlsCert, DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider, DtlsVersion, ProtocolVersion,
    SrtpProfile,
};
use str0m::crypto::{CryptoError, CryptoProvider, Sha1HmacProvider};

use crate::base::limits;

/// The provider every session uses: ours for HMAC and DTLS, str0m's for the rest.
pub(in crate::session) fn provider() -> CryptoProvider {
    CryptoProvider {
        sha1_hmac_provider: &CachedHmac,
        dtls_provider: &SharedDtls,
        ..str0m::crypto::from_feature_flags()
    }
}

// ---- HMAC-SHA1 -------------------------------------------------------------------------------------

/// Longest key that is cached: our ICE passwords are 32 bytes.
const HMAC_KEY_BYTES_MAX: usize = 40;

struct HmacEntry {
    bytes: SmallVec<[u8; HMAC_KEY_BYTES_MAX]>,
    key: hmac::Key,
}

/// Keys of this thread, the most recently used first. str0m hands over the key's bytes with every call.
#[derive(Default)]
struct HmacCache {
    entries: Vec<HmacEntry>,
}

impl HmacCache {
    fn key(&mut self, bytes: &[u8]) -> &hmac::Key {
        let found = self.entries.iter().position(|entry| entry.bytes.as_slice() == bytes);
        match found {
            Some(index) => self.entries.get_mut(..=index).unwrap_or_default().rotate_right(1),
            None => {
                self.entries.truncate(limits::HMAC_KEYS_CACHED - 1);
                let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, bytes);
                self.entries.insert(0, HmacEntry { bytes: bytes.into(), key });
            }
        }
        #[expect(clippy::indexing_slicing, reason = "both arms leave the key's entry at the front")]
        &self.entries[0].key
    }
}

thread_local! {
    static HMAC_CACHE: RefCell<HmacCache> = RefCell::default();
}

/// HMAC-SHA1 for STUN (RFC 8489 section 14.5), with cached keys.
#[derive(Debug)]
pub(in crate::session) struct CachedHmac;

impl Sha1HmacProvider for CachedHmac {
    fn sha1_hmac(&self, key: &[u8], payloads: &[&[u8]]) -> [u8; 20] {
        let sign = |key: &hmac::Key| {
            let mut context = hmac::Context::with_key(key);
            payloads.iter().for_each(|payload| context.update(payload));
            let mut tag = [0; 20];
            tag.copy_from_slice(context.sign().as_ref());
            tag
        };
        if key.len() > HMAC_KEY_BYTES_MAX {
            return sign(&hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key));
        }
        HMAC_CACHE.with_borrow_mut(|cache| sign(cache.key(key)))
    }
}

// ---- DTLS ------------------------------------------------------------------------------------------

/// Makes DTLS instances that share one configuration (building one takes most of a session's set-up).
#[derive(Debug)]
struct SharedDtls;

impl SharedDtls {
    fn config(mtu: usize) -> Result<Arc<dimpl::Config>, CryptoError> {
        static SHARED: OnceLock<(usize, Arc<dimpl::Config>)> = OnceLock::new();
        if let Some((shared_mtu, config)) = SHARED.get()
            && *shared_mtu == mtu
        {
            return Ok(Arc::clone(config));
        }
        let config = dimpl::Config::builder()
            .mtu(mtu)
            .use_server_cookie(false) // ICE has shown that the peer receives at its address
            .flight_start_rto(limits::DTLS_FLIGHT_RETRANSMIT)
            .flight_retries(limits::DTLS_FLIGHT_RETRIES)
            .handshake_timeout(limits::HANDSHAKE_TIMEOUT)
            .build()
            .map_err(|error| CryptoError::Other(format!("DTLS configuration: {error}")))?;
        let config = Arc::new(config);
        let _ = SHARED.set((mtu, Arc::clone(&config)));
        Ok(config)
    }
}

impl DtlsProvider for SharedDtls {
    fn generate_certificate(&self) -> Option<DtlsCert> {
        dimpl::certificate::generate_self_signed_certificate().ok()
    }

    fn new_dtls(
        &self,
        certificate: &DtlsCert,
        now: Instant,
        version: DtlsVersion,
        mtu: Option<usize>,
    ) -> Result<Box<dyn DtlsInstance>, CryptoError> {
        let config = Self::config(mtu.unwrap_or(str0m::DATAGRAM_MTU_TARGET))?;
        let dtls = match version {
            DtlsVersion::Dtls12 => dimpl::Dtls::new_12(config, certificate.clone(), now),
            DtlsVersion::Dtls13 => dimpl::Dtls::new_13(config, certificate.clone(), now),
            DtlsVersion::Auto => dimpl::Dtls::new_auto(config, certificate.clone(), now),
            _ => return Err(CryptoError::Other(format!("{version} is not supported"))),
        };
        let handshake = NEXT.take().unwrap_or_default();
        Ok(Box::new(Dtls { inner: dtls, waiting: None, handshake }))
    }
}

/// What a finished handshake agreed on.
pub(in crate::session) struct Agreed {
    pub(in crate::session) profile: SrtpProfile,
    pub(in crate::session) material: KeyingMaterial,
    /// We are the DTLS client.
    pub(in crate::session) is_client: bool,
}

/// Where a DTLS instance leaves what it agreed on, for the session to take.
pub(in crate::session) type Handshake = Arc<Mutex<Option<Agreed>>>;

thread_local! {
    /// The handshake of the next instance that this thread makes.
    static NEXT: Cell<Option<Handshake>> = const { Cell::new(None) };
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Runs `build`, which makes a DTLS instance on this thread, and says where that leaves its keys. str0m makes the
/// instance itself and hands nothing through.
pub(in crate::session) fn with_handshake<T>(build: impl FnOnce() -> T) -> (T, Handshake) {
    let handshake = Handshake::default();
    NEXT.set(Some(Arc::clone(&handshake)));
    let made = build();
    NEXT.set(None);
    (made, handshake)
}

/// The time of what this thread hands to str0m next. str0m passes DTLS a datagram without it, and a flight that
/// answers would count as sent when DTLS last had a timeout: it went out twice within milliseconds.
pub(in crate::session) fn tell_time(now: Instant) {
    NOW.set(Some(now));
}

/// str0m polls DTLS before every single datagram. What has nothing to say keeps silent until something happens to
/// it: asking dimpl anew each time took 2 to 3 % of the CPU.
struct Dtls {
    inner: dimpl::Dtls,
    /// The deadline that ended the last poll; `None` once anything was done since.
    waiting: Option<Instant>,
    handshake: Handshake,
}

impl Dtls {
    /// For everything that may change what a poll says.
    fn wake(&mut self) -> &mut dimpl::Dtls {
        self.waiting = None;
        &mut self.inner
    }
}

impl fmt::Debug for Dtls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dtls")
    }
}

impl DtlsInstance for Dtls {
    fn set_active(&mut self, active: bool) {
        self.wake().set_active(active);
    }

    fn handle_packet(&mut self, packet: &[u8]) -> Result<(), DtlsImplError> {
        let dtls = self.wake();
        if let Some(now) = NOW.get() {
            dtls.handle_timeout(now)?;
        }
        dtls.handle_packet(packet)
    }

    fn poll_output<'a>(&mut self, buffer: &'a mut [u8]) -> DtlsOutput<'a> {
        if let Some(deadline) = self.waiting {
            return DtlsOutput::Timeout(deadline);
        }
        // Where the bytes of an output lie in `buffer`: a reference would hold it beyond the next poll.
        let start = buffer.as_ptr().addr();
        let place = |bytes: &[u8]| {
            let at = bytes.as_ptr().addr().saturating_sub(start);
            at..at + bytes.len()
        };
        let (wrap, range): (fn(&'a [u8]) -> DtlsOutput<'a>, _) = loop {
            match self.inner.poll_output(&mut *buffer) {
                DtlsOutput::KeyingMaterial(material, profile) => {
                    let agreed = Agreed { profile, material, is_client: self.inner.is_active() };
                    *self.handshake.lock().unwrap_or_else(PoisonError::into_inner) = Some(agreed);
                }
                DtlsOutput::Packet(bytes) => break (DtlsOutput::Packet, place(bytes)),
                DtlsOutput::PeerCert(bytes) => break (DtlsOutput::PeerCert, place(bytes)),
                DtlsOutput::ApplicationData(bytes) => break (DtlsOutput::ApplicationData, place(bytes)),
                DtlsOutput::Timeout(deadline) => {
                    self.waiting = Some(deadline);
                    return DtlsOutput::Timeout(deadline);
                }
                DtlsOutput::Connected => return DtlsOutput::Connected,
                DtlsOutput::CloseNotify => return DtlsOutput::CloseNotify,
                DtlsOutput::BufferTooSmall { needed } => return DtlsOutput::BufferTooSmall { needed },
                // An output of a later dimpl: nothing we know of needs it.
                _ => {}
            }
        };
        let buffer: &'a [u8] = buffer;
        wrap(buffer.get(range).unwrap_or_default())
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsImplError> {
        self.wake().handle_timeout(now)
    }

    fn send_application_data(&mut self, data: &[u8]) -> Result<usize, DtlsImplError> {
        self.wake().send_application_data(data)
    }

    fn is_active(&self) -> bool {
        self.inner.is_active()
    }

    fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.inner.protocol_version()
    }

    fn is_closing(&self) -> bool {
        self.inner.is_closing()
    }

    fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    fn close(&mut self) -> Result<(), DtlsImplError> {
        self.wake().close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stock() -> CryptoProvider {
        str0m::crypto::from_feature_flags()
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<_> = text.bytes().filter(u8::is_ascii_hexdigit).map(char::from).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap())
            .collect()
    }

    /// RFC 2202 section 3, test cases 1 and 6 (a key longer than a block, which is not cached).
    #[test]
    fn hmac_sha1_gives_the_tags_of_rfc_2202() {
        let tag = CachedHmac.sha1_hmac(&[0x0b; 20], &[b"Hi ", b"There"]);
        assert_eq!(tag.to_vec(), hex("b617318655057264e28bc0b6fb378c8ef146be00"));
        let message: &[u8] = b"Test Using Larger Than Block-Size Key - Hash Key First";
        let tag = CachedHmac.sha1_hmac(&[0xaa; 80], &[message]);
        assert_eq!(tag.to_vec(), hex("aa4ae5e15272d00e95705637ce8a3b55ed402112"));
    }

    #[test]
    fn the_hmac_cache_is_bounded_and_evicts_the_oldest() {
        let mut cache = HmacCache::default();
        let key = |number: usize| number.to_be_bytes();
        for number in 0..limits::HMAC_KEYS_CACHED * 3 {
            cache.key(&key(number));
            cache.key(&key(0));
        }
        assert_eq!(cache.entries.len(), limits::HMAC_KEYS_CACHED);
        assert_eq!(cache.entries[0].bytes.as_slice(), key(0));
        assert!(cache.entries.iter().all(|entry| entry.bytes.as_slice() != key(1)));
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn hmac_equals_the_stock_provider(
            keys in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 1..90),
            message in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            for key in keys.iter().chain(keys.iter().rev()) {
                let parts: [&[u8]; 2] = [&message, &[1, 2, 3]];
                let theirs = stock().sha1_hmac_provider.sha1_hmac(key, &parts);
                prop_assert_eq!(CachedHmac.sha1_hmac(key, &parts), theirs);
            }
        }
    }
}
