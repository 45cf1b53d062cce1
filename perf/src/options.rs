//! The command line of `perf`: the settings to run, the number of runs, and the file for the records.

use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;

use lexopt::prelude::*;

use crate::Fallible;
use crate::measure::{self, Plan};
use crate::record::{Record, Setting};
use crate::subject::{Kind, Programs};
use crate::{feed, floor, link, process, report};

const HELP: &str = "\
perf: measures streaming-server and its peers under load.

  perf run [OPTIONS]       run every combination of the lists, servers in turn; append records to --out
  perf report FILE...      make tables and charts of records: --directory DIR [perf/results], --readme FILE
  perf floor --shm NAME    the bare sender (started by `perf run`)
  perf feed --shm NAME     write the camera's access units to standard output (for peers/go2rtc)
  perf link                a link between a server and a real browser (started by `perf/link`; see perf/link --help)

  --servers LIST     ours, ours-2 (workers), before (see --before), floor-gcm, floor-cm, floor-send, pion,
                     pion-best, aiortc, go2rtc [ours]
  --viewers LIST     numbers of viewers [10]
  --kbps LIST        bit rates of the camera [8000]
  --record LIST      no, yes [no]
  --seconds N        measured time per run [8]
  --rounds N         runs of each combination [1]
  --tries N          maximum repetitions of a run disturbed by other processes [2]
  --check N          viewers that decrypt and check everything; the others check headers and stamps [10]
  --feedback         viewers send transport-wide feedback, as browsers do
  --gro              viewers receive whole GSO batches, as if a network card had segmented them
  --shield           run server and camera with real-time priority, for a machine with other users
  --layout LAYOUT    layout of the camera's ring [v3]
  --size WxH         size of the picture [1280x720]
  --programs DIR     directory of streaming-server and camera-sim [target/release]
  --before PROGRAM   another build of streaming-server to compare with: the server `before` [none]
  --peers DIR        directory into which perf/peers/*/setup install [target/peers]
  --inspect DIR      store a CPU profile and the metrics of our server (costs some CPU time) [off]
  --out FILE         append records, one JSON object per line [none]
";

/// Executes the command that the command line names.
pub(crate) fn dispatch(mut parser: lexopt::Parser) -> Fallible<()> {
    let command = match parser.next()? {
        Some(Value(command)) => command.string()?,
        Some(Long("help")) | None => {
            print!("{HELP}");
            return Ok(());
        }
        Some(other) => return Err(other.unexpected().into()),
    };
    match command.as_str() {
        "run" => Run::parse(parser)?.map_or(Ok(()), |run| run.all()),
        "report" => report(parser),
        "floor" => floor::run(&shm(parser)?),
        "feed" => feed::run(&shm(parser)?),
        "link" => link::run(parser),
        other => Err(format!("unknown command {other:?}; see perf --help").into()),
    }
}

fn report(mut parser: lexopt::Parser) -> Fallible<()> {
    let (mut records, mut directory, mut readme) = (Vec::new(), PathBuf::from("perf/results"), None);
    while let Some(argument) = parser.next()? {
        match argument {
            Value(path) => records.push(PathBuf::from(path)),
            Long("directory") => directory = parser.value()?.into(),
            Long("readme") => readme = Some(PathBuf::from(parser.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    report::write(&report::read(&records)?, &directory, readme.as_deref())
}

fn shm(mut parser: lexopt::Parser) -> Fallible<String> {
    match parser.next()? {
        Some(Long("shm")) => Ok(parser.value()?.string()?),
        _ => Err("--shm NAME is required".into()),
    }
}

fn list<T: FromStr>(text: &str) -> Fallible<Vec<T>> {
    let parse = |part: &str| part.trim().parse().map_err(|_| format!("{part:?} in {text:?}").into());
    text.split(',').map(parse).collect()
}

struct Run {
    plan: Plan,
    servers: Vec<String>,
    viewers: Vec<usize>,
    kbps: Vec<u32>,
    record: Vec<bool>,
    rounds: u32,
    tries: u32,
    gro: bool,
    feedback: bool,
    out: Option<PathBuf>,
}

impl Run {
    fn parse(mut parser: lexopt::Parser) -> Fallible<Option<Run>> {
        let mut run = Run {
            plan: Plan {
                programs: Programs {
                    ours: "target/release".into(),
                    before: None,
                    peers: "target/peers".into(),
                    shielded: false,
                },
                seconds: 8,
                layout: "v3".to_owned(),
                size: "1280x720".to_owned(),
                check: 10,
                inspect: None,
                scratch: std::env::temp_dir().join(format!("perf-{}", std::process::id())),
            },
            servers: vec!["ours".to_owned()],
            viewers: vec![10],
            kbps: vec![8_000],
            record: vec![false],
            rounds: 1,
            tries: 2,
            gro: false,
            feedback: false,
            out: None,
        };
        while let Some(argument) = parser.next()? {
            let Long(name) = argument else { return Err(argument.unexpected().into()) };
            match name.to_owned().as_str() {
                "help" => {
                    print!("{HELP}");
                    return Ok(None);
                }
                "gro" => run.gro = true,
                "feedback" => run.feedback = true,
                "shield" => run.plan.programs.shielded = true,
                name => run.set(name, &parser.value()?.string()?)?,
            }
        }
        run.servers.iter().try_for_each(|name| Kind::parse(name).map(drop))?;
        Ok(Some(run))
    }

    fn set(&mut self, name: &str, value: &str) -> Fallible<()> {
        match name {
            "servers" => self.servers = list(value)?,
            "viewers" => self.viewers = list(value)?,
            "kbps" => self.kbps = list(value)?,
            "record" => {
                let words: Vec<String> = list(value)?;
                self.record = words.iter().map(|word| word == "yes").collect();
            }
            "seconds" => self.plan.seconds = value.parse()?,
            "rounds" => self.rounds = value.parse()?,
            "tries" => self.tries = value.parse()?,
            "check" => self.plan.check = value.parse()?,
            "layout" => self.plan.layout = value.to_owned(),
            "size" => self.plan.size = value.to_owned(),
            "programs" => self.plan.programs.ours = value.into(),
            "before" => self.plan.programs.before = Some(value.into()),
            "peers" => self.plan.programs.peers = value.into(),
            "inspect" => self.plan.inspect = Some(value.into()),
            "out" => self.out = Some(value.into()),
            _ => return Err(format!("unknown option --{name}; see perf --help").into()),
        }
        Ok(())
    }

    /// Makes a run for every combination of the options. The servers take turns, so that a busy minute of the machine
    /// affects all of them.
    fn all(&self) -> Fallible<()> {
        std::fs::create_dir_all(&self.plan.scratch)?;
        let mut failures = 0;
        for (kbps, record) in self.kbps.iter().flat_map(|k| self.record.iter().map(move |r| (*k, *r))) {
            for (viewers, _) in
                self.viewers.iter().flat_map(|n| (0..self.rounds).map(move |round| (*n, round)))
            {
                for server in &self.servers {
                    let setting = Setting {
                        server: server.clone(),
                        viewers,
                        kbps,
                        record,
                        gro: self.gro,
                        feedback: self.feedback,
                    };
                    match self.once(&setting) {
                        Ok(record) => self.note(&record)?,
                        Err(error) => {
                            failures += 1;
                            eprintln!("{setting:?}: {error}");
                        }
                    }
                }
            }
        }
        let _ = std::fs::remove_dir_all(&self.plan.scratch);
        if failures > 0 { Err(format!("{failures} run(s) failed").into()) } else { Ok(()) }
    }

    /// Makes runs with a setting until one is undisturbed, at most `tries` runs. Returns the record of the last run.
    fn once(&self, setting: &Setting) -> Fallible<Record> {
        let mut record = measure::run(&self.plan, setting)?;
        for _ in 1..self.tries {
            if record.is_clean() || record.shielded {
                break;
            }
            eprintln!(
                "other processes used {:.0} % of the machine: repeating the run",
                record.foreign * 100.0
            );
            record = measure::run(&self.plan, setting)?;
        }
        Ok(record)
    }

    fn note(&self, record: &Record) -> Fallible<()> {
        println!("{}", brief(record));
        if let Some(path) = &self.out {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory)?;
            }
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
            writeln!(file, "{}", serde_json::to_string(record)?)?;
        }
        Ok(())
    }
}

/// Returns a summary of one run in a few lines of text.
fn brief(record: &Record) -> String {
    let Record { setting, units, latency, cpu, memory, .. } = record;
    let process::Memory { anon_kb, file_kb, shmem_kb } = memory;
    format!(
        "{:>10} {:>4} x {:>5} kbit/s{} | p50 {:.0} p90 {:.0} p99 {:.0} p99.9 {:.0} max {:.0} us (IDR p50 {:.0}, \
         last viewer p50 {:.0} p99 {:.0}) | missing {} dup {} torn {} late {} of {} (harness lost {}) | CPU {:.2} ms/s \
         (user {:.0} sys {:.0}), per viewer {:.3} | anon {anon_kb} file {file_kb} shmem {shmem_kb} kB | switches \
         {:.0}+{:.0}/s | start {:.0} ms, first datagram {:.1}, IDR {:.1} ms | load {:.0} ms/s idle {:.0} % stolen \
         {:.1} % foreign {:.0} % {}",
        setting.server,
        setting.viewers,
        setting.kbps,
        if setting.record { " rec" } else { "" },
        latency.p50,
        latency.p90,
        latency.p99,
        latency.p99_9,
        latency.max,
        record.latency_idr.p50,
        record.latency_last_viewer.p50,
        record.latency_last_viewer.p99,
        units.missing,
        units.duplicated,
        units.torn,
        units.late,
        units.expected,
        units.lost_by_harness,
        cpu.total_ms,
        cpu.user_ms,
        cpu.system_ms,
        record.cpu_per_viewer_ms(),
        cpu.voluntary_switches,
        cpu.involuntary_switches,
        record.start_ms,
        record.first_datagram_ms.p50,
        record.first_idr_ms.p50,
        record.load_ms,
        record.idle * 100.0,
        record.stolen * 100.0,
        record.foreign * 100.0,
        record.srtp,
    )
}
