//! The program `camera-sim`: the command line and the signals of a simulated camera. The camera itself is
//! `streaming_server::simulator`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lexopt::prelude::*;
use streaming_server::simulator::{
    self, Burst, DetectionFault, DetectorConfig, LoadedScript, ParameterSetPolicy, ResolutionChange, Restart,
    RestartOnto, SimulatorConfig, SimulatorReport, Stall, Tear, TimestampClock,
};
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "\
camera-sim: a simulated camera. It writes H.264 into a shared-memory ring, like the camera daemon, until Ctrl-C.
Every access unit carries its number, its publish time and a checksum. The test card also shows the unit number.
A unit is one access unit: all data of one picture.

  camera-sim                                          a test card, 1280x720, 30 units/s, to /pet_camera_stream
  camera-sim --pattern 640x480 --bitrate-kbps 600     a smaller picture
  camera-sim --file walk.h264 --layout v3             a file, played in a loop
  camera-sim --layout v3-6 --flat-out --tear 10       as fast as possible, every 10th unit written in two halves
  camera-sim --layout lease --script case.txt         exactly the units that a script lists

Ring
  --shm NAME               shared-memory name [/pet_camera_stream]
  --layout LAYOUT          v0, v1, v2, v3, v3-6 or lease [v1]
  --clock CLOCK            clock of the timestamps: realtime (like the daemon) or monotonic [realtime]
  --take-over              publish even if another camera seems to write this ring
  --keep                   keep the segment in /dev/shm at exit [it is removed]

Source
  --pattern WxH            test card of this size, even numbers from 288x128 to 4096x2304 [1280x720]
  --file FILE              H.264 in byte-stream format (Annex B) instead of the test card
  --script FILE            units of this script instead of the test card, see below
  --fps N                  units per second, 0 for as fast as possible [30]
  --flat-out               the same as --fps 0
  --units N                exit after N units [never]

Test card
  --bitrate-kbps N         pad the units to this bit rate [no padding, about 400]
  --obey-bitrate           use less than --bitrate-kbps if the server asks for it (streaming-server --min-kbps;
                           needs --layout lease)
  --gop N                  units from one IDR to the next [30]
  --slices N               slices per picture [1]
  --parameter-sets WHICH   IDR units that carry SPS and PPS: every or first [every]
  --no-delimiters          omit access unit delimiters

Detector (finds a white square that then moves over the test card)
  --detections NAME        write results into this shared memory, such as /pet_camera_detections
  --detection-delay-ms MIN-MAX  time from a picture to its result [16-40]
  --detection-gaps         no results in the last 3 of every 10 seconds
  --detection-fault FAULT  make every result wrong: torn, nan, count, outside, name or size

Fault injection (N counts units)
  --stall-after N[:S]      stop publishing after N units, for S seconds [forever]
  --restart-every N[:S]    stop every N units and restart after S seconds [0.5]
  --restart ONTO           segment after a restart: same (like the daemon), rewind (same segment, index 0),
                           new (segment) or alternate [alternate]
  --tear N[:US]            write every Nth unit in two halves, US microseconds apart [300]
  --lie N                  publish every Nth unit with impossible metadata or random bytes
  --change-resolution N[:WxH]  switch to WxH and back every N units [640x480]
  --burst N[:K]            every N units, publish K units at once [5]
  --drop N                 skip every Nth picture; its unit number is missing

