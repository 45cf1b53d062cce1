//! A small decoder of profile.proto. It makes the same checks as pprof and shares no code with the encoder.

use std::collections::HashMap;
use std::io::Read;

/// One sample of a profile, with names in place of ids.
#[derive(Debug, Default)]
pub struct Sample {
    /// Function names, innermost first.
    pub stack: Vec<String>,
    pub values: Vec<i64>,
    pub labels: Vec<String>,
}

/// A decoded profile.
#[derive(Debug, Default)]
pub struct Profile {
    pub sample_types: Vec<String>,
    pub default_type: String,
    pub period_type: String,
    pub period: i64,
    pub duration_ns: i64,
    pub comments: Vec<String>,
    pub mappings: Vec<String>,
    pub samples: Vec<Sample>,
}

/// A field of a message: its number, its value if it is a varint, and its bytes otherwise.
type Field<'a> = (u64, u64, &'a [u8]);

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn fields(mut bytes: &[u8]) -> Vec<Field<'_>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = varint(&mut bytes);
        match key & 7 {
            0 => all.push((key >> 3, value, &[][..])),
            2 => {
                let (inside, rest) = bytes.split_at(value as usize);
                all.push((key >> 3, 0, inside));
                bytes = rest;
            }
            other => panic!("wire type {other}"),
        }
    }
    all
}

fn numbers(mut bytes: &[u8]) -> Vec<u64> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        all.push(varint(&mut bytes));
    }
    all
}

fn number(message: &[u8], field: u64) -> u64 {
    fields(message).iter().find(|(number, ..)| *number == field).map_or(0, |(_, value, _)| *value)
}

fn messages<'a>(all: &'a [Field<'a>], field: u64) -> impl Iterator<Item = &'a [u8]> {
    all.iter().filter(move |(number, ..)| *number == field).map(|(_, _, bytes)| *bytes)
}

impl Profile {
    /// Decodes a gzip-compressed profile. Panics if pprof would refuse the profile.
    pub fn decode(gzip: &[u8]) -> Profile {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(gzip).read_to_end(&mut plain).unwrap();
        let all = fields(&plain);
        let strings: Vec<String> =
            messages(&all, 6).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).collect();
        assert_eq!(strings[0], "");
        let text = |message: &[u8], field| strings[number(message, field) as usize].clone();
        let value_type = |message: &[u8]| format!("{}/{}", text(message, 1), text(message, 2));
        let by_id = |field| messages(&all, field).map(|message| (number(message, 1), message)).collect();
        let functions: HashMap<u64, &[u8]> = by_id(5);
        let locations: HashMap<u64, &[u8]> = by_id(4);
        let mappings: HashMap<u64, &[u8]> = by_id(3);
        assert!(!locations.contains_key(&0) && !functions.contains_key(&0) && !mappings.contains_key(&0));
        let name = |location: &u64| {
            let location = fields(locations[location]);
            let mapping = location.iter().find(|(number, ..)| *number == 2).map_or(0, |(_, value, _)| *value);
            assert!(mapping == 0 || mappings.contains_key(&mapping));
            let line = messages(&location, 4).next().unwrap();
            text(functions[&number(line, 1)], 2)
        };
        let sample_types: Vec<String> = messages(&all, 1).map(value_type).collect();
        let sample = |message: &[u8]| {
            let inside = fields(message);
            let values: Vec<i64> =
                numbers(messages(&inside, 2).next().unwrap()).into_iter().map(u64::cast_signed).collect();
            assert_eq!(values.len(), sample_types.len());
            Sample {
                stack: numbers(messages(&inside, 1).next().unwrap()).iter().map(name).collect(),
                values,
                labels: messages(&inside, 3)
                    .map(|label| format!("{}={}", text(label, 1), text(label, 2)))
                    .collect(),
            }
        };
        Profile {
            samples: messages(&all, 2).map(sample).collect(),
            mappings: messages(&all, 3).map(|mapping| text(mapping, 5)).collect(),
            default_type: text(&plain, 14),
            period_type: value_type(messages(&all, 11).next().unwrap()),
            period: number(&plain, 12).cast_signed(),
            duration_ns: number(&plain, 10).cast_signed(),
            comments: messages(&all, 13)
                .flat_map(numbers)
                .map(|index| strings[index as usize].clone())
                .collect(),
            sample_types,
        }
    }

    /// Returns the sum of the values at `index` over the samples for which `wanted` is true.
    pub fn total(&self, index: usize, wanted: impl Fn(&Sample) -> bool) -> i64 {
        self.samples.iter().filter(|sample| wanted(sample)).map(|sample| sample.values[index]).sum()
    }
}
