//! WHEP (draft-ietf-wish-whep), the HTTP protocol by which players and gateways start, change and end a session. Decides
//! about its requests and builds its responses. Does no I/O.
//!
//! ```text
//!  POST   /NAME/whep      SDP offer ─► 201, SDP answer, Location: /NAME/whep/SESSION, ETag, Link
//!  PATCH  …/SESSION       candidates ─► 204   new ICE credentials ─► 200, ours, a new ETag
//!  DELETE …/SESSION       ─► 200
//! ```
//!
//! `/whep` is the only stream under its short name. A server with a token requires it for each of these requests, with
//! one exception: some players send it with the offer only. SESSION cannot be guessed, and candidates have no effect, so
//! they need no token. A restart of ICE does.

use super::backend::{ApiError, Backend, OfferOrigin, SessionCommand, SessionReply, ViewerOffer};
use super::request::Head;
use super::response::Response;
use crate::base::limits;
use crate::config::{IceServer, STREAM_NAME};

/// Path of the endpoint in the table of routes: `STREAM` is the name of the stream.
pub(super) const ENDPOINT: &str = "/STREAM/whep";
/// Path of a session in the table of routes: `SESSION` is its key.
pub(super) const SESSION: &str = "/STREAM/whep/SESSION";

const OFFER_TYPE: &str = "application/sdp";
const FRAGMENT_TYPE: &str = "application/trickle-ice-sdpfrag";

/// The stream of an endpoint, and the servers that its viewers may use.
#[derive(Clone, Debug)]
pub struct WhepPolicy {
    /// Name of the only stream.
    pub stream: String,
    /// STUN and TURN servers.
    pub ice_servers: Vec<IceServer>,
}

impl Default for WhepPolicy {
    fn default() -> WhepPolicy {
        WhepPolicy { stream: STREAM_NAME.to_owned(), ice_servers: Vec::new() }
    }
}

/// A path of WHEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// Name of the stream; `None` in the short form, which means the only stream.
    stream: Option<&'a str>,
    /// Key of the session; `None` in the path of the endpoint.
    session: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Parses a path. Returns `None` if it is not a path of WHEP.
    pub(super) fn of(path: &'a str) -> Option<Target<'a>> {
        let mut parts = path.strip_prefix('/')?.split('/');
        let (first, mut next) = (parts.next()?, parts.next());
        let stream = (first != "whep").then_some(first);
        if stream.is_some() {
            if next != Some("whep") {
                return None;
            }
            next = parts.next();
        }
        let is_path = parts.next().is_none() && next.is_none_or(|session| !session.is_empty());
        is_path.then_some(Target { stream, session: next })
    }

    /// Returns the path as it is written in the table of routes.
    pub(super) fn template(self) -> &'static str {
        if self.session.is_some() { SESSION } else { ENDPOINT }
    }

    /// Returns true if the stream of this path exists.
    pub(super) fn is_served(self, policy: &WhepPolicy) -> bool {
        self.stream.is_none_or(|stream| stream == policy.stream)
    }
}

/// A request to WHEP.
#[derive(Clone, Debug, PartialEq)]
pub enum WhepRequest {
    /// Start a session.
    Offer {
        /// The SDP offer.
        sdp: String,
        /// Path of the endpoint. The URL of the session is this path, `/` and the key of the session.
        endpoint: String,
    },
    /// Do something with a session.
    Session {
        /// Key of the session, as it was sent.
        key: String,
        /// What to do.
        command: SessionCommand,
    },
}

impl WhepRequest {
    /// Returns the request without its entity tags. The session then takes candidates, but no restart.
    pub(super) fn without_tags(mut self) -> WhepRequest {
        if let WhepRequest::Session { command: SessionCommand::Fragment { if_match, .. }, .. } = &mut self {
            *if_match = None;
        }
        self
    }
}

/// Returns true if the request changes a session.
pub(super) fn is_change(head: &Head<'_>) -> bool {
    head.method == "PATCH" && Target::of(head.path).is_some_and(|target| target.session.is_some())
}

