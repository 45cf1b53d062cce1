//! Runs an [`Action`] on the backend, for both adapters.

use serde_json::json;

use super::backend::{ApiError, Backend, OfferOrigin, SessionCommand};
use super::response::Response;
use super::routes::Action;
use super::{events, login};

/// Runs an action and returns its response. Only the public endpoint has WHEP, HTTP live, events and downloads, and it
/// serves them without this function. If the server has a token, the public endpoint also answers the actions of the
/// login itself.
///
/// # Errors
/// Returns the error of the backend, or 404 for WHEP, HTTP live, events and downloads.
pub(super) async fn perform(
    backend: &dyn Backend,
    action: Action,
    origin: OfferOrigin,
) -> Result<Response, ApiError> {
    Ok(match action {
        Action::Respond(response) => response,
        Action::Offer(offer) => {
            let offered = backend.offer(offer, origin).await?;
            let answer = json!({ "type": "answer", "sdp": offered.answer, "session": offered.key });
            Response::json(200, &answer)
        }
        Action::Report { session, report } => {
            backend.session(&session, SessionCommand::Report(report)).await?;
            Response::empty(204)
        }
        Action::Detections(posted) => {
            backend.post_detections(posted)?;
            Response::empty(204)
        }
        Action::Viewers => Response::json(200, &backend.viewers().await),
        Action::Status => Response::json(200, &events::status(backend).await),
        Action::Ready => match backend.ready() {
            Ok(()) => Response::json(200, &json!({ "status": "ready" })),
            Err(reason) => Response::json(503, &json!({ "status": "waiting", "reason": reason })),
        },
        Action::Metrics => {
            Response::with_body(200, "text/plain; version=0.0.4; charset=utf-8", backend.metrics())
                .header("cache-control", "no-store")
        }
        Action::Recording(command) => Response::json(200, &backend.recording(command).await?),
        Action::RecordingStatus => Response::json(200, &backend.recording_status().await?),
        // No token is required here: either the server has none, or the request comes from this machine over the
        // control endpoint.
        Action::Session | Action::LogIn(_) | Action::LogOut => login::answer(false),
        Action::Whep(_) => {
            return Err(ApiError::new(404, "not_here", "WHEP is on the public endpoint (--http)"));
        }
        Action::Events => {
            return Err(ApiError::new(404, "not_here", "events are on the public endpoint (--http)"));
        }
        Action::Live(_) => {
            return Err(ApiError::new(404, "not_here", "HTTP live is on the public endpoint (--http)"));
        }
        Action::Download { .. } => {
            return Err(ApiError::new(404, "not_here", "downloads are on the public endpoint (--http)"));
        }
    })
}
