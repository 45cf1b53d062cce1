//! Records what the object detector sees (`--record-on`), as a task of the HTTP runtime.

mod policy;

use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use self::policy::{Change, EventPolicy, EventRules};
use crate::app::backend::AppBackend;
use crate::app::notify::{Happening, Messenger};
use crate::base::clock::{monotonic_ns, realtime_ns};
use crate::base::limits;
use crate::base::log_limit::LogLimit;
use crate::camera::detections::Results;
use crate::config::{Config, Events};
use crate::recorder::names::Zone;
use crate::recorder::{Event, PreRollRules, RecorderError, RecorderHandle};

/// Longest time between a picture and the result about it that is believed, in nanoseconds.
const DELAY_NS_MAX: i64 = 10_000_000_000; // local bound: a longer one means that a clock was set

/// Starts the task, if `--record-on` is given.
pub(super) fn start(
    config: &Config,
    backend: &AppBackend,
    messenger: Arc<Messenger>,
    stopped: watch::Receiver<bool>,
) -> Option<JoinHandle<()>> {
    let recorder = backend.recorder.clone().filter(|_| !config.events.record_on.0.is_empty())?;
    let results = backend.detections.results().clone();
    Some(tokio::spawn(run(recorder, messenger, results, config.events.clone(), stopped)))
}

/// Begins and ends recordings until `stopped` becomes true.
async fn run(
    recorder: RecorderHandle,
    messenger: Arc<Messenger>,
    results: Results,
    events: Events,
    mut stopped: watch::Receiver<bool>,
) {
    let mut results = results.subscribe();
    let mut policy = EventPolicy::new(rules(&events));
    let mut recordings =
        Recordings { recorder, messenger, pre_roll_s: events.pre_roll_s, limit: LogLimit::default() };
    let zone = Zone::local();
    loop {
        let change = tokio::select! {
            result = results.recv() => match result {
                Ok(result) => {
                    let minute = zone.minute_of_day(realtime_ns() / 1_000_000_000);
                    let is_quiet = events.quiet_hours.iter().any(|hours| hours.contain(minute));
                    policy.on_result(monotonic_ns(), &result, !is_quiet)
                }
                Err(RecvError::Lagged(_)) => None,
                Err(RecvError::Closed) => return,
            },
            () = sleep(limits::EVENT_CHECK), if policy.deadline_ns().is_some() => None,
            () = async { drop(stopped.wait_for(|&stopped| stopped).await) } => {
                if let Some(event) = policy.end() {
                    recordings.end(event).await;
                }
                return;
            }
        };
        match change.or_else(|| policy.on_time(monotonic_ns())) {
            Some(Change::Begin { event, began_ns }) => recordings.begin(&event, began_ns).await,
            Some(Change::End(event)) => recordings.end(event).await,
            None => {}
        }
    }
}

/// Returns what the recorder keeps in memory for recordings of events. Returns `None` if no event is recorded.
pub(super) fn pre_roll(events: &Events) -> Option<PreRollRules> {
    let duration_ns = i64::from(events.pre_roll_s) * 1_000_000_000 + limits::EVENT_RESULTS_NS_MAX;
    let bytes_max = usize::try_from(events.pre_roll_bytes).unwrap_or(usize::MAX);
    (!events.record_on.0.is_empty()).then_some(PreRollRules { duration_ns, bytes_max })
}

fn rules(events: &Events) -> EventRules {
    let ns = |seconds: u32| i64::from(seconds) * 1_000_000_000;
    EventRules {
        triggers: events.record_on.0.clone(),
        results: (events.confirmation.needed, events.confirmation.of),
        post_roll_ns: ns(events.post_roll_s.max(events.merge_s)),
        longest_ns: ns(events.max_s),
        cooldown_ns: ns(events.cooldown_s),
    }
}

/// The recordings of the events.
struct Recordings {
    recorder: RecorderHandle,
    messenger: Arc<Messenger>,
    pre_roll_s: u32,
    limit: LogLimit,
}

impl Recordings {
    async fn begin(&mut self, event: &Event, began_ns: i64) {
        let now_ns = monotonic_ns();
        let since_ns = now_ns.saturating_sub(began_ns).saturating_add(delay_ns(event, began_ns));
        let pre_roll_s = f64::from(self.pre_roll_s) + since_ns as f64 / 1e9;
        let label = &event.label;
        let started = self.recorder.start_event(label.clone(), pre_roll_s).await;
        let recording = started.as_ref().ok().map(|started| started.name.as_str());
        self.messenger.tell(Happening::EventBegin, label, recording, None);
        match started {
            Ok(started) => log::info!("event: {label} is seen, recording {}", started.name),
            Err(RecorderError::AlreadyRecording) => {
                log::info!("event: {label} is seen, it will be noted in the running recording");
            }
            Err(error) if self.limit.allows(now_ns) => {
                log::warn!("event: {label} is seen, but it cannot be recorded: {error}");
            }
            Err(_) => {}
        }
    }

    async fn end(&mut self, event: Event) {
        let label = event.label.clone();
        let ended = self.recorder.end_event(event).await;
        let recorded = ended.as_ref().ok().and_then(Option::as_ref);
        let (recording, event) = recorded.map(|(name, event)| (name.as_str(), event)).unzip();
        self.messenger.tell(Happening::EventEnd, &label, recording, event);
        match ended {
            Ok(_) => log::info!("event: {label} is gone"),
            Err(error) if self.limit.allows(monotonic_ns()) => {
                log::warn!("event: the end of the event with {label} could not be noted: {error}");
            }
            Err(_) => {}
        }
    }
}

/// Returns how long before the first result of the event was read its picture was taken.
fn delay_ns(event: &Event, read_ns: i64) -> i64 {
    let Some(captured_ns) = event.first_stamp_ns else { return 0 };
    let read_at_ns = realtime_ns().saturating_sub(monotonic_ns()).saturating_add(read_ns);
    read_at_ns.saturating_sub(captured_ns).clamp(0, DELAY_NS_MAX)
}
