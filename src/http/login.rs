//! Builds the responses about the login: the answer of `/api/session`, the refusal of a request without a valid token
//! or login, and the redirect from plain HTTP to TLS. Does no I/O; [`super::access`] authenticates requests.

use serde_json::json;

use super::backend::ApiError;
use super::request::Head;
use super::response::Response;

/// Returns the response to a request for `/api/session` that was not refused.
pub(super) fn answer(is_token_required: bool) -> Response {
    Response::json(200, &json!({ "token_required": is_token_required }))
}

/// Returns the response that refuses an unauthenticated or throttled request.
pub(super) fn refusal(error: ApiError) -> Response {
    let challenge = match (error.status, error.code) {
        (401, "wrong_token") => Some("Bearer realm=\"streaming-server\", error=\"invalid_token\""),
        (401, _) => Some("Bearer realm=\"streaming-server\""),
        _ => None,
    };
    let response = Response::from(error);
    match challenge {
        Some(challenge) => response.header("www-authenticate", challenge),
        None => response,
    }
}

/// Returns the response to a plain HTTP request on a TLS port: a redirect for GET and HEAD, otherwise an error. The
/// caller must have checked that `Host` names this server.
pub(super) fn redirect_to_tls(head: &Head<'_>) -> Response {
    let host = head.host.unwrap_or("HOST:PORT");
    let query = head.query.map(|query| format!("?{query}")).unwrap_or_default();
    let location = format!("https://{host}{}{query}", head.path);
    let message = format!("this port speaks HTTPS only: use https://{host}{}", head.path);
    if head.host.is_some() && matches!(head.method, "GET" | "HEAD") {
        Response::error(307, "https_required", &message).header("location", location).closing()
    } else {
        Response::error(400, "https_required", &message).closing()
    }
}

/// Returns the response to a request of a login that holds its share of the connections.
pub(super) fn too_many_connections() -> Response {
    let error = ApiError {
        status: 503,
        code: "too_many_connections",
        message: "this login holds half of all connections: close some of them".to_owned(),
        retry_after_s: Some(1),
    };
    Response::from(error).closing()
}
