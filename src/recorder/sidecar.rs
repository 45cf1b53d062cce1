//! The hidden note beside an `.h264` recording (`.NAME.json`): a byte stream can't say when it began,
//! how long it is, or whether it is finished; an MP4 can and has no note. Always 512 bytes, so that
//! finishing overwrites a block that is there even on a full disk.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const NOTE_BYTES: usize = 512;

/// What the note says.
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Sidecar {
    pub(super) started_at_s: u64,
    pub(super) duration_s: Option<f64>,
    pub(super) complete: bool,
    pub(super) recovered: bool,
    pub(super) dropped_units: u64,
}

impl Sidecar {
    pub(super) fn path(directory: &Path, name: &str) -> PathBuf {
        directory.join(format!(".{name}.json"))
    }

    /// The recording whose note has this file name.
    pub(super) fn recording_of(file_name: &str) -> Option<&str> {
        file_name.strip_prefix('.')?.strip_suffix(".json").filter(|name| name.ends_with(".h264"))
    }

    pub(super) fn read(directory: &Path, name: &str) -> Option<Sidecar> {
        let text = fs::read(Self::path(directory, name)).ok().filter(|text| text.len() == NOTE_BYTES)?;
        serde_json::from_slice(&text).ok()
    }

    /// The note's bytes, padded with spaces.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec(self).unwrap_or_default();
        text.resize(NOTE_BYTES - 1, b' ');
        text.push(b'\n');
        text
    }

    pub(super) fn overwrite(&self, directory: &Path, name: &str) -> io::Result<()> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).open(Self::path(directory, name))?;
        file.write_all_at(&self.bytes(), 0)?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_has_one_size_and_reads_back() {
        let extreme = Sidecar {
            started_at_s: u64::MAX,
            duration_s: Some(-1_234_567.890_625),
            complete: false,
            recovered: false,
            dropped_units: u64::MAX,
        };
        for note in [Sidecar::default(), extreme] {
            assert_eq!(note.bytes().len(), NOTE_BYTES);
            assert_eq!(serde_json::from_slice::<Sidecar>(&note.bytes()).ok(), Some(note));
        }
        assert_eq!(Sidecar::recording_of(".a.h264.json"), Some("a.h264"));
        assert_eq!(Sidecar::recording_of(".json"), None);
    }
}
