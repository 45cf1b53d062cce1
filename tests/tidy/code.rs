//! Tests of rules about code: where `unsafe`, clocks and bounds may occur, how long functions and files may be, and
//! that every dependency has a stated reason.

use std::fs;

use super::scan::{function_lengths, line_of, mask, without_tests, words};
use super::{check, listed, root, rust_sources, sources};

/// Maximum number of code lines of a function, counted as clippy's `too_many_lines` does.
const FUNCTION_LINES_MAX: usize = 70;
/// Maximum number of lines of a source file, including its unit tests.
const FILE_LINES_MAX: usize = 600;

/// Files that may contain `unsafe`. An entry that ends in `/` allows all files of that directory.
const MAY_BE_UNSAFE: &[&str] = &[
    "src/base/tcp_info.rs",
    "src/camera/region.rs",
    "src/camera/faults.rs",
    "src/camera/waiter.rs",
    "src/camera/waiter/tests.rs",
    "src/session/media/sender/tests.rs", // the tests post the semaphore, as the camera daemon does
    "src/camera/shared_map.rs",
    "src/camera/locks.rs",
    "src/camera/writer.rs",
    "src/uring/ring.rs",
    "src/uring/buffers.rs",
    "src/profiling/",
    "perf/src/socket.rs", // calls recvmmsg and sendmsg, opens TUN devices, and makes child processes end with the harness
    "src/worker/simulated_day/heap.rs", // defines a counting global allocator for the unit tests
    "benches/profiling.rs", // calls the methods of two allocators directly
    "tests/no_alloc.rs",  // defines a counting global allocator
    "tests/support/debugger.rs",
    "tests/copies.rs", // defines memcpy and memmove that count the copied bytes
    "benches/gate.rs", // defines a counting global allocator
];

/// Files that may read a clock. All other code gets the time as an argument.
const MAY_READ_THE_CLOCK: &[&str] = &[
    "src/base/clock.rs",
    "src/camera/waiter.rs",
    "src/camera/source.rs", // measures the offset between the two clocks that a camera may use
    "src/live/source.rs",   // the task needs the current time
    "src/recorder/disk.rs", // measures how long a write takes
    "src/recorder/engine.rs", // the loop of the recorder thread needs the current time
    "src/session/media/wallclock.rs", // reads the monotonic and the wall clock together, once at start
    "src/session/transport/profile.rs", // measures the speed of the SRTP profiles, once at start
    "src/metrics/process.rs", // reads uptime and CPU time of the process for each scrape
    "src/simulator/",
    "src/http/",
    "src/session/context.rs",    // takes the wall clock's reference once, at start
    "src/worker/turn.rs",        // reads the clock once per turn and passes it on
    "src/worker/timing.rs",      // measures the stages
    "src/worker/inline_wait.rs", // polls busily until a given time
    "src/worker/simulated_day/", // a test
    "src/camera/waiter/tests.rs",
    "src/session/media/sender/tests.rs",
    "src/profiling/",
    "src/app/",
    "src/bin/",
    "tests/",
    "benches/",
    "perf/",
];

fn unsafe_only_where_marked(path: &str, text: &str) -> Vec<String> {
    if listed(path, MAY_BE_UNSAFE) {
        return Vec::new();
    }
    let masked = mask(text);
    let at = words(&masked, "unsafe");
    at.into_iter().map(|i| format!("{path}:{}: unsafe outside the marked files", line_of(text, i))).collect()
}

/// Reports each unsafe block or impl without a `SAFETY:` comment. The comment must be on the same line or above it,
/// with no empty line between.
fn unsafe_is_argued(path: &str, text: &str) -> Vec<String> {
    let masked = mask(text);
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for at in words(&masked, "unsafe") {
        let rest = masked[at + "unsafe".len()..].trim_start();
        if !rest.starts_with('{') && !rest.starts_with("impl") {
            continue;
        }
        let line = line_of(text, at);
        let argued = lines[..line].iter().rev().take(12).take_while(|l| !l.trim().is_empty());
        if !argued.into_iter().any(|l| l.contains("SAFETY:")) {
            found.push(format!("{path}:{line}: unsafe without a SAFETY comment"));
        }
    }
    found
}

fn short_functions(path: &str, text: &str) -> Vec<String> {
    function_lengths(&mask(text))
        .into_iter()
        .filter(|(_, _, lines)| *lines > FUNCTION_LINES_MAX)
        .map(|(line, name, lines)| {
            format!("{path}:{line}: fn {name} has {lines} lines, {FUNCTION_LINES_MAX} allowed")
        })
        .collect()
}

fn short_files(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![format!("{path}: {lines} lines, {FILE_LINES_MAX} allowed")]
}

