//! Turns a request into a decision, without I/O: which path means what, what is malformed, which page may send it.
//!
//! ```text
//!  Head ──admit──► Endpoint ──act(body)──► Action ──(adapter calls the Backend)──► Response ──finish──►
//!    └──────────► Response (404, 405, 403, preflight)
//! ```
//!
//! A new route is one line in `ROUTES`, one [`Endpoint`] and, if it needs the rest of the program, one [`Action`].
//! This module must not read sockets, files or clocks.

use serde::Serialize;
use serde_json::json;

use super::assets::{self, Asset};
use super::backend::{ApiError, RecordingCommand};
use super::host::Hosts;
use super::origin;
use super::ranges;
use super::request::{self, Head};
use super::response::Response;
use crate::base::limits;
use crate::metrics::status::ViewerStatus;

/// The meaning of a route.
#[derive(Clone, Copy, Debug)]
pub enum Endpoint {
    /// POST /api/webrtc/offer
    Offer,
    /// GET /api/viewers
    Viewers,
    /// GET /api/status
    Status,
    /// GET /api/events
    Events,
    /// GET /health
    Health,
    /// GET /ready
    Ready,
    /// GET /metrics
    Metrics,
    /// A file of the page.
    File(&'static Asset),
    /// POST /api/recording/start
    StartRecording,
    /// POST /api/recording/stop
    StopRecording,
    /// POST /api/recording/heartbeat
    Heartbeat,
    /// GET /api/recording/status
    RecordingStatus,
    /// GET /api/recordings
    Recordings,
    /// GET /api/recordings/NAME
    Download,
    /// DELETE /api/recordings/NAME
    DeleteRecording,
    /// GET /api/session
    Session,
    /// POST /api/session
    LogIn,
    /// DELETE /api/session
    LogOut,
}

impl Endpoint {
    /// Returns the body bytes this endpoint reads at most. A longer body is answered with 413.
    #[must_use]
    pub fn body_bytes_max(self) -> usize {
        match self {
            Endpoint::Offer => limits::BODY_BYTES_MAX,
            // `stop` and `heartbeat` need no body, but scripts send `{}`.
            Endpoint::StartRecording | Endpoint::StopRecording | Endpoint::Heartbeat => {
                limits::COMMAND_BYTES_MAX
            }
            Endpoint::LogIn => limits::LOGIN_BYTES_MAX,
            _ => 0,
        }
    }

    /// Returns true if the endpoint needs no token even when the server has one: the health check, the files of the
    /// page, and the login, which checks the token itself. A new route is not open.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Endpoint::Health | Endpoint::File(_) | Endpoint::LogIn)
    }
}

/// One line of the table.
struct Route {
    method: &'static str,
    path: &'static str,
    endpoint: Endpoint,
}

const fn get(path: &'static str, endpoint: Endpoint) -> Route {
    Route { method: "GET", path, endpoint }
}

const fn delete(path: &'static str, endpoint: Endpoint) -> Route {
    Route { method: "DELETE", path, endpoint }
}

const fn post(path: &'static str, endpoint: Endpoint) -> Route {
    Route { method: "POST", path, endpoint }
}

/// All routes. HEAD is derived from GET, OPTIONS from all methods.
static ROUTES: &[Route] = &[
    post("/api/webrtc/offer", Endpoint::Offer),
    get("/api/viewers", Endpoint::Viewers),
    get("/api/status", Endpoint::Status),
    get("/api/events", Endpoint::Events),
    get(HEALTH, Endpoint::Health),
    get("/ready", Endpoint::Ready),
    get("/metrics", Endpoint::Metrics),
    post("/api/recording/start", Endpoint::StartRecording),
    post("/api/recording/stop", Endpoint::StopRecording),
    post("/api/recording/heartbeat", Endpoint::Heartbeat),
    get("/api/recording/status", Endpoint::RecordingStatus),
    get("/api/recordings", Endpoint::Recordings),
    get(RECORDING, Endpoint::Download),
    delete(RECORDING, Endpoint::DeleteRecording),
    get("/api/session", Endpoint::Session),
    post("/api/session", Endpoint::LogIn),
    delete("/api/session", Endpoint::LogOut),
    get("/", Endpoint::File(&assets::INDEX)),
    get("/login.js", Endpoint::File(&assets::LOGIN)),
    get("/viewer.js", Endpoint::File(&assets::SCRIPT)),
    get("/events.js", Endpoint::File(&assets::EVENTS)),
    get("/recordings.js", Endpoint::File(&assets::RECORDINGS)),
    get("/viewer.css", Endpoint::File(&assets::STYLE)),
    get("/icon.svg", Endpoint::File(&assets::ICON)),
];

