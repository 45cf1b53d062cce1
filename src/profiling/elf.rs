//! Reads the build id and the function names of an ELF file with the `object` crate. The file is untrusted: if it
//! cannot be parsed, it yields no names. Sections are read on demand and freed when [`read`] returns.

use std::path::Path;

use object::SymbolKind;
use object::read::{Object as _, ObjectSegment as _, ObjectSymbol as _, ReadCache};

use crate::base::foreign_file;
use crate::base::limits::PROFILE_NAME_BYTES_MAX;

/// The function that covers a requested file offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    /// Virtual address of the function, which identifies the function within the file.
    pub(super) start: u64,
    /// Mangled name.
    pub(super) name: String,
}

/// The result of [`read`].
#[derive(Debug, Default)]
pub(super) struct Image {
    /// Build id in hexadecimal; empty when the file has none.
    pub(super) build_id: String,
    /// One entry per requested offset; `None` where no function covers the offset.
    pub(super) symbols: Vec<Option<Symbol>>,
}

/// Reads the build id of the file at `path` and the functions at `file_offsets`, which must be sorted. Returns `None`
/// when the file cannot be opened or is not a valid ELF file.
pub(super) fn read(path: &Path, file_offsets: &[u64]) -> Option<Image> {
    let cache = ReadCache::new(foreign_file::open_configured(path).ok()?);
    let file = object::File::parse(&cache).ok()?;
    // Returns the address at which a file offset is loaded, or 0 if no segment contains the offset.
    let address_of = |file_offset: &u64| {
        let mut loads = file.segments().map(|segment| (segment.file_range(), segment.address()));
        let within = |((start, bytes), address): ((u64, u64), u64)| {
            let at = file_offset.checked_sub(start).filter(|at| *at < bytes)?;
            address.checked_add(at)
        };
        loads.find_map(within).unwrap_or(0)
    };
    let addresses: Vec<u64> = file_offsets.iter().map(address_of).collect();
    let mut symbols = vec![None; addresses.len()];
    // The dynamic symbols are read too, because a stripped library has no other symbols.
    for symbol in file.symbols().chain(file.dynamic_symbols()) {
        let start = symbol.address();
        if symbol.kind() != SymbolKind::Text {
            continue;
        }
        let end = start.saturating_add(symbol.size());
        let first = addresses.partition_point(|address| *address < start);
        let covered =
            addresses.iter().zip(&mut symbols).skip(first).take_while(|(address, _)| **address < end);
        for (_, found) in covered.filter(|(_, found)| found.is_none()) {
            let name = symbol.name_bytes().ok()?;
            let name = name.get(..PROFILE_NAME_BYTES_MAX).unwrap_or(name);
            *found = Some(Symbol { start, name: String::from_utf8_lossy(name).into_owned() });
        }
    }
    let build_id = file.build_id().ok()?.unwrap_or_default();
    Some(Image { build_id: build_id.iter().map(|byte| format!("{byte:02x}")).collect(), symbols })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_and_foreign_files_yield_nothing() {
        assert!(read(Path::new("/proc/self/maps"), &[]).is_none());
        let path = std::env::temp_dir().join(format!("ss-test-elf-{}", std::process::id()));
        let own = std::fs::read("/proc/self/exe").expect("own binary");
        for bytes in [0, 5, 63, 64, 200] {
            std::fs::write(&path, own.get(..bytes).expect("long enough")).expect("write");
            assert!(read(&path, &[0]).is_none(), "{bytes}");
        }
        std::fs::remove_file(&path).expect("remove");
    }

    #[test]
    fn corrupt_headers_do_not_panic() {
        let path = std::env::temp_dir().join(format!("ss-test-elf-corrupt-{}", std::process::id()));
        let own = std::fs::read("/proc/self/exe").expect("own binary");
        let mut start = own.get(..65_536).expect("long enough").to_vec();
        for at in 0..900 {
            let before = start.get(at).copied().expect("in range");
            *start.get_mut(at).expect("in range") = before ^ 0xff;
            std::fs::write(&path, &start).expect("write");
            let _ = read(&path, &[0, 1, 0x4000, u64::MAX]);
            *start.get_mut(at).expect("in range") = before;
        }
        std::fs::remove_file(&path).expect("remove");
    }
}
