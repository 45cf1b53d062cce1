//! From code addresses to function names, in this process and for a moment only: nothing is kept. Names come
//! from the files mapped here; libraries without symbols give their own name in brackets.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::path::Path;

use super::elf;

/// A piece of executable memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) range: Range<usize>,
    pub(super) file_offset: u64,
    pub(super) path: String,
    pub(super) build_id: String,
}

/// A function as the linker and as people call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) system_name: String,
}

/// Where an address lies, as indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) mapping: usize,
    pub(super) function: usize,
}

/// The answer to [`resolve`].
#[derive(Debug, Default)]
pub(super) struct Symbols {
    /// Our own program first, as pprof wants it.
    pub(super) mappings: Vec<Mapping>,
    pub(super) functions: Vec<Function>,
    /// One for each address asked for; `None` where no code is mapped.
    pub(super) places: Vec<Option<Place>>,
}

/// Names the ascending `addresses`.
pub(super) fn resolve(addresses: &[usize]) -> Symbols {
    let mut symbols =
        Symbols { mappings: mappings(), functions: Vec::new(), places: vec![None; addresses.len()] };
    let own = own_text();
    symbols.mappings.sort_by_key(|mapping| (mapping.range != own, mapping.range.start));
    for index in 0..symbols.mappings.len() {
        let Some(mapping) = symbols.mappings.get(index) else { break };
        let first = addresses.partition_point(|address| *address < mapping.range.start);
        let end = addresses.partition_point(|address| *address < mapping.range.end);
        // The file a replaced program was started from has no path any more, but this one.
        let path = if mapping.range == own { "/proc/self/exe".to_owned() } else { mapping.path.clone() };
        if let Some(inside) = addresses.get(first..end)
            && (index == 0 || !inside.is_empty())
        {
            symbols.name_inside(index, Path::new(&path), first, inside);
        }
    }
    symbols
}

impl Symbols {
    /// Names the addresses inside one mapping, which are those from `first` on.
    fn name_inside(&mut self, index: usize, path: &Path, first: usize, addresses: &[usize]) {
        let Some(mapping) = self.mappings.get_mut(index) else { return };
        let offset_of = |address: &usize| (*address - mapping.range.start) as u64 + mapping.file_offset;
        let offsets: Vec<u64> = addresses.iter().map(offset_of).collect();
        // A file that cannot be read names no functions.
        let image = elf::read(path, &offsets).unwrap_or_default();
        mapping.build_id = image.build_id;
        let whole =
            format!("[{}]", mapping.path.rsplit('/').next().unwrap_or_default().trim_matches(['[', ']']));
        let mut known: HashMap<Option<u64>, usize> = HashMap::new();
        let found = image.symbols.into_iter().chain(std::iter::repeat(None));
        for (place, symbol) in self.places.iter_mut().skip(first).take(addresses.len()).zip(found) {
            let start = symbol.as_ref().map(|symbol| symbol.start);
            let function = *known.entry(start).or_insert_with(|| {
                self.functions.push(function(symbol.map_or_else(|| whole.clone(), |symbol| symbol.name)));
                self.functions.len() - 1
            });
            *place = Some(Place { mapping: index, function });
        }
    }
}

fn function(system_name: String) -> Function {
    let name = format!("{:#}", rustc_demangle::demangle(&system_name));
    Function { name, system_name }
}

/// All executable mappings with a name, ascending; none when /proc is not there.
pub(super) fn mappings() -> Vec<Mapping> {
    let lines = |file| BufReader::new(file).lines().map_while(io::Result::ok);
    let Ok(maps) = File::open("/proc/self/maps") else { return Vec::new() };
    lines(maps).filter_map(|line| parse_mapping(&line)).collect()
}

/// `start-end rwxp offset device inode   path` (proc(5)), executable ones with a path only.
fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    if !fields.next()?.contains('x') {
        return None;
    }
    let file_offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let path = fields.nth(2)?.trim_start();
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    let path = path.trim_end_matches(" (deleted)").to_owned();
    (!path.is_empty()).then_some(Mapping { range, file_offset, path, build_id: String::new() })
}

/// Where our own program's code is mapped.
pub(super) fn own_text() -> Range<usize> {
    let here: fn() -> Range<usize> = own_text;
    let here = here as usize;
    mappings().into_iter().map(|mapping| mapping.range).find(|range| range.contains(&here)).unwrap_or(0..0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_read_whatever_the_path_holds() {
        let line = "7f00-7f10 r-xp 00001000 08:01 42                         /opt/a b/x (deleted)";
        let mapping = parse_mapping(line).expect("executable");
        assert_eq!((mapping.range, mapping.file_offset), (0x7f00..0x7f10, 0x1000));
        assert_eq!(mapping.path, "/opt/a b/x");
        for other in
            ["", "7f00-7f10", "7f00-7f10 rw-p 0 08:01 42 /a", "7f00-7f10 r-xp 0 0:0 0", "x-y r-xp 0 0:0 0 a"]
        {
            assert_eq!(parse_mapping(other), None, "{other}");
        }
    }

    #[test]
    fn our_own_functions_are_named_and_strangers_are_not() {
        let resolve_at = resolve as fn(&[usize]) -> Symbols as usize;
        let mut addresses = [8, resolve_at, resolve_at + 1, usize::MAX];
        addresses.sort_unstable();
        let symbols = resolve(&addresses);
        let names: Vec<Option<&str>> = symbols
            .places
            .iter()
            .map(|place| {
                place.and_then(|place| symbols.functions.get(place.function)).map(|f| f.name.as_str())
            })
            .collect();
        let ours = Some("streaming_server::profiling::symbols::resolve");
        assert_eq!(names, [None, ours, ours, None]);
    }
}