/// Returns method, path and endpoint of every route, for tests that must cover all of them.
pub fn table() -> impl Iterator<Item = (&'static str, &'static str, Endpoint)> {
    ROUTES.iter().map(|route| (route.method, route.path, route.endpoint))
}

const HEALTH: &str = "/health";
/// The only path with a variable part.
const RECORDING: &str = "/api/recordings/NAME";
const RECORDING_PREFIX: &str = "/api/recordings/";

/// Returns the path as it is written in the table.
fn template(path: &str) -> &str {
    match path.strip_prefix(RECORDING_PREFIX) {
        Some(name) if !name.is_empty() && !name.contains('/') => RECORDING,
        _ => path,
    }
}

/// Returns the name of the recording in a path.
fn recording_name(path: &str) -> Result<String, Response> {
    let segment = path.strip_prefix(RECORDING_PREFIX).unwrap_or_default();
    ranges::decode_segment(segment)
        .ok_or_else(|| Response::error(400, "bad_name", "the name's percent-encoding is malformed"))
}

/// Which foreign pages may call the API, and under which names this server answers.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Origins (`https://host[:port]`) whose pages may use the API.
    pub allow_origin: Vec<String>,
    /// Accepted values of `Host`; `None`: all.
    pub hosts: Option<Hosts>,
}

/// What an adapter does for a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send this response.
    Respond(Response),
    /// Pass the offer to the backend, answer with [`answer_offer`].
    Offer {
        /// SDP of the browser.
        sdp: String,
    },
    /// Answer with [`answer_viewers`].
    Viewers,
    /// Answer with `events::status`.
    Status,
    /// Answer with a stream of server-sent events.
    Events,
    /// Answer with [`answer_ready`].
    Ready,
    /// Answer with [`answer_metrics`].
    Metrics,
    /// Run the command, answer with [`answer_recording`].
    Recording(RecordingCommand),
    /// Answer with [`answer_recording`] of the recorder's state.
    RecordingStatus,
    /// Report if this server requires a token, and renew the caller's login.
    Session,
    /// Make a login if the token is right.
    LogIn {
        /// Token in the request body, not yet checked.
        token: String,
    },
    /// End the caller's login.
    LogOut,
    /// Open this recording and send it.
    Download {
        /// Name of the recording.
        name: String,
        /// Continue while the recording grows (`?follow=1`).
        follow: bool,
    },
}

/// Decides about a request whose body has been read.
#[must_use]
pub fn route(policy: &Policy, head: &Head<'_>, body: &[u8]) -> Action {
    match admit(policy, head) {
        Ok(endpoint) if body.len() > endpoint.body_bytes_max() => Action::Respond(body_too_large(endpoint)),
        Ok(endpoint) => act(endpoint, head, body),
        Err(response) => Action::Respond(response),
    }
}

/// First half, before the body is read: finds the endpoint.
///
/// # Errors
/// The response that needs no endpoint: 404, 405, 403 for a foreign name or page, or the answer to OPTIONS.
pub fn admit(policy: &Policy, head: &Head<'_>) -> Result<Endpoint, Response> {
    let path = template(head.path);
    // A health check may use any name.
    if path != HEALTH {
        admit_host(policy, head)?;
    }
    let allowed = allowed_methods(path);
    if allowed.is_empty() {
        return Err(Response::error(404, "not_found", "this path does not exist"));
    }
    if head.method == "OPTIONS" {
        return Err(options(policy, head, &allowed));
    }
    let wanted = if head.method == "HEAD" { "GET" } else { head.method };
    let Some(route) = ROUTES.iter().find(|route| route.path == path && route.method == wanted) else {
        let message = format!("{} accepts {}", head.path, allowed.join(", "));
        return Err(Response::error(405, "method_not_allowed", &message).header("allow", allowed.join(", ")));
    };
    if wanted != "GET" && !origin_may_change(policy, head) {
        return Err(Response::error(
            403,
            "origin_refused",
            "a page of this Origin may not change anything on this server: list it with --allow-origin",
        ));
    }
    Ok(route.endpoint)
}

/// Checks that `Host` names this server.
///
/// # Errors
/// 403 for another name.
pub fn admit_host(policy: &Policy, head: &Head<'_>) -> Result<(), Response> {
    match (&policy.hosts, head.host) {
        (Some(hosts), Some(host)) if !hosts.allows(host) => {
            let name: String = host.chars().take(request::QUOTED_CHARS_MAX).collect();
            let message = format!(
                "this server does not answer to the name \"{name}\". If the name is right, start the server with --allow-host NAME"
            );
            Err(Response::error(403, "host_refused", &message).closing())
        }
        _ => Ok(()),
    }
}

