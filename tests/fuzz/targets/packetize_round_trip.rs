//! Sends any stream of access units through assembler, packetizer and depacketizer, which must return the same NAL
//! units. The first byte of the input sets the payload size, and `FE FD` separates the units. A second depacketizer
//! receives payloads out of order and must not panic.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use streaming_server::h264::{Assembler, Packetizer, Payloads};
use support::depacketize::Depacketizer;

fuzz_target!(|bytes: &[u8]| {
    let Some((size, stream)) = bytes.split_first() else { return };
    let payload_bytes_max = 16 + usize::from(*size);
    let mut assembler = Assembler::default();
    let mut packetizer = Packetizer::new(payload_bytes_max);
    let (mut receiver, mut disturbed) = (Depacketizer::new(), Depacketizer::new());
    let mut sequence_number = 65_530_u16;
    let mut buffers: Vec<Arc<Payloads>> = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let end = rest.windows(2).position(|pair| pair == [0xFE, 0xFD]).unwrap_or(rest.len());
        let (unit, tail) = rest.split_at(end);
        rest = tail.get(2..).unwrap_or_default();
        disturbed.push(unit, unit.len() % 3 == 0, 7, sequence_number);
        let Ok(assembled) = assembler.assemble(unit) else { continue };
        packetizer.packetize(&assembled, &mut buffers);
        let payloads: Vec<&[u8]> = buffers.iter().flat_map(|buffer| buffer.iter()).collect();
        let mut received = None;
        for (index, payload) in payloads.iter().enumerate() {
            assert!(payload.len() <= payload_bytes_max);
            let last = index + 1 == payloads.len();
            received = receiver.push(payload, last, 90, sequence_number);
            assert_eq!(received.is_some(), last);
            disturbed.push(payload, false, 7, sequence_number.reverse_bits());
            sequence_number = sequence_number.wrapping_add(1);
        }
        let sent: Vec<Vec<u8>> = assembled.nals().map(|nal| nal.bytes.to_vec()).collect();
        assert_eq!(received, Some(sent));
    }
});
