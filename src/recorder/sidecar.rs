//! The sidecar of an `.h264` recording: a hidden file with the name `.NAME.json`. It states the start time, the
//! duration, and whether the recording is complete, because a byte stream has no place for them. An MP4 has no sidecar,
//! because it contains these facts itself.
//!
//! A sidecar always has 512 bytes. Finishing a recording therefore overwrites an existing disk block, which works even
//! on a full disk.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::foreign_file::{self, How};

const SIDECAR_BYTES: usize = 512;

/// Content of a sidecar file.
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

    /// Returns the name of the recording to which the sidecar `file_name` belongs, or `None` if it is not a sidecar's
    /// name.
    pub(super) fn recording_of(file_name: &str) -> Option<&str> {
        file_name.strip_prefix('.')?.strip_suffix(".json").filter(|name| name.ends_with(".h264"))
    }

    pub(super) fn read(directory: &Path, name: &str) -> Option<Sidecar> {
        let text = foreign_file::read(&Self::path(directory, name), SIDECAR_BYTES as u64).ok()?;
        serde_json::from_slice(&text).ok().filter(|_| text.len() == SIDECAR_BYTES)
    }

    /// Returns the content as JSON, padded with spaces to 512 bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec(self).unwrap_or_default();
        text.resize(SIDECAR_BYTES - 1, b' ');
        text.push(b'\n');
        text
    }

    /// Writes the sidecar of a new recording. Replaces what an older recording of the same name left.
    pub(super) fn create(&self, directory: &Path, name: &str) -> io::Result<()> {
        let path = Self::path(directory, name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = foreign_file::create_new(&path, 0o666)?;
        file.write_all_at(&self.bytes(), 0)?;
        file.sync_data()
    }

    /// Writes the sidecar of a recording over the one that exists.
    pub(super) fn overwrite(&self, directory: &Path, name: &str) -> io::Result<()> {
        let file = foreign_file::open(&Self::path(directory, name), How::ReadWriteOrCreate)?;
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
