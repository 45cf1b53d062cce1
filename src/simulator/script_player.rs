//! Plays a script: reads its files once, then waits, makes the slot of each unit as the script says, and publishes it.
//! Payloads are published unchanged, without a stamp. The text format is in `script`.

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::config::{Faults, SimulatorConfig, TimestampClock};
use super::file::{FILE_BYTES_MAX, is_idr, raw_access_units};
use super::run::{
    NS_PER_S, SimulatorError, SimulatorReport, create_ring, interval_ns, refuse_used_ring, sleep_until,
};
use super::script::{Command, Entry, Payload, Script, SlotChanges, SyntaxError, Wait};
use super::test_card::TestCardConfig;
use crate::base::limits::SLOT_DATA_BYTES_MAX;
use crate::base::{clock, foreign_file};
use crate::camera::{FORMAT_H264, RingWriter, SlotMetadata};
use crate::h264::Assembler;

/// Interval at which `wait file:PATH` looks for the file, in ns.
const FILE_CHECK_NS: i64 = 10_000_000;

/// Reasons why a script cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// A line of the script is not valid.
    #[error("{path}, {source}")]
    Syntax {
        /// Path of the script.
        path: PathBuf,
        /// The line, and what is wrong with it.
        source: SyntaxError,
    },
    /// The script itself, or a file that it names, cannot be read.
    #[error("{script}, line {line}: cannot read {path}: {source}")]
    Read {
        /// Path of the script.
        script: PathBuf,
        /// Number of the line that names the file, or 0 for the script itself.
        line: usize,
        /// Path of the file.
        path: PathBuf,
        /// Error that the kernel returned.
        source: io::Error,
    },
    /// The content of a file does not fit the line that names it.
    #[error("{script}, line {line}: {problem}")]
    Content {
        /// Path of the script.
        script: PathBuf,
        /// Number of the line.
        line: usize,
        /// What does not fit.
        problem: ContentProblem,
    },
}

/// Why the content of a file does not fit the line of the script that names it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentProblem {
    /// The unit is larger than a slot.
    #[error("a unit has {0} bytes; a slot holds {SLOT_DATA_BYTES_MAX}")]
    UnitTooLarge(usize),
    /// A range of bytes ends after the end of the file. Holds the length of the file in bytes.
    #[error("the file has only {0} bytes")]
    FileTooShort(usize),
    /// A range of units ends after the last unit of the file. Holds the number of units in the file.
    #[error("the file has only {0} access units; is it H.264 in byte-stream format (Annex B)?")]
    TooFewUnits(usize),
    /// The files of the script are too large together.
    #[error("the files of a script may have {FILE_BYTES_MAX} bytes together")]
    FilesTooLarge,
}

/// A script with the bytes of all its files.
pub struct LoadedScript {
    steps: Vec<Step>,
    files: Vec<(PathBuf, Arc<Vec<u8>>)>,
}

/// An entry of the script, ready to be played.
enum Step {
    /// Publishes these units: ranges of `bytes`.
    Publish {
        bytes: Arc<Vec<u8>>,
        units: Vec<Range<usize>>,
        slot: SlotChanges,
    },
    Clock(i64),
    Wait(Wait),
    Loop(Option<u64>),
    End,
}

impl LoadedScript {
    /// Reads a script and all files that it names. Relative paths are relative to the directory of the script.
    ///
    /// # Errors
    /// Returns [`ScriptError`] if the script is not valid or if a file cannot be read or used.
    pub fn open(path: &Path) -> Result<LoadedScript, ScriptError> {
        let failed =
            |source| ScriptError::Read { script: path.to_owned(), line: 0, path: path.to_owned(), source };
        let mut text = String::new();
        foreign_file::open_configured(path)
            .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
            .map_err(failed)?;
        let script: Script =
            text.parse().map_err(|source| ScriptError::Syntax { path: path.to_owned(), source })?;
        let mut loaded = LoadedScript { steps: Vec::with_capacity(script.entries.len()), files: Vec::new() };
        for entry in script.entries {
            let step = loaded.load(path, entry)?;
            loaded.steps.push(step);
        }
        Ok(loaded)
    }

