//! The hidden sidecar file of an `.h264` recording (`.NAME.json`). It holds the start time, duration and completeness,
//! which a byte stream cannot hold. An MP4 holds them itself and has no sidecar.
//! The file always has 512 bytes, so finishing a recording overwrites an existing block, even on a full disk.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const SIDECAR_BYTES: usize = 512;

/// Content of a sidecar.
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Sidecar {
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

    /// Returns the recording name if `file_name` is the name of a sidecar.
    pub(super) fn recording_of(file_name: &str) -> Option<&str> {
        file_name.strip_prefix('.')?.strip_suffix(".json").filter(|name| name.ends_with(".h264"))
    }

    pub(super) fn read(directory: &Path, name: &str) -> Option<Sidecar> {
        let text = fs::read(Self::path(directory, name)).ok().filter(|text| text.len() == SIDECAR_BYTES)?;
        serde_json::from_slice(&text).ok()
    }

    /// Returns the JSON padded with spaces to the fixed size.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec(self).unwrap_or_default();
        text.resize(SIDECAR_BYTES - 1, b' ');
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
    fn sidecar_has_a_fixed_size_and_round_trips() {
        let extreme = Sidecar {
            started_at_s: u64::MAX,
            duration_s: Some(-1_234_567.890_625),
            complete: false,
            recovered: false,
            dropped_units: u64::MAX,
        };
        for sidecar in [Sidecar::default(), extreme] {
            assert_eq!(sidecar.bytes().len(), SIDECAR_BYTES);
            assert_eq!(serde_json::from_slice::<Sidecar>(&sidecar.bytes()).ok(), Some(sidecar));
        }
        assert_eq!(Sidecar::recording_of(".a.h264.json"), Some("a.h264"));
        assert_eq!(Sidecar::recording_of(".json"), None);
    }
}
