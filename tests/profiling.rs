//! Profiles name the functions that use CPU and memory, `go tool pprof` reads them, and taking a profile does not
//! disturb the process. This test uses the profiling allocator as its global allocator.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use streaming_server::profiling::{
    self, Allocator, Contention, Heap, ProfileError, contention_profile, cpu_profile, heap_profile, threads,
};
use streaming_server::uring::{Completion, Driver, UdpDriver, UdpDriverConfig, open_socket};
use support::profile::Profile;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator::new();

/// Each test holds this lock while it runs. Only one profile may run at a time, and the memory of other tests must not
/// be in a heap profile.
static TURN: Mutex<()> = Mutex::new(());

#[inline(never)]
fn burn_in_a_named_function(stop: &AtomicBool) -> u64 {
    let mut value = 1_u64;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..10_000 {
            value = black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
    value
}

#[inline(never)]
fn caller_of_the_burning(stop: &AtomicBool) -> u64 {
    black_box(burn_in_a_named_function(black_box(stop)))
}

#[inline(never)]
fn leak_in_a_named_function(bytes: usize) -> Vec<u8> {
    black_box(vec![1_u8; black_box(bytes)])
}

/// Runs `body` while `count` threads, named `burner-0` and up, run `work`. Returns the result of `body`.
fn while_running<T>(count: usize, work: impl Fn(&AtomicBool) + Sync, body: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for index in 0..count {
            let (stop, work) = (&stop, &work);
            let builder = thread::Builder::new().name(format!("burner-{index}")).stack_size(128 * 1024);
            builder.spawn_scoped(scope, move || work(stop)).unwrap();
        }
        let result = body();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// A profile in a temporary file, which is removed on drop.
struct Kept(PathBuf);

impl Kept {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("ss-test-{name}-{}.pb.gz", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Kept(path)
    }

    /// Returns the output of `go tool pprof` for this file. Prints a message and returns `None` if Go is not installed.
    fn pprof(&self, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new("go");
        command
            .args(["tool", "pprof"])
            .args(arguments)
            .arg(&self.0)
            .env("PPROF_TMPDIR", std::env::temp_dir());
        match command.output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("SKIPPED: `go` is not installed, so `go tool pprof` did not run");
                None
            }
            output => {
                let output = output.unwrap();
                let (out, err) =
                    (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
                assert!(output.status.success(), "{out}\n{err}");
                Some(out)
            }
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn turn() -> std::sync::MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn the_cpu_profile_names_the_busy_function_its_caller_and_its_thread() {
    let _turn = turn();
    let bytes = while_running(
        1,
        |stop| {
            caller_of_the_burning(stop);
        },
        || cpu_profile(Duration::from_secs(2), 100).unwrap(),
    );
    let profile = Profile::decode(&bytes);
    assert_eq!(profile.sample_types, ["samples/count", "cpu/nanoseconds"]);
    assert_eq!((profile.period_type.as_str(), profile.period), ("cpu/nanoseconds", 10_000_000));
    assert!((2_000_000_000..20_000_000_000).contains(&profile.duration_ns), "{}", profile.duration_ns);
    let burning = profile.total(1, |sample| sample.stack[0].ends_with("burn_in_a_named_function"));
    let all = profile.total(1, |_| true);
    assert!(burning * 10 > all * 8, "{burning} of {all} ns");
    assert!(burning > 0);
    let with_caller = profile.total(1, |sample| {
        sample.stack.get(1).is_some_and(|name| name.ends_with("caller_of_the_burning"))
            && sample.labels == ["thread=burner-0"]
    });
    assert!(with_caller * 10 > burning * 9, "{with_caller} of {burning}");
    assert!(
        profile.mappings[0]
            .ends_with(std::env::current_exe().unwrap().file_name().unwrap().to_str().unwrap())
    );
    let file = Kept::new("cpu", &bytes);
    if let Some(top) = file.pprof(&["-top", "-nodecount=10"]) {
        assert!(top.contains("burn_in_a_named_function"), "{top}");
        println!("{top}");
    }
}

#[test]
fn a_second_profile_is_refused_and_the_thread_list_has_no_stacks_meanwhile() {
    let _turn = turn();
    thread::scope(|scope| {
        let first = scope.spawn(|| cpu_profile(Duration::from_secs(1), 100));
        let mut refused = 0;
        while !first.is_finished() {
            match cpu_profile(Duration::from_millis(1), 100) {
                Err(ProfileError::Busy) => refused += 1,
                Err(error) => panic!("{error}"),
                Ok(_) => {}
            }
            if refused == 1 {
                let text = String::from_utf8(threads(2).unwrap()).unwrap();
                assert!(text.contains("no stacks") || first.is_finished(), "{text}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        // Either of the two profiles may start first. The server must have refused the other one.
        assert!(refused > 0 || matches!(first.join().unwrap(), Err(ProfileError::Busy)));
    });
}

#[test]
fn arguments_out_of_range_are_refused() {
    let _turn = turn();
    for (duration, frequency) in [
        (Duration::ZERO, 100),
        (Duration::MAX, 100),
        (Duration::from_secs(1), 0),
        (Duration::from_secs(1), 100_000),
    ] {
        assert!(matches!(cpu_profile(duration, frequency), Err(ProfileError::Range(_))));
    }
}

#[test]
fn sockets_and_io_uring_keep_working_under_the_profiling_signal() {
    let _turn = turn();
    let moved = AtomicU64::new(0);
    let work = |stop: &AtomicBool| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        let (socket, _) = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
        let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
        let remote = sink.local_addr().unwrap();
        let config = UdpDriverConfig {
            socket: Arc::new(socket),
            receives: false,
            eventfds: Vec::new(),
            sends_max: 64,
        };
        let mut driver = UdpDriver::new(config).unwrap();
        let mut buffer = [0; 1_000];
        while !stop.load(Ordering::Relaxed) {
            one.write_all(&buffer).unwrap();
            other.read_exact(&mut buffer).unwrap();
            for _ in 0..8 {
                driver.send_with(1, None, remote, 900, |room| room.fill(7));
            }
            driver.flush();
            driver.submit_and_wait(Duration::from_millis(1)).unwrap();
            while let Some(completion) = driver.next_completion() {
                assert!(matches!(completion, Completion::Sent { .. }));
            }
            moved.fetch_add(1, Ordering::Relaxed);
        }
    };
    let bytes = while_running(2, work, || {
        let bytes = cpu_profile(Duration::from_secs(2), 1_000).unwrap();
        for _ in 0..50 {
            threads(1).unwrap(); // listing the threads interrupts sleeping ones too
        }
        bytes
    });
    assert!(moved.load(Ordering::Relaxed) > 100);
    let profile = Profile::decode(&bytes);
    let in_uring =
        |sample: &support::profile::Sample| sample.stack.iter().any(|name| name.contains("uring::"));
    assert!(profile.total(1, in_uring) > 0, "stacks reach from the system call to our code");
}

#[test]
fn a_profile_of_hundreds_of_short_lived_threads_is_bounded() {
    let _turn = turn();
    let bytes = while_running(
        300,
        |stop| {
            while !stop.load(Ordering::Relaxed) {
                thread::scope(|scope| {
                    scope.spawn(|| black_box((0..100_000_u64).fold(1, |a, b| black_box(a ^ b))));
                });
                thread::sleep(Duration::from_millis(20));
            }
        },
        || {
            let bytes = cpu_profile(Duration::from_secs(2), 1_000).unwrap();
            let list = threads(1).unwrap();
            assert!(String::from_utf8(list).unwrap().contains("burner-299"));
            bytes
        },
    );
    let profile = Profile::decode(&bytes);
    assert!(profile.total(0, |_| true) > 0);
    println!("{} bytes, {} samples, {:?}", bytes.len(), profile.samples.len(), profile.comments);
}

#[test]
fn the_heap_profile_names_an_injected_leak_until_it_is_freed() {
    let _turn = turn();
    let held: Vec<Vec<u8>> = (0..400).map(|_| leak_in_a_named_function(100_000)).collect();
    let in_use = |profile: &Profile| {
        profile.total(3, |sample| sample.stack.iter().any(|name| name.ends_with("leak_in_a_named_function")))
    };
    let bytes = heap_profile(Heap::InUse);
    let profile = Profile::decode(&bytes);
    let types = ["alloc_objects/count", "alloc_space/bytes", "inuse_objects/count", "inuse_space/bytes"];
    assert_eq!(
        (profile.sample_types.as_slice(), profile.default_type.as_str()),
        (&types.map(String::from)[..], "inuse_space")
    );
    assert_eq!((profile.period_type.as_str(), profile.period), ("space/bytes", 524_288));
    let found = in_use(&profile);
    // The profiler samples one allocation per 524,288 bytes on average, so 40 MB give about 76 samples. Their estimate
    // is wrong by more than a factor of two once in 10^8 runs.
    assert!((20_000_000..80_000_000).contains(&found), "{found}");
    let file = Kept::new("heap", &bytes);
    if let Some(top) = file.pprof(&["-top", "-cum", "-nodecount=30"]) {
        println!("{top}");
        assert!(top.contains("leak_in_a_named_function"), "{top}");
        assert!(
            !top.contains("streaming_server::profiling"),
            "the allocator itself must not be shown: {top}"
        );
    }
    drop(held);
    let profile = Profile::decode(&heap_profile(Heap::Allocs));
    assert_eq!(profile.default_type, "alloc_space");
    assert_eq!(in_use(&profile), 0);
    assert!(
        profile.total(1, |sample| sample.stack.iter().any(|name| name.ends_with("leak_in_a_named_function")))
            > 20_000_000
    );
}

#[test]
fn freed_and_reallocated_memory_leaves_the_heap_profile() {
    let _turn = turn();
    let (sender, receiver) = std::sync::mpsc::channel::<Vec<u8>>();
    thread::scope(|scope| {
        for _ in 0..3 {
            let sender = sender.clone();
            scope.spawn(move || {
                for size in 0..20_000_usize {
                    let mut bytes = grown_in_a_named_function(size % 5_000);
                    bytes.reserve(3 * bytes.len() + 1);
                    sender.send(bytes).unwrap();
                }
            });
        }
        drop(sender);
        scope.spawn(move || receiver.into_iter().map(|bytes| bytes.len()).sum::<usize>());
    });
    let profile = Profile::decode(&heap_profile(Heap::InUse));
    let ours =
        |sample: &support::profile::Sample| sample.stack.iter().any(|name| name.contains("grown_in_a_named"));
    assert!(profile.total(1, ours) > 0);
    assert_eq!(profile.total(3, ours), 0, "all of it is freed");
}

#[inline(never)]
fn grown_in_a_named_function(bytes: usize) -> Vec<u8> {
    let mut grown = Vec::new();
    for index in 0..bytes {
        grown.push(black_box(index as u8));
    }
    grown
}

#[inline(never)]
fn sleep_in_a_named_function(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(50));
    }
    black_box(stop);
}

#[test]
fn the_thread_list_shows_names_states_and_stacks() {
    let _turn = turn();
    let (profile, short, long) = while_running(3, sleep_in_a_named_function, || {
        thread::sleep(Duration::from_millis(20));
        (threads(0).unwrap(), threads(1).unwrap(), threads(2).unwrap())
    });
    let (short, long) = (String::from_utf8(short).unwrap(), String::from_utf8(long).unwrap());
    assert!(short.contains("\"burner-2\" user ") && !short.contains("sleep_in_a_named_function"), "{short}");
    assert_eq!(long.matches("sleep_in_a_named_function").count(), 3, "{long}");
    let profile = Profile::decode(&profile);
    assert_eq!(profile.sample_types, ["goroutine/count"]);
    let sleeping = |sample: &support::profile::Sample| {
        sample.labels.contains(&"thread=burner-1".to_owned())
            && sample.stack.iter().any(|name| name.ends_with("sleep_in_a_named_function"))
    };
    assert_eq!(profile.total(0, sleeping), 1);
}

#[test]
fn an_empty_profile_is_valid_and_says_that_it_is_empty() {
    let _turn = turn();
    for kind in [Contention::Mutex, Contention::Block] {
        let bytes = contention_profile(kind);
        let profile = Profile::decode(&bytes);
        assert_eq!((profile.samples.len(), profile.sample_types[1].as_str()), (0, "delay/nanoseconds"));
        assert!(profile.comments[0].starts_with("empty: "), "{:?}", profile.comments);
        let file = Kept::new(&format!("{kind:?}"), &bytes);
        if let Some(comments) = file.pprof(&["-comments"]) {
            assert!(comments.contains("is not recorded"), "{comments}");
        }
    }
    assert!(profiling::index().contains("mutex      empty"));
    assert!(!profiling::cmdline().is_empty() && profiling::cmdline().last() != Some(&0));
}

/// Returns the resident memory of this process in bytes.
fn resident_bytes() -> usize {
    let pages: usize =
        std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

#[test]
fn profiling_takes_less_than_two_megabytes_while_it_runs_and_after() {
    let _turn = turn();
    let burn = |stop: &AtomicBool| {
        caller_of_the_burning(stop);
    };
    while_running(4, burn, || {
        thread::sleep(Duration::from_millis(300));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let most = scope.spawn(|| {
                let (mut most, before) = (0, resident_bytes());
                while !done.load(Ordering::Relaxed) {
                    most = most.max(resident_bytes().saturating_sub(before));
                    thread::sleep(Duration::from_millis(1));
                }
                most
            });
            thread::sleep(Duration::from_millis(50));
            cpu_profile(Duration::from_secs(2), 250).unwrap();
            drop(heap_profile(Heap::InUse));
            done.store(true, Ordering::Relaxed);
            let most = most.join().unwrap();
            println!("{most} bytes more");
            assert!(most < 2 * 1024 * 1024, "{most} bytes");
        });
    });
}
