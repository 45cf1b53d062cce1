//! The viewer page's files, compiled into the program. Each has a fingerprint of its bytes as ETag, so a
//! browser asks again and gets 304 until the program changes. Knows nothing of requests.

/// One file of the page.
#[derive(Debug)]
pub struct Asset {
    /// `Content-Type`.
    pub content_type: &'static str,
    /// The file.
    pub bytes: &'static [u8],
    /// FNV-1a of the bytes.
    fingerprint: u64,
}

impl Asset {
    const fn new(content_type: &'static str, bytes: &'static [u8]) -> Asset {
        Asset { content_type, bytes, fingerprint: fnv_1a(bytes) }
    }

    /// Strong entity tag, quotes included (RFC 9110 section 8.8.3).
    #[must_use]
    pub fn etag(&self) -> String {
        format!("\"{:016x}\"", self.fingerprint)
    }
}

/// The page.
pub(super) static INDEX: Asset =
    Asset::new("text/html; charset=utf-8", include_bytes!("assets/index.html").as_slice());
/// Its script.
pub(super) static SCRIPT: Asset =
    Asset::new("text/javascript; charset=utf-8", include_bytes!("assets/viewer.js").as_slice());
/// Its login.
pub(super) static LOGIN: Asset =
    Asset::new("text/javascript; charset=utf-8", include_bytes!("assets/login.js").as_slice());
/// What it hears from the server.
pub(super) static EVENTS: Asset =
    Asset::new("text/javascript; charset=utf-8", include_bytes!("assets/events.js").as_slice());
/// Its recordings.
pub(super) static RECORDINGS: Asset =
    Asset::new("text/javascript; charset=utf-8", include_bytes!("assets/recordings.js").as_slice());
/// Its style sheet.
pub(super) static STYLE: Asset =
    Asset::new("text/css; charset=utf-8", include_bytes!("assets/viewer.css").as_slice());
/// Its icon.
pub(super) static ICON: Asset = Asset::new("image/svg+xml", include_bytes!("assets/icon.svg").as_slice());

/// FNV-1a, 64 bits: a fingerprint, not a defence.
const fn fnv_1a(mut bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    while let Some((first, rest)) = bytes.split_first() {
        hash = (hash ^ *first as u64).wrapping_mul(0x0100_0000_01b3);
        bytes = rest;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_fnv_1a() {
        assert_eq!(fnv_1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn different_files_have_different_tags() {
        let mut tags = [&INDEX, &SCRIPT, &LOGIN, &RECORDINGS, &STYLE, &ICON].map(Asset::etag);
        tags.sort();
        assert!(tags.windows(2).all(|pair| pair.first() != pair.last()));
    }
}