/// Reports each read of a clock outside the allowed files. Unit tests are exempt, because they need a start time.
fn time_is_an_argument(path: &str, text: &str) -> Vec<String> {
    if listed(path, MAY_READ_THE_CLOCK) || path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let code = without_tests(&mask(text));
    let clocks = [
        "Instant::now",
        "SystemTime::now",
        "clock_gettime",
        "Moment::now",
        "Wallclock::read",
        "clock::now()",
        "clock::unix_s()",
        "monotonic_ns()",
        "realtime_ns()",
    ];
    let hits = clocks.iter().flat_map(|clock| code.match_indices(clock));
    hits.map(|(at, clock)| format!("{path}:{}: {clock} outside the files that may", line_of(text, at)))
        .collect()
}

/// Reports each constant `*_MAX` outside `src/base/limits`. A bound that concerns one file may stay there if the words
/// `local bound` are on its line or on the line above.
fn bounds_are_in_limits(path: &str, text: &str) -> Vec<String> {
    if path.starts_with("src/base/limits") || path.contains("/simulated_day/") {
        return Vec::new();
    }
    let code = without_tests(&mask(text));
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for at in words(&code, "const") {
        let name: String =
            code[at + 5..].trim_start().chars().take_while(|c| *c == '_' || c.is_alphanumeric()).collect();
        let line = line_of(text, at);
        let is_local = lines[line.saturating_sub(2)..line].iter().any(|line| line.contains("local bound"));
        if name.ends_with("_MAX") && !is_local {
            found.push(format!("{path}:{line}: {name} belongs into base/limits, or is marked `local bound`"));
        }
    }
    found
}

/// Reports each place that opens a file or shared memory outside `src/base/foreign_file.rs`, which opens without
/// blocking and refuses anything but a regular file. Literal paths below /proc and /sys and /dev/null are exempt,
/// because they belong to the kernel.
fn files_are_opened_in_one_place(path: &str, text: &str) -> Vec<String> {
    let is_test = path.ends_with("/test_ring.rs") || path.ends_with("tests.rs") || path.contains("/tests/");
    if path == "src/base/foreign_file.rs" || is_test {
        return Vec::new();
    }
    let code = without_tests(&mask(text));
    let ways = [
        "File::open(",
        "File::create(",
        "File::create_new(",
        "File::options",
        "OpenOptions",
        "fs::read(",
        "fs::read_to_string(",
        "fs::write(",
        "shm::open(",
        "fs::openat(",
        "fs::open(",
        "mq_open(",
    ];
    let hits = ways.iter().flat_map(|way| code.match_indices(way).map(move |(at, _)| (at, way)));
    let is_of_kernel = |at: usize| {
        let argument = text.get(at..).unwrap_or_default().trim_start();
        ["\"/proc/", "\"/sys/", "\"/dev/null\"", "format!(\"/proc/"]
            .iter()
            .any(|start| argument.starts_with(start))
    };
    hits.filter(|(at, way)| !is_of_kernel(at + way.len()))
        .map(|(at, way)| format!("{path}:{}: {way} outside base/foreign_file.rs", line_of(text, at)))
        .collect()
}

fn dependencies_say_why(path: &str, text: &str) -> Vec<String> {
    let mut in_dependencies = false;
    let mut comment_before = false;
    let mut found = Vec::new();
    for (index, line) in text.lines().map(str::trim).enumerate() {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies");
        } else if in_dependencies && !line.is_empty() && !line.starts_with('#') {
            let has_reason = line.split_once('#').is_some_and(|(_, reason)| reason.trim().len() >= 5);
            if !has_reason && !comment_before {
                found.push(format!("{path}:{}: a dependency without its reason", index + 1));
            }
        }
        comment_before = line.starts_with('#');
    }
    found
}

// ---- tests: the sources obey each rule -----------------------------------------------------------------

#[test]
fn unsafe_lives_in_the_marked_files_only() {
    check(&rust_sources(), unsafe_only_where_marked);
}

#[test]
fn every_unsafe_block_is_argued() {
    check(&rust_sources(), unsafe_is_argued);
}

#[test]
fn functions_fit_on_a_screen() {
    check(&rust_sources(), short_functions);
}

#[test]
fn files_stay_small() {
    check(&rust_sources(), short_files);
}

#[test]
fn clocks_are_read_in_the_allowed_files_only() {
    check(&rust_sources(), time_is_an_argument);
}

#[test]
fn bounds_are_defined_in_limits_or_marked_local() {
    check(&sources(&["src"], &[".rs"]), bounds_are_in_limits);
}

#[test]
fn files_are_opened_by_base_only() {
    check(&sources(&["src"], &[".rs"]), files_are_opened_in_one_place);
}

#[test]
fn every_dependency_carries_its_reason() {
    let manifest = |path: &str| (path.to_owned(), fs::read_to_string(root().join(path)).unwrap());
    check(&["Cargo.toml", "perf/Cargo.toml", "tests/support/Cargo.toml"].map(manifest), dependencies_say_why);
}

