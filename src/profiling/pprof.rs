//! Writes gzip-compressed profile.proto (github.com/google/pprof/blob/main/proto/profile.proto). The format is simple
//! enough to be written without a protobuf library. The callers supply the samples.

use std::collections::HashMap;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::symbols::{self, Symbols};
use crate::base::clock;

/// The header fields of a profile. Types are pairs of name and unit.
#[derive(Clone, Debug, Default)]
pub(super) struct Description {
    pub(super) sample_types: Vec<(&'static str, &'static str)>,
    /// Name of the sample type that pprof shows first.
    pub(super) default_type: &'static str,
    pub(super) period_type: (&'static str, &'static str),
    pub(super) period: i64,
    pub(super) duration_ns: i64,
    /// Regular expression of the functions that pprof hides, together with everything they called. Empty if there are
    /// none.
    pub(super) drop_frames: &'static str,
    /// Comments for readers; `go tool pprof -comments` shows them.
    pub(super) comments: Vec<String>,
}

/// One sample: a stack with its values.
pub(super) struct Sample<'a> {
    /// Addresses, innermost first; empty if the stack is unknown.
    pub(super) frames: &'a [usize],
    /// One value per sample type.
    pub(super) values: &'a [i64],
    pub(super) labels: &'a [(&'static str, &'a str)],
}

/// A function that calls its argument with every sample. [`encode`] calls it twice, and it must produce the same
/// samples both times.
pub(super) type Samples<'a> = &'a dyn Fn(&mut dyn FnMut(&Sample<'_>));

/// Returns the contents of the profile file. During the encoding, all distinct addresses and names and the compressed
/// result are in memory.
pub(super) fn encode(description: &Description, samples: Samples<'_>) -> Vec<u8> {
    let mut addresses = Vec::new();
    samples(&mut |sample| addresses.extend_from_slice(sample.frames));
    let symbols = symbols::resolve(addresses);
    let gzip = GzEncoder::new(Vec::new(), Compression::fast());
    let mut encoder = Encoder { gzip, strings: HashMap::new() };
    encoder.string(""); // the format requires the empty string at index 0
    encoder.describe(description);
    encoder.places(&symbols);
    samples(&mut |sample| encoder.sample(sample, &symbols));
    encoder.gzip.finish().expect(IN_MEMORY)
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// Returns a message of numbers, given as pairs of field number and value. A value of 0 is the default and is
    /// omitted.
    fn of<const N: usize>(numbers: [(u64, u64); N]) -> Message {
        let mut message = Message::default();
        for (field, value) in numbers.into_iter().filter(|(_, value)| *value != 0) {
            message.varint(field << 3);
            message.varint(value);
        }
        message
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn numbers(&mut self, field: u64, values: impl Iterator<Item = u64>) {
        let mut packed = Message::default();
        values.for_each(|value| packed.varint(value));
        self.bytes(field, &packed.0);
    }
}

struct Encoder {
    gzip: GzEncoder<Vec<u8>>,
    strings: HashMap<String, u64>,
}

impl Encoder {
    fn write(&mut self, message: &Message) {
        self.gzip.write_all(&message.0).expect(IN_MEMORY);
    }

    fn put(&mut self, field: u64, bytes: &[u8]) {
        let mut wrapped = Message::default();
        wrapped.bytes(field, bytes);
        self.write(&wrapped);
    }

    /// Returns the index of a string in the string table. Writes the string when it is first used.
    fn string(&mut self, text: &str) -> u64 {
        if let Some(index) = self.strings.get(text) {
            return *index;
        }
        let index = self.strings.len() as u64;
        self.strings.insert(text.to_owned(), index);
        self.put(6, text.as_bytes());
        index
    }

    /// Returns a message of two strings: a type and its unit, or a label's key and value.
    fn pair(&mut self, (first, second): (&str, &str)) -> Message {
        Message::of([(1, self.string(first)), (2, self.string(second))])
    }

    fn describe(&mut self, description: &Description) {
        for sample_type in &description.sample_types {
            let message = self.pair(*sample_type);
            self.put(1, &message.0);
        }
        let period_type = self.pair(description.period_type);
        self.put(11, &period_type.0);
        let mut plain = Message::of([
            (7, self.string(description.drop_frames)),
            (9, clock::realtime_ns().cast_unsigned()),
            (10, description.duration_ns.cast_unsigned()),
            (12, description.period.cast_unsigned()),
            (14, self.string(description.default_type)),
        ]);
        plain.numbers(13, description.comments.iter().map(|comment| self.string(comment)));
        self.write(&plain);
    }

    /// Writes the mappings, functions and locations. Their ids count from 1. An additional last function and location
    /// stand for an unknown stack.
    fn places(&mut self, symbols: &Symbols) {
        for (index, mapping) in symbols.mappings.iter().enumerate() {
            let message = Message::of([
                (1, id(index)),
                (2, mapping.range.start as u64),
                (3, mapping.range.end as u64),
                (4, mapping.file_offset),
                (5, self.string(&mapping.path)),
                (6, self.string(&mapping.build_id)),
                (7, 1), // has_functions: pprof needs no binary
            ]);
            self.put(3, &message.0);
        }
        let functions = symbols.functions.iter().map(String::as_str).chain([UNKNOWN]);
        for (index, name) in functions.enumerate() {
            let shown = self.string(&symbols::demangled(name));
            let message = Message::of([(1, id(index)), (2, shown), (3, self.string(name))]);
            self.put(5, &message.0);
        }
        for (index, (address, place)) in symbols.addresses.iter().zip(&symbols.places).enumerate() {
            let Some(place) = place else { continue };
            self.location(index, id(place.mapping), *address, id(place.function));
        }
        self.location(symbols.addresses.len(), 0, 0, id(symbols.functions.len()));
    }

    fn location(&mut self, index: usize, mapping: u64, address: usize, function: u64) {
        let mut message = Message::of([(1, id(index)), (2, mapping), (3, address as u64)]);
        message.bytes(4, &Message::of([(1, function)]).0);
        self.put(4, &message.0);
    }

    fn sample(&mut self, sample: &Sample<'_>, symbols: &Symbols) {
        // A frame outside mapped code is invalid, and so are all frames after it. They are left out.
        let known = sample.frames.iter().map_while(|frame| symbols.find(*frame));
        let mut locations: Vec<u64> = known.map(|(index, _)| id(index)).collect();
        if locations.is_empty() {
            locations.push(id(symbols.addresses.len()));
        }
        let mut message = Message::default();
        message.numbers(1, locations.into_iter());
        message.numbers(2, sample.values.iter().map(|value| value.cast_unsigned()));
        for label in sample.labels {
            let label = self.pair(*label);
            message.bytes(3, &label.0);
        }
        self.put(2, &message.0);
    }
}

const UNKNOWN: &str = "[stack not known]";

/// Reason why writing cannot fail, as the text for `expect`.
const IN_MEMORY: &str = "the profile is written to memory";

fn id(index: usize) -> u64 {
    index as u64 + 1
}