    fn load(&mut self, script: &Path, entry: Entry) -> Result<Step, ScriptError> {
        let Entry { line, command } = entry;
        let wrong = |problem| ScriptError::Content { script: script.to_owned(), line, problem };
        let (bytes, units, slot) = match command {
            Command::Clock(step_ns) => return Ok(Step::Clock(step_ns)),
            Command::Wait(Wait::File(name)) => {
                let path = beside(script, &name).to_string_lossy().into_owned();
                return Ok(Step::Wait(Wait::File(path)));
            }
            Command::Wait(wait) => return Ok(Step::Wait(wait)),
            Command::Loop(times) => return Ok(Step::Loop(times)),
            Command::End => return Ok(Step::End),
            Command::Unit { payload: Payload::Bytes(bytes), slot } => {
                let whole = 0..bytes.len();
                (Arc::new(bytes), vec![whole], slot)
            }
            Command::Unit { payload: Payload::File { path, range }, slot } => {
                let bytes = self.read(script, line, &path)?;
                let range = range.unwrap_or(0..bytes.len());
                if range.end > bytes.len() {
                    return Err(wrong(ContentProblem::FileTooShort(bytes.len())));
                }
                (bytes, vec![range], slot)
            }
            Command::Stream { path, units, slot } => {
                let bytes = self.read(script, line, &path)?;
                let all = raw_access_units(&bytes);
                let chosen = all.get(units.unwrap_or(0..all.len().max(1))).map(<[_]>::to_vec);
                let chosen = chosen.ok_or_else(|| wrong(ContentProblem::TooFewUnits(all.len())))?;
                (bytes, chosen, slot)
            }
        };
        match units.iter().find(|unit| unit.len() > SLOT_DATA_BYTES_MAX) {
            Some(unit) => Err(wrong(ContentProblem::UnitTooLarge(unit.len()))),
            None => Ok(Step::Publish { bytes, units, slot }),
        }
    }

    /// Returns the bytes of a file. Each file is read once.
    fn read(&mut self, script: &Path, line: usize, name: &str) -> Result<Arc<Vec<u8>>, ScriptError> {
        let path = beside(script, name);
        if let Some((_, bytes)) = self.files.iter().find(|(known, _)| *known == path) {
            return Ok(Arc::clone(bytes));
        }
        let read_before: u64 = self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let room = FILE_BYTES_MAX.saturating_sub(read_before);
        let mut bytes = Vec::new();
        let read =
            foreign_file::open_configured(&path).and_then(|file| file.take(room + 1).read_to_end(&mut bytes));
        match read {
            Ok(read) if read as u64 > room => {
                let problem = ContentProblem::FilesTooLarge;
                Err(ScriptError::Content { script: script.to_owned(), line, problem })
            }
            Ok(_) => {
                let bytes = Arc::new(bytes);
                self.files.push((path, Arc::clone(&bytes)));
                Ok(bytes)
            }
            Err(source) => Err(ScriptError::Read { script: script.to_owned(), line, path, source }),
        }
    }
}

/// Returns the path that `name` means in the script at `script`.
fn beside(script: &Path, name: &str) -> PathBuf {
    script.parent().map_or_else(|| PathBuf::from(name), |directory| directory.join(name))
}

/// Yields the steps in playing order: it repeats the steps of a loop, and yields no `Loop` and no `End`.
struct Sequence<'a> {
    steps: &'a [Step],
    next: usize,
    /// For each loop around `next`: the index of its first step, and the repetitions after the current one.
    loops: Vec<(usize, Option<u64>)>,
}

impl<'a> Iterator for Sequence<'a> {
    type Item = &'a Step;

    fn next(&mut self) -> Option<&'a Step> {
        loop {
            let step = self.steps.get(self.next)?;
            self.next += 1;
            match step {
                Step::Loop(times) => self.loops.push((self.next, times.map(|times| times.saturating_sub(1)))),
                Step::End => match self.loops.last_mut() {
                    Some((start, None)) => self.next = *start,
                    Some((start, Some(more))) if *more > 0 => {
                        *more -= 1;
                        self.next = *start;
                    }
                    _ => drop(self.loops.pop()),
                },
                step => return Some(step),
            }
        }
    }
}