/// Returns the error of a request without a token. A restart of ICE was refused for its lack of tags.
pub(super) fn token_required(error: ApiError) -> ApiError {
    if error.status != 428 {
        return error;
    }
    ApiError::new(
        401,
        "token_required",
        "a restart of ICE needs the token: send `Authorization: Bearer TOKEN`",
    )
}

/// Parses a POST to the endpoint. A missing content type is accepted.
pub(super) fn parse_offer(head: &Head<'_>, body: &[u8]) -> Result<WhepRequest, ApiError> {
    let sdp = text_of(head, body, OFFER_TYPE)?;
    if !sdp.trim_start().starts_with("v=0") {
        let message = "the body must be a session description that starts with v=0";
        return Err(ApiError::new(400, "bad_sdp", message));
    }
    Ok(WhepRequest::Offer { sdp, endpoint: head.path.to_owned() })
}

/// Parses a PATCH of a session.
pub(super) fn parse_fragment(head: &Head<'_>, body: &[u8]) -> Result<WhepRequest, ApiError> {
    let text = text_of(head, body, FRAGMENT_TYPE)?;
    let if_match = head.if_match.map(entity_tags);
    Ok(on_session(head, SessionCommand::Fragment { text, if_match }))
}

/// Returns a request that does this with the session in the path.
pub(super) fn on_session(head: &Head<'_>, command: SessionCommand) -> WhepRequest {
    let key = Target::of(head.path).and_then(|target| target.session).unwrap_or_default();
    WhepRequest::Session { key: key.to_owned(), command }
}

/// Returns the body as text if it has the expected type or no type.
fn text_of(head: &Head<'_>, body: &[u8], expected: &'static str) -> Result<String, ApiError> {
    let kind = head.content_type.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    if kind.is_some_and(|kind| !kind.eq_ignore_ascii_case(expected)) {
        return Err(ApiError::new(415, "wrong_content_type", format!("the body must be {expected}")));
    }
    String::from_utf8(body.to_vec()).map_err(|_| ApiError::new(400, "bad_text", "the body is not UTF-8"))
}

/// Returns the entity tags of `If-Match` without their quotes; `*` stays as it is. A weak tag never matches (RFC 9110
/// section 13.1.1). A tag without quotes is accepted, because some clients leave them out.
fn entity_tags(value: &str) -> Vec<String> {
    let tags = value.split(',').map(str::trim).take(limits::ENTITY_TAGS_MAX);
    let unquote = |tag: &'_ str| match tag.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').map(str::to_owned).filter(|tag| tag != "*"),
        None => Some(tag.to_owned()).filter(|tag| !tag.starts_with("W/")),
    };
    tags.filter_map(unquote).collect()
}

/// Returns the answer to GET and HEAD of an endpoint: it exists, and takes this type.
pub(super) fn endpoint() -> Response {
    Response::with_body(200, OFFER_TYPE, "").header("cache-control", "no-store")
}

/// Adds to the answer to OPTIONS what the path accepts.
pub(super) fn describe(template: &str, response: Response) -> Response {
    match template {
        ENDPOINT => response.header("accept-post", OFFER_TYPE),
        SESSION => response.header("accept-patch", FRAGMENT_TYPE),
        _ => response,
    }
}

/// Adds one `Link` for each STUN and TURN server.
pub(super) fn with_links(policy: &WhepPolicy, response: Response) -> Response {
    policy.ice_servers.iter().fold(response, |response, server| response.header("link", link(server)))
}

/// Returns true if this is the answer to OPTIONS of an endpoint that some players read the STUN and TURN servers from.
/// A preflight is not read.
pub(super) fn may_have_links(head: &Head<'_>, response: &Response) -> bool {
    let is_endpoint = Target::of(head.path).is_some_and(|target| target.session.is_none());
    is_endpoint && head.method == "OPTIONS" && head.requested_method.is_none() && response.status == 204
}

