//! The flight recorder. It stores the times at which the access units of the last minute passed the stages. It exports
//! these times in the Trace Event Format for Perfetto and Chrome. One thread writes. Other threads may read at any time
//! without blocking the writer. Writing takes no lock, and allocates only until the rings have been full once.
//!
//! Each entry is a seqlock: the writer sets the stamp to 0, writes the words, and sets the stamp to the entry's number
//! plus 1. A reader that finds the expected stamp both before and after it reads the words has read one whole entry.
//!
//! Trace Event Format: <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>.

use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::base::limits::{TRACE_CHUNK, TRACE_UNITS_MAX, TRACE_WRITES_MAX};

/// Times at which an access unit passed the stages that are common to all viewers. They are in nanoseconds of
/// CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitTimes {
    /// The unit's number in the ring.
    pub number: u32,
    /// The camera's timestamp. If it is not usable, the same as `seen_ns`.
    pub captured_ns: i64,
    /// Time at which the turn began in which the worker found the unit.
    pub seen_ns: i64,
    /// Time at which the RTP payloads were ready.
    pub packetised_ns: i64,
}

/// Times at which an access unit passed the stages of one viewer. They are in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteTimes {
    /// The unit's number in the ring.
    pub number: u32,
    /// The number of the viewer's session.
    pub viewer: u32,
    /// Time at which the worker began to encrypt the unit for this viewer.
    pub begun_ns: i64,
    /// Time at which all datagrams of the unit were encrypted.
    pub encrypted_ns: i64,
    /// Time at which all datagrams were submitted to the kernel.
    pub submitted_ns: i64,
    /// Time at which the send of the last datagram completed.
    pub sent_ns: i64,
}

/// The flight recorder of one worker. It takes 0.8 MB of memory when it is full, and only 80 kB if there are no
/// viewers.
#[derive(Debug)]
pub struct FlightRecorder {
    units: Ring,
    writes: Ring,
}

impl Default for FlightRecorder {
    fn default() -> Self {
        FlightRecorder { units: Ring::new(TRACE_UNITS_MAX), writes: Ring::new(TRACE_WRITES_MAX) }
    }
}

impl FlightRecorder {
    /// Records a unit. Only the worker's thread may call this function.
    pub fn note_unit(&self, times: &UnitTimes) {
        let UnitTimes { number, captured_ns, seen_ns, packetised_ns } = *times;
        let seen_after = after(captured_ns, seen_ns);
        let packetised_after = after(captured_ns, packetised_ns);
        self.units.push([
            captured_ns.cast_unsigned(),
            u64::from(number),
            both(seen_after, packetised_after),
            0,
        ]);
    }

    /// Records that a unit was sent to a viewer. Only the worker's thread may call this function.
    pub fn note_write(&self, times: &WriteTimes) {
        let WriteTimes { number, viewer, begun_ns, encrypted_ns, submitted_ns, sent_ns } = *times;
        self.writes.push([
            begun_ns.cast_unsigned(),
            both(number, viewer),
            both(after(begun_ns, encrypted_ns), after(begun_ns, submitted_ns)),
            u64::from(after(begun_ns, sent_ns)),
        ]);
    }

    /// Returns the units that the worker has found since `since_ns`, the oldest first.
    pub fn units(&self, since_ns: i64) -> Vec<UnitTimes> {
        let unit = |[base, number, spans, _]: Words| {
            let (captured_ns, (seen_after, packetised_after)) = (base.cast_signed(), halves(spans));
            UnitTimes {
                number: halves(number).1,
                captured_ns,
                seen_ns: captured_ns + i64::from(seen_after),
                packetised_ns: captured_ns + i64::from(packetised_after),
            }
        };
        self.units.read().map(unit).filter(|unit| unit.seen_ns >= since_ns).collect()
    }

