//! A test harness that runs the recorder's state machine with a fake clock, a fake camera and a disk in memory. The
//! disk can be full, fail, or write less than requested.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of a test")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Cursor};
use std::sync::Arc;

use bytes::Bytes;

use crate::h264::testing::{self, BitWriter};
use crate::recorder::counters::RecorderCounters;
use crate::recorder::format::fmp4::{self, Form};
use crate::recorder::format::recovery::whole_fragments;
use crate::recorder::format::{Fragment, UnitKind};
use crate::recorder::names::{Format, Stem};
use crate::recorder::operation::{Completion, FileEnding, FileFate, FileId, IncomingUnit, Output, Start};
use crate::recorder::recording::Recording;
use crate::recorder::types::{RecorderError, RecorderState, StartReply, StopReply};

pub(crate) const SECOND: i64 = 1_000_000_000;
/// The camera's stamp of a picture, less its capture time.
pub(crate) const STAMP_0_NS: i64 = 1_699_999_000 * SECOND;
pub(crate) const UNIT_INTERVAL: i64 = SECOND / 30;

#[derive(Default)]
pub(crate) struct FakeFile {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) reserved: u64,
    pub(crate) syncs: u32,
    pub(crate) finished: bool,
    /// The first line of the detection log, and the others.
    pub(crate) log_head: Vec<u8>,
    pub(crate) log: Vec<u8>,
}

pub(crate) struct Harness {
    pub(crate) recording: Recording,
    pub(crate) counters: Arc<RecorderCounters>,
    pub(crate) now_ns: i64,
    pub(crate) files: BTreeMap<FileId, FakeFile>,
    pub(crate) removed: Vec<String>,
    pub(crate) completions: VecDeque<(FileId, Completion)>,
    /// Size of the disk in bytes.
    pub(crate) capacity: u64,
    pub(crate) has_fallocate: bool,
    /// Maximum number of bytes that one write writes.
    pub(crate) write_max: usize,
    pub(crate) existing_names: Vec<String>,
    pub(crate) create_error: Option<RecorderError>,
    pub(crate) write_error: Option<i32>,
    pub(crate) torn: bool,
    pub(crate) started: Vec<Result<StartReply, RecorderError>>,
    pub(crate) stopped: Vec<Result<StopReply, RecorderError>>,
    pub(crate) unit_number: u32,
}

pub(crate) fn start(format: Format) -> Start {
    Start {
        waits_for_idr: false,
        stem: Stem { stem: "cat".to_owned(), format },
        exact: true,
        max_duration_ns: None,
        heartbeat_ns: None,
        started_at_s: 1_700_000_000,
        event_label: None,
    }
}

/// Returns the parameter sets of a Baseline stream in byte-stream format. `width` is in macroblocks.
pub(crate) fn parameter_sets(width: u32) -> Vec<u8> {
    let (sps, pps) = (testing::sps(0, 31, width, 45), testing::pps(0, 0, 0));
    [&[0, 0, 0, 1], sps.as_slice(), &[0, 0, 1], pps.as_slice()].concat()
}

/// Returns a slice that contains the unit's number, so that tests can check the order of the units in a file.
pub(crate) fn slice(header: u8, number: u32) -> Vec<u8> {
    let mut nal = BitWriter::default().ue(0).ue(7).ue(0).bits(0xff, 8).nal(header);
    nal.extend((0..4).rev().map(|byte| (number >> (7 * byte) & 0x7f) as u8 | 0x80));
    nal.extend(std::iter::repeat_n(0x55, 40 + (number % 7) as usize * 20));
    nal
}

pub(crate) fn idr(number: u32, width: u32) -> Vec<u8> {
    [parameter_sets(width), vec![0, 0, 0, 1], slice(0x65, number)].concat()
}

pub(crate) fn delta(number: u32) -> Vec<u8> {
    [vec![0, 0, 0, 1], slice(0x41, number)].concat()
}