/// Plays a script until `stop` is set or the script ends. Uses the ring, the clock, the rate and the number of units of
/// `config`. The function returns within about 100 ms after `stop` is set.
///
/// # Errors
/// Returns [`SimulatorError`] if the ring cannot be created, or if `config` injects faults, which a script does itself.
pub fn play_script(
    config: &SimulatorConfig,
    script: &LoadedScript,
    stop: &AtomicBool,
) -> Result<SimulatorReport, SimulatorError> {
    if config.faults != Faults::default() || config.card != TestCardConfig::default() {
        let what = "the source for fault injection and for options of the test card";
        return Err(SimulatorError::Config { what, range: "the test card or a file, not a script" });
    }
    refuse_used_ring(config)?;
    let started_ns = clock::monotonic_ns();
    let mut player = Player {
        config,
        stop,
        ring: create_ring(config)?,
        assembler: Assembler::default(),
        size: (1280, 720),
        due_ns: started_ns,
        clock_offset_ns: 0,
        report: SimulatorReport::default(),
    };
    for step in (Sequence { steps: &script.steps, next: 0, loops: Vec::new() }) {
        player.play(step);
        if player.is_done() {
            break;
        }
    }
    if config.unlink_at_exit {
        player.ring.unlink();
    }
    player.report.lasted_ns = clock::monotonic_ns() - started_ns;
    Ok(player.report)
}

struct Player<'a> {
    config: &'a SimulatorConfig,
    stop: &'a AtomicBool,
    ring: RingWriter,
    /// Remembers the parameter sets of the units, from which `size` comes.
    assembler: Assembler,
    /// Width and height of the picture in pixels. Until a unit carries an SPS, those of the default test card.
    size: (u32, u32),
    /// Time of the last unit or of the end of the last wait, CLOCK_MONOTONIC.
    due_ns: i64,
    /// Sum of the clock steps so far.
    clock_offset_ns: i64,
    report: SimulatorReport,
}

