//! PURE: the detection log of a recording. It states what the detector found in each picture of the file, so that a
//! player can draw the boxes on exactly these pictures.
//!
//! The log of `NAME.mp4` is `NAME.json`, a text with one JSON value per line (JSON Lines). The first line describes the
//! recording. It has a fixed length, so that it can be overwritten when an event ends. Each further line is one result:
//! `t` is the time in seconds at which players show the picture, and never decreases.
//!
//! ```text
//!   {"recording":"cat.mp4","kind":"event","labels":["cat"],"events":[{"label":"cat","start":5.1, ...}]}
//!   {"t":12.345,"frame":370,"width":1280,"height":720,"boxes":[{"label":"cat","confidence":0.91,"x":10, ...}]}
//! ```
//!
//! A crash loses the lines of the last second, and can cut off the last line that is there.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::format::TIMESCALE;
use super::names;
use super::types::{Event, RecordedEvent, RecordingKind};
use crate::base::limits;
use crate::camera::detections::{DetectedBox, Detections};

/// Extension of a log. A recording never has it.
const EXTENSION: &str = ".json";

/// A result waits for its picture until a picture that was captured this many nanoseconds later is written. B-frames are
/// written after pictures that were captured later.
const REORDERED_NS: i64 = 500_000_000; // local bound

/// Bytes of the first line. A file system block holds it, so that overwriting needs no further space.
pub(super) const HEAD_BYTES: usize = 2_048;

/// First line of a log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Head {
    /// File name of the recording.
    pub(super) recording: String,
    pub(super) kind: RecordingKind,
    /// Classes that the events of the recording show.
    pub(super) labels: Vec<String>,
    /// The newest events that have ended.
    pub(super) events: Vec<RecordedEvent>,
}

#[derive(Serialize)]
struct Line<'a> {
    t: f64,
    frame: Option<u64>,
    width: u32,
    height: u32,
    boxes: &'a [DetectedBox],
}

/// Returns the name of a recording's log.
pub(super) fn name_of(recording: &str) -> String {
    let stem = recording.rsplit_once('.').map_or(recording, |(stem, _)| stem);
    format!("{stem}{EXTENSION}")
}

/// Returns true if a log may have this file name.
pub(super) fn is_name(name: &str) -> bool {
    name.ends_with(EXTENSION) && !name.starts_with('.')
}

impl Head {
    /// Parses the first [`HEAD_BYTES`] of a log. Returns `None` if another program wrote the file.
    pub(super) fn parse(first_bytes: &[u8]) -> Option<Head> {
        let head: Head = serde_json::from_slice(first_bytes).ok()?;
        (first_bytes.len() == HEAD_BYTES && names::validate_existing(&head.recording).is_ok()).then_some(head)
    }

    /// Returns the first line: JSON, filled up with spaces. The oldest events and labels are left out if they do not fit.
    pub(super) fn line(&self) -> Vec<u8> {
        let mut head = self.clone();
        loop {
            let mut line = serde_json::to_vec(&head).unwrap_or_default();
            if line.len() < HEAD_BYTES {
                line.resize(HEAD_BYTES - 1, b' ');
                line.push(b'\n');
                return line;
            }
            if head.events.is_empty() {
                head.labels.pop();
            } else {
                head.events.remove(0);
            }
        }
    }
}

/// Collects the lines of the file that is being written.
#[derive(Debug, Default)]
pub(super) struct DetectionLog {
    /// Stamps of the newest pictures in the file, and when they are shown, in ticks of [`TIMESCALE`].
    pictures: VecDeque<(i64, u64)>,
    /// Results whose picture is not in the file yet.
    waiting: VecDeque<Arc<Detections>>,
    lines: Vec<u8>,
    head: Head,
    /// True if the first line has changed since it was written.
    is_head_new: bool,
    last_90k: Option<u64>,
    append: Append,
}

/// State of the operation that appends lines to the log.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum Append {
    /// The log does not exist yet.
    #[default]
    NotCreated,
    Idle,
    InFlight,
    /// An operation has failed. The log gets no more lines.
    Failed,
}

/// Lines to append to the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LogLines {
    /// True if the log must be created first.
    pub(crate) is_first: bool,
    /// The first line, which replaces the one that is there. Empty if it has not changed.
    pub(crate) head: Vec<u8>,
    /// Whole lines.
    pub(crate) lines: Vec<u8>,
}

