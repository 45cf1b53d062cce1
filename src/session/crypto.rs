//! Cryptography of the sessions: SRTP ciphers and HMACs whose key schedules are made once, and DTLS
//! instances that share one configuration. Implements str0m's provider traits on aws-lc-rs; may hold
//! no state of a session but its ciphers.
//!
//! str0m's own provider expands the AES key and both HMAC pads anew for every packet: a quarter of the
//! cost of AES128_CM per 1.2 kB packet (`benches/session.rs`). For AES-GCM ours costs the same.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{self, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use smallvec::SmallVec;
use str0m::crypto::dtls::{
    DtlsCert, DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider, DtlsVersion, ProtocolVersion,
    SrtpProfile,
};
use str0m::crypto::{
    AeadAes128GcmCipher, AeadAes256GcmCipher, Aes128CmSha1_80Cipher, CryptoError, CryptoProvider,
    Sha1HmacProvider, SrtpProvider, SupportedAeadAes128Gcm, SupportedAeadAes256Gcm, SupportedAes128CmSha1_80,
};

use crate::limits;

/// The provider every session uses: ours for SRTP, HMAC and DTLS, str0m's for the rest.
pub fn provider() -> CryptoProvider {
    CryptoProvider {
        srtp_provider: &CachedSrtp,
        sha1_hmac_provider: &CachedHmac,
        dtls_provider: &SharedDtls,
        ..str0m::crypto::from_feature_flags()
    }
}

// ---- SRTP ------------------------------------------------------------------------------------------

fn refused(what: &'static str) -> CryptoError {
    CryptoError::Other(what.into())
}

/// AES-128 in counter mode (RFC 3711 section 4.1.1); the key schedule is made once.
struct Aes128Cm {
    /// `None` never happens: only a key of the wrong length is refused.
    key: Option<EncryptingKey>,
}

impl Aes128Cm {
    fn new(key: &[u8; 16]) -> Self {
        let key = UnboundCipherKey::new(&cipher::AES_128, key).and_then(EncryptingKey::ctr).ok();
        Self { key }
    }
}

impl fmt::Debug for Aes128Cm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Aes128Cm")
    }
}

impl Aes128CmSha1_80Cipher for Aes128Cm {
    fn encrypt(&mut self, iv: &[u8; 16], input: &[u8], output: &mut [u8]) -> Result<(), CryptoError> {
        let key = self.key.as_ref().ok_or_else(|| refused("AES-CM key"))?;
        let output = output.get_mut(..input.len()).ok_or_else(|| refused("AES-CM output too short"))?;
        output.copy_from_slice(input);
        let context = EncryptionContext::Iv128(FixedLength::from(iv));
        key.less_safe_encrypt(output, context).map_err(|_| refused("AES-CM"))?;
        Ok(())
    }

    fn decrypt(&mut self, iv: &[u8; 16], input: &[u8], output: &mut [u8]) -> Result<(), CryptoError> {
        self.encrypt(iv, input, output)
    }
}

/// AES-GCM with either key length (RFC 7714); encrypts from the packet into the datagram in one pass.
struct AesGcm {
    /// `None` never happens: only a key of the wrong length is refused.
    key: Option<LessSafeKey>,
}

impl fmt::Debug for AesGcm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AesGcm")
    }
}

impl AesGcm {
    fn new(algorithm: &'static aead::Algorithm, key: &[u8]) -> Self {
        Self { key: UnboundKey::new(algorithm, key).ok().map(LessSafeKey::new) }
    }

    fn seal(&self, iv: &[u8; 12], aad: &[u8], input: &[u8], output: &mut [u8]) -> Result<(), CryptoError> {
        let key = self.key.as_ref().ok_or_else(|| refused("AES-GCM key"))?;
        let tag_bytes = key.algorithm().tag_len();
        let (ciphertext, rest) =
            output.split_at_mut_checked(input.len()).ok_or_else(|| refused("AES-GCM output too short"))?;
        let tag = rest.get_mut(..tag_bytes).ok_or_else(|| refused("AES-GCM output too short"))?;
        let nonce = Nonce::assume_unique_for_key(*iv);
        key.seal_out_of_place_scatter(nonce, Aad::from(aad), input, ciphertext, &[], tag)
            .map_err(|_| refused("AES-GCM seal"))
    }

    fn open(
        &self,
        iv: &[u8; 12],
        aads: &[&[u8]],
        input: &[u8],
        output: &mut [u8],
    ) -> Result<usize, CryptoError> {
        let key = self.key.as_ref().ok_or_else(|| refused("AES-GCM key"))?;
        let plain_bytes =
            input.len().checked_sub(key.algorithm().tag_len()).ok_or_else(|| refused("no AES-GCM tag"))?;
        let (ciphertext, tag) =
            input.split_at_checked(plain_bytes).ok_or_else(|| refused("no AES-GCM tag"))?;
        let output = output.get_mut(..plain_bytes).ok_or_else(|| refused("AES-GCM output too short"))?;
        let mut joined = SmallVec::<[u8; 64]>::new();
        let aad = match aads {
            [one] => one,
            several => {
                several.iter().for_each(|part| joined.extend_from_slice(part));
                joined.as_slice()
            }
        };
        let nonce = Nonce::assume_unique_for_key(*iv);
        key.open_separate_gather(nonce, Aad::from(aad), ciphertext, tag, output)
            .map_err(|_| refused("AES-GCM open"))?;
        Ok(plain_bytes)
    }
}

