//! The command line of `perf link`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use lexopt::prelude::*;

use super::case::{Case, LinkOptions};
use super::record::Record;
use super::run::{Plan, run as run_case};
use super::server::{Kind, Programs};
use super::stream::Stream;
use super::table;
use crate::Fallible;

const HELP: &str = "\
perf/link: what a real browser shows when the link to the server is slow, lossy or changing. Needs root, ip, ffmpeg and
Chromium.

  perf/link [OPTIONS]          make one run and print its figures
  perf/link table [OPTIONS]    make all runs of the table; write perf/results/link.jsonl and perf/results/link.md
  perf/link report             write perf/results/link.md again from perf/results/link.jsonl

Link (times count from the first picture; both directions are equal)
  --rate RATE          bits per second: 15M, 600k or max; with changes: 20M,10s:2M,20s:20M [max]
  --queue BYTES        queue before the link, such as 60k; packets that do not fit are dropped [no limit]
  --rtt TIME           round trip, such as 20ms [0]
  --jitter TIME        additional random delay in each direction, without reordering [0]
  --loss SHARE         share of packets lost at random, such as 5% [0]
  --loss-run N         mean number of packets in a run of lost packets [1: each packet independently]
  --outage AT:TIME     lose every packet for a time, such as 10s:2s; several separated by commas [none]
  --block-udp AT       drop UDP from this time on, 0s for always [never]
  --block-tcp AT       the same for TCP, except for the port of the page [never]
  --move AT            the viewer gets another address at this time [never]

