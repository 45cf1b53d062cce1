//! The lease ring under stress: a C camera publishes 5000 units per second, and each of eight reader processes leases
//! several slots. Every 100 ms the test kills one reader with SIGKILL. No reader may see a byte of another unit, and
//! every slot must be released.
//!
//! `SS_STRESS_SECONDS` sets the duration in seconds. The default is 5; before a release the test runs for 600 seconds.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::collections::VecDeque;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use streaming_server::camera::{Camera, Next, UnitView, Wake, waiter};
use streaming_server::h264::crc32_of_slices;
use support::c::Workshop;
use support::process::Process;
use support::random::Random;
use support::{monotonic_ns, unique_shm, wait_for, wait_until};

const READERS: usize = 8;
/// Environment variable with which the test gives a reader process the name of the ring. Without the variable the test
/// function of the reader returns at once.
const RING_OF_READER: &str = "SS_STRESS_RING";

/// Counts of a reader process since its last output. The process prints them every 20 ms, so that a kill loses few
/// counts.
#[derive(Default)]
struct Counts {
    checked: u64,
    lapped: u64,
    refused: u64,
}

#[test]
fn reader_process_of_the_stress_test() {
    let Ok(ring) = std::env::var(RING_OF_READER) else { return };
    let camera = Camera::new(&ring, Wake::Auto);
    let mut cursor = camera.cursor();
    let followed = camera.clone();
    std::thread::spawn(move || waiter::run(followed, Arc::new(AtomicBool::new(false)), false));
    let mut random = Random::new(std::process::id().into());
    let (mut counts, mut refused_before) = (Counts::default(), 0);
    // Units that the reader keeps leased. The reader checks them again before it releases them; it releases all other
    // units at once.
    let mut held: VecDeque<UnitView> = VecDeque::new();
    let (mut printed, mut holding) = (Instant::now(), 0);
    loop {
        match cursor.next(monotonic_ns()) {
            Next::Unit(unit) => {
                check(&unit, &mut counts);
                if random.chance(30.0) {
                    held.push_back(unit);
                }
            }
            Next::Lapped { missed_units } => counts.lapped += u64::from(missed_units),
            Next::Empty => std::thread::sleep(Duration::from_micros(200)),
            Next::Away | Next::Restarted => std::thread::sleep(Duration::from_millis(5)),
            Next::Rejected(rejection) => panic!("{rejection}"),
        }
        // `holding` is sometimes more than the number of slots that one reader may lease, so that the ring refuses a
        // lease.
        if random.chance(1.0) {
            holding = random.below(18) as usize;
        }
        while held.len() > holding {
            check(&held.pop_front().unwrap(), &mut counts);
        }
        if printed.elapsed() > Duration::from_millis(20) {
            let refused = camera.counters().leases_refused.get();
            counts.refused = refused - refused_before;
            refused_before = refused;
            println!("counts {} {} {}", counts.checked, counts.lapped, counts.refused);
            counts = Counts::default();
            printed = Instant::now();
        }
    }
}

/// Checks the number and checksum of a leased unit. If the unit is torn, prints its number and aborts the process.
fn check(unit: &UnitView, counts: &mut Counts) {
    let number = u64::from_ne_bytes(unit.bytes[..8].try_into().unwrap());
    let sum = u32::from_ne_bytes(unit.bytes[8..12].try_into().unwrap());
    let is_whole = number == unit.frame_number && crc32_of_slices([&unit.bytes[12..]].into_iter()) == sum;
    if !is_whole || !unit.is_intact() {
        println!("TORN unit {number} as {}", unit.frame_number);
        std::process::abort();
    }
    counts.checked += 1;
}

fn reader(ring: &str) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "lease_stress::reader_process_of_the_stress_test", "--nocapture"])
        .env(RING_OF_READER, ring);
    Process::spawn("reader", &mut command)
}

/// Adds the counts of an ended reader to `sums`. Panics if the reader saw a torn unit.
fn add_counts(reader: &Process, sums: &mut [u64; 3]) {
    let log = reader.log();
    assert!(!log.contains("TORN") && !log.contains("panicked"), "{log}");
    for line in log.lines().filter_map(|line| line.strip_prefix("counts ")) {
        for (sum, number) in sums.iter_mut().zip(line.split(' ')) {
            *sum += number.parse::<u64>().unwrap_or(0); // the kill may cut the last line; a missing number is 0
        }
    }
}

#[test]
fn killed_readers_leave_no_leases_and_no_torn_units() {
    let seconds = std::env::var("SS_STRESS_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let (workshop, ring) = (Workshop::create(), unique_shm());
    let program = workshop.compile("cc", "stress_camera.c", &["-O2"]);
    let mut camera = Process::spawn("stress_camera", Command::new(program).args([&ring, "5000"]));
    wait_until("the C camera is ready", || camera.log().contains("ready"));
    let mut readers: Vec<Process> = (0..READERS).map(|_| reader(&ring)).collect();
    let mut random = Random::new(0x5107);
    let (mut sums, mut killed) = ([0; 3], 0);
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
        let victim = random.below(READERS as u64) as usize;
        let mut dead = std::mem::replace(&mut readers[victim], reader(&ring));
        dead.kill();
        add_counts(&dead, &mut sums);
        killed += 1;
    }
    // Wait until every running reader has checked units, however slow the machine is.
    for reader in &readers {
        wait_until("a reader checks units", || reader.log().matches("counts").count() > 1);
    }
    for reader in &mut readers {
        reader.kill();
        add_counts(reader, &mut sums);
    }
    // The camera releases the slots of dead readers while it rotates through the ring. Wait until it has gone through
    // all slots.
    std::thread::sleep(Duration::from_millis(500));
    camera.signal(Signal::TERM);
    let line = wait_for("the camera's counts", || camera.after("units="));
    let count = |key: &str| -> u64 {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(key));
        value.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {key} in {line}"))
    };
    let [checked, lapped, refused] = sums;
    eprintln!(
        "{seconds} s: units={line}; {killed} readers killed, {checked} checks, 0 torn, {lapped} lapped, {refused} refused"
    );
    assert!(camera.wait_exit(support::PATIENCE).success());
    assert_eq!(count("leased="), 0, "every slot is released");
    assert!(count("published=") > 0 && checked > 0);
}
