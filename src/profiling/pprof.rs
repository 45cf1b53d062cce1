//! Writes gzip-compressed profile.proto (github.com/google/pprof/blob/main/proto/profile.proto). The format is small
//! enough to write by hand. The callers supply the samples.

use std::collections::HashMap;
use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::symbols::{self, Mapping, Symbols};
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
    /// Regular expression: pprof hides these functions and everything they called. Empty for none.
    pub(super) drop_frames: &'static str,
    /// Comments for readers; `go tool pprof -comments` shows them.
    pub(super) comments: Vec<String>,
}

/// One stack with its values.
pub(super) struct Sample<'a> {
    /// Addresses, innermost first; empty if the stack is unknown.
    pub(super) frames: &'a [usize],
    /// One value per sample type.
    pub(super) values: &'a [i64],
    pub(super) labels: &'a [(&'static str, &'a str)],
}

/// Calls its argument with every sample. It is called twice and must produce the same samples.
pub(super) type Samples<'a> = &'a dyn Fn(&mut dyn FnMut(&Sample<'_>));

/// Returns the profile file. It holds the distinct addresses and names and the compressed result in memory.
pub(super) fn encode(description: &Description, samples: Samples<'_>) -> io::Result<Vec<u8>> {
    let mut addresses = Vec::new();
    samples(&mut |sample| addresses.extend_from_slice(sample.frames));
    addresses.sort_unstable();
    addresses.dedup();
    let symbols = symbols::resolve(&addresses);
    let mut encoder = Encoder::new();
    encoder.describe(description)?;
    encoder.places(&addresses, &symbols)?;
    let mut result = Ok(());
    samples(&mut |sample| {
        if result.is_ok() {
            result = encoder.sample(sample, &addresses, &symbols);
        }
    });
    result?;
    encoder.finish()
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }

    /// Appends a number; 0 is the default and omitted.
    fn number(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.varint(field << 3);
            self.varint(value);
        }
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
    in_order: Vec<String>,
}

impl Encoder {
    fn new() -> Self {
        let mut encoder = Encoder {
            gzip: GzEncoder::new(Vec::new(), Compression::fast()),
            strings: HashMap::new(),
            in_order: Vec::new(),
        };
        encoder.string(""); // index 0 by definition
        encoder
    }

    /// Returns the index of a string in the string table, which is written last.
    fn string(&mut self, text: &str) -> u64 {
        if let Some(index) = self.strings.get(text) {
            return *index;
        }
        let index = self.in_order.len() as u64;
        self.strings.insert(text.to_owned(), index);
        self.in_order.push(text.to_owned());
        index
    }

    fn put(&mut self, field: u64, message: &Message) -> io::Result<()> {
        let mut wrapped = Message::default();
        wrapped.bytes(field, &message.0);
        self.gzip.write_all(&wrapped.0)
    }

    fn value_type(&mut self, (what, unit): (&str, &str)) -> Message {
        let mut message = Message::default();
        message.number(1, self.string(what));
        message.number(2, self.string(unit));
        message
    }

    fn describe(&mut self, description: &Description) -> io::Result<()> {
        for sample_type in &description.sample_types {
            let message = self.value_type(*sample_type);
            self.put(1, &message)?;
        }
        let period_type = self.value_type(description.period_type);
        self.put(11, &period_type)?;
        let mut plain = Message::default();
        plain.number(7, self.string(description.drop_frames));
        plain.number(9, clock::realtime_ns().cast_unsigned());
        plain.number(10, description.duration_ns.cast_unsigned());
        plain.number(12, description.period.cast_unsigned());
        let comments: Vec<u64> = description.comments.iter().map(|comment| self.string(comment)).collect();
        plain.numbers(13, comments.into_iter());
        plain.number(14, self.string(description.default_type));
        self.gzip.write_all(&plain.0)
    }

    /// Writes mappings, functions and locations. Ids count from 1. One more function and location after the last
    /// represent an unknown stack.
    fn places(&mut self, addresses: &[usize], symbols: &Symbols) -> io::Result<()> {
        for (index, mapping) in symbols.mappings.iter().enumerate() {
            let message = self.mapping(index, mapping);
            self.put(3, &message)?;
        }
        let named = symbols.functions.iter().map(|f| (f.name.as_str(), f.system_name.as_str()));
        for (index, (name, system_name)) in named.chain([(UNKNOWN, UNKNOWN)]).enumerate() {
            let mut message = Message::default();
            message.number(1, id(index));
            message.number(2, self.string(name));
            message.number(3, self.string(system_name));
            self.put(5, &message)?;
        }
        for (index, (address, place)) in addresses.iter().zip(&symbols.places).enumerate() {
            let Some(place) = place else { continue };
            self.location(index, id(place.mapping), *address, id(place.function))?;
        }
        self.location(addresses.len(), 0, 0, id(symbols.functions.len()))
    }

    fn mapping(&mut self, index: usize, mapping: &Mapping) -> Message {
        let mut message = Message::default();
        message.number(1, id(index));
        message.number(2, mapping.range.start as u64);
        message.number(3, mapping.range.end as u64);
        message.number(4, mapping.file_offset);
        message.number(5, self.string(&mapping.path));
        message.number(6, self.string(&mapping.build_id));
        message.number(7, 1); // has_functions: pprof needs no binary
        message
    }

    fn location(&mut self, index: usize, mapping: u64, address: usize, function: u64) -> io::Result<()> {
        let mut line = Message::default();
        line.number(1, function);
        let mut message = Message::default();
        message.number(1, id(index));
        message.number(2, mapping);
        message.number(3, address as u64);
        message.bytes(4, &line.0);
        self.put(4, &message)
    }

    fn sample(&mut self, sample: &Sample<'_>, addresses: &[usize], symbols: &Symbols) -> io::Result<()> {
        let known = |frame: &usize| {
            let index = addresses.binary_search(frame).ok()?;
            symbols.places.get(index).copied().flatten().map(|_| id(index))
        };
        // A frame outside mapped code is wrong, and so are all frames after it.
        let mut locations: Vec<u64> = sample.frames.iter().map_while(known).collect();
        if locations.is_empty() {
            locations.push(id(addresses.len()));
        }
        let mut message = Message::default();
        message.numbers(1, locations.into_iter());
        message.numbers(2, sample.values.iter().map(|value| value.cast_unsigned()));
        for (key, text) in sample.labels {
            let mut label = Message::default();
            label.number(1, self.string(key));
            label.number(2, self.string(text));
            message.bytes(3, &label.0);
        }
        self.put(2, &message)
    }

    fn finish(mut self) -> io::Result<Vec<u8>> {
        for text in std::mem::take(&mut self.in_order) {
            let mut message = Message::default();
            message.bytes(6, text.as_bytes());
            self.gzip.write_all(&message.0)?;
        }
        self.gzip.finish()
    }
}

const UNKNOWN: &str = "[stack not known]";

fn id(index: usize) -> u64 {
    index as u64 + 1
}
