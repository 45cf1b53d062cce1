//! Serves GET /api/events: sends the state of the server as server-sent events (WHATWG HTML, section 9.2). A `status`
//! event is sent every second. A `camera`, `viewers`, `recording` or `publish` event is sent when that part of the
//! state changes. A `detections` event is sent at once for each result of the detector. One task polls the backend for
//! all listeners, and only while there are listeners. A listener that reads too slowly loses events, so memory stays
//! bounded.

use std::io;
use std::mem::discriminant;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, Semaphore, broadcast, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::backend::{ApiError, Backend, BoxFuture};
use super::login_lifetime;
use super::response::{BodyStream, Response, json_text};
use super::types::{CameraPicture, CameraSummary, RecordingStatus, Status, Summary};
use crate::base::limits;
use crate::metrics::status::RecorderState;

/// Returns the body of GET /api/status and of a `status` event.
pub(super) async fn status(backend: &dyn Backend) -> Status {
    status_of(backend.summary(), backend).await
}

async fn status_of(summary: Summary, backend: &dyn Backend) -> Status {
    let answer = timeout(limits::EVENTS_RECORDER_TIMEOUT, backend.recording_status()).await;
    let recording = match answer {
        Ok(Ok(recording)) => recording,
        // The error 501 means that the server has no recorder (--no-recorder).
        Ok(Err(error)) if error.status == 501 => RecordingStatus::bare(RecorderState::Off, false),
        // The recorder did not answer in time, usually because the disk hangs. The rest of the status is still useful,
        // so it is sent.
        _ => RecordingStatus::bare(RecorderState::Unresponsive, summary.is_recording),
    };
    Status {
        stream: backend.stream(),
        camera: summary.camera,
        viewers: summary.viewers,
        http_viewers: summary.http_viewers,
        recording,
        detections: summary.detections,
        publish: summary.publish,
        version: env!("CARGO_PKG_VERSION"),
    }
}

/// Polls the backend and broadcasts events to all listeners.
pub(super) struct Feed {
    backend: Arc<dyn Backend>,
    events: broadcast::Sender<Bytes>,
    permits: Arc<Semaphore>,
    subscribed: Notify,
    stop: watch::Receiver<bool>,
}

impl Feed {
    pub(super) fn new(backend: Arc<dyn Backend>, stop: watch::Receiver<bool>) -> Feed {
        Feed {
            backend,
            events: broadcast::Sender::new(limits::EVENTS_KEPT),
            permits: Arc::new(Semaphore::new(limits::EVENT_LISTENERS_MAX)),
            subscribed: Notify::new(),
            stop,
        }
    }

    /// Polls the backend while there are listeners, and broadcasts events to them. Never returns.
    pub(super) async fn run(&self) {
        loop {
            if self.events.receiver_count() == 0 {
                self.subscribed.notified().await;
            }
            let mut known = self.backend.summary();
            let mut status_sent_at = Instant::now();
            let mut detections = self.backend.detections();
            self.broadcast(&known, &[Event::Status]).await;
            while self.events.receiver_count() > 0 {
                self.forward(&mut detections, limits::EVENTS_LOOK).await;
                let now = self.backend.summary();
                let mut events = changes(&known, &now);
                if status_sent_at.elapsed() >= limits::EVENTS_STATUS_INTERVAL {
                    events.push(Event::Status);
                    status_sent_at = Instant::now();
                }
                if !events.is_empty() {
                    self.broadcast(&now, &events).await;
                }
                known = now;
            }
        }
    }

    /// Sends a `detections` event for each result that arrives within `time`.
    async fn forward(&self, detections: &mut broadcast::Receiver<Bytes>, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(result) = timeout_at(end, detections.recv()).await {
            match result {
                Ok(event) => {
                    // This send fails if the last listener has just left, so the error is ignored.
                    let _ = self.events.send(event);
                }
                // Results were lost because this thread was busy. The next one is still good.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return sleep_until(end).await,
            }
        }
    }

