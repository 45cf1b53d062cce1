//! Maps code addresses of this process to function names. Nothing is cached between calls. The names come from the
//! symbol tables of the mapped files. For a library without symbols, the name of the library in brackets stands for all
//! its functions.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use super::elf;

/// An executable memory mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) range: Range<usize>,
    pub(super) file_offset: u64,
    pub(super) path: String,
    pub(super) build_id: String,
}

/// Indices of the mapping and the function that contain an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) mapping: usize,
    pub(super) function: usize,
}

/// The result of [`resolve`].
#[derive(Debug, Default)]
pub(super) struct Symbols {
    /// The requested addresses in ascending order, without duplicates.
    pub(super) addresses: Vec<usize>,
    /// Executable mappings. Our own program comes first, as pprof expects.
    pub(super) mappings: Vec<Mapping>,
    /// Linker names of the functions.
    pub(super) functions: Vec<String>,
    /// Place of each address in `addresses`; `None` if no code is mapped there.
    pub(super) places: Vec<Option<Place>>,
}

/// Finds the mapping and the function of each of `addresses`.
pub(super) fn resolve(mut addresses: Vec<usize>) -> Symbols {
    addresses.sort_unstable();
    addresses.dedup();
    let own = own_text();
    let mut mappings = mappings();
    mappings.sort_unstable_by_key(|mapping| (mapping.range != own, mapping.range.start));
    let places = vec![None; addresses.len()];
    let mut symbols = Symbols { addresses, mappings, functions: Vec::new(), places };
    for index in 0..symbols.mappings.len() {
        symbols.name_inside(index, &own);
    }
    symbols
}

impl Symbols {
    /// Returns the index of `address` in `addresses` and its place, or `None` if the address has no known place.
    pub(super) fn find(&self, address: usize) -> Option<(usize, Place)> {
        let index = self.addresses.binary_search(&address).ok()?;
        let place = self.places.get(index).copied().flatten()?;
        Some((index, place))
    }

    /// Returns the name of the function at `address`, or `None` if it is unknown.
    pub(super) fn name_of(&self, address: usize) -> Option<String> {
        let (_, place) = self.find(address)?;
        self.functions.get(place.function).map(|name| demangled(name))
    }

    /// Resolves those addresses that lie in mapping `index`. `own` is the address range of our own code.
    fn name_inside(&mut self, index: usize, own: &Range<usize>) {
        let Some(mapping) = self.mappings.get_mut(index) else { return };
        let first = self.addresses.partition_point(|address| *address < mapping.range.start);
        let inside = self.addresses.iter().skip(first).take_while(|address| mapping.range.contains(address));
        let offset_of = |address: &usize| (*address - mapping.range.start) as u64 + mapping.file_offset;
        let offsets: Vec<u64> = inside.map(offset_of).collect();
        if index != 0 && offsets.is_empty() {
            return;
        }
        // The program file may have been replaced since the start. /proc/self/exe still leads to the running file.
        let path = if mapping.range == *own { "/proc/self/exe" } else { &mapping.path };
        // If the file cannot be read, `image` is empty. All functions of the mapping then get the name `whole`, which
        // is the file name in brackets.
        let image = elf::read(Path::new(path), &offsets).unwrap_or_default();
        mapping.build_id = image.build_id;
        let whole =
            format!("[{}]", mapping.path.rsplit('/').next().unwrap_or_default().trim_matches(['[', ']']));
        let mut known: HashMap<Option<u64>, usize> = HashMap::new();
        let found = image.symbols.into_iter().chain(std::iter::repeat(None));
        for (place, symbol) in self.places.iter_mut().skip(first).take(offsets.len()).zip(found) {
            let start = symbol.as_ref().map(|symbol| symbol.start);
            let function = *known.entry(start).or_insert_with(|| {
                self.functions.push(symbol.map_or_else(|| whole.clone(), |symbol| symbol.name));
                self.functions.len() - 1
            });
            *place = Some(Place { mapping: index, function });
        }
    }
}

/// Returns the name of a function as in the source, given its linker name.
pub(super) fn demangled(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

/// Returns all executable mappings that have a path, in ascending order. Returns none if /proc is not mounted.
pub(super) fn mappings() -> Vec<Mapping> {
    let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
    String::from_utf8_lossy(&maps).lines().filter_map(parse_mapping).collect()
}

/// Parses a line of /proc/PID/maps, `start-end rwxp offset device inode path` (see proc(5)). Returns `None` unless the
/// mapping is executable and has a path.
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

/// Returns the address range of our own code, or an empty range if /proc is not mounted.
pub(super) fn own_text() -> Range<usize> {
    let here: fn() -> Range<usize> = own_text;
    let here = here as usize;
    mappings().into_iter().map(|mapping| mapping.range).find(|range| range.contains(&here)).unwrap_or(0..0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_line_with_spaces_in_the_path_is_parsed() {
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
    fn own_functions_are_named_and_unmapped_addresses_are_not() {
        let resolve_at = resolve as fn(Vec<usize>) -> Symbols as usize;
        let symbols = resolve(vec![resolve_at + 1, 8, usize::MAX, resolve_at, 8]);
        let names: Vec<Option<String>> =
            symbols.addresses.iter().map(|address| symbols.name_of(*address)).collect();
        let ours = Some("streaming_server::profiling::symbols::resolve".to_owned());
        assert_eq!(names, [None, ours.clone(), ours, None]);
    }
}
