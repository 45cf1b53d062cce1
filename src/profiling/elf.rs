//! Reads segments, build id and function symbols of an ELF file in pieces, so that a large file needs little memory.
//! The file is untrusted: every offset is checked, and an inconsistent file yields no names. 64-bit little-endian only.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::base::limits::PROFILE_NAME_BYTES_MAX;

const SYMBOL_BYTES: usize = 24;
const PIECE_BYTES: usize = 256 * SYMBOL_BYTES;
const HEADERS_MAX: u16 = 256;

/// A function symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    /// First address of the function, as in the file.
    pub(super) start: u64,
    /// File offset of its name.
    name_at: u64,
}

/// An open ELF file.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    loads: Vec<Load>,
    symbols: Option<Section>,
    names: Section,
    build_id: String,
}

#[derive(Clone, Copy, Debug)]
struct Load {
    file_offset: u64,
    bytes: u64,
    address: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Section {
    kind: u32,
    link: u32,
    offset: u64,
    bytes: u64,
}

impl Image {
    /// # Errors
    /// The file cannot be read or is not a 64-bit little-endian ELF file.
    pub(super) fn open(path: &Path) -> io::Result<Image> {
        let file = File::open(path)?;
        let mut header = [0_u8; 64];
        file.read_exact_at(&mut header, 0)?;
        if !header.starts_with(b"\x7fELF\x02\x01") {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let mut image = Image {
            file,
            loads: Vec::new(),
            symbols: None,
            names: Section::default(),
            build_id: String::new(),
        };
        image.read_segments(&header)?;
        image.read_sections(&header)?;
        Ok(image)
    }

    /// Returns the build id of the linker in hexadecimal; empty if there is none.
    pub(super) fn build_id(&self) -> &str {
        &self.build_id
    }

    /// Returns the virtual address in the file of the byte at `file_offset`.
    pub(super) fn address_of(&self, file_offset: u64) -> Option<u64> {
        let within =
            |load: &&Load| file_offset.checked_sub(load.file_offset).is_some_and(|at| at < load.bytes);
        let load = self.loads.iter().find(within)?;
        load.address.checked_add(file_offset - load.file_offset)
    }

    /// Returns the function that contains each of the ascending `addresses`.
    pub(super) fn functions(&self, addresses: &[u64]) -> io::Result<Vec<Option<Symbol>>> {
        let mut found = vec![None; addresses.len()];
        let Some(symbols) = self.symbols else { return Ok(found) };
        let mut buffer = [0_u8; PIECE_BYTES];
        let mut at = 0;
        while at < symbols.bytes {
            let bytes = usize::try_from(symbols.bytes - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            let piece = buffer.get_mut(..bytes).unwrap_or_default();
            self.file.read_exact_at(piece, symbols.offset.saturating_add(at))?;
            for symbol in piece.chunks_exact(SYMBOL_BYTES) {
                self.offer(symbol, addresses, &mut found);
            }
            at += PIECE_BYTES as u64;
        }
        Ok(found)
    }

    /// Assigns one function symbol to the addresses it contains. The first of several symbols wins.
    fn offer(&self, symbol: &[u8], addresses: &[u64], found: &mut [Option<Symbol>]) {
        let kind = symbol.get(4).copied().unwrap_or(0) & 0xf;
        let start = u64_at(symbol, 8);
        let end = start.saturating_add(u64_at(symbol, 16));
        if !matches!(kind, 2 | 10) {
            return; // neither STT_FUNC nor STT_GNU_IFUNC
        }
        let first = addresses.partition_point(|address| *address < start);
        let hits = addresses.iter().zip(found).skip(first).take_while(|(address, _)| **address < end);
        for (_, place) in hits {
            let name_at = self.names.offset.saturating_add(u64::from(u32_at(symbol, 0)));
            place.get_or_insert(Symbol { start, name_at });
        }
    }

    /// Returns the mangled name of a function.
    pub(super) fn name(&self, symbol: &Symbol) -> io::Result<String> {
        let mut bytes = vec![0_u8; PROFILE_NAME_BYTES_MAX];
        let read = self.file.read_at(&mut bytes, symbol.name_at)?;
        let name = bytes.get(..read).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    fn table(&self, header: &[u8], places: Table) -> io::Result<Vec<u8>> {
        let count = u16_at(header, places.count_at);
        let bytes = u16_at(header, places.size_at);
        if bytes != places.entry_bytes || count > HEADERS_MAX {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let mut table = vec![0; usize::from(count) * usize::from(bytes)];
        self.file.read_exact_at(&mut table, u64_at(header, places.offset_at))?;
        Ok(table)
    }

    fn read_segments(&mut self, header: &[u8]) -> io::Result<()> {
        let table =
            self.table(header, Table { offset_at: 32, size_at: 54, count_at: 56, entry_bytes: 56 })?;
        for segment in table.chunks_exact(56) {
            let (file_offset, address, bytes) =
                (u64_at(segment, 8), u64_at(segment, 16), u64_at(segment, 32));
            match u32_at(segment, 0) {
                1 => self.loads.push(Load { file_offset, bytes, address }),
                4 if self.build_id.is_empty() => self.build_id = self.read_build_id(file_offset, bytes),
                _ => {}
            }
        }
        Ok(())
    }

    /// Notes are `name bytes, value bytes, kind, name, value`, each padded to four bytes. The build id has kind 3 and name "GNU".
    fn read_build_id(&self, offset: u64, bytes: u64) -> String {
        let mut notes = vec![0; usize::try_from(bytes.min(4_096)).unwrap_or(0)];
        if self.file.read_exact_at(&mut notes, offset).is_err() {
            return String::new();
        }
        let mut rest = notes.as_slice();
        while rest.len() >= 12 {
            let name_bytes = (u32_at(rest, 0) as usize).next_multiple_of(4);
            let value_bytes = u32_at(rest, 4) as usize;
            let name = rest.get(12..12 + name_bytes);
            let value = rest.get(12 + name_bytes..(12 + name_bytes).saturating_add(value_bytes));
            let (Some(name), Some(value)) = (name, value) else { break };
            if u32_at(rest, 8) == 3 && name == b"GNU\0" {
                return value.iter().map(|byte| format!("{byte:02x}")).collect();
            }
            rest = rest.get(12 + name_bytes + value_bytes.next_multiple_of(4)..).unwrap_or_default();
        }
        String::new()
    }

    /// Uses .symtab, else .dynsym (libraries are stripped), and the string table it links to.
    fn read_sections(&mut self, header: &[u8]) -> io::Result<()> {
        let table =
            self.table(header, Table { offset_at: 40, size_at: 58, count_at: 60, entry_bytes: 64 })?;
        let section = |bytes: &[u8]| Section {
            kind: u32_at(bytes, 4),
            offset: u64_at(bytes, 24),
            bytes: u64_at(bytes, 32),
            link: u32_at(bytes, 40),
        };
        let sections: Vec<Section> = table.chunks_exact(64).map(section).collect();
        let of_kind = |kind: u32| sections.iter().find(|section| section.kind == kind).copied();
        let Some(symbols) = of_kind(2).or_else(|| of_kind(11)) else { return Ok(()) };
        self.names = sections.get(symbols.link as usize).copied().unwrap_or_default();
        self.symbols = Some(symbols);
        Ok(())
    }
}

/// Offsets in the ELF header that describe a table of headers.
struct Table {
    offset_at: usize,
    size_at: usize,
    count_at: usize,
    entry_bytes: u16,
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_elf_or_is_cut_is_refused() {
        assert!(Image::open(Path::new("/proc/self/maps")).is_err());
        let path = std::env::temp_dir().join(format!("ss-test-elf-{}", std::process::id()));
        let own = std::fs::read("/proc/self/exe").expect("own binary");
        for bytes in [0, 5, 63, 64, 200] {
            std::fs::write(&path, own.get(..bytes).expect("long enough")).expect("write");
            assert!(Image::open(&path).is_err(), "{bytes}");
        }
        std::fs::remove_file(&path).expect("remove");
    }

    #[test]
    fn a_header_that_lies_gives_no_names_and_no_panic() {
        let path = std::env::temp_dir().join(format!("ss-test-elf-lies-{}", std::process::id()));
        let own = std::fs::read("/proc/self/exe").expect("own binary");
        let mut start = own.get(..65_536).expect("long enough").to_vec();
        for at in (0..64).chain(64..900) {
            let before = start.get(at).copied().expect("in range");
            *start.get_mut(at).expect("in range") = before ^ 0xff;
            std::fs::write(&path, &start).expect("write");
            if let Ok(image) = Image::open(&path) {
                let _ = image.functions(&[0, 1, 0x4000, u64::MAX]);
                let _ = image.address_of(u64::MAX);
            }
            *start.get_mut(at).expect("in range") = before;
        }
        std::fs::remove_file(&path).expect("remove");
    }
}