fn link(server: &IceServer) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut link = format!("<{}>; rel=\"ice-server\"", server.url);
    if let Some((username, credential)) = &server.credentials {
        link += &format!(
            "; username=\"{}\"; credential=\"{}\"; credential-type=\"password\"",
            quoted(username),
            quoted(credential)
        );
    }
    link
}

/// Runs a request on the backend and returns its response.
///
/// # Errors
/// Returns the error of the backend.
pub(super) async fn perform(
    backend: &dyn Backend,
    request: WhepRequest,
    origin: OfferOrigin,
    policy: &WhepPolicy,
) -> Result<Response, ApiError> {
    match request {
        WhepRequest::Offer { sdp, endpoint } => {
            let offered = backend.offer(ViewerOffer { sdp, playout_delay_max_ms: 0 }, origin).await?;
            let response = Response::with_body(201, OFFER_TYPE, offered.answer)
                .header("location", format!("{endpoint}/{}", offered.key))
                .header("etag", format!("\"{}\"", offered.tag))
                .header("accept-patch", FRAGMENT_TYPE)
                .header("cache-control", "no-store");
            Ok(with_links(policy, response))
        }
        WhepRequest::Session { key, command } => {
            let response = match backend.session(&key, command).await? {
                SessionReply::Found => Response::with_body(200, OFFER_TYPE, ""),
                SessionReply::Deleted => Response::empty(200),
                SessionReply::Accepted => Response::empty(204),
                SessionReply::Restarted { fragment, tag } => {
                    Response::with_body(200, FRAGMENT_TYPE, fragment).header("etag", format!("\"{tag}\""))
                }
            };
            Ok(response.header("cache-control", "no-store"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_streams_and_sessions_are_parsed() {
        let target = |stream, session| Some(Target { stream, session });
        assert_eq!(Target::of("/whep"), target(None, None));
        assert_eq!(Target::of("/whep/key"), target(None, Some("key")));
        assert_eq!(Target::of("/camera/whep"), target(Some("camera"), None));
        assert_eq!(Target::of("/camera/whep/key"), target(Some("camera"), Some("key")));
        for path in [
            "/",
            "",
            "whep",
            "/whep/",
            "/camera",
            "/camera/whep/",
            "/camera/whep/a/b",
            "/a/b/whep",
            "/whep/a/b",
        ] {
            assert_eq!(Target::of(path), None, "{path}");
        }
        let policy = WhepPolicy::default();
        assert!(Target::of("/camera/whep").unwrap().is_served(&policy));
        assert!(!Target::of("/api/whep").unwrap().is_served(&policy));
    }

    #[test]
    fn entity_tags_of_every_shape_are_read() {
        for (value, tags) in [
            ("*", vec!["*"]),
            ("\"1f/abcd\"", vec!["1f/abcd"]),
            ("1f/abcd", vec!["1f/abcd"]),
            (" \"a\" , \"b\"", vec!["a", "b"]),
            ("W/\"a\"", vec![]),
            ("\"*\"", vec![]),
            ("\"a", vec![]),
            ("", vec![""]),
            (",,", vec!["", "", ""]),
        ] {
            assert_eq!(entity_tags(value), tags, "{value}");
        }
        assert_eq!(entity_tags(&"a,".repeat(9_000)).len(), limits::ENTITY_TAGS_MAX);
    }

    #[test]
    fn links_name_the_servers_and_quote_their_credentials() {
        let stun = IceServer { url: "stun:stun.example:3478".to_owned(), credentials: None };
        assert_eq!(link(&stun), "<stun:stun.example:3478>; rel=\"ice-server\"");
        let credentials = Some(("me".to_owned(), "a\"b\\c".to_owned()));
        let turn = IceServer { url: "turn:turn.example?transport=udp".to_owned(), credentials };
        assert_eq!(
            link(&turn),
            "<turn:turn.example?transport=udp>; rel=\"ice-server\"; username=\"me\"; credential=\"a\\\"b\\\\c\"; \
             credential-type=\"password\""
        );
    }
}
