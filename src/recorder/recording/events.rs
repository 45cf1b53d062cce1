//! PURE: what the object detector saw while a recording runs.

use std::sync::Arc;

use super::Recording;
use crate::camera::detections::Detections;
use crate::recorder::active_recording::Phase;
use crate::recorder::operation::Start;
use crate::recorder::types::{Event, RecordedEvent, StartReply, StopReason};

impl Recording {
    /// Lets a request take over the recording of an event: it then goes on until it is stopped. Returns the reply to the
    /// start request. Returns `None` if no recording of an event runs.
    pub(crate) fn take_over(&mut self, now_ns: i64, limits: &Start) -> Option<StartReply> {
        let active = self.active.as_mut()?;
        if active.phase != Phase::Running || !active.stops_with_event {
            return None;
        }
        active.stops_with_event = false;
        (active.started_ns, active.heartbeat_at_ns) = (now_ns, now_ns);
        (active.start.max_duration_ns, active.start.heartbeat_ns) =
            (limits.max_duration_ns, limits.heartbeat_ns);
        Some(StartReply {
            filename: active.report.filename.clone(),
            name: active.report.name.clone(),
            waits_for_idr: active.report.frame_count == 0,
        })
    }

    /// Adds an event that has ended to the detection log. Ends the recording if the event was its reason. Returns the
    /// name of the recording and the event in it, or `None` if no recording runs.
    pub(crate) fn handle_event_end(&mut self, now_ns: i64, event: &Event) -> Option<(String, RecordedEvent)> {
        let active = self.active.as_mut()?;
        let file = active.file.as_mut()?;
        let recorded = (active.report.name.clone(), file.log.push_event(event));
        if active.stops_with_event {
            active.end(now_ns, StopReason::EventEnd);
            self.advance();
        }
        Some(recorded)
    }

    /// Adds a result of the object detector to the detection log of the file. Without a file the result is dropped.
    pub(crate) fn push_result(&mut self, result: &Arc<Detections>) {
        if let Some(file) = self.active.as_mut().and_then(|active| active.file.as_mut()) {
            file.log.push_result(result);
        }
    }
}
