//! Decides about requests without I/O: what a path means, if the request is malformed, and if the page that sent it may
//! do so.
//!
//! ```text
//!  Head ──admit──► Route ──act(body)──► Action ──perform (calls the Backend)──► Response ──finish──►
//!    └──────────► Response (404, 405, 403, preflight)
//! ```
//!
//! A new route is one line in [`ROUTES`], its description in `openapi.json`, and, if it needs the rest of the program,
//! one [`Action`].
//! This module must not read sockets, files or clocks.

use serde_json::json;

use super::assets::{self, Asset};
use super::backend::{ApiError, LiveFormat, RecordingCommand, SessionCommand, ViewerOffer};
use super::detections;
use super::error_page;
use super::host::Hosts;
use super::listing;
use super::live;
use super::origin;
use super::ranges;
use super::request::{self, Head, LogIn};
use super::response::Response;
use super::types::PostedDetections;
use super::whep::{self, WhepPolicy, WhepRequest};
use crate::base::limits;
use crate::metrics::status::GlassReport;

/// One line of the table [`ROUTES`].
#[derive(Debug)]
pub struct Route {
    /// Method of the request. A path with GET also accepts HEAD, and every path accepts OPTIONS.
    pub method: &'static str,
    /// Path, with `NAME` for the name of a recording, `STREAM` for that of a stream and `SESSION` for the key of a
    /// session.
    pub path: &'static str,
    /// Largest number of bytes that the body may have. A longer body is answered with 413.
    pub body_bytes_max: usize,
    /// True if the route needs no token even when the server has one: the health check, the files of the page, and the
    /// login, which checks the token itself. By default, a route is not open.
    pub is_open: bool,
    parse: Parse,
}

