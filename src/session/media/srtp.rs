//! SRTP and SRTCP of one session: encrypts RTP packets directly into the send buffer and decrypts the viewer's reports.
//! Implements RFC 3711 (AES-CM with HMAC-SHA1-80) and RFC 7714 (AES-128/256-GCM) with aws-lc-rs. Keeps no packet and
//! reads no clock.
//!
//! No nonce is used twice, for these reasons. Only the session's [`Sealer`] and [`Opener`] get the keys from DTLS;
//! str0m never sees the keys, and neither type can be copied. The caller uses each RTP index only once, and the
//! [`Sealer`] counts the SRTCP indices. Key schedules are computed once per session.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{self, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use smallvec::SmallVec;
use str0m::crypto::dtls::SrtpProfile;

use crate::base::limits;

const GCM_TAG_BYTES: usize = 16;
const CM_TAG_BYTES: usize = 10;

/// Largest authentication tag of an RTP packet, in bytes.
pub const TAG_BYTES_MAX: usize = GCM_TAG_BYTES; // local bound

/// Length of the unencrypted start of an SRTCP packet: header and sender SSRC.
const RTCP_CLEAR_BYTES: usize = 8;

/// Length of the SRTCP trailer: E flag and 31-bit index.
const RTCP_INDEX_BYTES: usize = 4;

/// E flag of the SRTCP trailer. It is set if the packet is encrypted.
const ENCRYPTED: u32 = 1 << 31;

/// Key derivation labels of the encryption keys (RFC 3711 section 4.3.2). The label of the authentication key is one
/// higher, and that of the salt is two higher.
const LABEL_RTP: u8 = 0;
const LABEL_RTCP: u8 = 3;

struct Lengths {
    key: usize,
    salt: usize,
    tag: usize,
}

fn lengths(profile: SrtpProfile) -> Option<Lengths> {
    match profile {
        SrtpProfile::AES128_CM_SHA1_80 => Some(Lengths { key: 16, salt: 14, tag: CM_TAG_BYTES }),
        SrtpProfile::AEAD_AES_128_GCM => Some(Lengths { key: 16, salt: 12, tag: GCM_TAG_BYTES }),
        SrtpProfile::AEAD_AES_256_GCM => Some(Lengths { key: 32, salt: 12, tag: GCM_TAG_BYTES }),
        _ => None,
    }
}

// ---- ciphers ---------------------------------------------------------------------------------------

/// Session keys for AES-CM with HMAC-SHA1 (RFC 3711 sections 4.1.1 and 4.2.1).
struct CounterMode {
    key: EncryptingKey,
    salt: [u8; 14],
    mac: hmac::Key,
}

impl CounterMode {
    fn new(key: &[u8], salt: &[u8], mac: &[u8]) -> Option<CounterMode> {
        Some(CounterMode {
            key: UnboundCipherKey::new(&cipher::AES_128, key).and_then(EncryptingKey::ctr).ok()?,
            salt: salt.try_into().ok()?,
            mac: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, mac),
        })
    }

    /// Encrypts or decrypts `data` with the key stream of the packet `index`.
    fn apply(&self, ssrc: u32, index: u64, data: &mut [u8]) -> Option<()> {
        let mut iv = [0; 16];
        let (salted, _) = iv.split_at_mut(14);
        salted.copy_from_slice(&self.salt);
        mix(&mut iv, 4, &ssrc.to_be_bytes());
        mix(&mut iv, 6, &index.to_be_bytes());
        let context = EncryptionContext::Iv128(FixedLength::from(&iv));
        self.key.less_safe_encrypt(data, context).ok().map(drop)
    }

    fn tag(&self, parts: [&[u8]; 2]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.mac);
        parts.iter().for_each(|part| context.update(part));
        context.sign()
    }
}

/// Session key and salt for AES-GCM (RFC 7714).
struct Gcm {
    key: LessSafeKey,
    salt: [u8; 12],
}