    /// Returns the sent units whose encryption began at or after `since_ns`, in the order in which their sends
    /// completed.
    pub fn writes(&self, since_ns: i64) -> Vec<WriteTimes> {
        let write = |[base, ids, spans, sent_after]: Words| {
            let (begun_ns, (encrypted_after, submitted_after)) = (base.cast_signed(), halves(spans));
            WriteTimes {
                number: halves(ids).0,
                viewer: halves(ids).1,
                begun_ns,
                encrypted_ns: begun_ns + i64::from(encrypted_after),
                submitted_ns: begun_ns + i64::from(submitted_after),
                sent_ns: begun_ns + i64::from(halves(sent_after).1),
            }
        };
        self.writes.read().map(write).filter(|write| write.begun_ns >= since_ns).collect()
    }
}

/// Returns the nanoseconds from `from_ns` to `to_ns`. The result is never negative, and at most 4.29 s.
fn after(from_ns: i64, to_ns: i64) -> u32 {
    u32::try_from(to_ns.saturating_sub(from_ns).max(0)).unwrap_or(u32::MAX)
}

fn both(upper: u32, lower: u32) -> u64 {
    u64::from(upper) << 32 | u64::from(lower)
}

#[expect(clippy::cast_possible_truncation, reason = "splits the word in halves")]
fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// The content of an entry.
type Words = [u64; 4];

#[derive(Debug, Default)]
struct Entry {
    stamp: AtomicU64,
    words: [AtomicU64; 4],
}

impl Entry {
    fn write(&self, stamp: u64, words: Words) {
        self.stamp.store(0, Ordering::Relaxed);
        // This fence makes the seqlock work: a reader that sees one of the new words also sees the stamp 0 or a later
        // stamp.
        fence(Ordering::Release);
        for (to, word) in self.words.iter().zip(words) {
            to.store(word, Ordering::Relaxed);
        }
        self.stamp.store(stamp, Ordering::Release);
    }

    fn read(&self, stamp: u64) -> Option<Words> {
        if self.stamp.load(Ordering::Acquire) != stamp {
            return None;
        }
        let [first, second, third, fourth] = &self.words;
        let words = [first, second, third, fourth].map(|word| word.load(Ordering::Relaxed));
        // This fence pairs with the fence in `write`. If one of the words is already from a later entry, the second
        // load of the stamp returns 0 or the stamp of a later entry. The words are then discarded.
        fence(Ordering::Acquire);
        (self.stamp.load(Ordering::Relaxed) == stamp).then_some(words)
    }
}

/// A ring of entries. Its memory is allocated in chunks, each when it is needed for the first time.
#[derive(Debug)]
struct Ring {
    chunks: Box<[OnceLock<Box<[Entry]>>]>,
    /// Number of entries written so far. Entry n, counted from 0, has the stamp n + 1.
    written: AtomicU64,
}

impl Ring {
    fn new(entries: usize) -> Self {
        let chunks = (0..entries / TRACE_CHUNK).map(|_| OnceLock::new()).collect();
        Ring { chunks, written: AtomicU64::new(0) }
    }

    fn capacity(&self) -> u64 {
        (self.chunks.len() * TRACE_CHUNK) as u64
    }

    fn place(&self, number: u64) -> Option<(&OnceLock<Box<[Entry]>>, usize)> {
        let index = usize::try_from(number % self.capacity()).ok()?;
        Some((self.chunks.get(index / TRACE_CHUNK)?, index % TRACE_CHUNK))
    }

    fn push(&self, words: Words) {
        let number = self.written.load(Ordering::Relaxed);
        let Some((chunk, index)) = self.place(number) else { return };
        let chunk = chunk.get_or_init(|| (0..TRACE_CHUNK).map(|_| Entry::default()).collect());
        if let Some(entry) = chunk.get(index) {
            entry.write(number + 1, words);
        }
        self.written.store(number + 1, Ordering::Release);
    }

    /// Returns all entries, the oldest first. Omits entries that the writer overwrites meanwhile.
    fn read(&self) -> impl Iterator<Item = Words> {
        let end = self.written.load(Ordering::Acquire);
        (end.saturating_sub(self.capacity())..end).filter_map(|number| {
            let (chunk, index) = self.place(number)?;
            chunk.get()?.get(index)?.read(number + 1)
        })
    }
}

