//! Architecture and style as a test: reads the sources and fails where they break the rules of the house.
//! It only reads text; it must not build, run or change anything. Each rule is a plain function of
//! (path, text) and is shown below to fail on a small bad sample, so that no rule can fall asleep.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test: a panic is the report")]

mod scan;

use std::fs;
use std::path::{Path, PathBuf};

use scan::{function_lengths, is_word_at, line_of, mask, references_to_rooms, words};

/// Code lines a function may have, the count that clippy's `too_many_lines` makes.
const FUNCTION_LINES_MAX: usize = 70;
/// Lines a source file may have, tests at its bottom included.
const FILE_LINES_MAX: usize = 600;

/// Who may use whom. Adding an arrow means changing this table, on purpose.
const ARROWS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("camera", &["base"]),
    ("h264", &["base"]),
    ("uring", &["base"]),
    ("metrics", &["base"]),
    ("profiling", &["base"]),
    ("recorder", &["camera", "h264", "metrics", "base"]),
    ("session", &["camera", "h264", "metrics", "base"]),
    ("simulator", &["camera", "h264", "base"]),
    // Parsed once into types that cannot be wrong: the types live in the rooms they steer.
    ("config", &["camera", "session", "base"]),
    ("http", &["config", "metrics", "base"]),
    ("worker", &["camera", "h264", "session", "uring", "metrics", "base"]),
];

/// Files (or, ending in `/`, directories) that may hold `unsafe`.
const MAY_BE_UNSAFE: &[&str] = &[
    "src/camera/mapping.rs",
    "src/camera/waiter.rs",
    "src/camera/locks.rs",
    "src/camera/writer.rs",
    "src/uring/ring.rs",
    "src/uring/buffers.rs",
    "src/profiling/",
    "perf/src/socket.rs", // recvmmsg with timestamps, GSO sends, children that end with us
    "src/worker/simulated_day/heap.rs", // a counting global allocator of the unit tests
    "benches/profiling.rs", // calls two allocators by hand
    "tests/no_alloc.rs",  // a counting global allocator
    "tests/support/debugger.rs",
    "tests/copies.rs", // its own memcpy and memmove, which count
    "benches/gate.rs", // a counting global allocator
];

/// Files that may ask what time it is. Everywhere else time is an argument.
const MAY_READ_THE_CLOCK: &[&str] = &[
    "src/base/clock.rs",
    "src/recorder/clock.rs", // an edge with a thread of its own
    "src/camera/waiter.rs",
    "src/camera/source.rs",   // how far the camera's two possible clocks are apart
    "src/recorder/disk.rs",   // an edge: how long a write took
    "src/recorder/engine.rs", // the recorder thread's loop
    "src/session/media/wallclock.rs", // pairs the two clocks once, at start
    "src/session/transport/profile.rs", // measures the SRTP profiles once, at start
    "src/metrics/process.rs", // uptime and CPU time of the process, at a scrape
    "src/profiling/clock.rs", // stamps profiles, paces the sampler's own waiting
    "src/simulator/",
    "src/http/",
    "src/app/doctor.rs", // how old the ring's newest stamp is
    "src/main.rs",
    "src/bin/",
    "tests/",
    "benches/",
    "perf/",
];

/// Words that are not ours (the style's word list) or that mark unfinished work. Split so that this file
/// does not hold them.
const FORBIDDEN: &[(&str, &str)] = &[
    (concat!("to", "do!"), "finish it"),
    (concat!("unimple", "mented!"), "finish it"),
    (concat!("db", "g!"), "log it"),
    (concat!("FIX", "ME"), "fix it"),
    (concat!("HA", "CK"), "explain it"),
    (concat!("na", "lu"), "NAL unit"),
    (concat!("nal", "us"), "NAL units"),
    (concat!("I-fr", "ame"), "IDR"),
    (concat!("over", "run"), "lapped"),
    (concat!("any", "how"), "a small error enum per edge"),
];

/// Beginnings of paths that exist on one machine only.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(directory: &Path, extensions: &[&str], into: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "node_modules" | "target" | "corpus") {
                collect(&path, extensions, into);
            }
        } else if extensions.iter().any(|extension| name.ends_with(extension)) {
            into.push(path);
        }
    }
}

