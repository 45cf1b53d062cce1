//! The lease ring under stress: a C camera at 5000 units a second, eight readers as processes of their own that hold
//! several slots each, one of them killed with -9 every 100 ms. No byte of another unit is ever seen, the camera
//! loses no time, and every slot comes back.
//!
//! `SS_STRESS_SECONDS` says how long [5]; 600 is the run of a release.
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
/// In the environment of a reader: the ring's name. Without it the reader's body is an empty test.
const RING_OF_READER: &str = "SS_STRESS_RING";

/// What a reader checked, printed once a second so that a killed one has told.
#[derive(Default)]
struct Books {
    checked: u64,
    lapped: u64,
    refused: u64,
}

#[test]
fn a_reader_of_the_stress_test() {
    let Ok(ring) = std::env::var(RING_OF_READER) else { return };
    let camera = Camera::new(&ring, Wake::Auto);
    let mut cursor = camera.cursor();
    let bell = camera.clone();
    std::thread::spawn(move || waiter::run(bell, Arc::new(AtomicBool::new(false)), false));
    let mut random = Random::new(std::process::id().into());
    let (mut books, mut refused_before) = (Books::default(), 0);
    // Some are let go at once, some held for a while and looked at again.
    let mut held: VecDeque<UnitView> = VecDeque::new();
    let (mut told, mut holding) = (Instant::now(), 0);
    loop {
        match cursor.next(monotonic_ns()) {
            Next::Unit(unit) => {
                check(&unit, &mut books);
                if random.chance(30.0) {
                    held.push_back(unit);
                }
            }
            Next::Lapped { missed_units } => books.lapped += u64::from(missed_units),
            Next::Empty => std::thread::sleep(Duration::from_micros(200)),
            Next::Away | Next::Restarted => std::thread::sleep(Duration::from_millis(5)),
            Next::Rejected(rejection) => panic!("{rejection}"),
        }
        // Now and then as many as a reader may hold, and more, so that it is refused.
        if random.chance(1.0) {
            holding = random.below(18) as usize;
        }
        while held.len() > holding {
            check(&held.pop_front().unwrap(), &mut books);
        }
        if told.elapsed() > Duration::from_millis(20) {
            let refused_in_all = camera.counters().leases_refused.get();
            books.refused = refused_in_all - refused_before;
            refused_before = refused_in_all;
            println!("books {} {} {}", books.checked, books.lapped, books.refused);
            books = Books::default();
            told = Instant::now();
        }
    }
}

/// Number, length and sum of a unit that is leased.
fn check(unit: &UnitView, books: &mut Books) {
    let number = u64::from_ne_bytes(unit.bytes[..8].try_into().unwrap());
    let sum = u32::from_ne_bytes(unit.bytes[8..12].try_into().unwrap());
    let is_whole = number == unit.frame_number && crc32_of_slices([&unit.bytes[12..]].into_iter()) == sum;
    if !is_whole || !unit.is_intact() {
        println!("TORN unit {number} as {}", unit.frame_number);
        std::process::abort();
    }
    books.checked += 1;
}

fn reader(ring: &str) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "lease_stress::a_reader_of_the_stress_test", "--nocapture"])
        .env(RING_OF_READER, ring);
    Process::spawn("reader", &mut command)
}

/// Adds up the books of a reader that is gone; panics if it saw a torn unit.
fn settle(reader: &Process, sums: &mut [u64; 3]) {
    let log = reader.log();
    assert!(!log.contains("TORN") && !log.contains("panicked"), "{log}");
    for line in log.lines().filter_map(|line| line.strip_prefix("books ")) {
        for (sum, number) in sums.iter_mut().zip(line.split(' ')) {
            *sum += number.parse::<u64>().unwrap_or(0); // the last line may be cut
        }
    }
}

#[test]
fn readers_that_are_killed_all_the_time_cost_nobody_a_unit() {
    let seconds = std::env::var("SS_STRESS_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let (workshop, ring) = (Workshop::new(), unique_shm());
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
        settle(&dead, &mut sums);
        killed += 1;
    }
    // Those that live now have all looked at units, however slow the machine is.
    for reader in &readers {
        wait_until("a reader checks units", || reader.log().matches("books").count() > 1);
    }
    for reader in &mut readers {
        reader.kill();
        settle(reader, &mut sums);
    }
    // The camera takes the slots back as it goes round the ring.
    std::thread::sleep(Duration::from_millis(500));
    camera.signal(Signal::TERM);
    let line = wait_for("the camera's books", || camera.after("units="));
    let told = |key: &str| -> u64 {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(key));
        value.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {key} in {line}"))
    };
    let [checked, lapped, refused] = sums;
    eprintln!(
        "{seconds} s: units={line}; {killed} readers killed, {checked} checks, 0 torn, {lapped} lapped, {refused} refused"
    );
    assert!(camera.wait_exit(support::PATIENCE).success());
    assert_eq!(told("leased="), 0, "every slot came back");
    assert!(told("published=") > 0 && checked > 0);
}
