//! Tests of the hub: what consumers receive, its limits and its state.

#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::camera::Wake;
use crate::http::PostedBox;
use serde_json::{Value, json};

const S: i64 = 1_000_000_000;

fn hub(segment: Option<&str>) -> DetectionHub {
    let camera = Camera::new("/ss-test-no-camera", Wake::Poll);
    DetectionHub::new(segment.map(str::to_owned), camera, vec![Arc::default(), Arc::default()])
}

fn data(event: &Bytes) -> Value {
    let text = std::str::from_utf8(event).unwrap();
    serde_json::from_str(text.trim_start_matches("event: detections\ndata: ")).unwrap()
}

fn posted(timestamp: Option<f64>) -> PostedDetections {
    let cat = PostedBox { label: "cat".to_owned(), confidence: 0.5, rectangle: [-5, 2, 10, 4] };
    PostedDetections { frame: Some(7), timestamp, picture: (640, 360), boxes: vec![cat] }
}

#[test]
fn a_posted_result_reaches_all_consumers_with_the_time_of_its_picture() {
    let hub = hub(None);
    let (mut results, mut events) = (hub.subscribe(), hub.subscribe_events());
    let now_ns = clock::monotonic_ns();
    let captured_ns = clock::realtime_ns() - 30_000_000;
    hub.workers[1].rtp_times.put(9, captured_ns, 5_000);
    #[expect(clippy::cast_precision_loss, reason = "as a detector does")]
    hub.post(&posted(Some(captured_ns as f64 / 1e9)), now_ns).unwrap();
    let rtp_time = Some(session::rtp_offset().unwrap().wrapping_add(5_000));
    let event = data(&events.try_recv().unwrap());
    assert_eq!(
        (&event["frame"], &event["rtp_time"], &event["width"]),
        (&json!(7), &json!(rtp_time), &json!(640))
    );
    let cat = json!({ "label": "cat", "confidence": 0.5, "x": 0, "y": 2, "width": 5, "height": 4 });
    assert_eq!((&event["boxes"], &event["expires_ms"]), (&json!([cat]), &json!(1_500)));
    assert!(event["delay_ms"].as_f64().unwrap() > 29.0, "{event}");
    let captured_at_ms = event["captured_at_ms"].as_f64().unwrap();
    assert!((captured_at_ms * 1e6 - captured_ns as f64).abs() < 2_000.0, "{event}");
    assert_eq!(results.try_recv().unwrap().rtp_time, rtp_time);
}

#[test]
fn a_stamp_of_another_clock_or_none_has_no_picture() {
    let hub = hub(None);
    let mut events = hub.subscribe_events();
    for timestamp in [None, Some(0.0), Some(1e9)] {
        hub.post(&posted(timestamp), clock::monotonic_ns()).unwrap();
        let event = data(&events.try_recv().unwrap());
        assert_eq!(
            (&event["captured_at_ms"], &event["rtp_time"], &event["delay_ms"]),
            (&Value::Null, &Value::Null, &Value::Null)
        );
    }
}

#[test]
fn a_wrong_value_is_refused_with_its_field() {
    let hub = hub(None);
    let refuse = |change: fn(&mut PostedDetections)| {
        let mut wrong = posted(Some(1e9));
        change(&mut wrong);
        let error = hub.post(&wrong, clock::monotonic_ns()).unwrap_err();
        assert_eq!((error.status, error.code), (400, "bad_detections"));
        error.message
    };
    assert!(refuse(|wrong| wrong.timestamp = Some(-1.0)).starts_with("`timestamp`"));
    assert!(refuse(|wrong| wrong.boxes[0].label.clear()).starts_with("`detections[0].class_name`"));
    assert!(refuse(|wrong| wrong.boxes[0].confidence = 1.5).starts_with("`detections[0].confidence`"));
    assert!(
        refuse(|wrong| wrong.boxes[0].rectangle = [640, 0, 5, 5]).starts_with("`detections[0].x, y, w, h`")
    );
    assert_eq!((hub.status(0).rejected, hub.status(0).results), (4, 0));
}

#[test]
fn results_beyond_the_limit_get_429() {
    let hub = hub(None);
    let mut refused = None;
    let taken = (0..1_000).filter(|ms| {
        let outcome = hub.post(&posted(None), 100 * S + ms * S / 1_000);
        outcome.map_err(|error| refused = Some(error)).is_ok()
    });
    let taken = taken.count();
    assert!((115..=135).contains(&taken), "{taken}");
    let error = refused.unwrap();
    assert_eq!((error.status, error.code, error.retry_after_s), (429, "too_many_detections", Some(1)));
}

#[test]
fn the_state_follows_source_and_time() {
    let waiting = hub(Some("/ss-test-no-detector"));
    let status = waiting.status(0);
    assert_eq!(
        (status.state, status.source.as_deref()),
        (DetectionsState::Waiting, Some("/ss-test-no-detector"))
    );
    assert!(status.fault.unwrap().contains("not running"));
    let off = hub(None);
    assert_eq!(off.status(0), DetectionsStatus::default());
    off.post(&posted(None), 10 * S).unwrap();
    let live = off.status(10 * S);
    assert_eq!((live.state, live.source.as_deref(), live.results), (DetectionsState::Live, Some("post"), 1));
    assert_eq!((off.boxes_shown(11 * S), off.boxes_shown(12 * S)), (1, 0));
    assert_eq!(off.status(12 * S).state, DetectionsState::Expired);
    let faulty = hub(Some("/ss-test-faulty"));
    faulty.lock().fault = Some(Fault::NotSegment("/ss-test-faulty".to_owned()));
    assert_eq!(faulty.status(0).state, DetectionsState::Faulty);
}

#[test]
fn the_segment_is_polled_often_only_while_results_are_needed() {
    let hub = hub(Some("/ss-test-no-detector"));
    let mut reader = DetectionReader::new("/ss-test-no-detector");
    assert_eq!(hub.poll(&mut reader, false, S), limits::DETECTIONS_IDLE_POLL_NS);
    let events = hub.subscribe_events();
    assert_eq!(hub.poll(&mut reader, false, 2 * S), limits::DETECTIONS_POLL_NS_MAX);
    drop(events);
    assert_eq!(hub.poll(&mut reader, false, 3 * S), limits::DETECTIONS_IDLE_POLL_NS);
}
