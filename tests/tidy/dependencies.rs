//! Checks the licence and the source of every crate that is built, as `cargo tree` lists them. These are the checks of
//! cargo-deny that need no network. cargo-deny itself takes longer to install than this whole suite takes to run.
//! Security advisories are not checked, because they need the network.

use std::process::Command;

use super::{report, root};

/// Licences that may be linked into the server, as SPDX names.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Returns the faults of one crate. `line` has the form `name version (source)|licence`.
fn crate_is_allowed(line: &str) -> Vec<String> {
    let Some((package, licence)) = line.split_once('|') else { return Vec::new() };
    let mut found = Vec::new();
    if !is_allowed(licence) {
        found
            .push(format!("{package}: licence `{licence}` is not in the list of tests/tidy/dependencies.rs"));
    }
    // `cargo tree` does not print crates.io, the default source. For a package of this repository it prints the path.
    let source = package.split_once('(').map_or("", |(_, source)| source.trim_end_matches(')'));
    if source.contains("://") {
        found.push(format!("{package}: only crates.io and this repository are allowed as sources"));
    }
    found
}

/// Returns true if every part of an SPDX expression between two ANDs offers an allowed licence. Parentheses are
/// ignored, so an AND inside an OR group is read too strictly: it may refuse an allowed licence, but never accepts a
/// forbidden one.
fn is_allowed(licence: &str) -> bool {
    let flat = licence.replace(['(', ')'], "").replace('/', " OR ");
    flat.split(" AND ").all(|part| part.split(" OR ").any(|name| LICENCES.contains(&name.trim())))
}

#[test]
fn every_crate_has_an_allowed_licence_and_comes_from_crates_io() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["tree", "--locked", "--workspace", "--edges", "normal,build,dev", "--prefix", "none"]);
    let output = command.args(["--no-dedupe", "--format", "{p}|{l}"]).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    lines.dedup();
    assert!(lines.len() > 50, "only {} crates", lines.len());
    report(&lines.into_iter().flat_map(crate_is_allowed).collect::<Vec<_>>());
}

#[test]
fn a_crate_with_another_licence_or_source_is_reported() {
    for bad in ["a v1|GPL-3.0", "a v1|", "a v1|MIT AND GPL-2.0", "a v1 (https://example.org/a#12)|MIT"] {
        assert_eq!(crate_is_allowed(bad).len(), 1, "{bad}");
    }
    for good in ["a v1|MIT/Apache-2.0", "a v1|(MIT OR GPL-2.0) AND ISC", "a v1 (/src/a)|MIT OR Apache-2.0"] {
        assert!(crate_is_allowed(good).is_empty(), "{good}");
    }
}
