//! SRTP and SRTCP (RFC 3711, RFC 7714) for one direction, for the load viewers and the bare sender. Key schedules are
//! computed once. The module is pure: it turns packets into packets and does no I/O.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{self, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;

/// A protection profile of DTLS-SRTP.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Aes128Cm,
    Aes128Gcm,
    Aes256Gcm,
}

const GCM_TAG_BYTES: usize = 16;
const CM_TAG_BYTES: usize = 10;
/// The E flag of the SRTCP index, which marks an encrypted packet.
const ENCRYPTED: u32 = 1 << 31;

impl Profile {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Profile::Aes128Cm => "AES128_CM_SHA1_80",
            Profile::Aes128Gcm => "AEAD_AES_128_GCM",
            Profile::Aes256Gcm => "AEAD_AES_256_GCM",
        }
    }

    pub(crate) fn key_bytes(self) -> usize {
        if self == Profile::Aes256Gcm { 32 } else { 16 }
    }

    pub(crate) fn salt_bytes(self) -> usize {
        if self == Profile::Aes128Cm { 14 } else { 12 }
    }

    /// Returns the number of bytes that the protection adds to an RTP packet.
    pub(crate) fn tag_bytes(self) -> usize {
        if self == Profile::Aes128Cm { CM_TAG_BYTES } else { GCM_TAG_BYTES }
    }
}

/// Encrypts or decrypts `data` in place with AES in counter mode. Returns `None` on failure.
fn counter_mode(key: &EncryptingKey, iv: &[u8; 16], data: &mut [u8]) -> Option<()> {
    key.less_safe_encrypt(data, EncryptionContext::Iv128(FixedLength::from(iv))).ok().map(drop)
}

/// Derives the session key for `label`, with a length of `bytes` (RFC 3711 section 4.3.1).
fn derive(master_key: &[u8], master_salt: &[u8], label: u8, bytes: usize) -> Option<Vec<u8>> {
    let algorithm = if master_key.len() == 32 { &cipher::AES_256 } else { &cipher::AES_128 };
    let key = UnboundCipherKey::new(algorithm, master_key).and_then(EncryptingKey::ctr).ok()?;
    let mut iv = [0; 16];
    iv[..master_salt.len()].copy_from_slice(master_salt);
    iv[7] ^= label;
    let mut stream = vec![0; bytes];
    counter_mode(&key, &iv, &mut stream)?;
    Some(stream)
}

enum Cipher {
    Cm(Box<CounterMode>),
    Gcm { key: LessSafeKey, salt: [u8; 12] },
}

struct CounterMode {
    key: EncryptingKey,
    salt: [u8; 14],
    mac: hmac::Key,
}

impl Cipher {
    /// Derives the session keys of a cipher. `label` is the label of the encryption key. The labels of the
    /// authentication key and the salt are `label` + 1 and `label` + 2.
    fn new(profile: Profile, master_key: &[u8], master_salt: &[u8], label: u8) -> Option<Cipher> {
        let key = derive(master_key, master_salt, label, profile.key_bytes())?;
        let salt = derive(master_key, master_salt, label + 2, profile.salt_bytes())?;
        if profile == Profile::Aes128Cm {
            let mac = derive(master_key, master_salt, label + 1, 20)?;
            return Some(Cipher::Cm(Box::new(CounterMode {
                key: UnboundCipherKey::new(&cipher::AES_128, &key).and_then(EncryptingKey::ctr).ok()?,
                salt: salt.try_into().ok()?,
                mac: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &mac),
            })));
        }
        let algorithm = if profile == Profile::Aes256Gcm { &aead::AES_256_GCM } else { &aead::AES_128_GCM };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, &key).ok()?);
        Some(Cipher::Gcm { key, salt: salt.try_into().ok()? })
    }
}

/// Returns the initial counter block of AES-CM (RFC 3711 section 4.1.1). `index` is the 48-bit packet index.
fn cm_iv(salt: &[u8; 14], ssrc: u32, index: u64) -> [u8; 16] {
    let mut iv = [0; 16];
    iv[..14].copy_from_slice(salt);
    iv[4..8].iter_mut().zip(ssrc.to_be_bytes()).for_each(|(byte, part)| *byte ^= part);
    iv[8..14].iter_mut().zip(&index.to_be_bytes()[2..]).for_each(|(byte, part)| *byte ^= part);
    iv
}