/// Parses the head and the body of a request. An error becomes the response to the request.
type Parse = fn(&Head<'_>, &[u8]) -> Result<Action, ApiError>;

const fn get(path: &'static str, parse: Parse) -> Route {
    Route { method: "GET", path, body_bytes_max: 0, is_open: false, parse }
}

const fn open(path: &'static str, parse: Parse) -> Route {
    Route { is_open: true, ..get(path, parse) }
}

const fn delete(path: &'static str, parse: Parse) -> Route {
    Route { method: "DELETE", ..get(path, parse) }
}

const fn patch(path: &'static str, body_bytes_max: usize, parse: Parse) -> Route {
    Route { method: "PATCH", body_bytes_max, ..get(path, parse) }
}

const fn post(path: &'static str, body_bytes_max: usize, parse: Parse) -> Route {
    Route { method: "POST", body_bytes_max, ..get(path, parse) }
}

/// All routes.
pub static ROUTES: &[Route] = &[
    post("/api/webrtc/offer", limits::BODY_BYTES_MAX, |_, body| {
        request::parse_offer(body).map(Action::Offer)
    }),
    post(whep::ENDPOINT, limits::BODY_BYTES_MAX, |head, body| {
        whep::parse_offer(head, body).map(Action::Whep)
    }),
    get(whep::ENDPOINT, |_, _| Ok(Action::Respond(whep::endpoint()))),
    get(whep::SESSION, |head, _| Ok(Action::Whep(whep::on_session(head, SessionCommand::Find)))),
    patch(whep::SESSION, limits::FRAGMENT_BYTES_MAX, |head, body| {
        whep::parse_fragment(head, body).map(Action::Whep)
    }),
    delete(whep::SESSION, |head, _| Ok(Action::Whep(whep::on_session(head, SessionCommand::Delete)))),
    get(live::MP4, |_, _| Ok(Action::Live(LiveFormat::Mp4))),
    get(live::H264, |_, _| Ok(Action::Live(LiveFormat::AnnexB))),
    get("/api/viewers", |_, _| Ok(Action::Viewers)),
    post("/api/viewers/report", limits::COMMAND_BYTES_MAX, |_, body| {
        request::parse_report(body).map(|(session, report)| Action::Report { session, report })
    }),
    post("/api/detections", limits::DETECTIONS_BODY_BYTES_MAX, |_, body| {
        detections::parse_detections(body).map(Action::Detections)
    }),
    get("/api/status", |_, _| Ok(Action::Status)),
    get("/api/events", |_, _| Ok(Action::Events)),
    get("/api/openapi.json", |head, _| Ok(file(&assets::OPENAPI, head))),
    open(HEALTH, |_, _| Ok(Action::Respond(Response::json(200, &json!({ "status": "ok" }))))),
    get("/ready", |_, _| Ok(Action::Ready)),
    get("/metrics", |_, _| Ok(Action::Metrics)),
    post("/api/recording/start", limits::COMMAND_BYTES_MAX, |_, body| {
        Ok(Action::Recording(RecordingCommand::Start(request::parse_start(body))))
    }),
    // `stop` and `heartbeat` need no body, but a body is accepted and ignored, because scripts send `{}`.
    post("/api/recording/stop", limits::COMMAND_BYTES_MAX, |_, _| {
        Ok(Action::Recording(RecordingCommand::Stop))
    }),
    post("/api/recording/heartbeat", limits::COMMAND_BYTES_MAX, |_, _| {
        Ok(Action::Recording(RecordingCommand::Heartbeat))
    }),
    get("/api/recording/status", |_, _| Ok(Action::RecordingStatus)),
    get("/api/recordings", |head, _| {
        Ok(Action::Recording(RecordingCommand::List(listing::parse(head.query)?)))
    }),
    get(RECORDING, |head, _| {
        let follow = head.query.is_some_and(|query| query.split('&').any(|pair| pair == "follow=1"));
        Ok(Action::Download { name: recording_name(head.path)?, follow, until: until(head.query)? })
    }),
    delete(RECORDING, |head, _| Ok(Action::Recording(RecordingCommand::Delete(recording_name(head.path)?)))),
    get("/api/session", |_, _| Ok(Action::Session)),
    Route {
        is_open: true,
        ..post("/api/session", limits::LOGIN_BYTES_MAX, |_, body| {
            request::parse_login(body).map(Action::LogIn)
        })
    },
    delete("/api/session", |_, _| Ok(Action::LogOut)),
    open("/", |head, _| Ok(file(&assets::INDEX, head))),
    open("/login.js", |head, _| Ok(file(&assets::LOGIN, head))),
    open("/viewer.js", |head, _| Ok(file(&assets::SCRIPT, head))),
    open("/events.js", |head, _| Ok(file(&assets::EVENTS, head))),
    open("/live.js", |head, _| Ok(file(&assets::LIVE, head))),
    open("/remedies.js", |head, _| Ok(file(&assets::REMEDIES, head))),
    open("/recordings.js", |head, _| Ok(file(&assets::RECORDINGS, head))),
    open("/dom.js", |head, _| Ok(file(&assets::DOM, head))),
    open("/texts.js", |head, _| Ok(file(&assets::TEXTS, head))),
    open("/stats.js", |head, _| Ok(file(&assets::STATS, head))),
    open("/screen.js", |head, _| Ok(file(&assets::SCREEN, head))),
    open("/controls.js", |head, _| Ok(file(&assets::CONTROLS, head))),
    open("/overlay.js", |head, _| Ok(file(&assets::OVERLAY, head))),
    open("/boxes.js", |head, _| Ok(file(&assets::BOXES, head))),
    open("/sidecar.js", |head, _| Ok(file(&assets::SIDECAR, head))),
    open("/zoom.js", |head, _| Ok(file(&assets::ZOOM, head))),
    open("/library.js", |head, _| Ok(file(&assets::LIBRARY, head))),
    open("/player.js", |head, _| Ok(file(&assets::PLAYER, head))),
    open("/thumbnails.js", |head, _| Ok(file(&assets::THUMBNAILS, head))),
    open("/share.js", |head, _| Ok(file(&assets::SHARE, head))),
    open("/viewer.css", |head, _| Ok(file(&assets::STYLE, head))),
    open("/icon.svg", |head, _| Ok(file(&assets::ICON, head))),
    open("/icon-rec.svg", |head, _| Ok(file(&assets::ICON_REC, head))),
    open("/icon-off.svg", |head, _| Ok(file(&assets::ICON_OFF, head))),
    open("/touch.png", |head, _| Ok(file(&assets::TOUCH_ICON, head))),
    open("/manifest.json", |head, _| Ok(file(&assets::MANIFEST, head))),
];

const HEALTH: &str = "/health";
const RECORDING: &str = "/api/recordings/NAME";
const RECORDING_PREFIX: &str = "/api/recordings/";

/// Returns the path as it is written in [`ROUTES`]: with words in capitals instead of its variable parts.
fn template(path: &str) -> &str {
    match path.strip_prefix(RECORDING_PREFIX) {
        Some(name) if !name.is_empty() && !name.contains('/') => RECORDING,
        _ => {
            let of_live = || live::Target::of(path).map(live::Target::template);
            whep::Target::of(path).map(whep::Target::template).or_else(of_live).unwrap_or(path)
        }
    }
}

/// Returns false if the path names a stream that does not exist.
fn is_served(policy: &Policy, path: &str) -> bool {
    whep::Target::of(path).is_none_or(|target| target.is_served(&policy.whep))
        && live::Target::of(path).is_none_or(|target| target.is_served(&policy.whep.stream))
}

/// Returns the decoded name of the recording in a path.
fn recording_name(path: &str) -> Result<String, ApiError> {
    let segment = path.strip_prefix(RECORDING_PREFIX).unwrap_or_default();
    ranges::decode_segment(segment)
        .ok_or_else(|| ApiError::new(400, "bad_name", "the name's percent-encoding is malformed"))
}

/// Returns the offset in the query `until=OFFSET`, or `None` without such a query.
fn until(query: Option<&str>) -> Result<Option<u64>, ApiError> {
    let mut pairs = query.unwrap_or_default().split('&');
    let offset = pairs.find_map(|pair| pair.strip_prefix("until=")).map(str::parse);
    offset.transpose().map_err(|_| ApiError::new(400, "bad_until", "`until` must be a number of bytes"))
}

/// Which foreign pages may call the API, and under which names this server and its stream answer.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Origins (`https://host[:port]`) whose pages may use the API.
    pub allow_origin: Vec<String>,
    /// Accepted values of `Host`; `None` accepts all values.
    pub hosts: Option<Hosts>,
    /// The stream, and the STUN and TURN servers of its viewers.
    pub whep: WhepPolicy,
}