macro_rules! gcm_cipher {
    ($trait:ident) => {
        impl $trait for AesGcm {
            fn encrypt(
                &mut self,
                iv: &[u8; 12],
                aad: &[u8],
                input: &[u8],
                output: &mut [u8],
            ) -> Result<(), CryptoError> {
                self.seal(iv, aad, input, output)
            }

            fn decrypt(
                &mut self,
                iv: &[u8; 12],
                aads: &[&[u8]],
                input: &[u8],
                output: &mut [u8],
            ) -> Result<usize, CryptoError> {
                self.open(iv, aads, input, output)
            }
        }
    };
}
gcm_cipher!(AeadAes128GcmCipher);
gcm_cipher!(AeadAes256GcmCipher);

/// Makes the ciphers of the three profiles.
#[derive(Debug)]
struct CachedSrtp;

impl SupportedAes128CmSha1_80 for CachedSrtp {
    fn create_cipher(&self, key: [u8; 16], _encrypt: bool) -> Box<dyn Aes128CmSha1_80Cipher> {
        Box::new(Aes128Cm::new(&key))
    }
}

impl SupportedAeadAes128Gcm for CachedSrtp {
    fn create_cipher(&self, key: [u8; 16], _encrypt: bool) -> Box<dyn AeadAes128GcmCipher> {
        Box::new(AesGcm::new(&aead::AES_128_GCM, &key))
    }
}

impl SupportedAeadAes256Gcm for CachedSrtp {
    fn create_cipher(&self, key: [u8; 32], _encrypt: bool) -> Box<dyn AeadAes256GcmCipher> {
        Box::new(AesGcm::new(&aead::AES_256_GCM, &key))
    }
}

impl SrtpProvider for CachedSrtp {
    fn aes_128_cm_sha1_80(&self) -> &'static dyn SupportedAes128CmSha1_80 {
        &CachedSrtp
    }

    fn aead_aes_128_gcm(&self) -> &'static dyn SupportedAeadAes128Gcm {
        &CachedSrtp
    }

    fn aead_aes_256_gcm(&self) -> &'static dyn SupportedAeadAes256Gcm {
        &CachedSrtp
    }

    // Key derivation happens four times per session: str0m's own is good enough.
    fn srtp_aes_128_ecb_round(&self, key: &[u8], input: &[u8], output: &mut [u8]) {
        str0m::crypto::from_feature_flags().srtp_provider.srtp_aes_128_ecb_round(key, input, output);
    }

    fn srtp_aes_256_ecb_round(&self, key: &[u8], input: &[u8], output: &mut [u8]) {
        str0m::crypto::from_feature_flags().srtp_provider.srtp_aes_256_ecb_round(key, input, output);
    }
}

// ---- HMAC-SHA1 -------------------------------------------------------------------------------------

/// Longest key that is cached: SRTP uses 20 bytes, our ICE passwords are 32.
const HMAC_KEY_BYTES_MAX: usize = 40;

struct HmacEntry {
    bytes: SmallVec<[u8; HMAC_KEY_BYTES_MAX]>,
    key: hmac::Key,
}

/// Keys of this thread, the most recently used first. str0m hands over the key's bytes with every
/// call, and a worker sends all packets of one viewer in a row: the first entry is nearly always it.
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

/// HMAC-SHA1 for SRTP (RFC 3711 section 4.2.1) and STUN, with cached keys.
#[derive(Debug)]
pub(super) struct CachedHmac;

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
        Ok(Box::new(Dtls { inner: dtls, waiting: None }))
    }
}