impl Gcm {
    fn new(key: &[u8], salt: &[u8]) -> Option<Gcm> {
        let algorithm = if key.len() == 32 { &aead::AES_256_GCM } else { &aead::AES_128_GCM };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).ok()?);
        Some(Gcm { key, salt: salt.try_into().ok()? })
    }

    /// Returns the nonce of a packet (RFC 7714 sections 8.1 and 9.1); `index` has 48 bits.
    fn nonce(&self, ssrc: u32, index: u64) -> Nonce {
        let mut iv = self.salt;
        mix(&mut iv, 2, &ssrc.to_be_bytes());
        mix(&mut iv, 4, &index.to_be_bytes());
        Nonce::assume_unique_for_key(iv)
    }
}

/// XORs `part` into `bytes` from `at` on. An index is passed as 8 bytes, but its field has only 6. The upper 16 bits of
/// the index are zero, so the two bytes before the field do not change.
fn mix(bytes: &mut [u8], at: usize, part: &[u8]) {
    bytes.iter_mut().skip(at).zip(part).for_each(|(byte, part)| *byte ^= part);
}

enum Cipher {
    Cm(Box<CounterMode>),
    Gcm(Box<Gcm>),
}

impl Cipher {
    /// Derives the session keys of one cipher; `label` is the label of its encryption key.
    fn derive(profile: SrtpProfile, master: &Master<'_>, label: u8) -> Option<Cipher> {
        let lengths = lengths(profile)?;
        let key = master.derive(label, lengths.key)?;
        let salt = master.derive(label + 2, lengths.salt)?;
        if profile == SrtpProfile::AES128_CM_SHA1_80 {
            let mac = master.derive(label + 1, 20)?;
            return CounterMode::new(&key, &salt, &mac).map(|cm| Cipher::Cm(Box::new(cm)));
        }
        Gcm::new(&key, &salt).map(|gcm| Cipher::Gcm(Box::new(gcm)))
    }
}

/// Master key and salt of one direction.
struct Master<'a> {
    key: &'a [u8],
    salt: &'a [u8],
}

impl Master<'_> {
    /// Derives `bytes` bytes of key material for `label` (RFC 3711 section 4.3.1, key derivation rate 0).
    fn derive(&self, label: u8, bytes: usize) -> Option<SmallVec<[u8; 32]>> {
        let algorithm = if self.key.len() == 32 { &cipher::AES_256 } else { &cipher::AES_128 };
        let key = UnboundCipherKey::new(algorithm, self.key).and_then(EncryptingKey::ctr).ok()?;
        let mut iv = [0; 16];
        iv.get_mut(..self.salt.len())?.copy_from_slice(self.salt);
        mix(&mut iv, 7, &[label]);
        let mut stream = SmallVec::from_elem(0, bytes);
        key.less_safe_encrypt(&mut stream, EncryptionContext::Iv128(FixedLength::from(&iv))).ok()?;
        Some(stream)
    }
}

// ---- sending ---------------------------------------------------------------------------------------

/// Encrypts and authenticates packets to the viewer.
pub struct Sealer {
    rtp: Cipher,
    rtcp: Cipher,
    tag_bytes: usize,
    /// Index of the next SRTCP packet; 31 bits.
    rtcp_index: u32,
}

/// The parts of one RTP packet.
#[derive(Clone, Copy, Debug)]
pub struct RtpPacket<'a> {
    /// SSRC, as in the header.
    pub ssrc: u32,
    /// Rollover counter and sequence number, together 48 bits. Must be unique for this SSRC.
    pub index: u64,
    /// The header with its extensions.
    pub header: &'a [u8],
    /// Bytes that precede the payload: the original sequence number of an RTX packet, otherwise none.
    pub prefix: &'a [u8],
    /// RTP payload.
    pub payload: &'a [u8],
}

