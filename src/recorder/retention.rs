//! PURE: selects the recordings that the retention rules delete. `library.rs` deletes them.

use crate::base::limits;
use crate::metrics::status::{RecordingInfo, RecordingKind};

/// Rules for deleting old recordings. A rule that is `None` does not apply.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Maximum size of all recordings together, in bytes.
    pub retain_bytes: Option<u64>,
    /// Number of days for which a recording is kept.
    pub retain_days: Option<u32>,
    /// Number of days for which the recording of an event is kept. `None` for the same as other recordings.
    pub retain_event_days: Option<u32>,
    /// Bytes that must stay free on the file system.
    pub min_free_bytes: Option<u64>,
}

impl Retention {
    /// Returns true if no rule applies.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Retention::default()
    }
}

/// Facts about a recording that are known without reading the whole file.
#[derive(Clone, Debug)]
pub(super) struct ListedFile {
    pub(super) info: RecordingInfo,
    /// Bytes of the recording and its detection log.
    pub(super) disk_bytes: u64,
    /// Capture time of the first unit, in seconds since 1970. If it is unknown, the time of the last write to the file.
    pub(super) started_at_s: u64,
    /// True if this recorder wrote and finished the file. Only such files are deleted, although all files count towards
    /// [`Retention::retain_bytes`].
    pub(super) is_ours_and_complete: bool,
}

/// Returns the names of the files to delete, the oldest first.
pub(super) fn to_retire(
    mut files: Vec<ListedFile>,
    rules: &Retention,
    free_bytes: Option<u64>,
    now_s: u64,
) -> Vec<String> {
    let total_bytes: u64 = files.iter().map(|file| file.disk_bytes).sum();
    let over = rules.retain_bytes.map_or(0, |max| total_bytes.saturating_sub(max));
    let short = rules.min_free_bytes.zip(free_bytes).map_or(0, |(min, free)| min.saturating_sub(free));
    let mut to_free = over.max(short);
    let oldest_s = |kind: RecordingKind| {
        let event_days = rules.retain_event_days.filter(|_| kind == RecordingKind::Event);
        let days = event_days.or(rules.retain_days)?;
        Some(now_s.saturating_sub(u64::from(days) * 86_400))
    };
    files.retain(|file| file.is_ours_and_complete);
    files.sort_unstable_by(|a, b| (a.started_at_s, &a.info.name).cmp(&(b.started_at_s, &b.info.name)));
    let mut retired = Vec::new();
    for file in files {
        let too_old = file.started_at_s >= limits::AGE_KNOWN_SINCE_S
            && oldest_s(file.info.kind).is_some_and(|oldest_s| file.started_at_s < oldest_s);
        if !too_old && to_free == 0 {
            continue;
        }
        to_free = to_free.saturating_sub(file.disk_bytes);
        retired.push(file.info.name);
    }
    retired
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_0: u64 = 1_800_000_000;

    fn files() -> Vec<ListedFile> {
        let one = |name: &str, bytes, day: u64, is_ours_and_complete| ListedFile {
            info: RecordingInfo { name: name.to_owned(), bytes, ..RecordingInfo::default() },
            disk_bytes: bytes,
            started_at_s: DAY_0 + day * 86_400,
            is_ours_and_complete,
        };
        vec![
            one("new", 100, 9, true),
            one("old", 100, 1, true),
            one("running", 500, 0, false),
            one("mid", 100, 5, true),
        ]
    }

    fn retire(rules: Retention, free: u64) -> Vec<String> {
        to_retire(files(), &rules, Some(free), DAY_0 + 10 * 86_400)
    }

    #[test]
    fn nothing_is_deleted_without_rules() {
        assert!(retire(Retention::default(), 0).is_empty());
    }

    #[test]
    fn oldest_are_deleted_first_and_the_running_one_never() {
        let bytes = |max| Retention { retain_bytes: Some(max), ..Retention::default() };
        assert!(retire(bytes(800), 0).is_empty());
        assert_eq!(retire(bytes(799), 0), ["old"]);
        assert_eq!(retire(bytes(600), 0), ["old", "mid"]);
        assert_eq!(retire(bytes(0), 0), ["old", "mid", "new"]);
    }

    #[test]
    fn recording_from_before_the_clock_was_set_is_not_deleted_by_age() {
        let rules = Retention { retain_days: Some(1), ..Retention::default() };
        let mut unset = files();
        unset.iter_mut().for_each(|file| file.started_at_s %= DAY_0);
        assert!(to_retire(unset, &rules, None, DAY_0).is_empty());
    }

    #[test]
    fn events_have_an_age_of_their_own() {
        let mut files = files();
        files
            .iter_mut()
            .filter(|file| file.info.name == "mid")
            .for_each(|file| file.info.kind = RecordingKind::Event);
        let retire = |retain_days, retain_event_days| {
            let rules = Retention { retain_days, retain_event_days, ..Retention::default() };
            to_retire(files.clone(), &rules, None, DAY_0 + 10 * 86_400)
        };
        assert_eq!(retire(None, Some(2)), ["mid"]);
        assert_eq!(retire(Some(2), Some(20)), ["old"]);
        assert_eq!(retire(Some(2), None), ["old", "mid"]);
    }

    #[test]
    fn age_and_free_space_rules_apply_independently() {
        let days = Retention { retain_days: Some(6), ..Retention::default() };
        assert_eq!(retire(days, 0), ["old"]);
        let free = Retention { min_free_bytes: Some(1_000), ..Retention::default() };
        assert_eq!(retire(free, 850), ["old", "mid"]);
        assert!(retire(free, 1_000).is_empty());
    }
}