Run
  --stream NAME        card (8 Mbit/s), card-600k (test card of camera-sim, 720p), x264-720p, x264-1080p (8 Mbit/s),
                       x264-600k; card-obeys: as card, on a lease ring, with a camera that obeys --min-kbps 500
                       (only for our server) [x264-720p]
  --seconds N          measured time after the first 3 s, which are reported apart [20]
  --servers LIST       ours, pion-best, go2rtc, mediamtx, or ours-whip: streaming-server publishes over the link to
                       mediamtx, and the browser watches mediamtx; the servers take turns [ours]
  --rounds N           runs of each server [1]
  --page WHICH         player: a plain page, the same for all servers; own: the server's own page [player; table: each
                       row has its own]
  --beside N           load viewers that watch the same server over loopback; their figures are reported [0]
  --seed N             seed of losses and jitter; each round adds 1 [1]
  --server PROGRAM     streaming-server to measure [target/debug/streaming-server]
  --server-option ARG  pass this argument to streaming-server; may be given several times [none]
  --camera PROGRAM     camera-sim [next to the server]
  --layout LAYOUT      layout of the camera's ring [v3]
  --peers DIR          directory into which perf/peers/*/setup install [target/peers]
  --no-shield          do not give camera, server and browser a higher priority than other processes
  --per-second         also print the figures of each second
  --trace FILE         write one line for each packet, unit and shown picture
  --only WORDS         for `table`: only runs whose stream and link contain each of these words [all]
  --out FILE           append the records, one JSON object per line [none; table: perf/results/link.jsonl]
";

/// The parsed command line.
struct Command {
    plan: Plan,
    link: LinkOptions,
    stream: Stream,
    seconds: u64,
    servers: Vec<Kind>,
    rounds: u64,
    own_page: bool,
    beside: usize,
    seed: u64,
    per_second: bool,
    only: Vec<String>,
    out: Option<PathBuf>,
    camera: Option<PathBuf>,
    has_help: bool,
}

/// Executes `perf link` with the rest of the command line.
pub(crate) fn run(mut parser: lexopt::Parser) -> Fallible<()> {
    let first = match parser.try_raw_args().as_ref().and_then(|words| words.peek()) {
        Some(word) => word.to_string_lossy().into_owned(),
        None => String::new(),
    };
    if matches!(first.as_str(), "table" | "report") {
        let _ = parser.value()?;
    }
    let command = Command::parse(parser)?;
    if command.has_help {
        print!("{HELP}");
        return Ok(());
    }
    let result = match first.as_str() {
        "table" => command.table(),
        "report" => table::write(Path::new(table::RECORDS)),
        _ => command.one(),
    };
    let _ = std::fs::remove_dir_all(&command.plan.scratch);
    result
}

impl Command {
    fn parse(mut parser: lexopt::Parser) -> Fallible<Command> {
        let mut command = Command {
            plan: Plan {
                programs: Programs {
                    server: "target/debug/streaming-server".into(),
                    server_arguments: Vec::new(),
                    peers: "target/peers".into(),
                },
                camera: PathBuf::new(),
                layout: "v3".to_owned(),
                chromium: std::env::var_os("CHROMIUM").map_or("/usr/bin/chromium".into(), PathBuf::from),
                streams: "target/link".into(),
                scratch: std::env::temp_dir().join(format!("perf-link-{}", std::process::id())),
                shielded: true,
                trace: None,
            },
            link: LinkOptions::default(),
            stream: Stream::parse("x264-720p")?,
            seconds: 20,
            servers: vec![Kind::Ours],
            rounds: 1,
            own_page: false,
            beside: 0,
            seed: 1,
            per_second: false,
            only: Vec::new(),
            out: None,
            camera: None,
            has_help: false,
        };
        while let Some(argument) = parser.next()? {
            let Long(name) = argument else { return Err(argument.unexpected().into()) };
            match name.to_owned().as_str() {
                "help" => command.has_help = true,
                "no-shield" => command.plan.shielded = false,
                "per-second" => command.per_second = true,
                name => command.set(name, &parser.value()?.string()?)?,
            }
        }
        let beside = command.plan.programs.server.with_file_name("camera-sim");
        command.plan.camera = command.camera.take().unwrap_or(beside);
        Ok(command)
    }

    fn set(&mut self, name: &str, value: &str) -> Fallible<()> {
        match name {
            "stream" => self.stream = Stream::parse(value)?,
            "seconds" => self.seconds = value.parse()?,
            "servers" => self.servers = value.split(',').map(Kind::parse).collect::<Fallible<_>>()?,
            "rounds" => self.rounds = value.parse()?,
            "page" => {
                self.own_page = match value {
                    "own" => true,
                    "player" => false,
                    _ => return Err("--page is player or own".into()),
                }
            }
            "beside" => self.beside = value.parse()?,
            "seed" => self.seed = value.parse()?,
            "server" => self.plan.programs.server = value.into(),
            "server-option" => self.plan.programs.server_arguments.push(value.to_owned()),
            "camera" => self.camera = Some(value.into()),
            "layout" => self.plan.layout = value.to_owned(),
            "peers" => self.plan.programs.peers = value.into(),
            "trace" => self.plan.trace = Some(value.into()),
            "only" => self.only = value.split_whitespace().map(str::to_owned).collect(),
            "out" => self.out = Some(value.into()),
            name if self.link.set(name, value)? => {}
            _ => return Err(format!("unknown option --{name}; see perf/link --help").into()),
        }
        Ok(())
    }

    /// Makes the runs that the options describe.
    fn one(&self) -> Fallible<()> {
        for round in 0..self.rounds {
            for server in &self.servers {
                let case = Case {
                    server: *server,
                    stream: self.stream,
                    link: self.link.clone(),
                    seconds: self.seconds,
                    own_page: self.own_page,
                    beside: self.beside,
                    seed: self.seed + round,
                };
                self.make(&case, self.out.as_deref())?;
            }
        }
        Ok(())
    }

    /// Makes all runs of the table, servers in turn.
    fn table(&self) -> Fallible<()> {
        let out = self.out.clone().unwrap_or(table::RECORDS.into());
        let mut failures = 0;
        for row in table::ROWS {
            for stream in row.streams {
                let text = format!("{stream} {}", row.link);
                if !self.only.iter().all(|word| text.contains(word.as_str())) {
                    continue;
                }
                for round in 0..self.rounds.max(row.rounds) {
                    for server in row.servers_of(&self.servers) {
                        let parsed = Stream::parse(stream)?;
                        if parsed.obeys && server != Kind::Ours {
                            continue; // the other servers do not read lease rings
                        }
                        let case = Case {
                            server,
                            stream: parsed,
                            link: LinkOptions::parse(row.link)?,
                            seconds: row.seconds,
                            own_page: row.own_page,
                            beside: row.beside,
                            seed: self.seed + round,
                        };
                        if let Err(error) = self.make(&case, Some(&out)) {
                            failures += 1;
                            eprintln!("{} {text}: {error}", server.name());
                        }
                    }
                }
            }
        }
        table::write(&out)?;
        if failures > 0 { Err(format!("{failures} run(s) failed").into()) } else { Ok(()) }
    }

    fn make(&self, case: &Case, out: Option<&Path>) -> Fallible<()> {
        let record = run_case(&self.plan, case)?;
        print!("{}", table::brief(&record));
        if self.per_second {
            print!("{}", table::per_second(&record));
        }
        if let Some(path) = out {
            append(path, &record)?;
        }
        Ok(())
    }
}

fn append(path: &Path, record: &Record) -> Fallible<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut file = File::options().create(true).append(true).open(path)?;
    writeln!(file, "{}", serde_json::to_string(record)?)?;
    Ok(())
}