/// Second half: reads the body. The caller has limited it to [`Endpoint::body_bytes_max`].
#[must_use]
pub fn act(endpoint: Endpoint, head: &Head<'_>, body: &[u8]) -> Action {
    match endpoint {
        Endpoint::Offer => match request::parse_offer(body) {
            Ok(sdp) => Action::Offer { sdp },
            Err(error) => Action::Respond(error.into()),
        },
        Endpoint::Viewers => Action::Viewers,
        Endpoint::Status => Action::Status,
        Endpoint::Events => Action::Events,
        Endpoint::Health => Action::Respond(Response::json(200, &json!({ "status": "ok" }))),
        Endpoint::Ready => Action::Ready,
        Endpoint::Session => Action::Session,
        Endpoint::LogIn => match request::parse_login(body) {
            Ok(token) => Action::LogIn { token },
            Err(error) => Action::Respond(error.into()),
        },
        Endpoint::LogOut => Action::LogOut,
        Endpoint::Metrics => Action::Metrics,
        Endpoint::File(asset) => Action::Respond(file(asset, head.if_none_match)),
        Endpoint::StartRecording => match request::parse_start(body) {
            Ok(start) => Action::Recording(RecordingCommand::Start(start)),
            Err(error) => Action::Respond(error.into()),
        },
        Endpoint::StopRecording => Action::Recording(RecordingCommand::Stop),
        Endpoint::Heartbeat => Action::Recording(RecordingCommand::Heartbeat),
        Endpoint::RecordingStatus => Action::RecordingStatus,
        Endpoint::Recordings => Action::Recording(RecordingCommand::List),
        Endpoint::Download | Endpoint::DeleteRecording => match recording_name(head.path) {
            Err(response) => Action::Respond(response),
            Ok(name) if matches!(endpoint, Endpoint::DeleteRecording) => {
                Action::Recording(RecordingCommand::Delete(name))
            }
            Ok(name) => {
                let follow = head.query.is_some_and(|query| query.split('&').any(|pair| pair == "follow=1"));
                Action::Download { name, follow }
            }
        },
    }
}

/// The answer to a recording command or to a request for the recorder's state.
#[must_use]
pub fn answer_recording(result: Result<impl Serialize, ApiError>) -> Response {
    match result {
        Ok(reply) => Response::json(200, &reply),
        Err(error) => error.into(),
    }
}

/// The answer to an offer.
#[must_use]
pub fn answer_offer(result: Result<String, ApiError>) -> Response {
    match result {
        Ok(sdp) => Response::json(200, &json!({ "type": "answer", "sdp": sdp })),
        Err(error) => error.into(),
    }
}

/// The answer to GET /api/viewers.
#[must_use]
pub fn answer_viewers(viewers: &[ViewerStatus]) -> Response {
    Response::json(200, &viewers)
}

/// The answer to GET /ready.
#[must_use]
pub fn answer_ready(ready: Result<(), String>) -> Response {
    match ready {
        Ok(()) => Response::json(200, &json!({ "status": "ready" })),
        Err(reason) => Response::json(503, &json!({ "status": "waiting", "reason": reason })),
    }
}

/// The answer to GET /metrics.
#[must_use]
pub fn answer_metrics(text: String) -> Response {
    Response::with_body(200, "text/plain; version=0.0.4; charset=utf-8", text)
        .header("cache-control", "no-store")
}

/// 413 with the bound. Closes the connection instead of reading the rest of the body.
#[must_use]
pub fn body_too_large(endpoint: Endpoint) -> Response {
    let message = format!("the body is too long: at most {} bytes are accepted", endpoint.body_bytes_max());
    Response::error(413, "body_too_large", &message).closing()
}

/// Last step of every response: adds the security headers, and CORS headers for an allow-listed page.
#[must_use]
pub fn finish(policy: &Policy, head: &Head<'_>, response: Response) -> Response {
    let is_page = response.content_type.is_some_and(|kind| kind.starts_with("text/html"));
    let response = response
        .header("x-content-type-options", "nosniff")
        .header("referrer-policy", "no-referrer")
        .header("cross-origin-resource-policy", "same-origin");
    let response = match response.status {
        // A browser replaces its stored headers by those of a 304. The page would get the policy of API responses.
        304 => response,
        _ if is_page => response.header("content-security-policy", page_policy(policy)),
        _ => response.header("content-security-policy", API_POLICY),
    };
    let response = if is_page {
        response
            .header("cross-origin-opener-policy", "same-origin")
            .header("permissions-policy", "camera=(), microphone=(), geolocation=()")
    } else {
        response
    };
    if policy.allow_origin.is_empty() {
        return response;
    }
    let response = response.header("vary", "origin");
    match head.origin {
        Some(origin) if policy.lists(origin) => response
            .header("access-control-allow-origin", origin)
            .header("access-control-expose-headers", "retry-after, www-authenticate"),
        _ => response,
    }
}

