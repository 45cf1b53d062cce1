//! PURE: writes MP4 boxes and reads single values of them (ISO/IEC 14496-12, 4.2).

/// Appends a box of type `kind`. The closure `body` appends the content of the box.
pub(super) fn boxed(out: &mut Vec<u8>, kind: &[u8; 4], body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(kind);
    body(out);
    let bytes = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(size) = out.get_mut(start..start + 4) {
        size.copy_from_slice(&bytes.to_be_bytes());
    }
}

/// Appends a `FullBox`, a box whose content begins with a version and flags.
pub(super) fn full_box(
    out: &mut Vec<u8>,
    kind: &[u8; 4],
    version_and_flags: u32,
    body: impl FnOnce(&mut Vec<u8>),
) {
    boxed(out, kind, |out| {
        u32s(out, &[version_and_flags]);
        body(out);
    });
}

/// Appends a `FullBox` that contains a table: the number of rows, then the rows.
pub(super) fn table<const COLUMNS: usize>(out: &mut Vec<u8>, kind: &[u8; 4], rows: &[[u32; COLUMNS]]) {
    full_box(out, kind, 0, |out| {
        u32s(out, &[u32::try_from(rows.len()).unwrap_or(u32::MAX)]);
        u32s(out, rows.as_flattened());
    });
}

/// Appends big-endian 32-bit values.
pub(super) fn u32s(out: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_be_bytes()));
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(offset..)?.first_chunk()?))
}