/// What an adapter must do for a request. `perform` runs the action on the backend.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send this response.
    Respond(Response),
    /// Pass the browser's offer to the backend.
    Offer(ViewerOffer),
    /// Note the latency that a viewer has measured.
    Report {
        /// Key of the viewer's session.
        session: String,
        /// The measurement.
        report: GlassReport,
    },
    /// Start, change or end a session by WHEP.
    Whep(WhepRequest),
    /// Send the stream without an end.
    Live(LiveFormat),
    /// Take what a detector found in a picture.
    Detections(PostedDetections),
    /// Send the state of every viewer.
    Viewers,
    /// Send the state of the server.
    Status,
    /// Send a stream of server-sent events.
    Events,
    /// Report if access units arrive.
    Ready,
    /// Send the page of metrics.
    Metrics,
    /// Run a command of the recorder.
    Recording(RecordingCommand),
    /// Send the state of the recorder.
    RecordingStatus,
    /// Report if this server requires a token, and renew the caller's login.
    Session,
    /// Make a login if the token from the body is right.
    LogIn(LogIn),
    /// End the caller's login.
    LogOut,
    /// Open this recording and send it.
    Download {
        /// Name of the recording.
        name: String,
        /// Continue while the recording grows (`?follow=1`).
        follow: bool,
        /// Read the bytes of a growing recording before this offset as a finished file (`?until=OFFSET`).
        until: Option<u64>,
    },
}