pub(crate) fn unit_number_of(nal: &[u8]) -> u32 {
    nal[nal.len() - 40..].iter().for_each(|byte| assert_eq!(*byte, 0x55));
    let tail = nal.iter().rposition(|byte| *byte != 0x55).unwrap();
    nal[tail - 3..=tail].iter().fold(0, |number, byte| number << 7 | u32::from(byte & 0x7f))
}

impl Harness {
    pub(crate) fn new() -> Harness {
        let counters = Arc::new(RecorderCounters::default());
        Harness {
            recording: Recording::new(Arc::clone(&counters), "rec".to_owned()),
            counters,
            now_ns: 1_000 * SECOND,
            files: BTreeMap::new(),
            removed: Vec::new(),
            completions: VecDeque::new(),
            capacity: 1 << 40,
            has_fallocate: true,
            write_max: usize::MAX,
            existing_names: Vec::new(),
            create_error: None,
            write_error: None,
            torn: false,
            started: Vec::new(),
            stopped: Vec::new(),
            unit_number: 0,
        }
    }

    pub(crate) fn recording(format: Format) -> Harness {
        let mut harness = Harness::new();
        harness.recording.handle_start(harness.now_ns, start(format)).unwrap();
        harness.run_until_idle();
        assert_eq!(harness.recording.state(), RecorderState::Recording);
        harness
    }

    /// Carries out all outputs. Their completions are queued but not yet passed to the state machine.
    pub(crate) fn execute_outputs(&mut self) {
        while let Some(output) = self.recording.poll_output() {
            let completion = match output {
                Output::Started(result) => {
                    self.started.push(result);
                    continue;
                }
                Output::Stopped(result) => {
                    self.stopped.push(result);
                    continue;
                }
                output => self.execute(output),
            };
            self.completions.push_back(completion);
        }
    }

    pub(crate) fn free(&self) -> u64 {
        let used: u64 = self.files.values().map(|file| (file.bytes.len() as u64).max(file.reserved)).sum();
        self.capacity.saturating_sub(used)
    }

    pub(crate) fn execute(&mut self, output: Output) -> (FileId, Completion) {
        match output {
            Output::Create { file, stem, number, exact } => {
                (file, Completion::Created(self.create(file, &stem, number, exact)))
            }
            Output::Allocate { file, offset, bytes } => {
                let free = self.free();
                let open = self.files.get_mut(&file).unwrap();
                assert!(offset >= open.bytes.len() as u64 || open.reserved == offset);
                let result = if !self.has_fallocate {
                    Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
                } else if bytes > free {
                    open.reserved += free; // a failed fallocate on ext4 also takes all free space
                    Err(io::Error::from_raw_os_error(libc::ENOSPC))
                } else {
                    open.reserved = offset + bytes;
                    Ok(())
                };
                (file, Completion::Allocated(result))
            }
            Output::Write { file, offset, parts } => {
                let intact = !self.torn;
                let result = self.write(file, offset, &parts.concat());
                (file, Completion::Written { result, intact })
            }
            Output::Truncate { file, bytes } => {
                let open = self.files.get_mut(&file).unwrap();
                open.bytes.truncate(usize::try_from(bytes).unwrap());
                open.reserved = bytes;
                (file, Completion::Truncated(Ok(())))
            }
            Output::Sync { file, whole } => {
                if let Some(open) = self.files.get_mut(&file) {
                    assert!(whole.start <= whole.end && whole.end <= open.bytes.len() as u64);
                    open.syncs += 1;
                }
                (file, Completion::Synced(Ok(FileFate::Whole)))
            }
            Output::AppendLog { file, lines } => {
                let open = self.files.get_mut(&file).unwrap();
                assert_eq!(lines.is_first, open.log_head.is_empty());
                if !lines.head.is_empty() {
                    open.log_head = lines.head;
                }
                open.log.extend_from_slice(&lines.lines);
                (file, Completion::Logged(Ok(())))
            }
            Output::Finish { file, ending } => (file, Completion::Finished(self.finish(file, ending))),
            Output::Discard { file } => {
                self.removed.push(self.files.remove(&file).unwrap().name);
                (file, Completion::Finished(Ok(())))
            }
            Output::Started(_) | Output::Stopped(_) => unreachable!(),
        }
    }

