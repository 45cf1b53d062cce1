//! PURE: the text format of a script for the simulated camera. A script lists the units to publish, one entry per line.
//! This module parses and writes the text. It reads no file and publishes nothing.
//!
//! ```text
//!  unit hex:BYTES [KEY=VALUE]...                      publishes these bytes as one unit
//!  unit file:PATH[@OFFSET+BYTES] [KEY=VALUE]...       the same with the bytes of a file, or a part of them
//!  stream PATH [units=FROM..TO] [KEY=VALUE]...        publishes each access unit of a byte stream (Annex B) as one unit
//!  clock DURATION                                     steps the camera's clock, which changes all later stamps
//!  wait DURATION | wait file:PATH | wait stop         publishes nothing for this time, until the file exists, or for ever
//!  loop [N] ... end                                   plays the lines between N times, without N for ever
//! ```
//!
//! `#` begins a comment. A path must not contain white space.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Maximum number of lines of a script. This is a local bound.
const LINES_MAX: usize = 100_000;
/// Maximum number of loops around a line. This is a local bound.
const LOOP_DEPTH_MAX: usize = 8;
/// Maximum of a gap or a wait in ns: one hour. This is a local bound.
const PAUSE_NS_MAX: i64 = 3_600_000_000_000;
/// Maximum of a clock step or a stamp's offset in ns, forwards or backwards: a hundred years. This is a local bound.
const STEP_NS_MAX: i64 = 3_155_760_000_000_000_000;
/// Nanoseconds per unit of time, from the largest to the smallest.
const TIME_UNITS: [(&str, i64); 4] = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)];

/// Why a line of a script is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct SyntaxError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with the line.
    pub problem: Problem,
}

/// What is wrong with a line of a script.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message says what its variant means")]
pub enum Problem {
    #[error("{0:?} is not a command: use unit, stream, clock, wait, loop or end")]
    Command(String),
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0:?} is not expected here")]
    Unexpected(String),
    #[error("{word:?} is not {expected}")]
    Value { word: String, expected: &'static str },
    #[error("{0:?} is given twice")]
    Repeated(String),
    #[error("`end` without `loop`")]
    EndWithoutLoop,
    #[error("`loop` without `end`")]
    LoopWithoutEnd,
    #[error("a loop needs a unit, a stream or a wait")]
    EmptyLoop,
    #[error("at most {LOOP_DEPTH_MAX} loops may contain each other")]
    LoopDepth,
    #[error("a script has at most {LINES_MAX} lines")]
    TooManyLines,
    #[error("a script needs at least one unit or stream")]
    NoUnit,
}

/// A parsed script.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    pub(super) entries: Vec<Entry>,
}

/// One line of a script that is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Number of the line, from 1.
    pub(super) line: usize,
    pub(super) command: Command,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Unit {
        payload: Payload,
        slot: SlotChanges,
    },
    Stream {
        path: String,
        /// Indices of the access units to publish, from 0. `None` means all.
        units: Option<Range<usize>>,
        slot: SlotChanges,
    },
    /// Step of the clock in ns.
    Clock(i64),
    Wait(Wait),
    /// Number of repetitions, at least 1. `None` means for ever.
    Loop(Option<u64>),
    End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Payload {
    Bytes(Vec<u8>),
    File {
        path: String,
        /// Range of the file in bytes. `None` means the whole file.
        range: Option<Range<usize>>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Duration in ns.
    For(i64),
    /// Until a file of this name exists.
    File(String),
    /// Until the simulator is stopped.
    Stop,
}

/// What an entry changes in the slots of its units. `None` leaves the usual value.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotChanges {
    /// Time between the previous unit and this one in ns.
    pub(super) gap_ns: Option<i64>,
    /// Added to the capture time, in ns.
    pub(super) stamp_offset_ns: Option<i64>,
    /// The seconds field of the stamp.
    pub(super) stamp_s: Option<i64>,
    /// The nanoseconds field of the stamp.
    pub(super) stamp_ns: Option<i64>,
    pub(super) frame_number: Option<u64>,
    pub(super) format: Option<i32>,
    pub(super) data_bytes: Option<u64>,
    pub(super) width: Option<i32>,
    pub(super) height: Option<i32>,
    pub(super) camera_id: Option<i32>,
}