thread_local! {
    static NEGOTIATED: Cell<Option<SrtpProfile>> = const { Cell::new(None) };
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The time of what this thread hands to str0m next. str0m passes DTLS a datagram without it, and a flight that
/// answers would count as sent when DTLS last had a timeout: it went out twice within milliseconds.
pub(super) fn tell_time(now: Instant) {
    NOW.set(Some(now));
}

/// The SRTP profile of the DTLS handshake that finished last on this thread, told once. str0m does not
/// say; a session asks right after the `poll_output` that reported the connection, on the same thread.
pub(super) fn take_negotiated_profile() -> Option<SrtpProfile> {
    NEGOTIATED.take()
}

/// str0m polls DTLS before every single datagram. What has nothing to say keeps silent until something happens to
/// it: asking dimpl anew each time took 2 to 3 % of the CPU.
struct Dtls {
    inner: dimpl::Dtls,
    /// The deadline that ended the last poll; `None` once anything was done since.
    waiting: Option<Instant>,
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
        let output = self.inner.poll_output(buffer);
        match &output {
            DtlsOutput::KeyingMaterial(_, profile) => NEGOTIATED.set(Some(*profile)),
            DtlsOutput::Timeout(deadline) => self.waiting = Some(*deadline),
            _ => {}
        }
        output
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
    use str0m::crypto::{AeadAes128Gcm, Aes128CmSha1_80};

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

    /// RFC 3711 appendix B.2: AES-CM key stream.
    #[test]
    fn aes_cm_gives_the_key_stream_of_rfc_3711() {
        let key = hex("2B7E151628AED2A6ABF7158809CF4F3C").try_into().unwrap();
        let salt = hex("F0F1F2F3F4F5F6F7F8F9FAFBFCFD").try_into().unwrap();
        let iv = Aes128CmSha1_80::rtp_iv(salt, 0, 0);
        let mut output = [0; 48];
        CachedSrtp.aes_128_cm_sha1_80().create_cipher(key, true).encrypt(&iv, &[0; 48], &mut output).unwrap();
        let expected = "E03EAD0935C95E80E166B16DD92B4EB4 D23513162B02D0F72A43A2FE4A5F97AB 41E95B3BB0A2E8DD477901E4FCA894C0";
        assert_eq!(output.to_vec(), hex(expected));
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
    fn broken_lengths_are_refused_not_fatal() {
        let mut gcm = CachedSrtp.aead_aes_256_gcm().create_cipher([1; 32], true);
        assert!(gcm.encrypt(&[0; 12], &[0; 12], &[0; 20], &mut [0; 35]).is_err());
        assert!(gcm.decrypt(&[0; 12], &[&[0; 12]], &[0; 15], &mut [0; 100]).is_err());
        assert!(gcm.decrypt(&[0; 12], &[&[0; 12]], &[0; 40], &mut [0; 23]).is_err());
        let mut cm = CachedSrtp.aes_128_cm_sha1_80().create_cipher([1; 16], true);
        assert!(cm.encrypt(&[0; 16], &[0; 20], &mut [0; 19]).is_err());
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
        #[test]
        fn aes_cm_equals_the_stock_provider(
            key: [u8; 16],
            iv: [u8; 16],
            input in proptest::collection::vec(any::<u8>(), 0..1_500),
        ) {
            let (mut ours, mut theirs) = (vec![0; input.len() + 15], vec![0; input.len() + 15]);
            let mut cipher = CachedSrtp.aes_128_cm_sha1_80().create_cipher(key, true);
            cipher.encrypt(&iv, &input, &mut ours).unwrap();
            stock().srtp_provider.aes_128_cm_sha1_80().create_cipher(key, true)
                .encrypt(&iv, &input, &mut theirs).unwrap();
            prop_assert_eq!(&ours, &theirs);
            let mut back = vec![0; input.len() + 15];
            cipher.decrypt(&iv, &ours[..input.len()], &mut back).unwrap();
            prop_assert_eq!(&back[..input.len()], &input[..]);
        }

        #[test]
        fn aes_gcm_equals_the_stock_provider(
            key: [u8; 32],
            iv: [u8; 12],
            aad in proptest::collection::vec(any::<u8>(), 12..60),
            input in proptest::collection::vec(any::<u8>(), 0..1_500),
        ) {
            let bytes = input.len() + AeadAes128Gcm::TAG_LEN;
            let short: [u8; 16] = key[..16].try_into().unwrap();
            let (mut ours, mut theirs) = (vec![0; bytes], vec![0; bytes]);
            CachedSrtp.aead_aes_128_gcm().create_cipher(short, true).encrypt(&iv, &aad, &input, &mut ours).unwrap();
            stock().srtp_provider.aead_aes_128_gcm().create_cipher(short, true)
                .encrypt(&iv, &aad, &input, &mut theirs).unwrap();
            prop_assert_eq!(&ours, &theirs);

            let mut cipher = CachedSrtp.aead_aes_256_gcm().create_cipher(key, true);
            cipher.encrypt(&iv, &aad, &input, &mut ours).unwrap();
            stock().srtp_provider.aead_aes_256_gcm().create_cipher(key, true)
                .encrypt(&iv, &aad, &input, &mut theirs).unwrap();
            prop_assert_eq!(&ours, &theirs);

            let mut back = vec![0; input.len()];
            let (head, tail) = aad.split_at(aad.len() / 2);
            prop_assert_eq!(cipher.decrypt(&iv, &[head, tail], &ours, &mut back).unwrap(), input.len());
            prop_assert_eq!(&back, &input);
            ours[0] ^= 1;
            prop_assert!(cipher.decrypt(&iv, &[&aad], &ours, &mut back).is_err());
        }

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
