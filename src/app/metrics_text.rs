//! Writes the page of GET /metrics. A metric that the earlier Go server also had keeps the name it had there.

mod detections;
mod live;
mod publish;
mod recorder;
mod replay;
mod stages;
mod tcp;

use std::time::Duration;

use crate::app::backend::AppBackend;
use crate::base::counters::Counter;
use crate::base::limits::GLASS_REPORT_FRESH;
use crate::base::{clock, logging};
use crate::camera::CameraStatus;
use crate::http::Backend;
use crate::metrics::status::EndReason;
use crate::metrics::{Exposition, LoginCounters, WorkerCounters, process as kernel};
use crate::uring::Features;

impl AppBackend {
    /// Returns the whole page of GET /metrics.
    pub(super) fn metrics_page(&self) -> String {
        let mut text = Exposition::new();
        units(&mut text, self);
        viewers(&mut text, self);
        network(&mut text, self);
        tcp::expose(&mut text, self);
        replay::expose(&mut text, self);
        stages::expose(&mut text, &self.counters);
        if let Some(recorder) = &self.recorder {
            recorder::expose(&mut text, recorder.counters());
        }
        live::expose(&mut text, &self.live);
        detections::expose(&mut text, &self.detections);
        logins(&mut text, &self.logins);
        if let Some(board) = &self.publish {
            publish::expose(&mut text, board);
        }
        process(&mut text, self);
        text.finish()
    }

    /// Returns the maximum of a value over all workers. Counts of access units need the maximum, because every worker
    /// reads every unit and a sum would count each unit several times.
    fn most(&self, get: impl Fn(&WorkerCounters) -> u64) -> u64 {
        self.counters.iter().map(|worker| get(worker)).max().unwrap_or(0)
    }

    fn sum(&self, get: impl Fn(&WorkerCounters) -> u64) -> u64 {
        self.counters.iter().map(|worker| get(worker)).sum()
    }
}

fn units(text: &mut Exposition, from: &AppBackend) {
    let camera = from.camera.counters();
    text.counter("frames_read_total", "Access units read from the camera's ring.")
        .value(from.most(|w| w.units_read.get()));
    text.counter("frames_processed_total", "Access units assembled and checked.")
        .value(from.most(|w| w.units_processed.get()));
    text.counter("frames_sent_total", "Access units sent, counted once per viewer.")
        .value(from.sum(|w| w.units_sent.get()));
    text.counter("frames_dropped_total", "Access units that a consumer dropped.")
        .labelled("component", "webrtc", from.sum(|w| w.units_dropped.get()))
        .labelled(
            "component",
            "recorder",
            from.recorder.as_ref().map_or(0, |recorder| recorder.counters().dropped.get()),
        );
    text.counter(
        "torn_total",
        "Access units that the camera overwrote while they were read. They are not sent.",
    )
    .value(from.most(|w| w.torn.get()));
    text.counter("lapped_total", "Access units missed because the camera lapped a consumer.")
        .value(from.most(|w| w.lapped.get()));
    text.counter("rejected_slots_total", "Slots with invalid metadata or a format other than H.264.")
        .value(from.most(|w| w.rejected.get()));
    text.counter("filler_bytes_total", "Bytes of filler in access units. They are not sent.")
        .value(from.most(|w| w.filler_bytes.get()));
    text.gauge(
        "camera_bidirectional_pictures",
        "1 if the camera sends B-frames, which browsers do not reorder.",
    )
    .value(from.most(|w| w.b_frames.get()));
    text.counter("camera_restarts_total", "Restarts of the camera.").value(from.most(|w| w.restarts.get()));
    text.counter("camera_attached_total", "Times that the camera's shared-memory segment was opened.")
        .value(camera.attached.get());
    text.counter("camera_keyframe_requests_total", "IDRs requested from the camera (lease ring only).")
        .value(camera.idrs_requested.get());
    text.gauge(
        "camera_bitrate_request_bytes_per_second",
        "Rate that the camera is requested not to exceed. 0 without a request.",
    )
    .value(camera.bitrate_request_kbps.get() * 125);
    text.counter(
        "camera_units_dropped_total",
        "Access units that the camera dropped for lack of a free slot (lease ring).",
    )
    .value(from.camera.units_dropped());
    text.counter(
        "leases_refused_total",
        "Access units not read at once because this program held its maximum of slots.",
    )
    .value(camera.leases_refused.get());
    text.counter("doorbell_wakes_total", "Wake-ups of the camera wait: semaphore, timeout or poll.")
        .value(camera.wakes.get());
    text.counter("busy_poll_seconds_total", "Time that workers spent in busy polling for access units.")
        .value(Duration::from_nanos(from.sum(|w| w.busy_poll_ns.get())).as_secs_f64());
    text.gauge("camera_live", "1 while access units arrive.").value(u8::from(from.ready().is_ok()));
    let slots = match from.camera.status() {
        CameraStatus::Attached { layout, .. } => layout.slot_count(),
        CameraStatus::Away { .. } => 0,
    };
    text.gauge("channel_buffer_usage", "Slots between a worker's cursor and the newest access unit.")
        .labelled("channel", "webrtc", from.most(|w| w.lag_slots.get()));
    text.gauge("channel_buffer_capacity", "Slots of the camera's ring. 0 while the camera is away.")
        .labelled("channel", "webrtc", slots);
    text.counter("errors_total", "Errors by type.")
        .labelled("type", "read", from.most(|w| w.torn.get() + w.rejected.get()))
        .labelled("type", "process", from.most(|w| w.malformed_units.get() + w.missing_parameter_sets.get()))
        .labelled("type", "send", from.sum(|w| w.send_errors.get() + w.datagrams_dropped.get()));
}