impl DetectionLog {
    /// Returns the log of a new file. `event_label` is the class for which the file is recorded, if there is one.
    pub(super) fn new(recording: String, event_label: Option<&str>) -> DetectionLog {
        let kind = if event_label.is_some() { RecordingKind::Event } else { RecordingKind::Manual };
        let labels = event_label.map(str::to_owned).into_iter().collect();
        let head = Head { recording, kind, labels, events: Vec::new() };
        DetectionLog { head, is_head_new: true, ..DetectionLog::default() }
    }

    /// Adds an event that has ended. Returns it as the log shows it.
    pub(super) fn push_event(&mut self, event: &Event) -> RecordedEvent {
        let DetectedBox { confidence, x, y, width, height, .. } = event.best;
        let recorded = RecordedEvent {
            label: event.label.clone(),
            labels: event.labels.clone(),
            start: self.time_of(event.first_stamp_ns),
            end: self.time_of(event.last_stamp_ns),
            confidence: (f64::from(confidence) * 1e4).round() / 1e4,
            best: self.time_of(event.best_stamp_ns),
            best_box: [x, y, width, height],
        };
        self.head.events.push(recorded.clone());
        for label in &event.labels {
            if !self.head.labels.contains(label) {
                self.head.labels.push(label.clone());
            }
        }
        if self.head.events.len() > limits::LOGGED_EVENTS_MAX {
            self.head.events.remove(0);
        }
        self.head.labels.truncate(limits::LOGGED_LABELS_MAX);
        self.is_head_new = true;
        recorded
    }

    /// Returns the time in seconds at which players show the picture with this stamp. The picture may be long ago. The
    /// result is wrong if the camera's clock was set since then.
    fn time_of(&self, stamp_ns: Option<i64>) -> f64 {
        let Some(((known_ns, shown_90k), stamp_ns)) = self.pictures.back().copied().zip(stamp_ns) else {
            return 0.0;
        };
        let before_s = known_ns.saturating_sub(stamp_ns) as f64 / 1e9;
        rounded((shown_90k as f64 / f64::from(TIMESCALE) - before_s).max(0.0))
    }

    /// Adds a picture that was written. `stamp_ns` is the camera's stamp.
    pub(super) fn push_picture(&mut self, stamp_ns: i64, shown_90k: u64) {
        if self.pictures.len() == limits::LOGGED_PICTURES_MAX {
            self.pictures.pop_front();
        }
        self.pictures.push_back((stamp_ns, shown_90k));
        for result in std::mem::take(&mut self.waiting) {
            let Some(result_ns) = result.captured_at_ns else { continue };
            if is_same(result_ns, stamp_ns) {
                self.write(shown_90k, &result);
            } else if !is_overdue(result_ns, stamp_ns) {
                self.waiting.push_back(result);
            }
        }
    }

    /// Adds a result of the detector. A result whose picture is not in the file is dropped.
    pub(super) fn push_result(&mut self, result: &Arc<Detections>) {
        let Some(stamp_ns) = result.captured_at_ns else { return };
        let same = self.pictures.iter().filter(|(found, _)| is_same(stamp_ns, *found));
        let picture = same.min_by_key(|(found, _)| found.abs_diff(stamp_ns));
        if let Some((_, shown_90k)) = picture {
            return self.write(*shown_90k, result);
        }
        if self.pictures.iter().any(|(found, _)| is_overdue(stamp_ns, *found)) {
            return;
        }
        if self.waiting.len() == limits::LOGGED_RESULTS_WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Arc::clone(result));
    }

    fn write(&mut self, shown_90k: u64, result: &Detections) {
        let is_late = self.last_90k.is_some_and(|last| shown_90k < last);
        if is_late || self.append == Append::Failed || self.lines.len() > limits::LOGGED_BYTES_MAX {
            return;
        }
        self.last_90k = Some(shown_90k);
        let t = rounded(shown_90k as f64 / f64::from(TIMESCALE));
        let Detections { frame, width, height, ref boxes, .. } = *result;
        let line = serde_json::to_vec(&Line { t, frame, width, height, boxes }).unwrap_or_default();
        self.lines.extend_from_slice(&line);
        self.lines.push(b'\n');
    }

    /// Returns the lines to append now, or `None` if there are none or an operation is in flight.
    pub(super) fn take_lines(&mut self) -> Option<LogLines> {
        let is_first = self.append == Append::NotCreated;
        // A recording without results and events gets no log.
        let has_news = !self.lines.is_empty() || (self.is_head_new && !self.head.events.is_empty());
        if !has_news || !(is_first || self.append == Append::Idle) {
            return None;
        }
        self.append = Append::InFlight;
        let head = if std::mem::take(&mut self.is_head_new) { self.head.line() } else { Vec::new() };
        Some(LogLines { is_first, head, lines: std::mem::take(&mut self.lines) })
    }

    /// Returns the last lines of a file that is being closed. The disk appends them after the lines in flight.
    pub(super) fn into_last_lines(mut self) -> Option<LogLines> {
        if self.append == Append::InFlight {
            self.append = Append::Idle;
        }
        self.take_lines()
    }

    /// Handles the end of an append operation.
    pub(super) fn handle_appended(&mut self, is_success: bool) {
        self.append = if is_success { Append::Idle } else { Append::Failed };
    }
}