/// (path relative to the root, text) of every file below `directories` with one of the extensions.
fn sources(directories: &[&str], extensions: &[&str]) -> Vec<(String, String)> {
    let mut paths = Vec::new();
    for directory in directories {
        collect(&root().join(directory), extensions, &mut paths);
    }
    paths.sort();
    let read = |path: PathBuf| {
        let relative = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        (relative, fs::read_to_string(&path).unwrap())
    };
    paths.into_iter().map(read).collect()
}

fn rust_sources() -> Vec<(String, String)> {
    sources(&["src", "tests", "benches", "perf"], &[".rs"])
}

/// Runs a rule over files and fails with everything it found.
fn hold(files: &[(String, String)], rule: impl Fn(&str, &str) -> Vec<String>) {
    let found: Vec<String> = files.iter().flat_map(|(path, text)| rule(path, text)).collect();
    assert!(found.is_empty(), "{} finding(s):\n{}", found.len(), found.join("\n"));
}

fn listed(path: &str, list: &[&str]) -> bool {
    list.iter().any(|entry| if entry.ends_with('/') { path.starts_with(entry) } else { path == *entry })
}

// ---- the rules ---------------------------------------------------------------------------------------

/// The room a source file belongs to, `None` for main with its wiring (server.rs), lib and the binaries, which
/// may use everything.
fn room_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    let first = inside.split('/').next()?.trim_end_matches(".rs");
    (!matches!(first, "main" | "app" | "lib" | "bin")).then_some(first)
}

fn arrows(path: &str, text: &str) -> Vec<String> {
    let Some(room) = room_of(path) else { return Vec::new() };
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == room) else {
        return vec![format!("{path}: room `{room}` is not in the table of tests/fast/tidy.rs")];
    };
    let names: Vec<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let depth = path.split('/').count() - if path.ends_with("/mod.rs") { 2 } else { 1 };
    references_to_rooms(&mask(text), &names, depth)
        .into_iter()
        .filter(|(_, used)| used != room && !allowed.contains(&used.as_str()))
        .map(|(line, used)| format!("{path}:{line}: `{room}` may not use `{used}`"))
        .collect()
}

fn unsafe_only_where_marked(path: &str, text: &str) -> Vec<String> {
    if listed(path, MAY_BE_UNSAFE) {
        return Vec::new();
    }
    let masked = mask(text);
    let at = words(&masked, "unsafe");
    at.into_iter().map(|i| format!("{path}:{}: unsafe outside the marked files", line_of(text, i))).collect()
}

/// A block or impl is argued on its own line or in the comment above it; attributes and the beginning of
/// the same statement may lie between.
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

fn says_what_it_is(path: &str, text: &str) -> Vec<String> {
    let first = text.lines().next().unwrap_or_default();
    if first.starts_with("//! ") && first.len() > 12 {
        return Vec::new();
    }
    vec![format!("{path}: does not start with `//!` saying what it is")]
}

fn no_forbidden_words(path: &str, text: &str) -> Vec<String> {
    let lower = text.to_ascii_lowercase();
    let mut found = Vec::new();
    for (word, instead) in FORBIDDEN {
        let shouted = word.chars().all(|c| c.is_ascii_uppercase());
        let (haystack, needle) =
            if shouted { (text, (*word).to_owned()) } else { (lower.as_str(), word.to_ascii_lowercase()) };
        for (at, _) in haystack.match_indices(&needle) {
            if is_word_at(haystack, at, needle.len()) {
                found.push(format!("{path}:{}: `{word}`: {instead}", line_of(text, at)));
            }
        }
    }
    found
}

fn no_machine_paths(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if MACHINE_PATHS.iter().any(|prefix| line.contains(prefix)) {
            found.push(format!("{path}:{}: a path of one machine", index + 1));
        }
    }
    found
}