impl Player<'_> {
    fn is_done(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.config.units.is_some_and(|units| self.report.units >= units)
    }

    fn play(&mut self, step: &Step) {
        match step {
            Step::Publish { bytes, units, slot } => {
                for unit in units {
                    self.wait_gap(slot);
                    if self.is_done() {
                        return;
                    }
                    self.publish(bytes.get(unit.clone()).unwrap_or_default(), slot);
                }
            }
            Step::Clock(step_ns) => {
                self.clock_offset_ns = self.clock_offset_ns.saturating_add(*step_ns);
            }
            Step::Wait(Wait::For(ns)) => {
                self.due_ns = self.due_ns.saturating_add(*ns);
                sleep_until(self.due_ns, self.stop);
            }
            Step::Wait(Wait::File(path)) => {
                let mut now = clock::monotonic_ns();
                while fs::symlink_metadata(path).is_err() && !self.stop.load(Ordering::Relaxed) {
                    sleep_until(now + FILE_CHECK_NS, self.stop);
                    now = clock::monotonic_ns();
                }
                self.due_ns = self.due_ns.max(now);
            }
            Step::Wait(Wait::Stop) => sleep_until(i64::MAX, self.stop),
            Step::Loop(_) | Step::End => {}
        }
    }

    /// Waits until the unit must be published. If the machine is late by more than the gap, the schedule is shifted, so
    /// that the following units do not arrive at once.
    fn wait_gap(&mut self, slot: &SlotChanges) {
        let gap_ns = slot.gap_ns.unwrap_or_else(|| self.config.fps.map_or(0, interval_ns));
        self.due_ns = self.due_ns.saturating_add(gap_ns);
        sleep_until(self.due_ns, self.stop);
        let late_ns = clock::monotonic_ns() - self.due_ns;
        self.report.late_ns_max = self.report.late_ns_max.max(late_ns);
        if late_ns > gap_ns {
            self.due_ns += late_ns;
        }
    }

    fn publish(&mut self, payload: &[u8], slot: &SlotChanges) {
        // The result is ignored: a unit without a slice is an error, but its parameter sets are cached.
        let _ = self.assembler.assemble(payload);
        if let Some(info) = self.assembler.parameter_sets().stream_info() {
            self.size = (info.width, info.height);
        }
        let metadata = self.metadata(payload, slot);
        self.report.units += 1;
        let is_published = if is_idr(payload) {
            self.ring.publish_idr(&metadata, payload)
        } else {
            self.ring.publish(&metadata, payload)
        };
        if is_published {
            self.report.published += 1;
            self.report.bytes += payload.len() as u64;
        } else {
            self.report.refused += 1;
        }
    }

    fn metadata(&self, payload: &[u8], slot: &SlotChanges) -> SlotMetadata {
        let captured_ns = match self.config.clock {
            TimestampClock::Monotonic => self.due_ns,
            TimestampClock::Realtime => clock::realtime_ns() - (clock::monotonic_ns() - self.due_ns),
        };
        let stamp_ns = captured_ns
            .saturating_add(self.clock_offset_ns)
            .saturating_add(slot.stamp_offset_ns.unwrap_or_default());
        let side = |pixels: u32| i32::try_from(pixels).unwrap_or(i32::MAX);
        SlotMetadata {
            frame_number: slot.frame_number.unwrap_or(self.report.units),
            timestamp_s: slot.stamp_s.unwrap_or(stamp_ns.div_euclid(NS_PER_S)),
            timestamp_ns: slot.stamp_ns.unwrap_or(stamp_ns.rem_euclid(NS_PER_S)),
            camera_id: slot.camera_id.unwrap_or_default(),
            width: slot.width.unwrap_or(side(self.size.0)),
            height: slot.height.unwrap_or(side(self.size.1)),
            format: slot.format.unwrap_or(FORMAT_H264),
            data_bytes: slot.data_bytes.unwrap_or(payload.len() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::camera::{Access, Layout, Mapping};
    use crate::simulator::{TestCard, Unit};

    /// Naive twin of [`Sequence`]: writes the clock steps of all loops one after the other.
    fn unrolled(steps: &[Step]) -> Vec<i64> {
        let (mut out, mut index) = (Vec::new(), 0);
        while index < steps.len() {
            match &steps[index] {
                Step::Clock(number) => out.push(*number),
                Step::Loop(times) => {
                    let mut depth = 1;
                    let body = index + 1;
                    while depth > 0 {
                        index += 1;
                        match &steps[index] {
                            Step::Loop(_) => depth += 1,
                            Step::End => depth -= 1,
                            _ => {}
                        }
                    }
                    let once = unrolled(&steps[body..index]);
                    (0..times.unwrap()).for_each(|_| out.extend(&once));
                }
                _ => unreachable!(),
            }
            index += 1;
        }
        out
    }

    fn steps() -> impl Strategy<Value = Vec<(bool, i64, u64)>> {
        prop::collection::vec((any::<bool>(), any::<i64>(), 1..4_u64), 1..12)
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn loops_are_played_as_often_as_they_say(plan in steps()) {
            // Each true opens a loop around everything that follows, up to six loops.
            let (mut steps, mut depth) = (Vec::new(), 0);
            for (opens, number, times) in plan {
                if opens && depth < 6 {
                    steps.push(Step::Loop(Some(times)));
                    depth += 1;
                }
                steps.push(Step::Clock(number));
            }
            steps.extend((0..depth).map(|_| Step::End));
            let sequence = Sequence { steps: &steps, next: 0, loops: Vec::new() };
            let played: Vec<i64> = sequence
                .map(|step| match step { Step::Clock(number) => *number, _ => unreachable!() })
                .collect();
            prop_assert_eq!(played, unrolled(&steps));
        }
    }

    #[test]
    fn a_loop_without_a_number_never_ends() {
        let steps = [Step::Clock(1), Step::Loop(None), Step::Clock(2), Step::End, Step::Clock(3)];
        let sequence = Sequence { steps: &steps, next: 0, loops: Vec::new() };
        let numbers = sequence.take(1000).map(|step| matches!(step, Step::Clock(2)));
        assert!(numbers.skip(1).all(|is_two| is_two));
    }

    /// A directory with a script and a file, removed on drop.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("ss-script-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn open(&self, script: &str) -> Result<LoadedScript, String> {
            let path = self.0.join("script.txt");
            fs::write(&path, script).unwrap();
            LoadedScript::open(&path).map_err(|error| error.to_string())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn files_that_do_not_fit_their_line_are_refused() {
        let folder = Folder::new("refused");
        fs::write(folder.0.join("small"), [0, 0, 1, 0x65, 0x88]).unwrap();
        fs::write(folder.0.join("large"), vec![0; SLOT_DATA_BYTES_MAX + 1]).unwrap();
        for (script, part) in [
            ("unit hex:00\nunit file:none", "line 2: cannot read"),
            ("\n\nunit file:small@1+5", "line 3: the file has only 5 bytes"),
            ("unit file:large", "line 1: a unit has 3110401 bytes"),
            ("stream large", "line 1: the file has only 0 access units"),
            ("stream small units=0..2", "line 1: the file has only 1 access units"),
            ("unit hex:0", "line 1: \"hex:0\""),
        ] {
            let error = folder.open(script).err().unwrap_or_default();
            assert!(error.contains(part) && error.contains("script.txt"), "{script:?}: {error:?}");
        }
        let missing = LoadedScript::open(Path::new("/nonexistent/script")).err().unwrap();
        assert!(missing.to_string().contains("/nonexistent/script"), "{missing}");
        assert!(folder.open("unit file:large@0+3110400\nstream small units=0..1\nunit file:small").is_ok());
    }

    /// Plays a script on a ring of `layout` and returns the metadata of its slots.
    fn slots_of(script: &LoadedScript, layout: Layout) -> Vec<SlotMetadata> {
        let name = format!("/ss-script-{layout}-{}", std::process::id());
        let unlink_at_exit = false;
        let config =
            SimulatorConfig { name, layout, unlink_at_exit, fps: None, ..SimulatorConfig::default() };
        let report = play_script(&config, script, &AtomicBool::new(false)).unwrap();
        let mapping = Mapping::open(&config.name, Access::Inspect).unwrap();
        assert_eq!(report.published, u64::from(mapping.write_index()));
        let slots = (0..mapping.write_index()).map(|unit| mapping.metadata(unit)).collect();
        RingWriter::attach(&config.name).unwrap().unlink();
        slots
    }

    #[test]
    fn slots_say_what_the_script_says_on_every_layout() {
        let folder = Folder::new("slots");
        let mut card =
            TestCard::new(TestCardConfig { width: 320, height: 240, ..TestCardConfig::default() }).unwrap();
        let mut unit = Unit::default();
        card.encode(0, 0, &mut unit);
        fs::write(folder.0.join("idr"), unit.bytes()).unwrap();
        let script = folder
            .open(
                "unit hex:0000000109f0\nloop 2\nstream idr\nend\nclock -1000s\nunit hex:00 stamp=-24s\n\
                 unit hex:00 frame=99 format=-7 data_size=18446744073709551615 width=-1 height=0 camera=3 \
                 stamp_s=-5 stamp_ns=2000000000",
            )
            .unwrap();
        for layout in Layout::LEGACY.into_iter().chain([Layout::LEASE]) {
            let slots = slots_of(&script, layout);
            let usual = |slot: &SlotMetadata| (slot.frame_number, slot.width, slot.height, slot.data_bytes);
            let bytes = unit.bytes().len() as u64;
            assert_eq!(
                slots.iter().take(4).map(usual).collect::<Vec<_>>(),
                [(0, 1280, 720, 6), (1, 320, 240, bytes), (2, 320, 240, bytes), (3, 320, 240, 1)],
                "{layout}"
            );
            let stepped_s = slots[2].timestamp_s - slots[3].timestamp_s;
            assert!((1_000..=1_024).contains(&stepped_s), "{layout}: {stepped_s} s back");
            let lie = SlotMetadata {
                frame_number: 99,
                timestamp_s: -5,
                timestamp_ns: 2_000_000_000,
                camera_id: 3,
                width: -1,
                height: 0,
                format: -7,
                data_bytes: u64::MAX,
            };
            if matches!(layout, Layout::Lease(_)) {
                // A lease ring has no format: the writer publishes units of another format without data.
                assert_eq!(usual(&slots[4]), (99, -1, 0, 0), "{layout}");
            } else {
                assert_eq!(slots[4], lie, "{layout}");
            }
        }
    }

    /// A byte stream of NAL units without a start code, with start codes of three or four bytes and zero bytes at the end.
    fn byte_stream() -> impl Strategy<Value = Vec<u8>> {
        let kind = prop::sample::select(vec![0x65, 0x41, 0x67, 0x68, 0x06, 0x09, 0x0C, 0x0A, 0x6E]);
        let body = prop::collection::vec(1..=255_u8, 0..4);
        let nal = (kind, body, 0..3_usize, any::<bool>()).prop_map(|(kind, body, zeros, is_long)| {
            let code: &[u8] = if is_long { &[0, 0, 0, 1] } else { &[0, 0, 1] };
            [code, &[kind], &body, &[0, 0][..zeros]].concat()
        });
        prop::collection::vec(nal, 0..20).prop_map(|nals| nals.concat())
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn the_access_units_of_a_file_are_its_bytes_in_order(stream in byte_stream()) {
            let units = raw_access_units(&stream);
            let joined: Vec<u8> = units.iter().flat_map(|unit| &stream[unit.clone()]).copied().collect();
            prop_assert!(stream.ends_with(&joined), "only bytes before the first unit are left out");
            for unit in &units {
                let bytes = &stream[unit.clone()];
                prop_assert!(bytes.starts_with(&[0, 0, 1]) || bytes.starts_with(&[0, 0, 0, 1]), "{bytes:?}");
            }
        }
    }
}