    async fn broadcast(&self, summary: &Summary, events: &[Event]) {
        let status = status_of(summary.clone(), self.backend.as_ref()).await;
        for event in events {
            // This send fails if the last listener has just left, so the error is ignored.
            let _ = self.events.send(event.text(&status));
        }
    }

    /// Adds a listener. Returns the head of the response and, if `has_body`, the stream of events. The stream ends when
    /// the listener leaves, the login ends or the server stops. Returns the error 503 if there are already
    /// `limits::EVENT_LISTENERS_MAX` listeners.
    pub(super) async fn subscribe(
        &self,
        has_body: bool,
        login_end: Option<BoxFuture<()>>,
    ) -> Result<(Response, Option<BodyStream>), ApiError> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| ApiError {
            status: 503,
            code: "too_many_listeners",
            message: format!(
                "all {} event streams are in use: poll GET /api/status instead",
                limits::EVENT_LISTENERS_MAX
            ),
            retry_after_s: Some(limits::EVENTS_RETRY_AFTER_S),
        })?;
        let events = self.events.subscribe();
        self.subscribed.notify_one();
        let mut first = format!("retry: {}\n\n", limits::EVENTS_STATUS_INTERVAL.as_millis()).into_bytes();
        first.extend_from_slice(&Event::Status.text(&status(self.backend.as_ref()).await));
        let response = Response::empty(200)
            .header("content-type", "text/event-stream")
            .header("cache-control", "no-store")
            // Without this header, nginx collects bytes before it passes them on, and events arrive late.
            .header("x-accel-buffering", "no");
        if !has_body {
            return Ok((response, None));
        }
        let (sender, body) = Channel::new(1);
        let mut stop = self.stop.clone();
        tokio::spawn(async move {
            // The first two branches also end the task if the listener does not read, because `send` then waits for the
            // listener.
            tokio::select! {
                biased;
                _ = stop.wait_for(|&stopped| stopped) => {}
                () = login_lifetime::ended(login_end) => {}
                () = send(first.into(), events, sender) => {}
            }
            drop(permit);
        });
        Ok((response, Some(body)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Status,
    Camera,
    Viewers,
    Recording,
    Publish,
}

impl Event {
    /// Returns the event in the form in which it is sent. The JSON has no line breaks, so it fits into one `data` line.
    fn text(self, status: &Status) -> Bytes {
        let (name, data) = match self {
            Event::Status => ("status", json_text(status)),
            Event::Camera => ("camera", json_text(&status.camera)),
            Event::Viewers => ("viewers", json_text(&status.viewers)),
            Event::Recording => ("recording", json_text(&status.recording)),
            Event::Publish => ("publish", json_text(&status.publish)),
        };
        Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
    }
}

/// Returns one event for each part that differs between the summaries. The frame rate is not compared, because it
/// changes all the time, nor are the figures of publishing.
fn changes(before: &Summary, now: &Summary) -> Vec<Event> {
    let shown = |camera: &CameraSummary| {
        let shape = |picture: &CameraPicture| {
            (picture.width, picture.height, picture.b_frames, picture.slot_fault, picture.notice.is_some())
        };
        (discriminant(camera), camera.picture().map(shape))
    };
    let published =
        |summary: &Summary| summary.publish.as_ref().map(|publish| (publish.state, publish.error.clone()));
    let parts = [
        (Event::Camera, shown(&before.camera) != shown(&now.camera)),
        (Event::Viewers, before.viewers != now.viewers),
        (Event::Recording, before.is_recording != now.is_recording),
        (Event::Publish, published(before) != published(now)),
    ];
    parts.into_iter().filter(|(_, is_different)| *is_different).map(|(event, _)| event).collect()
}

/// Sends `next`, then the events of the feed, until the listener leaves.
async fn send(mut next: Bytes, mut events: broadcast::Receiver<Bytes>, mut sender: Sender<Bytes, io::Error>) {
    while sender.send_data(next).await.is_ok() {
        let Some(event) = next_kept(&mut events).await else { return };
        next = event;
    }
}

/// Returns the next event, or `None` when the feed has ended. Skips events that were overwritten because the listener
/// reads too slowly.
async fn next_kept(events: &mut broadcast::Receiver<Bytes>) -> Option<Bytes> {
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
    use super::super::types::StreamNames;
    use super::*;
    use crate::http::DetectionsStatus;
    use crate::http::types::{PublishState, PublishStatus};

    fn away() -> CameraSummary {
        CameraSummary::Away { reason: "line\nbreak".to_owned() }
    }

    fn live(width: u64, fps: f64) -> CameraSummary {
        let layout = "v3".to_owned();
        CameraSummary::Live(CameraPicture { layout, width, height: 720, fps, ..CameraPicture::default() })
    }

    fn summary(camera: CameraSummary, viewers: u32, is_recording: bool) -> Summary {
        Summary {
            camera,
            viewers,
            http_viewers: 0,
            is_recording,
            detections: DetectionsStatus::default(),
            publish: None,
        }
    }

    #[test]
    fn a_new_state_or_error_of_publishing_is_an_event_and_new_figures_are_not() {
        let publish = |state, error: Option<&str>, units_sent| Summary {
            publish: Some(PublishStatus {
                state,
                error: error.map(str::to_owned),
                units_sent,
                ..PublishStatus::new("media.example".to_owned())
            }),
            ..summary(away(), 0, false)
        };
        let before = publish(PublishState::Publishing, None, 1);
        assert!(changes(&before, &publish(PublishState::Publishing, None, 2)).is_empty());
        let failed = publish(PublishState::Retrying, Some("refused"), 2);
        assert_eq!(changes(&before, &failed), [Event::Publish]);
        assert_eq!(changes(&failed, &publish(PublishState::Retrying, Some("reset"), 2)), [Event::Publish]);
    }

    #[test]
    fn each_change_has_its_own_event() {
        let before = summary(live(1280, 30.0), 1, false);
        assert!(changes(&before, &before).is_empty());
        assert_eq!(changes(&before, &summary(away(), 1, false)), [Event::Camera]);
        assert_eq!(changes(&before, &summary(live(640, 30.0), 1, false)), [Event::Camera]);
        assert_eq!(changes(&before, &summary(live(1280, 30.0), 2, false)), [Event::Viewers]);
        let both = summary(live(1280, 30.0), 0, true);
        assert_eq!(changes(&before, &both), [Event::Viewers, Event::Recording]);
    }

    #[test]
    fn a_new_frame_rate_alone_is_no_event() {
        let (before, now) = (summary(live(1280, 30.0), 1, false), summary(live(1280, 29.9), 1, false));
        assert!(changes(&before, &now).is_empty());
    }

    #[test]
    fn a_notice_that_appears_is_an_event_and_its_seconds_are_not() {
        let waiting = |notice: &str| {
            CameraSummary::Live(CameraPicture { notice: Some(notice.to_owned()), ..CameraPicture::default() })
        };
        let (before, now) = (summary(waiting("7 s ago"), 1, false), summary(waiting("8 s ago"), 1, false));
        assert!(changes(&before, &now).is_empty());
        let gone = CameraSummary::Live(CameraPicture::default());
        assert_eq!(changes(&now, &summary(gone, 1, false)), [Event::Camera]);
    }

    #[test]
    fn an_event_has_one_line_of_data() {
        let status = Status {
            stream: StreamNames::default(),
            camera: away(),
            viewers: 2,
            http_viewers: 0,
            recording: RecordingStatus::bare(RecorderState::Idle, false),
            detections: DetectionsStatus::default(),
            publish: None,
            version: "1",
        };
        let text = Event::Camera.text(&status);
        assert_eq!(text, "event: camera\ndata: {\"reason\":\"line\\nbreak\",\"state\":\"away\"}\n\n");
        assert_eq!(Event::Viewers.text(&status), "event: viewers\ndata: 2\n\n");
    }
}
