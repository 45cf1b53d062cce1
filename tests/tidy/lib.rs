//! Tests of architecture and style. They read the sources as text and fail if a rule is broken.
//! The tests must not build or change anything. Each rule is a plain function of (path, text).
//! Each rule also has a test that passes it a small bad sample, so a rule that stops working is noticed.

#![cfg(test)]

mod code;
mod dependencies;
mod layout;
mod scan;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

/// Path of a file relative to the repository, and the text of the file.
type Source = (String, String);

/// Returns the root directory of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn collect(directory: &Path, extensions: &[&str], into: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "node_modules" | "target" | "corpus" | "seeds" | "results") {
                collect(&path, extensions, into);
            }
        } else if extensions.iter().any(|extension| name.ends_with(extension)) {
            into.push(path);
        }
    }
}

/// Returns every file below `directories` whose name ends with one of `extensions`, sorted by path.
fn sources(directories: &[&str], extensions: &[&str]) -> Vec<Source> {
    let root = root();
    let mut paths = Vec::new();
    for directory in directories {
        collect(&root.join(directory), extensions, &mut paths);
    }
    paths.sort();
    let read = |path: PathBuf| {
        let relative = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        (relative, fs::read_to_string(&path).unwrap())
    };
    paths.into_iter().map(read).collect()
}

fn rust_sources() -> Vec<Source> {
    sources(&["src", "tests", "benches", "perf"], &[".rs"])
}

/// Returns the Markdown files at the top level of the repository.
fn documents() -> Vec<Source> {
    let names = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".md")).collect();
    names.sort();
    names.into_iter().map(|name| (name.clone(), fs::read_to_string(root().join(&name)).unwrap())).collect()
}

/// Applies a rule to each file and fails with a list of all findings.
fn check(files: &[Source], rule: impl Fn(&str, &str) -> Vec<String>) {
    report(&files.iter().flat_map(|(path, text)| rule(path, text)).collect::<Vec<_>>());
}

fn report(found: &[String]) {
    assert!(found.is_empty(), "{} finding(s):\n{}", found.len(), found.join("\n"));
}

/// Returns true if `list` contains the path, or contains a directory (an entry that ends in `/`) above the path.
fn listed(path: &str, list: &[&str]) -> bool {
    list.iter().any(|entry| if entry.ends_with('/') { path.starts_with(entry) } else { path == *entry })
}
