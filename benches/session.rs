//! Measures the time and the allocations of a session. The benches cover the encryption of one packet, one access unit,
//! an offer, a STUN check, and a timeout without media.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench fails by panicking")]
#![allow(missing_docs, reason = "a program")]

use support::session_peer as peer;

use std::time::Duration;

use divan::counter::{BytesCount, ItemsCount};
use divan::{AllocProfiler, Bencher, black_box};
use peer::{
    Outbox, Pair, ReusedBuffer, USUAL_PRIORITY, client_address, payloads, server_address, signed_request,
    unit,
};
use str0m::config::DtlsVersion;
use str0m::crypto::dtls::SrtpProfile;
use streaming_server::session::media::srtp::{self, RtpPacket};
use streaming_server::session::{SrtpChoice, Viewer};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const HEADER_BYTES: usize = 24;
const PACKET_BYTES: usize = HEADER_BYTES + 1_140;

/// Encrypts one packet into the send buffer.
#[divan::bench(args = [SrtpProfile::AES128_CM_SHA1_80, SrtpProfile::AEAD_AES_128_GCM, SrtpProfile::AEAD_AES_256_GCM])]
fn seal(bencher: Bencher<'_, '_>, profile: SrtpProfile) {
    let (sealer, _) = srtp::contexts(profile, &[1; 96], false).unwrap();
    let (header, payload) = ([2; HEADER_BYTES], [7; 1_140]);
    let mut out = vec![0; PACKET_BYTES + sealer.tag_bytes()];
    let mut index = 0;
    bencher.counter(BytesCount::new(PACKET_BYTES)).bench_local(|| {
        index += 1;
        let packet = RtpPacket { ssrc: 1, index, header: &header, prefix: &[], payload: black_box(&payload) };
        sealer.seal_rtp(&packet, black_box(&mut out))
    });
}

/// Sends one unit of 29 payloads to one viewer: gate, headers, SRTP (AES-256-GCM), RTX cache.
#[divan::bench]
fn session_turn(bencher: Bencher<'_, '_>) {
    let mut pair = Pair::new(&peer::context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    pair.connect();
    let payloads = payloads(0, 29, 1_140);
    let (mut number, mut buffer) = (0, ReusedBuffer(Vec::with_capacity(1 << 16)));
    bencher.counter(ItemsCount::new(29_usize)).bench_local(|| {
        pair.now += Duration::from_millis(33);
        number += 1;
        buffer.0.clear();
        pair.viewer.push_access_unit(pair.now, &unit(&payloads, number, number == 1), &mut buffer);
        black_box(buffer.0.len())
    });
}

/// Answers one offer.
#[divan::bench]
fn accept(bencher: Bencher<'_, '_>) {
    let context = peer::context(SrtpChoice::Gcm);
    let pair = Pair::new(&context, DtlsVersion::Dtls12);
    bencher.bench_local(|| Viewer::accept(&context, 1, &pair.offer, pair.now).unwrap());
}

/// Handles one STUN consent check of a connected viewer and sends the response.
#[divan::bench]
fn stun_check(bencher: Bencher<'_, '_>) {
    let mut pair = Pair::new(&peer::context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    pair.connect();
    let request = signed_request(&pair, USUAL_PRIORITY, &[]);
    bencher.bench_local(|| {
        pair.now += Duration::from_millis(1);
        pair.viewer.handle_datagram(pair.now, Some(server_address().ip()), client_address(), &request);
        pair.viewer.drain(pair.now, &mut Outbox::default());
    });
}

/// Handles a timeout without media.
#[divan::bench]
fn idle_timeout(bencher: Bencher<'_, '_>) {
    let mut pair = Pair::new(&peer::context(SrtpChoice::Gcm), DtlsVersion::Dtls12);
    pair.connect();
    bencher.bench_local(|| {
        pair.now += Duration::from_millis(1);
        pair.viewer.handle_timeout(pair.now);
        pair.viewer.drain(pair.now, &mut Outbox::default());
    });
}
