//! Contains the files of the viewer page and the description of the API, compiled into the program. The ETag of a file
//! is a hash of its bytes. A browser that revalidates a file gets 304 until a new version of the program changes the
//! file.

/// One of these files.
#[derive(Debug)]
pub(super) struct Asset {
    /// Value of the header `Content-Type`.
    pub(super) content_type: &'static str,
    /// Content of the file.
    pub(super) bytes: &'static [u8],
    /// FNV-1a hash of `bytes`.
    hash: u64,
}

impl Asset {
    const fn new(content_type: &'static str, bytes: &'static [u8]) -> Asset {
        Asset { content_type, bytes, hash: fnv_1a(bytes) }
    }

    /// Returns the strong entity tag, including its quotes (RFC 9110 section 8.8.3).
    #[must_use]
    pub(super) fn etag(&self) -> String {
        format!("\"{:016x}\"", self.hash)
    }
}

pub(super) static INDEX: Asset =
    Asset::new("text/html; charset=utf-8", include_bytes!("assets/index.html").as_slice());
pub(super) static SCRIPT: Asset =
    Asset::new("text/javascript; charset=utf-8", include_bytes!("assets/viewer.js").as_slice());
pub(super) static LOGIN: Asset =
    Asset::new("text/javascript; charset=utf-8", include_bytes!("assets/login.js").as_slice());
pub(super) static EVENTS: Asset =
    Asset::new("text/javascript; charset=utf-8", include_bytes!("assets/events.js").as_slice());
pub(super) static REMEDIES: Asset =
    Asset::new("text/javascript; charset=utf-8", include_bytes!("assets/remedies.js").as_slice());
pub(super) static LIVE: Asset =
    Asset::new("text/javascript; charset=utf-8", include_bytes!("assets/live.js").as_slice());
pub(super) static RECORDINGS: Asset =
    Asset::new("text/javascript; charset=utf-8", include_bytes!("assets/recordings.js").as_slice());
pub(super) static STYLE: Asset =
    Asset::new("text/css; charset=utf-8", include_bytes!("assets/viewer.css").as_slice());
pub(super) static ICON: Asset = Asset::new("image/svg+xml", include_bytes!("assets/icon.svg").as_slice());

pub(super) static OPENAPI: Asset = Asset::new("application/json", include_bytes!("openapi.json").as_slice());

/// Returns the 64-bit FNV-1a hash of `bytes`. It detects changed files, but it is not a cryptographic hash.
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
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv_1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn different_files_have_different_tags() {
        let mut tags = [&INDEX, &SCRIPT, &LOGIN, &EVENTS, &REMEDIES, &RECORDINGS, &STYLE, &ICON, &OPENAPI]
            .map(Asset::etag);
        tags.sort();
        assert!(tags.windows(2).all(|pair| pair.first() != pair.last()));
    }
}