impl FromStr for Script {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Script, SyntaxError> {
        let mut entries = Vec::new();
        // For each open loop: its line, and whether it has an entry that takes time or publishes.
        let mut open: Vec<(usize, bool)> = Vec::new();
        let mut has_unit = false;
        for (line, content) in (1..).zip(text.lines()) {
            let at = |problem| SyntaxError { line, problem };
            if line > LINES_MAX {
                return Err(at(Problem::TooManyLines));
            }
            let Some(command) = parse_line(content).map_err(at)? else { continue };
            match &command {
                Command::Loop(_) if open.len() == LOOP_DEPTH_MAX => return Err(at(Problem::LoopDepth)),
                Command::Loop(_) => open.push((line, false)),
                Command::End => match open.pop() {
                    None => return Err(at(Problem::EndWithoutLoop)),
                    Some((line, false)) => return Err(SyntaxError { line, problem: Problem::EmptyLoop }),
                    Some((_, true)) => {}
                },
                Command::Clock(_) => {}
                Command::Unit { .. } | Command::Stream { .. } | Command::Wait(_) => {
                    open.iter_mut().for_each(|(_, is_filled)| *is_filled = true);
                    has_unit |= !matches!(command, Command::Wait(_));
                }
            }
            entries.push(Entry { line, command });
        }
        if let Some((line, _)) = open.pop() {
            return Err(SyntaxError { line, problem: Problem::LoopWithoutEnd });
        }
        if !has_unit {
            return Err(SyntaxError { line: text.lines().count().max(1), problem: Problem::NoUnit });
        }
        Ok(Script { entries })
    }
}

/// Parses one line. Returns `None` if it has only white space or a comment.
fn parse_line(content: &str) -> Result<Option<Command>, Problem> {
    let mut words = content.split_whitespace().take_while(|word| !word.starts_with('#'));
    let Some(name) = words.next() else { return Ok(None) };
    let command = match name {
        "unit" => {
            let payload = parse_payload(words.next().ok_or(Problem::Missing("hex:BYTES or file:PATH"))?)?;
            let (slot, _) = parse_slot(&mut words, false)?;
            Command::Unit { payload, slot }
        }
        "stream" => {
            let path = words.next().ok_or(Problem::Missing("the path of the stream"))?.to_owned();
            let (slot, units) = parse_slot(&mut words, true)?;
            Command::Stream { path, units, slot }
        }
        "clock" => {
            let step = words.next().ok_or(Problem::Missing("the step of the clock"))?;
            Command::Clock(parse_duration(step, STEP_NS_MAX, true)?)
        }
        "wait" => Command::Wait(parse_wait(words.next().ok_or(Problem::Missing("what to wait for"))?)?),
        "loop" => Command::Loop(words.next().map(parse_times).transpose()?),
        "end" => Command::End,
        other => return Err(Problem::Command(other.to_owned())),
    };
    match words.next() {
        Some(word) => Err(Problem::Unexpected(word.to_owned())),
        None => Ok(Some(command)),
    }
}

fn parse_payload(word: &str) -> Result<Payload, Problem> {
    if let Some(digits) = word.strip_prefix("hex:") {
        return parse_hex(digits).map(Payload::Bytes).ok_or_else(|| Problem::Value {
            word: shortened(word),
            expected: "an even number of hexadecimal digits after hex:",
        });
    }
    let bad = || Problem::Value {
        word: shortened(word),
        expected: "hex:BYTES, file:PATH or file:PATH@OFFSET+BYTES",
    };
    let path = word.strip_prefix("file:").ok_or_else(bad)?;
    let (path, range) = match path.rsplit_once('@') {
        None => (path, None),
        Some((path, range)) => {
            let (offset, bytes) = range.split_once('+').ok_or_else(bad)?;
            let offset: usize = offset.parse().map_err(|_| bad())?;
            let bytes: usize = bytes.parse().map_err(|_| bad())?;
            (path, Some(offset..offset.checked_add(bytes).ok_or_else(bad)?))
        }
    };
    if path.is_empty() { Err(bad()) } else { Ok(Payload::File { path: path.to_owned(), range }) }
}