impl Sealer {
    fn new(profile: SrtpProfile, master: &Master<'_>) -> Option<Sealer> {
        Some(Sealer {
            rtp: Cipher::derive(profile, master, LABEL_RTP)?,
            rtcp: Cipher::derive(profile, master, LABEL_RTCP)?,
            tag_bytes: lengths(profile)?.tag,
            rtcp_index: 0,
        })
    }

    /// Returns how many bytes encryption adds to an RTP packet.
    pub fn tag_bytes(&self) -> usize {
        self.tag_bytes
    }

    /// Returns how many bytes encryption adds to a compound RTCP packet.
    pub fn rtcp_overhead_bytes(&self) -> usize {
        RTCP_INDEX_BYTES + self.tag_bytes
    }

    /// Writes the encrypted packet to `out`, whose length must be the sum of all parts plus [`Sealer::tag_bytes`].
    /// AES-GCM reads the payload and writes the datagram in one pass. Returns false and zeroes `out` if the lengths do
    /// not fit.
    pub fn seal_rtp(&self, packet: &RtpPacket<'_>, out: &mut [u8]) -> bool {
        let sealed = self.try_seal_rtp(packet, out).is_some();
        if !sealed {
            out.fill(0);
        }
        sealed
    }

    fn try_seal_rtp(&self, packet: &RtpPacket<'_>, out: &mut [u8]) -> Option<()> {
        let &RtpPacket { ssrc, index, header, prefix, payload } = packet;
        let (clear, rest) = out.split_at_mut_checked(header.len())?;
        let (body, tag) = rest.split_at_mut_checked(prefix.len() + payload.len())?;
        if tag.len() != self.tag_bytes {
            return None;
        }
        clear.copy_from_slice(header);
        match &self.rtp {
            Cipher::Gcm(gcm) if prefix.is_empty() => gcm
                .key
                .seal_out_of_place_scatter(gcm.nonce(ssrc, index), Aad::from(header), payload, body, &[], tag)
                .ok(),
            Cipher::Gcm(gcm) => {
                join(body, prefix, payload)?;
                let nonce = gcm.nonce(ssrc, index);
                let made = gcm.key.seal_in_place_separate_tag(nonce, Aad::from(header), body).ok()?;
                tag.copy_from_slice(made.as_ref());
                Some(())
            }
            Cipher::Cm(cm) => {
                join(body, prefix, payload)?;
                cm.apply(ssrc, index, body)?;
                let (signed, tag) = out.split_at_mut_checked(header.len() + prefix.len() + payload.len())?;
                #[expect(clippy::cast_possible_truncation, reason = "the rollover counter has 32 bits")]
                let rollovers = ((index >> 16) as u32).to_be_bytes();
                let made = cm.tag([signed, &rollovers]);
                tag.copy_from_slice(made.as_ref().get(..CM_TAG_BYTES)?);
                Some(())
            }
        }
    }

    /// Writes the encrypted compound packet to `out`, whose length must be that of `packet` plus
    /// [`Sealer::rtcp_overhead_bytes`]. Returns false and zeroes `out` if the lengths do not fit, or if 2^31 packets
    /// were encrypted before.
    pub fn seal_rtcp(&mut self, packet: &[u8], out: &mut [u8]) -> bool {
        let sealed = self.try_seal_rtcp(packet, out).is_some();
        if !sealed {
            out.fill(0);
        }
        sealed
    }