/// Returns the Content-Security-Policy of the viewer page. Only allow-listed origins and our own may frame the page.
fn page_policy(policy: &Policy) -> String {
    let origins = policy.allow_origin.iter().map(|origin| format!(" {origin}"));
    origins.fold(PAGE_POLICY.to_owned(), |text, origin| text + &origin)
}

/// The page may load its own files and API only. `frame-ancestors` comes last: allow-listed origins are appended.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// Policy of every response that is not the page.
const API_POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

impl Policy {
    fn lists(&self, origin: &str) -> bool {
        self.allow_origin.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
    }
}

/// Returns true if a state-changing request may proceed: without Origin (not a page), from our page, or allow-listed.
fn origin_may_change(policy: &Policy, head: &Head<'_>) -> bool {
    match head.origin {
        None => true,
        Some(origin) => policy.lists(origin) || origin::is_same(origin, head.host),
    }
}

/// Returns the methods of a path, OPTIONS last; empty for an unknown path.
fn allowed_methods(path: &str) -> Vec<&'static str> {
    let mut methods = Vec::new();
    for route in ROUTES.iter().filter(|route| route.path == path) {
        methods.push(route.method);
        if route.method == "GET" {
            methods.push("HEAD");
        }
    }
    if !methods.is_empty() {
        methods.push("OPTIONS");
    }
    methods
}

/// Answers OPTIONS with the methods of the path. A CORS preflight of an allow-listed page also gets the methods and
/// headers that the page may use.
fn options(policy: &Policy, head: &Head<'_>, allowed: &[&str]) -> Response {
    let methods = allowed.join(", ");
    let response = Response::empty(204).header("allow", methods.clone());
    match (head.requested_method, head.origin) {
        (Some(_), Some(origin)) if policy.lists(origin) => response
            .header("access-control-allow-methods", methods)
            .header("access-control-allow-headers", "content-type, authorization")
            .header("access-control-max-age", "600"),
        (Some(_), Some(origin)) if !origin::is_same(origin, head.host) => Response::error(
            403,
            "origin_refused",
            "pages of this Origin may not use this server: list it with --allow-origin",
        ),
        _ => response,
    }
}

fn file(asset: &'static Asset, if_none_match: Option<&str>) -> Response {
    let etag = asset.etag();
    let unchanged = if_none_match.is_some_and(|tags| {
        tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
    });
    let response = if unchanged {
        Response::empty(304)
    } else {
        Response::with_body(200, asset.content_type, asset.bytes)
    };
    response.header("etag", etag).header("cache-control", "no-cache")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_method_and_path_is_in_the_table_once() {
        for (index, route) in ROUTES.iter().enumerate() {
            let again = ROUTES.iter().skip(index + 1);
            assert!(again.into_iter().all(|other| (other.method, other.path) != (route.method, route.path)));
            assert!(route.path.starts_with('/'));
        }
    }

    #[test]
    fn a_body_above_the_bound_is_not_parsed() {
        let head = Head { method: "POST", path: "/api/webrtc/offer", ..Head::default() };
        let body = vec![b' '; limits::BODY_BYTES_MAX + 1];
        match route(&Policy::default(), &head, &body) {
            Action::Respond(response) => assert_eq!(response.status, 413),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn no_request_causes_a_server_error(
            method in "GET|HEAD|POST|OPTIONS|[A-Z]{0,9}",
            path in "/|/api/webrtc/offer|/viewer.js|.{0,40}",
            origin in proptest::option::of("null|https?://[a-z:\\[\\]0-9.]{0,12}|.{0,20}"),
            host in proptest::option::of(".{0,20}"),
            tags in proptest::option::of(".{0,20}"),
            body in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..200),
                "\\{\"type\":\"offer\",\"sdp\":\".{0,40}\"\\}".prop_map(String::into_bytes),
            ],
        ) {
            let policy = Policy {
                allow_origin: vec!["https://a.example".into()],
                hosts: Some(Hosts::new("camera", ["b.example".to_owned()])),
            };
            let head = Head {
                method: &method,
                path: &path,
                host: host.as_deref(),
                origin: origin.as_deref(),
                if_none_match: tags.as_deref(),
                requested_method: tags.as_deref(),
                ..Head::default()
            };
            if let Action::Respond(response) = route(&policy, &head, &body) {
                prop_assert!(response.status < 500, "{response:?}");
                let is_kept = response.status == 304;
                let finished = finish(&policy, &head, response);
                prop_assert!(is_kept || finished.headers.iter().any(|(name, _)| *name == "content-security-policy"));
            }
        }
    }
}