fn parse_hex(digits: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    rest.is_empty().then_some(())?;
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// Parses the pairs KEY=VALUE up to the end of the line. `units` is allowed only if `is_stream` is true.
fn parse_slot<'a>(
    words: &mut impl Iterator<Item = &'a str>,
    is_stream: bool,
) -> Result<(SlotChanges, Option<Range<usize>>), Problem> {
    let (mut slot, mut units) = (SlotChanges::default(), None);
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            return Err(Problem::Unexpected(word.to_owned()));
        };
        match key {
            "gap" => set(&mut slot.gap_ns, word, parse_duration(value, PAUSE_NS_MAX, false)?)?,
            "stamp" => set(&mut slot.stamp_offset_ns, word, parse_duration(value, STEP_NS_MAX, true)?)?,
            "stamp_s" => set(&mut slot.stamp_s, word, parse_number(word, value)?)?,
            "stamp_ns" => set(&mut slot.stamp_ns, word, parse_number(word, value)?)?,
            "frame" => set(&mut slot.frame_number, word, parse_number(word, value)?)?,
            "format" => set(&mut slot.format, word, parse_number(word, value)?)?,
            "data_size" => set(&mut slot.data_bytes, word, parse_number(word, value)?)?,
            "width" => set(&mut slot.width, word, parse_number(word, value)?)?,
            "height" => set(&mut slot.height, word, parse_number(word, value)?)?,
            "camera" => set(&mut slot.camera_id, word, parse_number(word, value)?)?,
            "units" if is_stream => set(&mut units, word, parse_range(value)?)?,
            _ => return Err(Problem::Unexpected(word.to_owned())),
        }
    }
    Ok((slot, units))
}

fn set<T>(place: &mut Option<T>, word: &str, value: T) -> Result<(), Problem> {
    if place.replace(value).is_some() {
        return Err(Problem::Repeated(word.split('=').next().unwrap_or_default().to_owned()));
    }
    Ok(())
}

fn parse_number<T: FromStr>(word: &str, value: &str) -> Result<T, Problem> {
    value.parse().map_err(|_| Problem::Value {
        word: shortened(word),
        expected: "KEY=NUMBER with a whole number in the range of the field",
    })
}

fn parse_range(value: &str) -> Result<Range<usize>, Problem> {
    let bounds = value.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    match bounds {
        Some((from, to)) if from < to => Ok(from..to),
        _ => Err(Problem::Value {
            word: shortened(value),
            expected: "FROM..TO, with numbers from 0 and TO above FROM",
        }),
    }
}

fn parse_times(word: &str) -> Result<u64, Problem> {
    word.parse().ok().filter(|times| *times > 0).ok_or_else(|| Problem::Value {
        word: shortened(word),
        expected: "a number of repetitions, at least 1",
    })
}

fn parse_wait(word: &str) -> Result<Wait, Problem> {
    match word.strip_prefix("file:") {
        Some("") => Err(Problem::Missing("the path after file:")),
        Some(path) => Ok(Wait::File(path.to_owned())),
        None if word == "stop" => Ok(Wait::Stop),
        None => parse_duration(word, PAUSE_NS_MAX, false).map(Wait::For),
    }
}