    fn finish(&mut self, file: FileId, ending: FileEnding) -> Result<(), RecorderError> {
        let committed = usize::try_from(ending.whole.end).unwrap();
        let end = committed + ending.tail.len();
        let open = self.files.get_mut(&file).unwrap();
        open.bytes.truncate(committed);
        assert_eq!(open.bytes.len(), committed);
        open.reserved = open.reserved.max(committed as u64);
        let result = self.write(file, ending.whole.end, &ending.tail);
        let open = self.files.get_mut(&file).unwrap();
        let result = if result.is_ok_and(|written| written == ending.tail.len() as u64) {
            if let Some((offset, header)) = ending.mdat_header {
                open.bytes[usize::try_from(offset).unwrap()..][..16].copy_from_slice(&header);
            }
            open.finished = true;
            open.bytes.truncate(end);
            Ok(())
        } else {
            open.bytes.truncate(committed);
            Err(RecorderError::DiskFull)
        };
        open.reserved = 0;
        result
    }

    pub(crate) fn create(
        &mut self,
        file: FileId,
        stem: &Stem,
        first: u32,
        exact: bool,
    ) -> Result<(String, u32), RecorderError> {
        if let Some(error) = self.create_error.take() {
            return Err(error);
        }
        for number in first.. {
            let name = stem.numbered(number);
            if !self.existing_names.contains(&name) {
                self.existing_names.push(name.clone());
                self.files.insert(file, FakeFile { name: name.clone(), ..FakeFile::default() });
                return Ok((name, number));
            } else if exact {
                return Err(RecorderError::Exists(name));
            }
        }
        unreachable!()
    }