// ---- tests: each rule reports a bad sample -------------------------------------------------------------

#[test]
fn the_unsafe_rules_see_a_stray_and_an_unargued_block() {
    let bad = "fn f() { unsafe { g() } }";
    assert_eq!(unsafe_only_where_marked("src/h264/nal.rs", bad).len(), 1);
    assert!(unsafe_only_where_marked("src/uring/ring.rs", bad).is_empty());
    assert!(unsafe_only_where_marked("src/h264/nal.rs", "#![deny(unsafe_code)] // unsafe").is_empty());
    assert_eq!(unsafe_is_argued("x", bad).len(), 1);
    assert_eq!(unsafe_is_argued("x", "// SAFETY: far\n\nunsafe impl Send for X {}").len(), 1);
    assert!(unsafe_is_argued("x", "// SAFETY: g has no contract.\nlet a =\n    unsafe { g() };").is_empty());
    assert!(unsafe_is_argued("x", "unsafe fn f();").is_empty());
}

#[test]
fn the_size_rules_count() {
    let body = "    let s = \"}\"; // }\n".repeat(FUNCTION_LINES_MAX);
    let long = format!("fn f(a: [u8; 4]) where u8: Copy {{\n{body}    g();\n}}\n");
    assert_eq!(short_functions("x", &long).len(), 1);
    assert!(short_functions("x", &format!("fn f() {{\n{body}}}\n")).is_empty());
    let comments = "    // }\n\n".repeat(200);
    assert!(short_functions("x", &format!("fn f() {{\n{comments}}}\n")).is_empty());
    assert_eq!(short_files("x", &"\n".repeat(FILE_LINES_MAX + 1)).len(), 1);
    assert!(short_files("x", &"\n".repeat(FILE_LINES_MAX)).is_empty());
}

#[test]
fn the_clock_rule_sees_a_clock() {
    let bad = "fn f() { let now = Instant::now(); }";
    assert_eq!(time_is_an_argument("src/session/gate.rs", bad).len(), 1);
    assert_eq!(time_is_an_argument("src/session/gate.rs", "fn f() { clock::now(); }").len(), 1);
    assert!(time_is_an_argument("src/base/clock.rs", bad).is_empty());
    assert!(time_is_an_argument("src/session/gate.rs", &format!("#[cfg(test)]\n{bad}")).is_empty());
    let after = format!("#[cfg(test)]\nuse std::fs;\n{bad}");
    assert_eq!(time_is_an_argument("src/session/gate.rs", &after).len(), 1);
    assert!(time_is_an_argument("src/session/gate.rs", "// Instant::now").is_empty());
}

#[test]
fn the_bound_rule_sees_a_stray_bound() {
    let bad = "pub const LINES_MAX: usize = 3;";
    assert_eq!(bounds_are_in_limits("src/a.rs", bad).len(), 1);
    for good in [
        format!("{bad} // local bound"),
        format!("/// A local bound.\n{bad}"),
        format!("#[cfg(test)]\n{bad}"),
        "const LINES: usize = 3;".to_owned(),
    ] {
        assert!(bounds_are_in_limits("src/a.rs", &good).is_empty(), "{good}");
    }
    assert!(bounds_are_in_limits("src/base/limits.rs", bad).is_empty());
}

#[test]
fn the_rule_about_opening_sees_each_way() {
    for bad in
        ["File::open(path)", "std::fs::read(path)", "OpenOptions::new()", "shm::open(name, flags, mode)"]
    {
        assert_eq!(
            files_are_opened_in_one_place("src/http/a.rs", &format!("fn f() {{ {bad}; }}")).len(),
            1,
            "{bad}"
        );
    }
    for good in [
        "fs::read(\"/proc/self/maps\")",
        "fs::read_to_string(format!(\"/proc/{id}/stat\"))",
        "fs::read_dir(path)",
    ] {
        assert!(
            files_are_opened_in_one_place("src/http/a.rs", &format!("fn f() {{ {good}; }}")).is_empty(),
            "{good}"
        );
    }
    assert!(
        files_are_opened_in_one_place("src/base/foreign_file.rs", "fn f() { File::open(path); }").is_empty()
    );
}

#[test]
fn the_dependency_rule_sees_a_missing_reason() {
    let bad = "[dependencies]\nlibc = \"0.2\"\n";
    assert_eq!(dependencies_say_why("x", bad).len(), 1);
    assert_eq!(dependencies_say_why("x", "[dev-dependencies]\nlibc = \"0.2\" # no\n").len(), 1);
    for good in [
        "[dependencies]\nlibc = \"0.2\" # cmsg layouts\n",
        "[dependencies]\n# cmsg layouts\nlibc = \"0.2\"\n",
    ] {
        assert!(dependencies_say_why("x", good).is_empty(), "{good}");
    }
    assert!(dependencies_say_why("x", "[package]\nname = \"x\"\n").is_empty());
}
