//! Measures the cost of the latency instrumentation. This cost must be negligible compared with packetising and
//! encrypting a unit for one viewer (about 50 us).
#![allow(missing_docs, reason = "a bench has no public interface")]

use divan::Bencher;
use streaming_server::base::clock;
use streaming_server::metrics::WorkerCounters;
use streaming_server::metrics::stages::{Stage, StageRecorder, StageTotals, summarise};
use streaming_server::metrics::trace::{UnitTimes, WriteTimes, to_chrome_json};

fn main() {
    divan::main();
}

/// Reads the clock once.
#[divan::bench]
fn clock_read() -> i64 {
    clock::monotonic_ns()
}

/// Makes all measurements of one unit for one viewer: two clock reads, four latencies, and one entry of the flight
/// recorder.
#[divan::bench]
fn one_unit_for_one_viewer(bencher: Bencher) {
    let (mut recorder, counters) = (StageRecorder::default(), WorkerCounters::default());
    let mut number = 0;
    bencher.bench_local(|| {
        number += 1;
        let (begun_ns, encrypted_ns) = (clock::monotonic_ns(), clock::monotonic_ns());
        let spread_ns = i64::from(number % 512) * 700;
        recorder.record(Stage::PacketisedToEncrypted, 20_000 + spread_ns);
        recorder.record(Stage::EncryptedToSubmitted, 9_000 + spread_ns);
        recorder.record(Stage::SubmittedToSent, 60_000 + spread_ns);
        recorder.record(Stage::CapturedToSent, 300_000 + spread_ns);
        let (submitted_ns, sent_ns) = (encrypted_ns + 9_000, encrypted_ns + 60_000);
        counters.trace.note_write(&WriteTimes {
            number,
            viewer: 1,
            begun_ns,
            encrypted_ns,
            submitted_ns,
            sent_ns,
        });
    });
}

/// Publishes latencies, as a worker does twice a second. The recorded latencies differ widely.
#[divan::bench]
fn publish(bencher: Bencher) {
    let totals = StageTotals::default();
    let recorded = || {
        let mut recorder = StageRecorder::default();
        for number in 0..300_i64 {
            Stage::ALL.into_iter().for_each(|stage| recorder.record(stage, 20_000 + number * number * 97));
        }
        recorder
    };
    bencher.with_inputs(recorded).bench_local_refs(|recorder| recorder.publish(&totals));
}

/// Summarises the latencies of two workers. Another thread than the workers does this at each scrape of the metrics.
#[divan::bench]
fn summarise_two_workers(bencher: Bencher) {
    let workers = [StageTotals::default(), StageTotals::default()];
    bencher.bench_local(|| summarise(workers.iter()));
}

/// Writes a full flight recorder as a trace. Another thread than the workers does this on request.
#[divan::bench(sample_count = 20)]
fn trace_of_a_minute(bencher: Bencher) {
    let counters = WorkerCounters::default();
    for number in 0..20_000 {
        let begun_ns = i64::from(number) * 3_000_000;
        let (seen_ns, packetised_ns) = (begun_ns + 90_000, begun_ns + 130_000);
        counters.trace.note_unit(&UnitTimes { number, captured_ns: begun_ns, seen_ns, packetised_ns });
        let (encrypted_ns, submitted_ns, sent_ns) = (begun_ns + 30_000, begun_ns + 40_000, begun_ns + 90_000);
        counters.trace.note_write(&WriteTimes {
            number,
            viewer: 1,
            begun_ns,
            encrypted_ns,
            submitted_ns,
            sent_ns,
        });
    }
    bencher.bench_local(|| to_chrome_json(std::iter::once(&counters.trace), 0));
}
