//! Contains the files of the viewer page and the description of the API, compiled into the program as gzip
//! (`scripts/compress_assets.rs`). A caller that does not accept gzip gets the file inflated; the program then keeps the
//! inflated file. The ETag is a hash of the compressed bytes. A browser that revalidates a file gets 304 until a new
//! version of the program changes the file.

use std::sync::OnceLock;

use flate2::{Decompress, FlushDecompress};

use super::request::Head;
use super::response::Response;

/// One of these files.
#[derive(Debug)]
pub(super) struct Asset {
    /// Value of the header `Content-Type`.
    content_type: &'static str,
    /// Content of the file, compressed with gzip.
    gzip: &'static [u8],
    /// FNV-1a hash of `gzip`.
    hash: u64,
    /// Content of the file, filled at the first use.
    plain: OnceLock<Vec<u8>>,
}

/// Length of the header of a gzip file that has no optional fields (RFC 1952 section 2.3).
const GZIP_HEADER_BYTES: usize = 10;

impl Asset {
    const fn new(content_type: &'static str, gzip: &'static [u8]) -> Asset {
        Asset { content_type, gzip, hash: fnv_1a(gzip), plain: OnceLock::new() }
    }

    /// Returns the content of the file.
    pub(super) fn plain(&self) -> &[u8] {
        self.plain.get_or_init(|| inflate(self.gzip))
    }

    /// Returns the strong entity tag, including its quotes (RFC 9110 section 8.8.3). The compressed file and the
    /// inflated file have different tags, because their bytes differ.
    fn etag(&self, is_gzip: bool) -> String {
        format!("\"{:016x}{}\"", self.hash, if is_gzip { "-gzip" } else { "" })
    }

    /// Returns the file, or 304 if the caller has it.
    #[must_use]
    pub(super) fn respond(&'static self, head: &Head<'_>) -> Response {
        let is_gzip = head.accept_encoding.is_some_and(accepts_gzip);
        let etag = self.etag(is_gzip);
        let unchanged = head.if_none_match.is_some_and(|tags| {
            tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
        });
        let response = if unchanged {
            Response::empty(304)
        } else if is_gzip {
            Response::with_body(200, self.content_type, self.gzip).header("content-encoding", "gzip")
        } else {
            Response::with_body(200, self.content_type, self.plain())
        };
        response.header("etag", etag).header("cache-control", "no-cache").header("vary", "accept-encoding")
    }
}

/// Returns true if the value of `Accept-Encoding` lists gzip and does not exclude it with `q=0`.
fn accepts_gzip(codings: &str) -> bool {
    codings.split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        // A weight of 0 is `0`, `0.`, `0.0`, `0.00` or `0.000` (RFC 9110 section 12.4.2).
        is_named
            && !parts.any(|part| {
                let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
                weight.is_some_and(|weight| weight.bytes().all(|byte| matches!(byte, b'0' | b'.')))
            })
    })
}

/// Returns the content of a gzip file that the build script has made.
fn inflate(gzip: &[u8]) -> Vec<u8> {
    // The file ends with the size of its content (RFC 1952 section 2.3.1).
    let size = gzip.last_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
    let mut content = Vec::with_capacity(size);
    let deflated = gzip.get(GZIP_HEADER_BYTES..).unwrap_or_default();
    let result = Decompress::new(false).decompress_vec(deflated, &mut content, FlushDecompress::Finish);
    assert!(result.is_ok() && content.len() == size, "the build script has made this file");
    content
}

macro_rules! asset {
    ($content_type:literal, $name:literal) => {
        Asset::new($content_type, include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".gz")).as_slice())
    };
}

macro_rules! script {
    ($name:literal) => {
        asset!("text/javascript; charset=utf-8", $name)
    };
}

pub(super) static INDEX: Asset = asset!("text/html; charset=utf-8", "index.html");
pub(super) static SCRIPT: Asset = script!("viewer.js");
pub(super) static LOGIN: Asset = script!("login.js");
pub(super) static EVENTS: Asset = script!("events.js");
pub(super) static REMEDIES: Asset = script!("remedies.js");
pub(super) static LIVE: Asset = script!("live.js");
pub(super) static RECORDINGS: Asset = script!("recordings.js");
pub(super) static DOM: Asset = script!("dom.js");
pub(super) static TEXTS: Asset = script!("texts.js");
pub(super) static STATS: Asset = script!("stats.js");
pub(super) static SCREEN: Asset = script!("screen.js");
pub(super) static CONTROLS: Asset = script!("controls.js");
pub(super) static OVERLAY: Asset = script!("overlay.js");
pub(super) static BOXES: Asset = script!("boxes.js");
pub(super) static SIDECAR: Asset = script!("sidecar.js");
pub(super) static ZOOM: Asset = script!("zoom.js");
pub(super) static LIBRARY: Asset = script!("library.js");
pub(super) static PLAYER: Asset = script!("player.js");
pub(super) static THUMBNAILS: Asset = script!("thumbnails.js");
pub(super) static SHARE: Asset = script!("share.js");
pub(super) static STYLE: Asset = asset!("text/css; charset=utf-8", "viewer.css");
pub(super) static ICON: Asset = asset!("image/svg+xml", "icon.svg");
pub(super) static ICON_REC: Asset = asset!("image/svg+xml", "icon-rec.svg");
pub(super) static ICON_OFF: Asset = asset!("image/svg+xml", "icon-off.svg");
pub(super) static TOUCH_ICON: Asset = asset!("image/png", "touch.png");
pub(super) static MANIFEST: Asset = asset!("application/manifest+json", "manifest.json");

pub(super) static OPENAPI: Asset = asset!("application/json", "openapi.json");

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
            .map(|asset| asset.etag(true));
        tags.sort();
        assert!(tags.windows(2).all(|pair| pair.first() != pair.last()));
    }

    #[test]
    fn only_callers_that_accept_gzip_get_it() {
        for codings in ["gzip", "deflate, gzip;q=1.0, *;q=0.5", "br, GZIP", "gzip;q=0.001"] {
            assert!(accepts_gzip(codings), "{codings}");
        }
        for codings in ["", "br", "gzip;q=0", "gzip; q=0.000", "x-gzip, *", "identity"] {
            assert!(!accepts_gzip(codings), "{codings}");
        }
    }

    #[test]
    fn both_forms_of_a_file_have_the_same_content_and_their_own_tags() {
        let tag = |response: &Response| {
            response.headers.iter().find(|(name, _)| *name == "etag").unwrap().1.clone()
        };
        let plain = Head::default();
        let gzip = Head { accept_encoding: Some("gzip, br"), ..plain };
        let expected = include_bytes!("assets/viewer.css");
        let (small, large) = (STYLE.respond(&gzip), STYLE.respond(&plain));
        assert_eq!(large.body, expected.as_slice());
        assert_eq!(inflate(&small.body), expected);
        assert!(small.body.len() < expected.len() / 2);
        assert!(small.headers.contains(&("content-encoding", "gzip".to_owned())));
        assert!(!large.headers.iter().any(|(name, _)| *name == "content-encoding"));
        let (small, large) = (tag(&small), tag(&large));
        let status =
            |head: Head<'_>, tags: &str| STYLE.respond(&Head { if_none_match: Some(tags), ..head }).status;
        assert_eq!([status(gzip, &small), status(plain, &large)], [304, 304]);
        assert_eq!([status(gzip, &large), status(plain, &small)], [200, 200]);
    }
}
