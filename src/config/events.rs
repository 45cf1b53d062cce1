//! Options for recordings of what the object detector sees.

use std::fmt;

use crate::base::limits;

/// A class of the detector that is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// Class, such as `cat`.
    pub label: String,
    /// Least confidence in thousandths.
    pub confidence_permille: u16,
}

impl Trigger {
    /// Returns the least confidence, from 0 to 1.
    #[must_use]
    pub fn confidence(&self) -> f32 {
        f32::from(self.confidence_permille) / 1e3
    }
}

/// What is recorded: all classes of `--record-on`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Triggers(pub Vec<Trigger>);

impl fmt::Display for Triggers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, trigger) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}:{}", trigger.label, trigger.confidence())?;
        }
        Ok(())
    }
}

/// How many of how many results must show a class.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// Results that show the class.
    pub needed: u8,
    /// Newest results that count.
    pub of: u8,
}

impl fmt::Display for Confirmation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.needed, self.of)
    }
}

/// A time of the day in which no event begins, in minutes since midnight. It may span midnight.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct QuietHours {
    /// First minute.
    pub from: u16,
    /// Minute after the last one.
    pub until: u16,
}

impl QuietHours {
    /// Returns true if the minute of the day is within these hours.
    #[must_use]
    pub fn contain(&self, minute: u16) -> bool {
        if self.from <= self.until {
            (self.from..self.until).contains(&minute)
        } else {
            minute >= self.from || minute < self.until
        }
    }
}

impl fmt::Display for QuietHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [from, until] = [self.from, self.until].map(|minute| (minute / 60, minute % 60));
        write!(f, "{:02}:{:02}-{:02}:{:02}", from.0, from.1, until.0, until.1)
    }
}

/// Options for recordings of events. All times are in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Events {
    /// What is recorded. Without a class nothing is.
    pub record_on: Triggers,
    /// Seconds that are recorded before the first sight.
    pub pre_roll_s: u32,
    /// Bytes of memory for what the ring no longer holds.
    pub pre_roll_bytes: u64,
    /// Seconds that are recorded after the last sight.
    pub post_roll_s: u32,
    /// Sights less than this apart belong to one event, even if the post-roll is shorter.
    pub merge_s: u32,
    /// Longest event.
    pub max_s: u32,
    /// Pause after an event.
    pub cooldown_s: u32,
    /// Results that must show a class before its event begins.
    pub confirmation: Confirmation,
    /// Times in which no event begins.
    pub quiet_hours: Vec<QuietHours>,
}

impl Default for Events {
    fn default() -> Events {
        Events {
            record_on: Triggers::default(),
            pre_roll_s: 5,
            pre_roll_bytes: limits::PRE_ROLL_BYTES_DEFAULT as u64,
            post_roll_s: 5,
            merge_s: 0,
            max_s: 300,
            cooldown_s: 0,
            confirmation: Confirmation { needed: 2, of: 3 },
            quiet_hours: Vec::new(),
        }
    }
}

/// Parses classes with their least confidence, such as `cat,dog:0.6`.
pub(super) fn record_on(text: &str) -> Result<Triggers, String> {
    let triggers: Option<Vec<Trigger>> = text.split(',').map(|part| trigger(part.trim())).collect();
    let triggers = triggers.filter(|triggers| triggers.len() <= limits::TRIGGERS_MAX);
    triggers.map(Triggers).ok_or_else(|| {
        format!(
            "at most {} classes of the detector, each with or without a confidence from 0 to 1, such as cat,dog:0.6",
            limits::TRIGGERS_MAX
        )
    })
}

fn trigger(text: &str) -> Option<Trigger> {
    let (label, confidence) = text.rsplit_once(':').unwrap_or((text, "0.5"));
    let is_label = (1..=limits::LABEL_BYTES_MAX).contains(&label.len())
        && label.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | ' '));
    let confidence: f32 = confidence.parse().ok().filter(|confidence| (0.0..=1.0).contains(confidence))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked above")]
    let confidence_permille = (confidence * 1e3).round() as u16;
    is_label.then(|| Trigger { label: label.to_owned(), confidence_permille })
}