/// Parses a decimal number with a unit, such as `40ms` or `-1.5s`, and returns it in ns. Digits below one nanosecond
/// are cut off.
fn parse_duration(word: &str, max_ns: i64, may_be_negative: bool) -> Result<i64, Problem> {
    let bad = || Problem::Value {
        word: shortened(word),
        expected: if may_be_negative {
            "a time such as 40ms or -1.5s, with ns, us, ms or s, of at most a hundred years"
        } else {
            "a time such as 40ms or 1.5s, with ns, us, ms or s, of at most an hour"
        },
    };
    let digits_end = word.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?;
    let (number, unit) = word.split_at(digits_end);
    let (_, unit_ns) = *TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
    let (is_negative, number) = match number.strip_prefix('-') {
        Some(rest) if may_be_negative => (true, rest),
        _ => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |text: &str| (1..=19).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return Err(bad());
    }
    let scale = 10_i128.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
    let digits: i128 = format!("{whole}{fraction}").parse().map_err(|_| bad())?;
    let ns = digits.checked_mul(i128::from(unit_ns)).ok_or_else(bad)? / scale;
    let ns = i64::try_from(ns).ok().filter(|ns| *ns <= max_ns).ok_or_else(bad)?;
    Ok(if is_negative { -ns } else { ns })
}

/// Returns the beginning of a word for an error message, because a payload may be long.
fn shortened(word: &str) -> String {
    word.chars().take(40).collect()
}

impl fmt::Display for Script {
    /// Writes the script as text. Parsing that text returns the same entries.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut depth = 0_usize;
        for entry in &self.entries {
            if entry.command == Command::End {
                depth = depth.saturating_sub(1);
            }
            writeln!(f, "{:indent$}{}", "", entry.command, indent = 2 * depth)?;
            if matches!(entry.command, Command::Loop(_)) {
                depth += 1;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Unit { payload: Payload::Bytes(bytes), slot } => {
                f.write_str("unit hex:")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                slot.fmt(f)
            }
            Command::Unit { payload: Payload::File { path, range }, slot } => {
                write!(f, "unit file:{path}")?;
                if let Some(range) = range {
                    write!(f, "@{}+{}", range.start, range.len())?;
                }
                slot.fmt(f)
            }
            Command::Stream { path, units, slot } => {
                write!(f, "stream {path}")?;
                if let Some(units) = units {
                    write!(f, " units={}..{}", units.start, units.end)?;
                }
                slot.fmt(f)
            }
            Command::Clock(step_ns) => write!(f, "clock {}", Duration(*step_ns)),
            Command::Wait(Wait::For(ns)) => write!(f, "wait {}", Duration(*ns)),
            Command::Wait(Wait::File(path)) => write!(f, "wait file:{path}"),
            Command::Wait(Wait::Stop) => f.write_str("wait stop"),
            Command::Loop(None) => f.write_str("loop"),
            Command::Loop(Some(times)) => write!(f, "loop {times}"),
            Command::End => f.write_str("end"),
        }
    }
}

impl fmt::Display for SlotChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn pair<T: fmt::Display>(f: &mut fmt::Formatter<'_>, key: &str, value: Option<T>) -> fmt::Result {
            value.map_or(Ok(()), |value| write!(f, " {key}={value}"))
        }
        pair(f, "gap", self.gap_ns.map(Duration))?;
        pair(f, "stamp", self.stamp_offset_ns.map(Duration))?;
        pair(f, "stamp_s", self.stamp_s)?;
        pair(f, "stamp_ns", self.stamp_ns)?;
        pair(f, "frame", self.frame_number)?;
        pair(f, "format", self.format)?;
        pair(f, "data_size", self.data_bytes)?;
        pair(f, "width", self.width)?;
        pair(f, "height", self.height)?;
        pair(f, "camera", self.camera_id)
    }
}

/// A time in ns, written in the largest unit of which it is a multiple.
struct Duration(i64);

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let largest = TIME_UNITS.iter().find(|(_, unit_ns)| self.0 % unit_ns == 0);
        let (name, unit_ns) = largest.copied().unwrap_or(("ns", 1));
        write!(f, "{}{name}", self.0 / unit_ns)
    }
}

#[cfg(test)]
mod tests;