    fn try_seal_rtcp(&mut self, packet: &[u8], out: &mut [u8]) -> Option<()> {
        let index = self.rtcp_index;
        let (header, body) = packet.split_at_checked(RTCP_CLEAR_BYTES)?;
        let ssrc = u32::from_be_bytes(*header.last_chunk()?);
        if index >= ENCRYPTED || out.len() != packet.len() + self.rtcp_overhead_bytes() {
            return None;
        }
        self.rtcp_index += 1;
        let trailer = (ENCRYPTED | index).to_be_bytes();
        let (plain, rest) = out.split_at_mut_checked(packet.len())?;
        plain.copy_from_slice(packet);
        match &self.rtcp {
            Cipher::Gcm(gcm) => {
                let (tag, end) = rest.split_at_mut_checked(GCM_TAG_BYTES)?;
                end.copy_from_slice(&trailer);
                let (_, sealed) = plain.split_at_mut_checked(RTCP_CLEAR_BYTES)?;
                let nonce = gcm.nonce(ssrc, u64::from(index));
                let aad = Aad::from(rtcp_aad(header, trailer)?);
                gcm.key.seal_out_of_place_scatter(nonce, aad, body, sealed, &[], tag).ok()
            }
            Cipher::Cm(cm) => {
                let (end, tag) = rest.split_at_mut_checked(RTCP_INDEX_BYTES)?;
                end.copy_from_slice(&trailer);
                cm.apply(ssrc, u64::from(index), plain.get_mut(RTCP_CLEAR_BYTES..)?)?;
                let made = cm.tag([plain, end]);
                tag.copy_from_slice(made.as_ref().get(..CM_TAG_BYTES)?);
                Some(())
            }
        }
    }
}

/// Writes `first` and then `second` to `out`. Returns `None` if they do not fill `out` exactly.
fn join(out: &mut [u8], first: &[u8], second: &[u8]) -> Option<()> {
    let (head, tail) = out.split_at_mut_checked(first.len())?;
    head.copy_from_slice(first);
    if tail.len() != second.len() {
        return None;
    }
    tail.copy_from_slice(second);
    Some(())
}

/// Returns the associated data of an encrypted RTCP packet (RFC 7714 section 9.2).
fn rtcp_aad(header: &[u8], trailer: [u8; RTCP_INDEX_BYTES]) -> Option<[u8; 12]> {
    let mut aad = [0; 12];
    let (head, tail) = aad.split_at_mut(RTCP_CLEAR_BYTES);
    head.copy_from_slice(header.get(..RTCP_CLEAR_BYTES)?);
    tail.copy_from_slice(&trailer);
    Some(aad)
}

// ---- receiving -------------------------------------------------------------------------------------

/// Decrypts the viewer's SRTCP. SRTP is not decrypted, because a viewer sends no media.
pub struct Opener {
    rtcp: Cipher,
    /// Replay windows by sender SSRC.
    windows: SmallVec<[(u32, ReplayWindow); 1]>,
}

impl Opener {
    fn new(profile: SrtpProfile, master: &Master<'_>) -> Option<Opener> {
        Some(Opener { rtcp: Cipher::derive(profile, master, LABEL_RTCP)?, windows: SmallVec::new() })
    }

    /// Decrypts an SRTCP datagram into `out`. Returns false if the datagram is forged, damaged, not encrypted or was
    /// received before (RFC 3711 section 3.3.2). In that case the contents of `out` must not be used.
    pub fn open_rtcp(&mut self, datagram: &[u8], out: &mut Vec<u8>) -> bool {
        out.clear();
        self.try_open_rtcp(datagram, out).is_some()
    }

    fn try_open_rtcp(&mut self, datagram: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let ssrc = u32::from_be_bytes(*datagram.get(..RTCP_CLEAR_BYTES)?.last_chunk()?);
        let index = match &self.rtcp {
            Cipher::Gcm(gcm) => {
                let (sealed, trailer) = datagram.split_last_chunk::<RTCP_INDEX_BYTES>()?;
                let (sealed, tag) = sealed.split_last_chunk::<GCM_TAG_BYTES>()?;
                let (header, body) = sealed.split_at_checked(RTCP_CLEAR_BYTES)?;
                let index = self.fresh_index(ssrc, *trailer)?;
                out.extend_from_slice(header);
                out.resize(sealed.len(), 0);
                let plain = out.get_mut(RTCP_CLEAR_BYTES..)?;
                let nonce = gcm.nonce(ssrc, u64::from(index));
                let aad = Aad::from(rtcp_aad(header, *trailer)?);
                gcm.key.open_separate_gather(nonce, aad, body, tag, plain).ok()?;
                index
            }
            Cipher::Cm(cm) => {
                let (signed, tag) = datagram.split_last_chunk::<CM_TAG_BYTES>()?;
                let (sealed, trailer) = signed.split_last_chunk::<RTCP_INDEX_BYTES>()?;
                let index = self.fresh_index(ssrc, *trailer)?;
                let made = cm.tag([signed, &[]]);
                verify_slices_are_equal(made.as_ref().get(..CM_TAG_BYTES)?, tag).ok()?;
                out.extend_from_slice(sealed);
                cm.apply(ssrc, u64::from(index), out.get_mut(RTCP_CLEAR_BYTES..)?)?;
                index
            }
        };
        self.note(ssrc, index)
    }