/// Finds the route of a request. This is the first of two steps, before the body is read; [`Route::act`] is the second.
///
/// # Errors
/// Returns the response if the request needs no route: 404, 405, 403 for a foreign `Host` or a foreign page, or the
/// answer to OPTIONS.
pub fn admit(policy: &Policy, head: &Head<'_>) -> Result<&'static Route, Response> {
    let path = template(head.path);
    // A health check may use any `Host`. For every other path, `Host` must name this server.
    if path != HEALTH {
        admit_host(policy, head)?;
    }
    let allowed = if is_served(policy, head.path) { allowed_methods(path) } else { Vec::new() };
    if allowed.is_empty() {
        return Err(Response::error(404, "not_found", "this path does not exist"));
    }
    if head.method == "OPTIONS" {
        return Err(whep::describe(path, options(policy, head, &allowed)));
    }
    let wanted = if head.method == "HEAD" { "GET" } else { head.method };
    let Some(route) = ROUTES.iter().find(|route| route.path == path && route.method == wanted) else {
        let message = format!("{} accepts {}", head.path, allowed.join(", "));
        return Err(Response::error(405, "method_not_allowed", &message).header("allow", allowed.join(", ")));
    };
    if wanted != "GET" && !origin_may_change(policy, head) {
        return Err(origin_refused(head));
    }
    Ok(route)
}

/// Checks that `Host` names this server.
///
/// # Errors
/// Returns a 403 response if `Host` is another name.
pub fn admit_host(policy: &Policy, head: &Head<'_>) -> Result<(), Response> {
    match (&policy.hosts, head.host) {
        (Some(hosts), Some(host)) if !hosts.allows(host) => Err(host_refused(host)),
        _ => Ok(()),
    }
}

impl Route {
    /// Parses the body and returns the action. This is the second step, after [`admit`]. The caller must have limited
    /// the body to `body_bytes_max`.
    #[must_use]
    pub fn act(&self, head: &Head<'_>, body: &[u8]) -> Action {
        (self.parse)(head, body).unwrap_or_else(|error| Action::Respond(error.into()))
    }
}

/// Returns a 413 response whose text names the limit, `bytes_max`.
#[must_use]
pub fn body_too_large(bytes_max: usize) -> Response {
    let message = format!("the body is too long: at most {bytes_max} bytes are accepted");
    Response::error(413, "body_too_large", &message)
}

/// Adds the security headers to a response, and the CORS headers if an allow-listed page has sent the request. This is
/// the last step for every response.
#[must_use]
pub fn finish(policy: &Policy, head: &Head<'_>, response: Response) -> Response {
    let is_page = response.content_type.is_some_and(|kind| kind.starts_with("text/html"));
    let is_for_friend = head.origin.is_some_and(|origin| policy.lists(origin))
        || head.referer.is_some_and(|page| policy.lists(origin::of_url(page)));
    let response = error_page::for_browser(head, response)
        .header("x-content-type-options", "nosniff")
        .header("referrer-policy", "no-referrer")
        // A browser sends no `Origin` when it loads a <video>, so the page is also recognized by its `Referer`.
        .header("cross-origin-resource-policy", if is_for_friend { "cross-origin" } else { "same-origin" });
    let response = match response.status {
        // A browser overwrites the headers of its cached page with those of a 304 response. A 304 carries no policy, so
        // the cached page keeps the policy it has.
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
    let response = response.header("vary", "origin, referer");
    match head.origin {
        Some(origin) if policy.lists(origin) => response
            .header("access-control-allow-origin", origin)
            .header("access-control-allow-credentials", "true")
            .header("access-control-expose-headers", EXPOSED_HEADERS),
        _ => response,
    }
}

/// Headers of answers that a script of an allow-listed page may read, besides those that every script may read.
const EXPOSED_HEADERS: &str = "accept-patch, accept-post, accept-ranges, allow, content-disposition, content-range, \
     etag, link, location, retry-after, www-authenticate";

/// Headers of requests that a script of an allow-listed page may set.
const ACCEPTED_HEADERS: &str =
    "authorization, cache-control, content-type, if-match, if-none-match, if-range, last-event-id, range";

/// Returns the Content-Security-Policy of the viewer page. Only pages of our own origin and of allow-listed origins may
/// embed it in a frame.
fn page_policy(policy: &Policy) -> String {
    let origins = policy.allow_origin.iter().map(|origin| format!(" {origin}"));
    origins.fold(PAGE_POLICY.to_owned(), |text, origin| text + &origin)
}

/// Content-Security-Policy of the viewer page, which may load only its own files and use only its own API.
/// `frame-ancestors` must come last, because the allow-listed origins are appended to it.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     media-src 'self' blob:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// Content-Security-Policy of every response that is not the page.
const API_POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

impl Policy {
    fn lists(&self, origin: &str) -> bool {
        self.allow_origin.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
    }

    /// Returns true if an allow-listed page of another origin has sent the request.
    pub(super) fn is_foreign_friend(&self, head: &Head<'_>) -> bool {
        head.origin.is_some_and(|origin| self.lists(origin) && !origin::is_same(origin, head.host))
    }
}

/// Refuses a request that calls this server by a foreign name. Names the option that allows it only for a plain host
/// name: strangers choose this text, and the operator may copy it into a shell.
fn host_refused(host: &str) -> Response {
    let plain = Hosts::name(host).filter(|name| !name.starts_with('['));
    let name: String = plain.as_deref().unwrap_or(host).chars().take(request::QUOTED_CHARS_MAX).collect();
    let message = format!("this server does not answer to the name \"{name}\"");
    if plain.is_none() {
        return Response::error(403, "host_refused", &message).closing();
    }
    let remedy = "If the name is right, start the server with --allow-host";
    let line = format!("a request for the host name {name:?} was refused. {remedy} {name:?}");
    let message = format!("{message}. {remedy} {name}");
    Response::error(403, "host_refused", &message).closing().logged(line)
}

/// Refuses a request of a foreign page. Names the option that would allow it, because behind a proxy that changes
/// `Host` our own page looks foreign.
fn origin_refused(head: &Head<'_>) -> Response {
    let quoted = |text: &str| text.chars().take(request::QUOTED_CHARS_MAX).collect::<String>();
    let (origin, host) = (quoted(head.origin.unwrap_or_default()), quoted(head.host.unwrap_or_default()));
    // The operator may copy the option into a shell, so the text names it only for an origin of plain characters.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    let authority = ["http://", "https://"].iter().find_map(|scheme| origin.strip_prefix(scheme));
    let is_web = authority.is_some_and(|authority| authority.bytes().all(is_plain));
    let remedy = if is_web {
        format!(
            ". If this is the address of a proxy of yours, let the proxy pass the Host header on, or start the server with --allow-origin {origin}"
        )
    } else {
        String::new()
    };
    let message = format!(
        "pages of the origin \"{origin}\" may not use this server, which the request calls \"{host}\"{remedy}"
    );
    let response = Response::error(403, "origin_refused", &message);
    if is_web {
        response.logged(format!(
            "a request of a page of the origin {origin:?} for the host {host:?} was refused. If the origin is right, start the server with --allow-origin {origin:?}"
        ))
    } else {
        response
    }
}

/// Returns true if a state-changing request may proceed. Accepted are requests without Origin, which no page has sent,
/// and requests of our own page or of an allow-listed page.
fn origin_may_change(policy: &Policy, head: &Head<'_>) -> bool {
    match head.origin {
        None => true,
        Some(origin) => policy.lists(origin) || origin::is_same(origin, head.host),
    }
}

/// Returns the methods of a path, with OPTIONS as the last, or an empty list for an unknown path.
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

/// Answers OPTIONS with the methods of the path. The answer to a CORS preflight of an allow-listed page also contains
/// the methods and headers that the page may use. A preflight of any other foreign page is refused with 403.
fn options(policy: &Policy, head: &Head<'_>, allowed: &[&str]) -> Response {
    let methods = allowed.join(", ");
    let response = Response::empty(204).header("allow", methods.clone());
    match (head.requested_method, head.origin) {
        (Some(_), Some(origin)) if policy.lists(origin) => response
            .header("access-control-allow-methods", methods)
            .header("access-control-allow-headers", ACCEPTED_HEADERS)
            // Chrome asks for this before a page of a public site may use an address of the local network.
            .header("access-control-allow-private-network", "true")
            .header("access-control-max-age", "600"),
        (Some(_), Some(origin)) if !origin::is_same(origin, head.host) => origin_refused(head),
        _ => response,
    }
}

fn file(asset: &'static Asset, head: &Head<'_>) -> Action {
    Action::Respond(asset.respond(head))
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

    /// Returns the names by which the description of the API calls a path of the table.
    fn described(path: &str) -> Vec<String> {
        let path = path.replace("NAME", "{name}").replace("SESSION", "{session}");
        let named = path.replace("STREAM", "{stream}");
        if named == path { vec![named] } else { vec![path.replace("/STREAM", ""), named] }
    }

    #[test]
    fn the_description_of_the_api_has_the_routes_of_the_table_and_no_others() {
        let text: serde_json::Value = serde_json::from_slice(assets::OPENAPI.plain()).unwrap();
        let mut in_text = Vec::new();
        for (path, operations) in text["paths"].as_object().unwrap() {
            let methods = operations.as_object().unwrap().keys().filter(|key| *key != "parameters");
            in_text.extend(methods.map(|method| (method.to_uppercase(), path.clone())));
        }
        let with_method = |route: &Route| -> Vec<(String, String)> {
            described(route.path).into_iter().map(|path| (route.method.to_owned(), path)).collect()
        };
        let mut in_table: Vec<_> = ROUTES.iter().flat_map(with_method).collect();
        in_text.sort();
        in_table.sort();
        assert_eq!(in_text, in_table);
        assert_eq!(text["info"]["version"], env!("CARGO_PKG_VERSION"));
        for route in ROUTES {
            for path in described(route.path) {
                let operation = &text["paths"][&path][route.method.to_lowercase()];
                let is_open = operation["security"] == json!([]);
                assert_eq!(is_open, route.is_open, "{} {path}", route.method);
            }
        }
    }

    #[test]
    fn no_stream_can_have_the_name_of_another_path() {
        let first_parts = ROUTES.iter().filter_map(|route| route.path.split('/').nth(1));
        for part in first_parts.filter(|part| !part.is_empty() && *part != "STREAM").chain(["debug", "whep"])
        {
            let absent = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
            let parsed = crate::config::Config::from_args(["--name".into(), part.into()], |_| None, absent);
            assert!(parsed.is_err(), "--name {part}");
        }
    }

    fn decide(policy: &Policy, head: &Head<'_>, body: &[u8]) -> Action {
        admit(policy, head).map_or_else(Action::Respond, |route| route.act(head, body))
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
                ..Policy::default()
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
            if let Action::Respond(response) = decide(&policy, &head, &body) {
                prop_assert!(response.status < 500, "{response:?}");
                let is_kept = response.status == 304;
                let finished = finish(&policy, &head, response);
                prop_assert!(is_kept || finished.headers.iter().any(|(name, _)| *name == "content-security-policy"));
            }
        }
    }
}
