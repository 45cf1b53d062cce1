//! GET /api/events: the state of the server as server-sent events (WHATWG HTML, section 9.2), one `status` a second
//! and, when it changes, `camera`, `viewers` or `recording` at once. One task looks for all listeners, and only
//! while there are any. A listener that does not read loses events, never memory.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, watch};
use tokio::time::{Instant, sleep, timeout};

use super::backend::{Backend, RecordingCommand, Summary};
use super::login_lifetime::{self, LoginLifetime};
use super::response::Response;
use super::{ApiError, routes};
use crate::base::limits;

/// What GET /api/status answers and a `status` event carries: `{"camera", "viewers", "recording", "version"}`.
pub(super) async fn status(backend: &dyn Backend) -> Value {
    status_of(&backend.summary(), backend).await
}

async fn status_of(summary: &Summary, backend: &dyn Backend) -> Value {
    let asked = timeout(limits::EVENTS_RECORDER_TIMEOUT, backend.recording(RecordingCommand::Status)).await;
    let recording = match asked {
        Ok(Ok(recording)) => recording,
        // There is no recorder (--no-recorder).
        Ok(Err(error)) if error.status == 501 => json!({ "recording": false, "state": "off" }),
        // A recorder whose disk hangs must not silence the rest.
        _ => json!({ "recording": summary.is_recording, "state": "unresponsive" }),
    };
    routes::status(summary, &recording)
}

/// Hands events from the one that looks to all that listen.
pub(super) struct Feed {
    backend: Arc<dyn Backend>,
    events: broadcast::Sender<Bytes>,
    places: Arc<Semaphore>,
    came: Notify,
    stop: watch::Receiver<bool>,
}

impl Feed {
    pub(super) fn new(backend: Arc<dyn Backend>, stop: watch::Receiver<bool>) -> Feed {
        Feed {
            backend,
            events: broadcast::Sender::new(limits::EVENTS_KEPT),
            places: Arc::new(Semaphore::new(limits::EVENT_LISTENERS_MAX)),
            came: Notify::new(),
            stop,
        }
    }

    /// Looks and tells; never returns.
    pub(super) async fn run(&self) {
        loop {
            if self.events.receiver_count() == 0 {
                self.came.notified().await;
            }
            let mut known = self.backend.summary();
            let mut told_at = Instant::now();
            self.tell(&known, &["status"]).await;
            while self.events.receiver_count() > 0 {
                sleep(limits::EVENTS_LOOK).await;
                let now = self.backend.summary();
                let mut names = changes(&known, &now);
                if told_at.elapsed() >= limits::EVENTS_STATUS_INTERVAL {
                    names.push("status");
                    told_at = Instant::now();
                }
                if !names.is_empty() {
                    self.tell(&now, &names).await;
                }
                known = now;
            }
        }
    }

    async fn tell(&self, summary: &Summary, names: &[&str]) {
        let status = status_of(summary, self.backend.as_ref()).await;
        for name in names {
            // Nobody left to hear it is fine.
            let _ = self.events.send(event(name, status.get(*name).unwrap_or(&status)));
        }
    }

    /// The head of an answer and what follows it, as long as the login holds that it was asked for with; or 503
    /// beyond `limits::EVENT_LISTENERS_MAX`.
    pub(super) async fn listen(
        &self,
        lifetime: Option<LoginLifetime>,
    ) -> Result<(Response, Listener), ApiError> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| ApiError {
            status: 503,
            code: "too_many_listeners",
            message: format!("{} listeners at once; GET /api/status instead", limits::EVENT_LISTENERS_MAX),
            retry_after_s: Some(limits::EVENTS_RETRY_AFTER_S),
        })?;
        let events = self.events.subscribe();
        self.came.notify_one();
        let mut first = format!("retry: {}\n\n", limits::EVENTS_STATUS_INTERVAL.as_millis()).into_bytes();
        first.extend_from_slice(&event("status", &status(self.backend.as_ref()).await));
        let response = Response::empty(200)
            .header("content-type", "text/event-stream")
            .header("cache-control", "no-store")
            // A proxy that collects bytes before it passes them on would make events late (nginx).
            .header("x-accel-buffering", "no");
        let (first, stop) = (first.into(), self.stop.clone());
        Ok((response, Listener { first, events, stop, lifetime, _place: place }))
    }
}

/// What differs, by the names of the events that tell it.
fn changes(before: &Summary, now: &Summary) -> Vec<&'static str> {
    let state = |summary: &Summary| summary.camera.get("state").cloned();
    let size =
        |summary: &Summary| (summary.camera.get("width").cloned(), summary.camera.get("height").cloned());
    let mut names = Vec::new();
    if state(before) != state(now) || size(before) != size(now) {
        names.push("camera");
    }
    if before.viewers != now.viewers {
        names.push("viewers");
    }
    if before.is_recording != now.is_recording {
        names.push("recording");
    }
    names
}

/// One event. JSON as serde_json writes it has no line breaks, so one `data` line holds it.
fn event(name: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

/// The events that follow a response's head.
pub(super) struct Listener {
    first: Bytes,
    events: broadcast::Receiver<Bytes>,
    stop: watch::Receiver<bool>,
    lifetime: Option<LoginLifetime>,
    _place: OwnedSemaphorePermit,
}

impl Listener {
    /// The body, filled by a task of its own until the listener or its login is gone or the server stops.
    pub(super) fn into_body(self) -> Channel<Bytes, io::Error> {
        let (sender, body) = Channel::new(1);
        tokio::spawn(self.fill(sender));
        body
    }

    async fn fill(mut self, sender: Sender<Bytes, io::Error>) {
        let (mut stop, lifetime) = (self.stop.clone(), self.lifetime.take());
        // Also while a listener does not read.
        tokio::select! {
            biased;
            _ = stop.wait_for(|&stopped| stopped) => {}
            () = login_lifetime::over(lifetime) => {}
            () = self.tell(sender) => {}
        }
    }

    async fn tell(&mut self, mut sender: Sender<Bytes, io::Error>) {
        let mut next = Some(std::mem::take(&mut self.first));
        while let Some(event) = next {
            if sender.send_data(event).await.is_err() {
                return;
            }
            next = newest(&mut self.events).await;
        }
    }
}

/// The next event that is still kept.
async fn newest(events: &mut broadcast::Receiver<Bytes>) -> Option<Bytes> {
    loop {
        match events.recv().await {
            Ok(event) => return Some(event),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(state: &str, viewers: u32, is_recording: bool) -> Summary {
        Summary { camera: json!({ "state": state, "fps": 30.0 }), viewers, is_recording }
    }

    #[test]
    fn each_change_is_told_by_its_name() {
        let before = summary("live", 1, false);
        assert!(changes(&before, &before).is_empty());
        assert_eq!(changes(&before, &summary("away", 1, false)), ["camera"]);
        assert_eq!(changes(&before, &summary("live", 2, false)), ["viewers"]);
        assert_eq!(changes(&before, &summary("live", 0, true)), ["viewers", "recording"]);
    }

    #[test]
    fn the_frame_rate_alone_is_no_change() {
        let mut now = summary("live", 1, false);
        now.camera = json!({ "state": "live", "fps": 29.9 });
        assert!(changes(&summary("live", 1, false), &now).is_empty());
    }

    #[test]
    fn an_event_is_one_line_of_data() {
        let text = event("camera", &json!({ "reason": "line\nbreak" }));
        assert_eq!(text, "event: camera\ndata: {\"reason\":\"line\\nbreak\"}\n\n");
    }
}