    /// Returns the index in the trailer if the packet is encrypted and was not received before, otherwise `None`.
    fn fresh_index(&self, ssrc: u32, trailer: [u8; RTCP_INDEX_BYTES]) -> Option<u32> {
        let word = u32::from_be_bytes(trailer);
        let index = word & !ENCRYPTED;
        let known = self.windows.iter().find(|(sender, _)| *sender == ssrc);
        let is_fresh = known.is_none_or(|(_, window)| window.is_fresh(index));
        (word & ENCRYPTED != 0 && is_fresh).then_some(index)
    }

    /// Records an authentic packet in the replay window of its sender. Returns `None` if the viewer uses too many
    /// sender SSRCs.
    fn note(&mut self, ssrc: u32, index: u32) -> Option<()> {
        if let Some((_, window)) = self.windows.iter_mut().find(|(sender, _)| *sender == ssrc) {
            window.note(index);
            return Some(());
        }
        if self.windows.len() >= limits::RTCP_SENDERS_MAX {
            return None;
        }
        self.windows.push((ssrc, ReplayWindow { newest: index, seen: 1 }));
        Some(())
    }
}

/// Replay window: the newest index, and one bit for each of the 64 indices up to the newest. A bit is set if that
/// packet was received; bit 0 is the newest index.
#[derive(Clone, Copy, Debug)]
struct ReplayWindow {
    newest: u32,
    seen: u64,
}

impl ReplayWindow {
    fn is_fresh(&self, index: u32) -> bool {
        match self.newest.checked_sub(index) {
            None => true,
            Some(age) => age < u64::BITS && self.seen >> age & 1 == 0,
        }
    }

    fn note(&mut self, index: u32) {
        match self.newest.checked_sub(index) {
            Some(age) => self.seen |= 1_u64.checked_shl(age).unwrap_or(0),
            None => {
                self.seen = self.seen.checked_shl(index - self.newest).unwrap_or(0) | 1;
                self.newest = index;
            }
        }
    }
}

// ---- keys ------------------------------------------------------------------------------------------

/// Derives the contexts of both directions from DTLS key material (RFC 5764 section 4.2: client key, server key, client
/// salt, server salt). `is_client` is true if we are the DTLS client. Returns `None` if the material is too short or
/// the profile is unsupported.
pub fn contexts(profile: SrtpProfile, material: &[u8], is_client: bool) -> Option<(Sealer, Opener)> {
    let lengths = lengths(profile)?;
    let (client_key, rest) = material.split_at_checked(lengths.key)?;
    let (server_key, rest) = rest.split_at_checked(lengths.key)?;
    let (client_salt, rest) = rest.split_at_checked(lengths.salt)?;
    let server_salt = rest.get(..lengths.salt)?;
    let client = Master { key: client_key, salt: client_salt };
    let server = Master { key: server_key, salt: server_salt };
    let (ours, theirs) = if is_client { (client, server) } else { (server, client) };
    Some((Sealer::new(profile, &ours)?, Opener::new(profile, &theirs)?))
}

#[cfg(test)]
mod tests;
