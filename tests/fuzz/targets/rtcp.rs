//! Takes any bytes as RTCP. They must be refused or decrypted, and every compound packet must be parsed to its end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use str0m::crypto::dtls::SrtpProfile;
use streaming_server::session::media::rtcp::{self, Packet};
use streaming_server::session::media::srtp;

fn read(compound: &[u8]) {
    for packet in rtcp::packets(compound) {
        match packet {
            Packet::Report(blocks) => assert!(blocks.iter().count() <= 31),
            Packet::Nack { lost, .. } => assert!(lost.iter().count() <= compound.len() / 4 * 17),
            Packet::Arrivals(arrivals) => assert!(arrivals.iter().count() <= compound.len()),
            Packet::Fir(requests) => drop(requests.contains(1)),
            Packet::ReferenceTime(reference) => {
                let mut report = Vec::new();
                rtcp::write_delay_since(1, reference, 2, &mut report);
                assert!(rtcp::packets(&report).eq([Packet::Other]), "our report contains no request");
            }
            Packet::Pli { .. } | Packet::Bye | Packet::Other => {}
        }
    }
}

fuzz_target!(|data: &[u8]| {
    read(data);
    let profiles =
        [SrtpProfile::AES128_CM_SHA1_80, SrtpProfile::AEAD_AES_128_GCM, SrtpProfile::AEAD_AES_256_GCM];
    for profile in profiles {
        let (_, mut ours) = srtp::contexts(profile, &[1; 96], false).unwrap();
        let mut out = Vec::new();
        assert!(!ours.open_rtcp(data, &mut out), "forged packets are refused");
        let (mut viewer, _) = srtp::contexts(profile, &[1; 96], true).unwrap();
        let mut sealed = vec![0; data.len() + viewer.rtcp_overhead_bytes()];
        if viewer.seal_rtcp(data, &mut sealed) {
            assert!(ours.open_rtcp(&sealed, &mut out));
            assert_eq!(out, data);
            assert!(!ours.open_rtcp(&sealed, &mut out), "a replayed packet is refused");
        }
    }
});