    pub(crate) fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<u64> {
        if let Some(errno) = self.write_error {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let free = self.free();
        let open = self.files.get_mut(&file).unwrap();
        let room = open.reserved.max(open.bytes.len() as u64) + free - offset;
        let written = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)).min(self.write_max);
        if written == 0 && !bytes.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let offset = usize::try_from(offset).unwrap();
        let end = offset + written;
        if open.bytes.len() < end {
            open.bytes.resize(end, 0);
        }
        open.bytes[offset..end].copy_from_slice(&bytes[..written]);
        Ok(written as u64)
    }

    pub(crate) fn complete_next(&mut self) -> bool {
        self.execute_outputs();
        let Some((file, completion)) = self.completions.pop_front() else { return false };
        self.now_ns += 100_000;
        self.recording.handle_completion(self.now_ns, file, completion);
        self.execute_outputs();
        true
    }

    pub(crate) fn run_until_idle(&mut self) {
        while self.complete_next() {}
    }

    pub(crate) fn push(&mut self, bytes: Vec<u8>) {
        self.push_captured(bytes, self.now_ns);
    }

    pub(crate) fn push_captured(&mut self, bytes: Vec<u8>, captured_ns: i64) {
        assert!(self.recording.can_take_unit(), "{:?}", self.recording.state());
        let unit = IncomingUnit {
            bytes: Bytes::from(bytes),
            captured_ns,
            captured_at_ns: Some(STAMP_0_NS + captured_ns),
        };
        self.recording.push_unit(self.now_ns, &unit);
    }

    /// Publishes one unit and runs until it is written. Every tenth unit is an IDR.
    pub(crate) fn publish(&mut self) {
        let bytes = if self.unit_number.is_multiple_of(10) {
            idr(self.unit_number, 80)
        } else {
            delta(self.unit_number)
        };
        self.unit_number += 1;
        self.now_ns += UNIT_INTERVAL;
        self.push(bytes);
        self.run_until_idle();
    }

    pub(crate) fn publish_units(&mut self, count: u32) {
        (0..count).for_each(|_| self.publish());
    }

    pub(crate) fn tick(&mut self, ns: i64) {
        self.now_ns += ns;
        if self.recording.next_deadline().is_some_and(|deadline| deadline <= self.now_ns) {
            self.recording.handle_tick(self.now_ns);
        }
        self.run_until_idle();
    }

    pub(crate) fn stop(&mut self) -> Result<StopReply, RecorderError> {
        self.recording.handle_stop(self.now_ns)?;
        self.run_until_idle();
        self.recording.handle_ring_empty(self.now_ns, false);
        self.run_until_idle();
        assert_eq!(self.recording.state(), RecorderState::Idle);
        self.stopped.pop().unwrap()
    }

    /// Returns the numbers of the units in a file. Panics if the file is not valid.
    pub(crate) fn unit_numbers(&self, name: &str) -> Vec<u32> {
        let file = self.files.values().find(|file| file.name == name).unwrap();
        if name.ends_with(".h264") {
            return unit_numbers_of_stream(&file.bytes);
        }
        let mut bytes = file.bytes.clone();
        if file.finished {
            let Form::Finished { index_offset } = fmp4::form(&bytes) else { panic!("not finished") };
            bytes.truncate(usize::try_from(index_offset).unwrap());
            bytes[..48].copy_from_slice(&fmp4::START_UNFINISHED);
        }
        let whole = whole_fragments(Cursor::new(&bytes)).unwrap().unwrap();
        assert_eq!(whole.end, bytes.len() as u64, "the file holds only whole units");
        let mut at = usize::try_from(whole.fragments_offset).unwrap();
        let mut numbers = Vec::new();
        while at < bytes.len() {
            let fragment = Fragment::parse(&bytes[at..]).unwrap();
            let Fragment { unit_bytes, kind, .. } = fragment;
            at += fragment.header_bytes();
            let (mut rest, mut kinds) = (&bytes[at..at + unit_bytes as usize], Vec::new());
            at += unit_bytes as usize;
            while !rest.is_empty() {
                let (length, tail) = rest.split_first_chunk::<4>().unwrap();
                let (nal, tail) = tail.split_at(u32::from_be_bytes(*length) as usize);
                kinds.push(nal[0] & 0x1f);
                if matches!(nal[0] & 0x1f, 1 | 5) {
                    numbers.push(unit_number_of(nal));
                }
                rest = tail;
            }
            assert_eq!(kinds, if kind == UnitKind::Idr { vec![7, 8, 5] } else { vec![1] });
        }
        numbers
    }
}

pub(crate) fn unit_numbers_of_stream(bytes: &[u8]) -> Vec<u32> {
    let mut nal_units = smallvec::SmallVec::new();
    let mut numbers = Vec::new();
    for chunk in split_units(bytes) {
        crate::h264::scan(chunk, &mut nal_units).unwrap();
        let kinds: Vec<u8> = nal_units.iter().map(|nal| nal.kind).collect();
        assert!(kinds == [7, 8, 5] || kinds == [1], "{kinds:?}");
        let last = nal_units.last().unwrap();
        numbers.push(unit_number_of(&chunk[last.start as usize..last.end as usize]));
    }
    numbers
}

/// Splits a byte stream into its access units. Each of them begins with an SPS or is a single slice.
pub(crate) fn split_units(bytes: &[u8]) -> Vec<&[u8]> {
    let starts: Vec<usize> = memchr::memmem::find_iter(bytes, &[0, 0, 0, 1]).collect();
    let begins: Vec<usize> = starts
        .iter()
        .enumerate()
        .filter(|(index, start)| {
            let kind = bytes[**start + 4] & 0x1f;
            kind == 7 || (kind == 1 && *index > 0)
        })
        .map(|(_, start)| *start)
        .collect();
    begins
        .iter()
        .zip(begins.iter().skip(1).chain([&bytes.len()]))
        .map(|(start, end)| &bytes[*start..*end])
        .collect()
}
