//! Checks the detector's segment.

use super::{Finding, Verdict};
use crate::base::{clock, limits};
use crate::camera::detections::{DetectionReader, Fault, Polled, Rejection};

/// Opens the segment and waits for a new result, at most [`limits::DETECTIONS_DOCTOR_WAIT_S`].
pub(super) fn segment(name: &str) -> Finding {
    let (mut reader, mut rejected) = (DetectionReader::new(name), None);
    let end_ns = clock::monotonic_ns() + limits::DETECTIONS_DOCTOR_WAIT_S * 1_000_000_000;
    loop {
        let now_ns = clock::monotonic_ns();
        let polled = reader.poll(now_ns, &mut |reason| rejected = Some(reason));
        match (polled, reader.fault()) {
            (_, Some(fault @ Fault::Missing(_))) => {
                return (Verdict::Ok, format!("{fault}; it may start later"));
            }
            (_, Some(fault)) => return (Verdict::Warn, fault.to_string()),
            (Polled::Rejected(reason), _) => return (Verdict::Warn, wrong(name, reason)),
            (Polled::New(_), _) if rejected.is_none() => {
                return (Verdict::Ok, format!("{name}: results arrive"));
            }
            _ => {}
        }
        if let Some(reason) = rejected {
            return (Verdict::Warn, wrong(name, reason));
        }
        if now_ns >= end_ns {
            let wait_s = limits::DETECTIONS_DOCTOR_WAIT_S;
            return (Verdict::Ok, format!("{name}: nothing was detected for {wait_s} s"));
        }
        std::thread::sleep(limits::DETECTIONS_DOCTOR_POLL);
    }
}

fn wrong(name: &str, reason: Rejection) -> String {
    format!("{name}: the detector writes wrong results: {reason}")
}