/// Returns the activity of the workers since `since_ns` (CLOCK_MONOTONIC) as JSON in the Trace Event Format. The
/// timestamps in the JSON are in microseconds of CLOCK_MONOTONIC.
///
/// Each worker is shown as a process. The work of its thread (`packetise`, `encrypt`) is shown on the thread, and the
/// waiting times (`camera`, `queued`, `send`) are shown as separate spans.
pub fn to_chrome_json<'a>(workers: impl Iterator<Item = &'a FlightRecorder>, since_ns: i64) -> String {
    let mut trace =
        ChromeTrace { json: String::from("{\"displayTimeUnit\":\"ms\",\"traceEvents\":["), worker: 0 };
    for (index, worker) in workers.enumerate() {
        trace.worker = index;
        trace.name_worker();
        for unit in worker.units(since_ns) {
            trace.unit(&unit);
        }
        for write in worker.writes(since_ns) {
            trace.write(&write);
        }
    }
    trace.json.push_str("\n]}\n");
    trace.json
}

struct ChromeTrace {
    json: String,
    worker: usize,
}

impl ChromeTrace {
    fn name_worker(&mut self) {
        let worker = self.worker;
        self.event(format_args!(
            "\"ph\":\"M\",\"name\":\"process_name\",\"args\":{{\"name\":\"worker {worker}\"}}"
        ));
    }

    fn unit(&mut self, unit: &UnitTimes) {
        let UnitTimes { number, captured_ns, seen_ns, packetised_ns } = *unit;
        let (id, args) = (format!("0.{number}"), format!("{{\"unit\":{number}}}"));
        self.waited("camera", &id, &args, captured_ns, seen_ns);
        self.did("packetise", &args, seen_ns, packetised_ns);
    }

    fn write(&mut self, write: &WriteTimes) {
        let WriteTimes { number, viewer, begun_ns, encrypted_ns, submitted_ns, sent_ns } = *write;
        let id = format!("{viewer}.{number}");
        let args = format!("{{\"unit\":{number},\"viewer\":{viewer}}}");
        self.did("encrypt", &args, begun_ns, encrypted_ns);
        self.waited("queued", &id, &args, encrypted_ns, submitted_ns);
        self.waited("send", &id, &args, submitted_ns, sent_ns);
    }

    /// Adds a span of work on the worker's thread, as a complete event. Complete events of one thread must not overlap.
    fn did(&mut self, name: &str, args: &str, from_ns: i64, to_ns: i64) {
        let (from, took) = (micros(from_ns), micros(to_ns - from_ns));
        self.event(format_args!(
            "\"ph\":\"X\",\"name\":\"{name}\",\"cat\":\"stage\",\"ts\":{from},\"dur\":{took},\"args\":{args}"
        ));
    }

    /// Adds a waiting time, as an asynchronous event. Asynchronous events may overlap, so `id` distinguishes those with
    /// the same name.
    fn waited(&mut self, name: &str, id: &str, args: &str, from_ns: i64, to_ns: i64) {
        let (from, to) = (micros(from_ns), micros(to_ns));
        let what = format!("\"name\":\"{name}\",\"cat\":\"{name}\",\"id\":\"{}.{id}\"", self.worker);
        self.event(format_args!("\"ph\":\"b\",{what},\"ts\":{from},\"args\":{args}"));
        self.event(format_args!("\"ph\":\"e\",{what},\"ts\":{to}"));
    }

    fn event(&mut self, fields: std::fmt::Arguments<'_>) {
        let separator = if self.json.ends_with('[') { "" } else { "," };
        let process = self.worker + 1;
        // Writing to a String cannot fail.
        let _ = write!(self.json, "{separator}\n{{\"pid\":{process},\"tid\":{process},{fields}}}");
    }
}