/// Returns the nonce of a packet for AES-GCM (RFC 7714 sections 8.1 and 9.1).
fn gcm_nonce(salt: &[u8; 12], ssrc: u32, index: u64) -> Nonce {
    let mut iv = *salt;
    iv[2..6].iter_mut().zip(ssrc.to_be_bytes()).for_each(|(byte, part)| *byte ^= part);
    iv[6..12].iter_mut().zip(&index.to_be_bytes()[2..]).for_each(|(byte, part)| *byte ^= part);
    Nonce::assume_unique_for_key(iv)
}

fn mac_of(key: &hmac::Key, parts: [&[u8]; 2]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    context.sign()
}

/// The keys of one direction of a session.
pub(crate) struct Srtp {
    profile: Profile,
    rtp: Cipher,
    rtcp: Cipher,
}

impl Srtp {
    /// Derives the keys of one direction. Returns `None` if the lengths of key and salt do not fit the profile.
    pub(crate) fn new(profile: Profile, master_key: &[u8], master_salt: &[u8]) -> Option<Srtp> {
        if master_key.len() != profile.key_bytes() || master_salt.len() != profile.salt_bytes() {
            return None;
        }
        let rtp = Cipher::new(profile, master_key, master_salt, 0)?;
        let rtcp = Cipher::new(profile, master_key, master_salt, 3)?;
        Some(Srtp { profile, rtp, rtcp })
    }

    /// Returns the keys to send and the keys to receive, given the keying material of a DTLS handshake. The client's
    /// key comes first in it (RFC 5764 section 4.2). `is_client` is true if we are the DTLS client.
    pub(crate) fn pair(profile: Profile, material: &[u8], is_client: bool) -> Option<(Srtp, Srtp)> {
        let (keys, salts) = material.split_at_checked(2 * profile.key_bytes())?;
        let (client_key, server_key) = keys.split_at(profile.key_bytes());
        let (client_salt, server_salt) = salts.split_at_checked(profile.salt_bytes())?;
        let client = Srtp::new(profile, client_key, client_salt)?;
        let server = Srtp::new(profile, server_key, server_salt)?;
        Some(if is_client { (client, server) } else { (server, client) })
    }

    /// Returns the number of bytes that the protection adds to an RTP packet.
    pub(crate) fn tag_bytes(&self) -> usize {
        self.profile.tag_bytes()
    }

    /// Verifies and decrypts an RTP packet whose header has `header_bytes` bytes. Appends the payload to `out`.
    pub(crate) fn open_rtp(
        &self,
        packet: &[u8],
        header_bytes: usize,
        ssrc: u32,
        index: u64,
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let payload_end = packet.len().checked_sub(self.profile.tag_bytes())?;
        let (sealed, tag) = packet.split_at(payload_end);
        let (header, payload) = sealed.split_at_checked(header_bytes)?;
        let start = out.len();
        match &self.rtp {
            Cipher::Gcm { key, salt } => {
                out.resize(start + payload.len(), 0);
                let nonce = gcm_nonce(salt, ssrc, index);
                key.open_separate_gather(nonce, Aad::from(header), payload, tag, &mut out[start..]).ok()
            }
            Cipher::Cm(cm) => {
                let CounterMode { key, salt, mac } = &**cm;
                let roc = ((index >> 16) as u32).to_be_bytes();
                let expected = mac_of(mac, [sealed, &roc]);
                if expected.as_ref()[..CM_TAG_BYTES] != *tag {
                    return None;
                }
                out.extend_from_slice(payload);
                counter_mode(key, &cm_iv(salt, ssrc, index), &mut out[start..])
            }
        }
    }

    /// Protects the packet that consists of `header` and `payload`, and appends it to `out`.
    pub(crate) fn seal_rtp(
        &self,
        header: &[u8],
        payload: &[u8],
        ssrc: u32,
        index: u64,
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let start = out.len();
        out.extend_from_slice(header);
        let body = out.len();
        match &self.rtp {
            Cipher::Gcm { key, salt } => {
                out.resize(body + payload.len() + GCM_TAG_BYTES, 0);
                let (sealed, tag) = out[body..].split_at_mut(payload.len());
                let nonce = gcm_nonce(salt, ssrc, index);
                key.seal_out_of_place_scatter(nonce, Aad::from(header), payload, sealed, &[], tag).ok()
            }
            Cipher::Cm(cm) => {
                let CounterMode { key, salt, mac } = &**cm;
                out.extend_from_slice(payload);
                counter_mode(key, &cm_iv(salt, ssrc, index), &mut out[body..])?;
                let roc = ((index >> 16) as u32).to_be_bytes();
                let tag = mac_of(mac, [&out[start..], &roc]);
                out.extend_from_slice(&tag.as_ref()[..CM_TAG_BYTES]);
                Some(())
            }
        }
    }

