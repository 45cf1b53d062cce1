//! Any datagram as a STUN message: a user fragment is found only in a well-formed binding request, and is part of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streaming_server::session::stun_ufrag;

fuzz_target!(|bytes: &[u8]| {
    let Some(ufrag) = stun_ufrag(bytes) else { return };
    assert!(!ufrag.is_empty() && !ufrag.contains(':'));
    assert!(bytes.starts_with(&[0, 1]) && bytes[4..8] == [0x21, 0x12, 0xA4, 0x42]);
    assert_eq!(bytes.len(), 20 + usize::from(u16::from_be_bytes([bytes[2], bytes[3]])));
    // Borrowed from the datagram, and followed by the colon.
    let start = ufrag.as_ptr() as usize - bytes.as_ptr() as usize;
    assert_eq!(&bytes[start..start + ufrag.len()], ufrag.as_bytes());
    assert_eq!(bytes[start + ufrag.len()], b':');
    // A message cut short is none.
    assert_eq!(stun_ufrag(&bytes[..bytes.len() - 1]), None);
});
