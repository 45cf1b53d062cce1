//! The cost of every parser of foreign bytes is linear in the bytes. callgrind counts the instructions of each parser on
//! hostile inputs of three sizes. Instructions per byte must not grow with the size, and must stay below a line.
//!
//! The line of a case is about 1.5 times what it costs today in a build without optimisation. Optimised builds stay far
//! below.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::process::Command;

mod hostile;

/// A parser with one kind of hostile input.
pub(crate) struct Case {
    name: &'static str,
    /// Largest number of instructions for one more byte of input.
    line: f64,
    /// Makes an input of about this many bytes, and passes its parser to [`parser_measured`] once.
    run: fn(usize),
    sizes: [usize; 3],
}

/// callgrind counts the instructions inside this function, and writes them down when the function returns.
#[inline(never)]
pub(crate) fn parser_measured(work: &mut dyn FnMut()) {
    work();
    // Without this, the call above could become a jump that callgrind does not see as a call.
    std::hint::black_box(());
}

/// Runs all cases. Only called under callgrind, by the test below.
#[test]
#[ignore = "parsers_are_linear runs it under callgrind"]
fn measured() {
    for case in hostile::cases() {
        // The first call also counts what is prepared only once. Its count is not used.
        (case.run)(case.sizes[0]);
        case.sizes.into_iter().for_each(case.run);
    }
}

/// Runs this test binary under callgrind. The calling thread must not be used afterwards.
fn run_under_callgrind(out: &Path) {
    support::valgrind::hide_auxiliary_vector();
    let ran = Command::new("valgrind")
        .args([
            "--quiet",
            "--tool=callgrind",
            "--collect-atstart=no",
            "--toggle-collect=parser_cost::parser_measured",
        ])
        .arg("--dump-after=parser_cost::parser_measured")
        .arg(format!("--callgrind-out-file={}", out.join("count").display()))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "measured", "--ignored", "--test-threads=1"])
        .output()
        .expect("valgrind is needed: apt-get install valgrind");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()));
}

/// Returns the counts that callgrind wrote, in the order of the calls.
fn counts(out: &Path, calls: usize) -> Vec<f64> {
    let read = |number: usize| {
        let text = std::fs::read_to_string(out.join(format!("count.{number}"))).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
        line.unwrap().trim().parse().unwrap()
    };
    (1..=calls).map(read).collect()
}

#[test]
fn parsers_are_linear() {
    let out = std::env::temp_dir().join(format!("parser-cost-{}", std::process::id()));
    std::fs::create_dir_all(&out).unwrap();
    let folder = out.clone();
    std::thread::spawn(move || run_under_callgrind(&folder)).join().unwrap();
    let cases = hostile::cases();
    let counts = counts(&out, cases.len() * 4);
    std::fs::remove_dir_all(&out).unwrap();
    let mut wrong = 0;
    for (case, counts) in cases.iter().zip(counts.chunks(4)) {
        let counts = &counts[1..];
        let sizes = case.sizes.map(|bytes| bytes as f64);
        let per_byte = |at: usize| (counts[at + 1] - counts[at]) / (sizes[at + 1] - sizes[at]);
        let (small, large) = (per_byte(0), per_byte(1));
        // Three instructions are allowed for what varies: random numbers, hash tables, the allocator.
        let is_linear = large <= 1.5 * small.max(0.0) + 3.0;
        let is_cheap = small.max(large) <= case.line;
        wrong += usize::from(!(is_linear && is_cheap));
        let verdict = if !is_linear {
            "NOT LINEAR"
        } else if !is_cheap {
            "TOO MUCH"
        } else {
            "ok"
        };
        println!("{:<28} {small:>9.1} {large:>9.1} of {:>6.0} per byte  {verdict}", case.name, case.line);
    }
    assert_eq!(wrong, 0, "parsers that are too expensive");
}