    /// Protects an RTCP packet with the 31-bit `index` and returns it. Its first 8 bytes stay unencrypted.
    pub(crate) fn seal_rtcp(&self, packet: &[u8], ssrc: u32, index: u32) -> Option<Vec<u8>> {
        let (header, body) = packet.split_at_checked(8)?;
        let trailer = (ENCRYPTED | index).to_be_bytes();
        let mut out = packet.to_vec();
        match &self.rtcp {
            Cipher::Gcm { key, salt } => {
                out.resize(packet.len() + GCM_TAG_BYTES, 0);
                let aad = [header, &trailer].concat();
                let (sealed, tag) = out[8..].split_at_mut(body.len());
                let nonce = gcm_nonce(salt, ssrc, u64::from(index));
                key.seal_out_of_place_scatter(nonce, Aad::from(&aad), body, sealed, &[], tag).ok()?;
                out.extend_from_slice(&trailer);
            }
            Cipher::Cm(cm) => {
                let CounterMode { key, salt, mac } = &**cm;
                counter_mode(key, &cm_iv(salt, ssrc, u64::from(index)), &mut out[8..])?;
                out.extend_from_slice(&trailer);
                let tag = mac_of(mac, [&out, &[]]);
                out.extend_from_slice(&tag.as_ref()[..CM_TAG_BYTES]);
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        text.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// Checks the test vectors of RFC 3711 appendix B.3.
    #[test]
    fn session_keys_match_rfc_3711() {
        let key = hex("E1F97A0D3E018BE0D64FA32C06DE4139");
        let salt = hex("0EC675AD498AFEEBB6960B3AABE6");
        assert_eq!(derive(&key, &salt, 0, 16).unwrap(), hex("C61E7A93744F39EE10734AFE3FF7A087"));
        assert_eq!(derive(&key, &salt, 2, 14).unwrap(), hex("30CBBC08863D8C85D49DB34A9AE1"));
        assert_eq!(derive(&key, &salt, 1, 20).unwrap(), hex("CEBE321F6FF7716B6FD4AB49AF256A156D38BAA4"));
    }

    /// Checks the test vector of libsrtp's `srtp_validate` for AES-CM, which uses the keys of RFC 3711.
    #[test]
    fn aes_cm_matches_libsrtp() {
        let key = hex("e1f97a0d3e018be0d64fa32c06de4139");
        let salt = hex("0ec675ad498afeebb6960b3aabe6");
        let srtp = Srtp::new(Profile::Aes128Cm, &key, &salt).unwrap();
        let header = hex("800f1234decafbadcafebabe");
        let mut out = Vec::new();
        srtp.seal_rtp(&header, &[0xab; 16], 0xcafe_babe, 0x1234, &mut out).unwrap();
        assert_eq!(out, hex("800f1234decafbadcafebabe4e55dc4ce79978d88ca4d215949d2402b78d6acc99ea179b8dbb"));
    }

    #[test]
    fn sealed_packets_open_and_a_flipped_bit_is_rejected() {
        for profile in [Profile::Aes128Cm, Profile::Aes128Gcm, Profile::Aes256Gcm] {
            let material: Vec<u8> =
                (0..2 * (profile.key_bytes() + profile.salt_bytes())).map(|i| i as u8).collect();
            let (client_send, client_receive) = Srtp::pair(profile, &material, true).unwrap();
            let (server_send, server_receive) = Srtp::pair(profile, &material, false).unwrap();
            for (send, receive) in [(client_send, server_receive), (server_send, client_receive)] {
                let (header, payload, index) = ([0x80; 12], [7; 100], (3 << 16) | 5);
                let mut packet = Vec::new();
                send.seal_rtp(&header, &payload, 0x8080_8080, index, &mut packet).unwrap();
                assert_eq!(packet.len(), 112 + profile.tag_bytes());
                let mut out = Vec::new();
                receive.open_rtp(&packet, 12, 0x8080_8080, index, &mut out).unwrap();
                assert_eq!(out, payload);
                packet[20] ^= 1;
                assert!(receive.open_rtp(&packet, 12, 0x8080_8080, index, &mut out).is_none());
            }
        }
    }
}