fn viewers(text: &mut Exposition, from: &AppBackend) {
    text.gauge("active_clients", "Viewers connected.").value(from.sum(|w| w.viewers.get()));
    text.gauge("sessions", "Sessions, connected or not.").value(from.sessions());
    text.gauge("viewers_max", "Sessions allowed at once.").value(from.viewers_max);
    text.counter("sessions_closed_total", "Sessions that ended, for any reason.")
        .value(from.sum(|w| w.sessions_closed.get()));
    let ended = text
        .counter("sessions_ended_total", "Sessions that ended, by reason; /api/viewers explains the latest.");
    for (reason, name) in EndReason::ALL {
        let count = from.sum(|w| w.sessions_ended.get(reason as usize).map_or(0, Counter::get));
        ended.labelled("reason", name, count);
    }
    glass(text, from);
    text.counter("nacks_total", "NACK messages of viewers.").value(from.sum(|w| w.nacks.get()));
    text.counter("retransmits_total", "RTP packets retransmitted.").value(from.sum(|w| w.retransmits.get()));
    text.counter("keyframe_requests_total", "PLI and FIR messages of viewers.")
        .value(from.sum(|w| w.idr_requests.get()));
}

fn glass(text: &mut Exposition, from: &AppBackend) {
    text.gauge(
        "viewer_glass_seconds",
        "Time from the capture to the viewer's screen, as its page reports it.",
    );
    let reports = from.places.reports(clock::monotonic_ns());
    for (viewer, report) in reports.iter().filter(|(_, report)| report.age_s <= GLASS_REPORT_FRESH.as_secs())
    {
        for (percentile, ms) in [("50", report.p50), ("95", report.p95)] {
            let labels = [("viewer", &*viewer.to_string()), ("percentile", percentile)];
            text.with_labels(&labels, &(ms / 1e3));
        }
    }
}

fn network(text: &mut Exposition, from: &AppBackend) {
    text.counter("datagrams_sent_total", "UDP datagrams sent.").value(from.sum(|w| w.datagrams_sent.get()));
    text.counter("sent_bytes_total", "Payload bytes of the UDP datagrams sent.")
        .value(from.sum(|w| w.bytes_sent.get()));
    text.counter("datagrams_dropped_total", "Datagrams dropped before the kernel took them.")
        .value(from.sum(|w| w.datagrams_dropped.get()));
    text.counter("gso_runs_total", "Sends of more than one datagram (UDP_SEGMENT).")
        .value(from.sum(|w| w.gso_batches.get()));
    text.counter("gso_fallbacks_total", "Batches that the kernel refused; they are sent again without GSO.")
        .value(from.sum(|w| w.gso_fallbacks.get()));
    text.counter("datagrams_received_total", "UDP datagrams received.")
        .value(from.sum(|w| w.datagrams_received.get()));
    text.counter("datagrams_unclaimed_total", "Datagrams that belong to no session.")
        .value(from.sum(|w| w.datagrams_unclaimed.get()));
    text.counter("datagrams_forwarded_total", "Datagrams handed to another worker.")
        .value(from.sum(|w| w.datagrams_forwarded.get()));
    text.counter(
        "receive_errors_total",
        "Datagrams dropped on receipt: truncated, no buffer, or a full mailbox.",
    )
    .value(from.sum(|w| w.receive_errors.get() + w.inbox_full.get()));
    text.counter("io_uring_enters_total", "io_uring_enter calls of the workers.")
        .value(from.sum(|w| w.enters.get()));
    let features = text.gauge("io_uring_feature", "1 if the kernel has the feature and the workers use it.");
    let all = from.counters.iter().fold(u64::MAX, |all, w| all & w.uring_features.get());
    for (name, is_used) in Features::from_bits_truncate(all).list() {
        features.labelled("feature", name, u8::from(is_used));
    }
    text.counter("payload_allocations_total", "Payload buffers allocated by the packetisers.")
        .value(from.sum(|w| w.payload_allocations.get()));
}

fn logins(text: &mut Exposition, from: &LoginCounters) {
    text.counter("logins_refused_total", "Refused tokens, in logins and in requests.")
        .labelled("reason", "wrong_token", from.wrong.get())
        .labelled("reason", "too_many_attempts", from.too_many.get());
}

fn process(text: &mut Exposition, from: &AppBackend) {
    let uptime_ns = clock::monotonic_ns().saturating_sub(from.started_ns).unsigned_abs();
    let uptime_s = Duration::from_nanos(uptime_ns).as_secs_f64();
    text.gauge("uptime_seconds", "Seconds since the server started.").value(format_args!("{uptime_s:.3}"));
    text.counter(
        "log_lines_dropped_total",
        "Log lines dropped because the log output was not read or failed.",
    )
    .value(logging::dropped_lines());
    kernel::expose(text);
    text.gauge("build_info", "Always 1. The label is the running version.").labelled(
        "version",
        env!("CARGO_PKG_VERSION"),
        1,
    );
}