/// Returns nanoseconds as microseconds with three decimals. A negative time becomes 0.
fn micros(ns: i64) -> String {
    let ns = ns.max(0);
    format!("{}.{:03}", ns / 1_000, ns % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn unit(number: u32) -> UnitTimes {
        let captured_ns = i64::from(number) * 33_000_000;
        UnitTimes {
            number,
            captured_ns,
            seen_ns: captured_ns + 1_000 + i64::from(number),
            packetised_ns: captured_ns + 9_000,
        }
    }

    fn write(number: u32, viewer: u32) -> WriteTimes {
        let begun_ns = i64::from(number) * 33_000_000 + i64::from(viewer);
        WriteTimes {
            number,
            viewer,
            begun_ns,
            encrypted_ns: begun_ns + i64::from(number),
            submitted_ns: begun_ns + 2 * i64::from(number),
            sent_ns: begun_ns + 3 * i64::from(number),
        }
    }

    #[test]
    fn units_and_writes_are_read_back_unchanged() {
        let recorder = FlightRecorder::default();
        (0..100).for_each(|number| recorder.note_unit(&unit(number)));
        (0..100).for_each(|number| recorder.note_write(&write(number, 7)));
        assert_eq!(recorder.units(i64::MIN), (0..100).map(unit).collect::<Vec<_>>());
        assert_eq!(recorder.writes(i64::MIN), (0..100).map(|number| write(number, 7)).collect::<Vec<_>>());
        assert_eq!(recorder.units(unit(90).seen_ns).len(), 10);
        assert_eq!(recorder.writes(write(99, 7).begun_ns), [write(99, 7)]);
    }

    #[test]
    fn new_entries_replace_the_oldest() {
        let recorder = FlightRecorder::default();
        let count = u32::try_from(TRACE_UNITS_MAX).unwrap() + 300;
        (0..count).for_each(|number| recorder.note_unit(&unit(number)));
        let kept = recorder.units(i64::MIN);
        assert_eq!(kept, (300..count).map(unit).collect::<Vec<_>>());
    }

    #[test]
    fn long_spans_are_cut_and_negative_spans_become_zero() {
        let recorder = FlightRecorder::default();
        let base = WriteTimes {
            begun_ns: 1_000,
            encrypted_ns: 500,
            submitted_ns: 2_000,
            sent_ns: i64::MAX,
            ..write(1, 1)
        };
        recorder.note_write(&base);
        let kept = recorder.writes(0)[0];
        assert_eq!((kept.encrypted_ns, kept.submitted_ns), (1_000, 2_000));
        assert_eq!(kept.sent_ns, 1_000 + i64::from(u32::MAX));
    }

    #[test]
    fn concurrent_reader_sees_whole_entries_in_order() {
        let (recorder, done) = (FlightRecorder::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut entries = 0_usize;
                while !done.load(Ordering::Relaxed) {
                    let kept = recorder.units(i64::MIN);
                    assert!(kept.is_sorted_by(|a, b| a.number < b.number));
                    for found in &kept {
                        assert_eq!(*found, unit(found.number), "torn");
                    }
                    entries += kept.len();
                }
                entries
            });
            (0..2_000_000).for_each(|number| recorder.note_unit(&unit(number)));
            done.store(true, Ordering::Relaxed);
            assert!(reader.join().unwrap() > 0 || cfg!(miri));
        });
    }

    #[test]
    fn the_trace_is_json_with_every_stage() {
        let workers = [FlightRecorder::default(), FlightRecorder::default()];
        workers[0].note_unit(&unit(3));
        workers[1].note_unit(&unit(3));
        workers[1].note_write(&write(3, 2));
        let json: serde_json::Value = serde_json::from_str(&to_chrome_json(workers.iter(), 0)).unwrap();
        let events = json["traceEvents"].as_array().unwrap();
        let count = |phase: &str| events.iter().filter(|event| event["ph"] == phase).count();
        assert_eq!((count("M"), count("X"), count("b"), count("e")), (2, 3, 4, 4));
        let encrypt = events.iter().find(|event| event["name"] == "encrypt").unwrap();
        assert_eq!(encrypt["pid"], 2);
        assert_eq!(encrypt["args"]["viewer"], 2);
        assert_eq!(encrypt["ts"], 99_000.002);
        assert_eq!(encrypt["dur"], 0.003);
    }

    #[test]
    fn an_empty_trace_is_json_too() {
        let json = to_chrome_json(std::iter::empty(), 0);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["traceEvents"].as_array().unwrap().len(), 0);
    }
}