/// Parses a number of seconds, with or without the unit.
pub(super) fn seconds(text: &str) -> Result<u32, String> {
    let number = text.trim().strip_suffix('s').unwrap_or(text.trim());
    let seconds = number.trim_end().parse().ok().filter(|seconds| *seconds <= limits::EVENT_SECONDS_MAX);
    seconds.ok_or_else(|| format!("a number of seconds up to {}", limits::EVENT_SECONDS_MAX))
}

/// Parses the length of the pre-roll in seconds.
pub(super) fn pre_roll(text: &str) -> Result<u32, String> {
    let seconds = seconds(text).ok().filter(|seconds| *seconds <= limits::PRE_ROLL_S_MAX);
    seconds.ok_or_else(|| format!("a number of seconds up to {}", limits::PRE_ROLL_S_MAX))
}

/// Parses the memory of the pre-roll.
pub(super) fn pre_roll_bytes(text: &str) -> Result<u64, String> {
    let bytes = super::recording::bytes(text).ok().filter(|bytes| *bytes <= limits::PRE_ROLL_BYTES_MAX);
    bytes.ok_or_else(|| format!("a number of bytes up to {}M", limits::PRE_ROLL_BYTES_MAX >> 20))
}

/// Parses how many of how many results must show a class, such as `2/3`.
pub(super) fn confirmation(text: &str) -> Result<Confirmation, String> {
    let parts = text.split_once('/').and_then(|(needed, of)| Some((needed.parse().ok()?, of.parse().ok()?)));
    let valid = parts.filter(|(needed, of)| (1..=*of).contains(needed) && *of <= limits::EVENT_RESULTS_MAX);
    valid.map(|(needed, of)| Confirmation { needed, of }).ok_or_else(|| {
        format!("K/N: K of the last N results, such as 2/3, with N up to {}", limits::EVENT_RESULTS_MAX)
    })
}

/// Parses quiet hours, such as `22:00-06:30`.
pub(super) fn quiet_hours(text: &str) -> Result<QuietHours, String> {
    let parts = text.split_once('-').and_then(|(from, until)| Some((minute(from)?, minute(until)?)));
    let valid = parts.filter(|(from, until)| from != until);
    valid
        .map(|(from, until)| QuietHours { from, until })
        .ok_or_else(|| "two different times of the day, such as 22:00-06:30".to_owned())
}

fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let is_number = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(hours) || !is_number(minutes) {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    (minutes < 60 && hours * 60 + minutes <= 24 * 60).then_some(hours * 60 + minutes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn classes_have_a_confidence() {
        assert_eq!(record_on("cat, dog:0.6").unwrap().to_string(), "cat:0.5,dog:0.6");
        assert_eq!(record_on("food_bowl:1").unwrap().to_string(), "food_bowl:1");
        for bad in ["", "cat,", "cat:2", "cat:nan", "cat:-0.1", "a/b", "cat:0.5:0.6:", "a,b,c,d,e,f,g,h,i"] {
            assert!(record_on(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_and_counts_have_bounds() {
        assert_eq!((seconds("5"), seconds("7s"), seconds("0 s")), (Ok(5), Ok(7), Ok(0)));
        assert!(seconds("-1").is_err() && seconds("1.5").is_err() && seconds("99999999").is_err());
        assert!(pre_roll("60").is_ok() && pre_roll("61").is_err());
        assert!(pre_roll_bytes("4M").is_ok() && pre_roll_bytes("1G").is_err());
        assert_eq!(confirmation("2/3").unwrap().to_string(), "2/3");
        for bad in ["", "3", "3/2", "0/3", "1/256", "1/99"] {
            assert!(confirmation(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn quiet_hours_may_span_midnight() {
        let night = quiet_hours("22:00-06:30").unwrap();
        assert_eq!(night.to_string(), "22:00-06:30");
        let quiet = |hours: QuietHours| (0..1_440).filter(|minute| hours.contain(*minute)).count();
        assert_eq!(quiet(night), 8 * 60 + 30);
        assert!(night.contain(0) && night.contain(22 * 60) && !night.contain(6 * 60 + 30));
        assert_eq!(quiet(quiet_hours("12:00-24:00").unwrap()), 12 * 60);
        for bad in ["", "22-6", "1:00-2:00", "24:01-02:00", "10:60-11:00", "10:00-10:00", "+1:00-02:00"] {
            assert!(quiet_hours(bad).is_err(), "{bad}");
        }
    }
}