fn time_is_an_argument(path: &str, text: &str) -> Vec<String> {
    if listed(path, MAY_READ_THE_CLOCK) {
        return Vec::new();
    }
    // Unit tests at the bottom need a moment to start from.
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let masked = mask(code);
    let mut found = Vec::new();
    for clock in ["Instant::now", "SystemTime::now", "clock_gettime"] {
        for (at, _) in masked.match_indices(clock) {
            found.push(format!("{path}:{}: {clock} outside the files that may", line_of(code, at)));
        }
    }
    found
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

// ---- held over the sources -----------------------------------------------------------------------------

#[test]
fn data_flows_one_way_rooms_use_only_what_the_table_allows() {
    hold(&sources(&["src"], &[".rs"]), arrows);
}

#[test]
fn unsafe_lives_in_the_marked_files_only() {
    hold(&rust_sources(), unsafe_only_where_marked);
}

#[test]
fn every_unsafe_block_is_argued() {
    hold(&rust_sources(), unsafe_is_argued);
}

#[test]
fn functions_fit_on_a_screen() {
    hold(&rust_sources(), short_functions);
}

#[test]
fn files_stay_small() {
    hold(&rust_sources(), short_files);
}

#[test]
fn every_file_says_what_it_is() {
    hold(&rust_sources(), says_what_it_is);
}

#[test]
fn nothing_is_unfinished_and_words_are_ours() {
    hold(&rust_sources(), no_forbidden_words);
}

#[test]
fn no_path_of_one_machine() {
    let mut files = sources(
        &["src", "tests", "benches", "perf", "scripts", ".ci", ".cargo"],
        &[".rs", ".mjs", ".html", ".js", ".css", ".h", ".toml", "test", "run", ".sh"],
    );
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "Cargo.toml"] {
        files.push((name.to_owned(), fs::read_to_string(root().join(name)).unwrap()));
    }
    hold(&files, no_machine_paths);
}

#[test]
fn time_is_read_in_the_allowed_files_only() {
    hold(&rust_sources(), time_is_an_argument);
}

#[test]
fn every_dependency_carries_its_reason() {
    let manifest = |path: &str| (path.to_owned(), fs::read_to_string(root().join(path)).unwrap());
    hold(&["Cargo.toml", "perf/Cargo.toml"].map(manifest), dependencies_say_why);
}

// ---- every rule can fail -------------------------------------------------------------------------------

#[test]
fn the_arrow_rule_sees_each_way_of_naming_a_room() {
    for bad in [
        "use crate::session::Viewer;",
        "use crate::{limits, session};",
        "use crate::{limits::{A, B}, worker as w};",
        "fn f() -> crate::uring::UdpDriver { x }",
        "use super::super::control;",
        "use streaming_server::metrics::X;",
    ] {
        assert_eq!(arrows("src/h264/nal.rs", bad).len(), 1, "{bad}");
    }
    assert_eq!(arrows("src/camera/mod.rs", "use super::h264;").len(), 1);
    assert_eq!(arrows("src/attic/mod.rs", "").len(), 1, "a room that is not in the table");
    for good in
        ["use crate::base::limits::X;", "// use crate::worker;", "\"crate::worker\"", "use super::nal;"]
    {
        assert!(arrows("src/h264/nal.rs", good).is_empty(), "{good}");
    }
    assert!(arrows("src/main.rs", "use streaming_server::worker;").is_empty());
}

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
fn the_text_rules_see_bad_samples() {
    assert_eq!(says_what_it_is("x", "use std::fs;\n").len(), 1);
    assert!(says_what_it_is("x", "//! Offsets of the five layouts.\n").is_empty());
    for (word, _) in FORBIDDEN {
        assert_eq!(no_forbidden_words("x", &format!("a {word} b")).len(), 1, "{word}");
        assert!(no_forbidden_words("x", &format!("prefix{word}suffix")).is_empty(), "{word}");
    }
    for prefix in MACHINE_PATHS {
        assert_eq!(no_machine_paths("x", &format!("open(\"{prefix}file\")")).len(), 1);
    }
    assert!(no_machine_paths("x", "/usr/bin/chromium").is_empty());
}

#[test]
fn the_clock_rule_sees_a_clock() {
    let bad = "fn f() { let now = Instant::now(); }";
    assert_eq!(time_is_an_argument("src/session/gate.rs", bad).len(), 1);
    assert!(time_is_an_argument("src/base/clock.rs", bad).is_empty());
    assert!(time_is_an_argument("src/session/gate.rs", &format!("#[cfg(test)]\n{bad}")).is_empty());
    assert!(time_is_an_argument("src/session/gate.rs", "// Instant::now").is_empty());
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
