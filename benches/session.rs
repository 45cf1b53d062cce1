//! What a viewer costs: SRTP of one packet with str0m's provider and ours, and a whole turn of a session
//! (one access unit in, its datagrams out) with what it allocates.

#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]
#![allow(missing_docs, reason = "a program")]

#[path = "../tests/support/session_peer.rs"]
mod peer;

use std::time::Duration;

use divan::counter::{BytesCount, ItemsCount};
use divan::{AllocProfiler, Bencher, black_box};
use peer::{Pair, payloads, unit};
use str0m::config::DtlsVersion;
use str0m::crypto::{Aes128CmSha1_80, CryptoProvider};
use streaming_server::session::{Output, SrtpChoice, Viewer, crypto};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const HEADER_BYTES: usize = 24;
const PACKET_BYTES: usize = HEADER_BYTES + 1_140;

#[derive(Copy, Clone, Debug)]
enum Provider {
    Stock,
    Ours,
}

impl Provider {
    fn get(self) -> CryptoProvider {
        match self {
            Self::Stock => str0m::crypto::from_feature_flags(),
            Self::Ours => crypto::provider(),
        }
    }
}

/// As str0m's `protect_rtp` does it: a new buffer, the body encrypted into it, the header copied.
#[divan::bench(args = [Provider::Stock, Provider::Ours])]
fn protect_aes_128_cm(bencher: Bencher<'_, '_>, provider: Provider) {
    let provider = provider.get();
    let mut cipher = provider.srtp_provider.aes_128_cm_sha1_80().create_cipher([1; 16], true);
    let packet = vec![7_u8; PACKET_BYTES];
    bencher.counter(BytesCount::new(PACKET_BYTES)).bench_local(|| {
        let (header, body) = black_box(&packet).split_at(HEADER_BYTES);
        let mut output = vec![0_u8; PACKET_BYTES + 15];
        let (head, tail) = output.split_at_mut(HEADER_BYTES);
        cipher.encrypt(&[2; 16], body, tail).unwrap();
        head.copy_from_slice(header);
        let sign = |key: &[u8], parts: &[&[u8]]| provider.sha1_hmac_provider.sha1_hmac(key, parts);
        Aes128CmSha1_80::rtp_hmac(sign, &[3; 20], &mut output, 1, PACKET_BYTES);
        output
    });
}

macro_rules! protect_gcm {
    ($name:ident, $method:ident, $key_bytes:literal) => {
        #[divan::bench(args = [Provider::Stock, Provider::Ours])]
        fn $name(bencher: Bencher<'_, '_>, provider: Provider) {
            let mut cipher = provider.get().srtp_provider.$method().create_cipher([1; $key_bytes], true);
            let packet = vec![7_u8; PACKET_BYTES];
            bencher.counter(BytesCount::new(PACKET_BYTES)).bench_local(|| {
                let (header, body) = black_box(&packet).split_at(HEADER_BYTES);
                let mut output = vec![0_u8; PACKET_BYTES + 16];
                let (head, tail) = output.split_at_mut(HEADER_BYTES);
                cipher.encrypt(&[2; 12], header, body, tail).unwrap();
                head.copy_from_slice(header);
                output
            });
        }
    };
}
protect_gcm!(protect_aes_128_gcm, aead_aes_128_gcm, 16);
protect_gcm!(protect_aes_256_gcm, aead_aes_256_gcm, 32);

/// One unit of 29 payloads to one viewer: the gate, str0m, SRTP (AES-256-GCM), out as datagrams.
#[divan::bench]
fn session_turn(bencher: Bencher<'_, '_>) {
    let mut pair = Pair::new(&peer::context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    pair.connect();
    let payloads = payloads(0, 29, 1_140);
    let mut number = 0;
    bencher.counter(ItemsCount::new(payloads.len())).bench_local(|| {
        pair.now += Duration::from_millis(33);
        number += 1;
        pair.viewer.push_access_unit(pair.now, &unit(&payloads, number, number == 1));
        let mut sent = 0;
        while let Output::Transmit { bytes, .. } = pair.viewer.poll_output(pair.now) {
            sent += black_box(bytes).len();
        }
        sent
    });
}

/// From offer to answer: what a viewer costs before it connects.
#[divan::bench]
fn accept(bencher: Bencher<'_, '_>) {
    let context = peer::context(SrtpChoice::Gcm);
    let pair = Pair::new(&context, DtlsVersion::Dtls12);
    bencher.bench_local(|| Viewer::accept(&context, 1, &pair.offer, pair.now).unwrap());
}

/// A turn without media: a deadline that has come.
#[divan::bench]
fn idle_timeout(bencher: Bencher<'_, '_>) {
    let mut pair = Pair::new(&peer::context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    pair.connect();
    bencher.bench_local(|| {
        pair.now += Duration::from_millis(1);
        pair.viewer.handle_timeout(pair.now);
        while let Output::Transmit { .. } = pair.viewer.poll_output(pair.now) {}
    });
}