fn is_same(result_ns: i64, picture_ns: i64) -> bool {
    result_ns.abs_diff(picture_ns) <= limits::RTP_TIME_MATCH_NS.unsigned_abs()
}

/// Returns true if the picture of a result is no longer expected once another picture was written.
fn is_overdue(result_ns: i64, written_ns: i64) -> bool {
    written_ns.saturating_sub(REORDERED_NS) > result_ns
}

/// Rounds to microseconds, which is exact enough: a tick has 11.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(stamp_ns: Option<i64>, frame: u64) -> Arc<Detections> {
        Arc::new(Detections { frame: Some(frame), captured_at_ns: stamp_ns, ..Detections::default() })
    }

    /// Returns time and frame of each line that the log would append, and appends them.
    fn appended(log: &mut DetectionLog) -> Vec<(f64, u64)> {
        let Some(LogLines { lines, .. }) = log.take_lines() else { return Vec::new() };
        log.handle_appended(true);
        let text = String::from_utf8(lines).unwrap();
        let values = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        values.map(|value| (value["t"].as_f64().unwrap(), value["frame"].as_u64().unwrap())).collect()
    }

    #[test]
    fn each_result_gets_the_time_of_its_picture() {
        let mut log = DetectionLog::default();
        // The detector's stamps are rounded, and results come after or before their pictures are written.
        log.push_picture(1_000_000_000, 0);
        log.push_result(&result(Some(1_000_000_120), 7));
        log.push_result(&result(Some(1_033_333_000), 8));
        log.push_result(&result(Some(1_050_000_000), 9));
        log.push_result(&result(None, 10));
        log.push_picture(1_033_333_333, 3_000);
        log.push_picture(1_066_666_666, 6_000);
        log.push_result(&result(Some(1_040_000_000), 11));
        assert_eq!(appended(&mut log), [(0.0, 7), (0.033_333, 8)]);
        log.push_picture(1_600_000_000, 54_000);
        assert_eq!(log.waiting.len(), 0, "the pictures of the results 9 and 11 were never written");
    }

    #[test]
    fn result_of_a_b_frame_waits_for_its_picture() {
        let mut log = DetectionLog::default();
        log.push_picture(100_000_000, 9_000);
        log.push_result(&result(Some(66_000_000), 2));
        log.push_picture(66_000_000, 6_000);
        assert_eq!(appended(&mut log), [(0.066_667, 2)]);
    }

    fn event(label: &str, seen_ns: [i64; 3]) -> Event {
        let [first, best, last] = seen_ns.map(Some);
        let best_box =
            DetectedBox { label: label.to_owned(), confidence: 0.9, x: 1, y: 2, width: 3, height: 4 };
        Event {
            label: label.to_owned(),
            labels: vec![label.to_owned()],
            first_stamp_ns: first,
            last_stamp_ns: last,
            best: best_box,
            best_stamp_ns: best,
        }
    }

    #[test]
    fn event_has_the_times_of_the_recording_even_if_it_began_long_ago() {
        let mut log = DetectionLog::new("cat.mp4".to_owned(), Some("cat"));
        for second in 0..600 {
            log.push_picture((1_000 + second) * 1_000_000_000, 90_000 * second.unsigned_abs());
        }
        assert_eq!(log.take_lines(), None, "nothing was seen yet");
        log.push_event(&event("cat", [1_005, 1_200, 1_590].map(|second| second * 1_000_000_000)));
        let LogLines { is_first, head, lines } = log.take_lines().unwrap();
        assert!(is_first && lines.is_empty());
        let head = Head::parse(&head).unwrap();
        assert_eq!((head.kind, head.labels), (RecordingKind::Event, vec!["cat".to_owned()]));
        let [RecordedEvent { start, end, best, best_box, .. }] = head.events[..] else { panic!() };
        assert_eq!((start, end, best, best_box), (5.0, 590.0, 200.0, [1, 2, 3, 4]));
    }

    #[test]
    fn first_line_keeps_its_length_whatever_happens() {
        let mut log = DetectionLog::new("a".repeat(limits::RECORDING_NAME_BYTES_MAX - 4) + ".mp4", None);
        for number in 0..1_000 {
            log.push_event(&event(&format!("{}{number}", "\"".repeat(28)), [0; 3]));
            let LogLines { head, .. } = log.take_lines().unwrap();
            log.handle_appended(true);
            let head = Head::parse(&head).unwrap();
            assert_eq!(head.recording, log.head.recording);
            assert!(head.events.last().unwrap().label.ends_with(&number.to_string()));
        }
    }

    #[test]
    fn times_never_decrease() {
        let mut log = DetectionLog::default();
        (0..3).for_each(|index| log.push_picture(index * 1_000_000, 90 * index.unsigned_abs()));
        for stamp_ns in [1_000_000, 0, 2_000_000, 2_000_000] {
            log.push_result(&result(Some(stamp_ns), stamp_ns.unsigned_abs()));
        }
        assert_eq!(appended(&mut log), [(0.001, 1_000_000), (0.002, 2_000_000), (0.002, 2_000_000)]);
    }

    #[test]
    fn held_memory_has_a_bound() {
        let mut log = DetectionLog::default();
        for index in 0..100_000 {
            log.push_result(&result(Some(1_000_000_000 + index), 1));
            log.push_picture(index, index.unsigned_abs());
            log.push_result(&result(Some(index), 1));
        }
        assert_eq!(log.pictures.len(), limits::LOGGED_PICTURES_MAX);
        assert!(log.waiting.len() <= limits::LOGGED_RESULTS_WAITING_MAX);
        assert!(log.lines.len() < limits::LOGGED_BYTES_MAX + 10_000);
    }

    #[test]
    fn one_append_is_in_flight_and_a_failure_ends_the_log() {
        let mut log = DetectionLog::default();
        assert_eq!(log.take_lines(), None);
        log.push_picture(0, 0);
        log.push_result(&result(Some(0), 1));
        assert!(log.take_lines().is_some_and(|lines| lines.is_first));
        log.push_result(&result(Some(0), 2));
        assert_eq!(log.take_lines(), None);
        log.handle_appended(true);
        assert!(log.take_lines().is_some_and(|lines| !lines.is_first));
        log.handle_appended(false);
        log.push_result(&result(Some(0), 3));
        assert_eq!(log.take_lines(), None);
        assert_eq!(log.into_last_lines(), None);
    }

    #[test]
    fn only_a_log_of_a_recording_is_a_log() {
        assert_eq!(name_of("cat.mp4"), "cat.json");
        assert_eq!(name_of("a.b.h264"), "a.b.json");
        let head = |recording: &str| Head { recording: recording.to_owned(), ..Head::default() };
        assert_eq!(Head::parse(&head("cat.mp4").line()), Some(head("cat.mp4")));
        for recording in ["", "cat.txt", "../cat.mp4", ".mp4"] {
            assert_eq!(Head::parse(&head(recording).line()), None);
        }
        for foreign in [&b""[..], b"{}\n", b"{\"recording\":\"cat.mp4\"}\n", &[b' '; HEAD_BYTES]] {
            assert_eq!(Head::parse(foreign), None);
        }
        assert!(is_name("cat.json") && !is_name(".cat.h264.json") && !is_name("cat.mp4"));
    }
}