Script (one entry per line, # begins a comment, paths are relative to the script and contain no white space)
  unit hex:BYTES [KEY=VALUE]...                 publish these bytes as one unit, without a stamp
  unit file:PATH[@OFFSET+BYTES] [KEY=VALUE]...  publish a file, or a part of it, as one unit
  stream PATH [units=FROM..TO] [KEY=VALUE]...   publish each access unit of an Annex B file as one unit, unchanged
  clock TIME                                    step the camera's clock: all later stamps change by this time
  wait TIME | wait file:PATH | wait stop        publish nothing for this time, until the file exists, or until Ctrl-C
  loop [N] ... end                              play the lines between N times, without N until Ctrl-C
 Keys of unit and stream: gap=TIME (since the previous unit [1/--fps]), stamp=TIME (added to the capture time); and
 what the slot says, whether true or not: stamp_s, stamp_ns, frame, format, data_size, width, height, camera.
 A TIME is a number with ns, us, ms or s, such as 33.3ms; a stamp or a clock step may be negative.

  --help, --version
";

fn main() -> ExitCode {
    let (config, script) = match parse(lexopt::Parser::from_env()) {
        Ok(Some(parsed)) => parsed,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("camera-sim: {error} (camera-sim --help lists the options)");
            return ExitCode::from(2);
        }
    };
    let stop = Arc::new(AtomicBool::new(false));
    if let Err(error) = stop_on_signal(Arc::clone(&stop)) {
        eprintln!("camera-sim: cannot wait for signals: {error}");
        return ExitCode::FAILURE;
    }
    let outcome = match script {
        None => {
            eprintln!("camera-sim: {}", config.summary());
            simulator::run(&config, &stop).map_err(|error| error.to_string())
        }
        Some(path) => {
            eprintln!("camera-sim: {} ({}): script {}", config.name, config.layout, path.display());
            play_script(&config, &path, &stop)
        }
    };
    match outcome {
        Ok(report) => {
            eprintln!("camera-sim: {}", describe(&report));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("camera-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play_script(config: &SimulatorConfig, path: &Path, stop: &AtomicBool) -> Result<SimulatorReport, String> {
    let script = LoadedScript::open(path).map_err(|error| error.to_string())?;
    simulator::play_script(config, &script, stop).map_err(|error| error.to_string())
}

/// Starts a thread that sets `stop` on SIGINT or SIGTERM. A second signal exits at once with code 130.
fn stop_on_signal(stop: Arc<AtomicBool>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = move || {
        runtime.block_on(async {
            loop {
                tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
                if stop.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            }
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map(drop)
}

fn describe(report: &SimulatorReport) -> String {
    let seconds = report.lasted_ns.max(1) as f64 / 1e9;
    let mut text = format!(
        "{} units in {seconds:.1} s, {:.1} units/s, {:.0} kbit/s, at most {:.1} ms late",
        report.published,
        report.published as f64 / seconds,
        report.bytes as f64 * 8.0 / 1000.0 / seconds,
        report.late_ns_max as f64 / 1e6,
    );
    let counts = [
        (report.dropped, "dropped"),
        (report.refused, "without a slot"),
        (report.idr_requests, "IDRs requested"),
        (report.torn, "torn"),
        (report.malformed, "malformed"),
        (report.restarts, "restarts"),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        text += &format!(", {count} {what}");
    }
    text
}

/// Parses the command line. Returns the configuration and the path of the script, if one is played. Returns `None` after
/// printing the help or the version.
fn parse(mut parser: lexopt::Parser) -> Result<Option<(SimulatorConfig, Option<PathBuf>)>, lexopt::Error> {
    let (mut config, mut script) = (SimulatorConfig::default(), None);
    let mut source_is_given = false;
    let mut onto = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            Long("version") | Short('V') => {
                println!("camera-sim {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            Long(flag @ ("pattern" | "file" | "script")) => {
                if std::mem::replace(&mut source_is_given, true) {
                    return Err("only one source is allowed: one --pattern, --file or --script".into());
                }
                let flag = flag.to_owned();
                let value = parser.value()?;
                match flag.as_str() {
                    "file" => config.file = Some(value.into()),
                    "script" => script = Some(value.into()),
                    _ => (config.card.width, config.card.height) = value.parse_with(parse_size)?,
                }
            }
            Long("restart") => onto = Some(parser.value()?.parse_with(parse_restart_onto)?),
            Long(flag) => {
                let flag = flag.to_owned();
                set(&flag, &mut parser, &mut config)?;
            }
            other => return Err(other.unexpected()),
        }
    }
    match (&mut config.faults.restart, onto) {
        (Some(restart), Some(onto)) => restart.onto = onto,
        (None, Some(_)) => return Err("--restart needs --restart-every N".into()),
        (_, None) => {}
    }
    Ok(Some((config, script)))
}

/// Sets the value that the option `flag` stands for. The ring, the rate, the encoding and the faults are set here.
fn set(flag: &str, parser: &mut lexopt::Parser, config: &mut SimulatorConfig) -> Result<(), lexopt::Error> {
    let (card, faults) = (&mut config.card, &mut config.faults);
    match flag {
        "shm" => config.name = parser.value()?.string()?,
        "layout" => config.layout = parser.value()?.parse()?,
        "clock" => {
            config.clock = parser.value()?.parse_with(|text| match text {
                "realtime" => Ok(TimestampClock::Realtime),
                "monotonic" => Ok(TimestampClock::Monotonic),
                _ => Err("the clock must be realtime or monotonic"),
            })?;
        }
        "take-over" => config.take_over = true,
        "keep" => config.unlink_at_exit = false,
        "fps" => {
            let fps: f64 = parser.value()?.parse()?;
            config.fps = (fps != 0.0).then_some(fps);
        }
        "flat-out" => config.fps = None,
        "units" => config.units = Some(parser.value()?.parse()?),
        "bitrate-kbps" => card.bitrate_kbps = Some(parser.value()?.parse()?),
        "obey-bitrate" => config.obeys_bitrate = true,
        "gop" => card.gop = parser.value()?.parse()?,
        "slices" => card.slices = parser.value()?.parse()?,
        "parameter-sets" => {
            card.parameter_sets = parser.value()?.parse_with(|text| match text {
                "every" => Ok(ParameterSetPolicy::Every),
                "first" => Ok(ParameterSetPolicy::First),
                _ => Err("the value must be every or first"),
            })?;
        }
        "no-delimiters" => card.delimiters = false,
        "stall-after" => {
            let (after, lasting) = count_and(parser, parse_seconds)?;
            faults.stall = Some(Stall { after, lasting });
        }
        "restart-every" => {
            let (every, pause) = count_and(parser, parse_seconds)?;
            let pause = pause.unwrap_or(Duration::from_millis(500));
            faults.restart = Some(Restart { every, pause, onto: RestartOnto::Alternate });
        }
        "tear" => {
            let (every, pause) = count_and(parser, parse_count)?;
            faults.tear = Some(Tear { every, pause: Duration::from_micros(pause.unwrap_or(300)) });
        }
        "lie" => faults.malformed_every = Some(parser.value()?.parse()?),
        "change-resolution" => {
            let (every, size) = count_and(parser, parse_size)?;
            let (width, height) = size.unwrap_or((640, 480));
            faults.change_resolution = Some(ResolutionChange { every, width, height });
        }
        "burst" => {
            let (every, units) = count_and(parser, parse_count)?;
            faults.burst = Some(Burst { every, units: units.unwrap_or(5) });
        }
        "drop" => faults.drop_every = Some(parser.value()?.parse()?),
        _ => return set_detector(flag, parser, config),
    }
    Ok(())
}

/// Sets the value that an option of the detector stands for.
fn set_detector(
    flag: &str,
    parser: &mut lexopt::Parser,
    config: &mut SimulatorConfig,
) -> Result<(), lexopt::Error> {
    if flag == "detections" {
        config.detector = Some(DetectorConfig::new(parser.value()?.string()?));
        return Ok(());
    }
    if !matches!(flag, "detection-delay-ms" | "detection-gaps" | "detection-fault") {
        return Err(Long(flag).unexpected());
    }
    let Some(detector) = &mut config.detector else {
        return Err(format!("--{flag} needs --detections NAME before it").into());
    };
    match flag {
        "detection-delay-ms" => {
            detector.delay_ms = parser.value()?.parse_with(|text| {
                let range =
                    text.split_once('-').and_then(|(min, max)| Some(min.parse().ok()?..=max.parse().ok()?));
                range.filter(|range| !range.is_empty()).ok_or("the value must be MIN-MAX, such as 16-40")
            })?;
        }
        "detection-gaps" => detector.has_gaps = true,
        _ => detector.fault = Some(parser.value()?.parse_with(parse_detection_fault)?),
    }
    Ok(())
}

fn parse_detection_fault(text: &str) -> Result<DetectionFault, &'static str> {
    match text {
        "torn" => Ok(DetectionFault::Torn),
        "nan" => Ok(DetectionFault::Nan),
        "count" => Ok(DetectionFault::Count),
        "outside" => Ok(DetectionFault::Outside),
        "name" => Ok(DetectionFault::Name),
        "size" => Ok(DetectionFault::Size),
        _ => Err("the value must be torn, nan, count, outside, name or size"),
    }
}

/// Returns the numbers of an option value of the form `N` or `N:MORE`. `MORE` is `None` if it is missing.
fn count_and<T>(
    parser: &mut lexopt::Parser,
    parse_more: impl FnOnce(&str) -> Result<T, &'static str>,
) -> Result<(u64, Option<T>), lexopt::Error> {
    parser.value()?.parse_with::<_, _, &'static str>(|text| match text.split_once(':') {
        None => Ok((parse_count(text)?, None)),
        Some((count, more)) => Ok((parse_count(count)?, Some(parse_more(more)?))),
    })
}

fn parse_count(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "a whole number is required")
}

fn parse_seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds is required")?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "a number of seconds, at least 0, is required")
}

fn parse_size(text: &str) -> Result<(u32, u32), &'static str> {
    let parsed = text.split_once('x').map(|(width, height)| (width.parse(), height.parse()));
    match parsed {
        Some((Ok(width), Ok(height))) => Ok((width, height)),
        _ => Err("the size must be WIDTHxHEIGHT, such as 1280x720"),
    }
}

fn parse_restart_onto(text: &str) -> Result<RestartOnto, &'static str> {
    match text {
        "same" => Ok(RestartOnto::Same),
        "rewind" => Ok(RestartOnto::Rewind),
        "new" => Ok(RestartOnto::New),
        "alternate" => Ok(RestartOnto::Alternate),
        _ => Err("the value must be same, rewind, new or alternate"),
    }
}
