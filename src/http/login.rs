//! `/api/session`: what comes and goes there, and what a refused caller is told. Pure; who is let in is decided in
//! [`super::access`].

use serde::Deserialize;
use serde_json::json;

use super::ApiError;
use super::response::Response;
use super::routes::Head;

#[derive(Deserialize)]
struct LoginBody {
    token: String,
}

/// The token of `{"token": "..."}`. The error does not repeat the body: it may hold the token.
pub(super) fn parse_login(body: &[u8]) -> Result<String, ApiError> {
    let bad = |_| ApiError::new(400, "bad_json", "expected {\"token\": \"...\"}");
    serde_json::from_slice::<LoginBody>(body).map(|login| login.token).map_err(bad)
}

/// The answer to all of `/api/session`.
pub(super) fn answer(is_token_required: bool) -> Response {
    Response::json(200, &json!({ "token_required": is_token_required }))
}

/// What is told to who is not let in.
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

/// Plain HTTP at the port that has TLS: a browser is sent to the right address, a program is told. The caller has
/// checked that the host is ours.
pub(super) fn send_to_tls(head: &Head<'_>) -> Response {
    let host = head.host.unwrap_or("HOST:PORT");
    let query = head.query.map(|query| format!("?{query}")).unwrap_or_default();
    let location = format!("https://{host}{}{query}", head.path);
    let message = format!("this port speaks HTTPS: ask https://{host}{}", head.path);
    if head.host.is_some() && matches!(head.method, "GET" | "HEAD") {
        Response::error(307, "https_required", &message).header("location", location).closing()
    } else {
        Response::error(400, "https_required", &message).closing()
    }
}
