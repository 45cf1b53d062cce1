//! Tests of rules about text: plain words, no unfinished work, no path that exists on one machine only, and a first
//! line that says what the file is.

use super::scan::{is_word_at, line_of};
use super::{Source, check, documents, rust_sources, sources};

/// Words that mark unfinished work, and words that the glossary replaces. `concat!` splits them so that this file
/// passes.
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

/// Unclear phrases that this code base once used, each with the plain wording that replaces it.
const DIALECT: &[(&str, &str)] = &[
    ("whoever", "any client that, the caller that"),
    ("nobody", "no viewer, no caller, no reader"),
    ("nobody else", "no other viewer, no other thread"),
    ("no one", "no viewer, no caller"),
    ("no one else", "no other viewer, no other thread"),
    ("somebody", "a viewer, a caller"),
    ("someone", "a viewer, a caller"),
    ("everybody", "every viewer, every caller"),
    ("is told", "receives, is passed, is reported to"),
    ("are told", "receive, are passed, are reported to"),
    ("was told", "received, was passed"),
    ("be told", "receive, be passed"),
    ("told of", "informed of, given"),
    ("to be had", "available"),
    ("stands by", "is the fallback, waits"),
    ("stand by", "wait"),
    ("on loan", "handed off, leased"),
    ("goes by", "uses, follows"),
    ("of its own accord", "without a request"),
    ("let go", "released, closed, freed"),
    ("lets go", "releases, closes, frees"),
    ("letting go", "releasing, closing"),
    ("as it never", "say what happens instead"),
    ("beside each other", "side by side, concurrently"),
    ("makes no sense", "is invalid"),
    ("make no sense", "are invalid"),
    ("has to say", "reports"),
    ("is to be", "must be"),
    ("are to be", "must be"),
    ("lies there", "is there"),
    ("who is let in", "which requests are authorised"),
    ("who is not let in", "unauthorised requests"),
    ("what is due", "say which work is due"),
    ("its books", "its counters"),
    ("doorbell", "camera wait, waiter, wake-up"),
    ("keyframe", "IDR"),
    ("keyframes", "IDRs"),
];

/// Names that contain a forbidden word but cannot change: names of WebRTC and str0m, and published names of our
/// interfaces.
const FIXED_NAMES: &[&str] = &[
    "keyframe_request",
    "keyframe_requests",
    "keyframe_requests_total",
    "camera_keyframe_requests_total",
    "doorbell_wakes_total",
    "viewer_keyframe_requests_total",
    "whip_keyframe_requests_total",
    "request_keyframe",
    "KEYFRAME_REQUEST",
    "pcr_take_keyframe_request",
    "KeyframeRequestKind",
    "KeyframeRequest",
];

/// Files that may contain the phrases, because they list them.
const MAY_NAME_THE_DIALECT: &[&str] = &["tests/tidy/words.rs"];

/// Beginnings of paths that exist on one machine only.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

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
        let begins_path =
            |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_})*".contains(c));
        if MACHINE_PATHS.iter().any(|prefix| line.match_indices(prefix).any(|(at, _)| begins_path(at))) {
            found.push(format!("{path}:{}: a path of one machine", index + 1));
        }
    }
    found
}

/// A word of a text in lower case, with its line number. Identifiers are split at underscores, so the names of tests
/// are checked too.
struct Word<'a> {
    text: String,
    line: usize,
    /// The identifier that the word is part of.
    identifier: &'a str,
    /// True if a full stop or another mark precedes the word, so that a new sentence begins with it.
    begins_sentence: bool,
}

fn read_words(text: &str) -> Vec<Word<'_>> {
    let mut read = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut begins_sentence =
            line.trim().is_empty() || line.trim_start_matches(['/', '!', '#', '*', ' ']).is_empty();
        let mut end = 0;
        for (at, identifier) in identifiers(line) {
            begins_sentence |= line[end..at].contains(['.', ';', ':', '"', '`', '(', ')', '|', '=', '{']);
            end = at + identifier.len();
            // Field names of other crates and at-rules of CSS cannot be renamed, so they are skipped.
            if line[..at].ends_with(['.', '@']) {
                continue;
            }
            for part in identifier.split('_').filter(|part| !part.is_empty()) {
                read.push(Word {
                    text: part.to_ascii_lowercase(),
                    line: index + 1,
                    identifier,
                    begins_sentence,
                });
                begins_sentence = false;
            }
        }
    }
    read
}

fn identifiers(line: &str) -> Vec<(usize, &str)> {
    let is_word = |c: char| c == '_' || c.is_alphanumeric();
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(start) = rest.find(is_word) {
        let length = rest[start..].find(|c| !is_word(c)).unwrap_or(rest.len() - start);
        found.push((line.len() - rest.len() + start, &rest[start..start + length]));
        rest = &rest[start + length..];
    }
    found
}

/// Returns the text with its glossary left blank, because a glossary must name the words that it replaces.
fn without_glossary(text: &str) -> String {
    let mut is_glossary = false;
    let mut kept = String::new();
    for line in text.lines() {
        if line.starts_with('#') {
            let lower = line.to_ascii_lowercase();
            is_glossary = lower.contains("glossary") || lower.contains("words");
        }
        kept.push_str(if is_glossary { "" } else { line });
        kept.push('\n');
    }
    kept
}

fn no_dialect(path: &str, text: &str) -> Vec<String> {
    if MAY_NAME_THE_DIALECT.contains(&path) {
        return Vec::new();
    }
    let text = if path.ends_with(".md") { without_glossary(text) } else { text.to_owned() };
    let read = read_words(&text);
    let mut found = Vec::new();
    for (phrase, plain) in DIALECT {
        let phrase: Vec<&str> = phrase.split(' ').collect();
        for window in read.windows(phrase.len()) {
            let is_match = window.iter().zip(&phrase).all(|(word, expected)| word.text == *expected);
            let is_broken = window.iter().skip(1).any(|word| word.begins_sentence);
            // A phrase of several words matches inside one identifier, or if none of its words is part of an identifier
            // with `_`.
            let is_whole = window.iter().all(|word| {
                std::ptr::eq(word.identifier, window[0].identifier)
                    || !window.iter().any(|w| w.identifier.contains('_'))
            });
            let is_fixed = window.iter().any(|word| FIXED_NAMES.contains(&word.identifier));
            if is_match && is_whole && !is_broken && !is_fixed {
                found.push(format!("{path}:{}: `{}`: write: {plain}", window[0].line, phrase.join(" ")));
            }
        }
    }
    for (index, line) in text.lines().enumerate() {
        let words = line.trim_start().trim_start_matches(['/', '!', '#', '*', ' ']);
        if words.len() < line.len() && words.starts_with("Whether ") {
            found.push(format!("{path}:{}: `Whether ...`: write: Returns true if, or True if", index + 1));
        }
    }
    found
}

/// Returns every text of the repository that must be plain: code, pages, scripts and documents.
fn texts() -> Vec<Source> {
    let extensions =
        [".rs", ".mjs", ".html", ".js", ".css", ".h", ".c", ".toml", ".md", ".sh", ".yml", ".service"];
    let mut files = sources(&["src", "tests", "benches", "perf"], &extensions);
    files.extend(sources(&["scripts", ".ci", ".cargo"], &[""]));
    files.extend(sources(&["perf"], &["/run", "/link", "sweep", "table"]));
    files.extend(documents());
    files.push(("Cargo.toml".to_owned(), std::fs::read_to_string(super::root().join("Cargo.toml")).unwrap()));
    files
}

// ---- tests: the texts obey each rule -------------------------------------------------------------------

#[test]
fn every_file_says_what_it_is() {
    check(&rust_sources(), says_what_it_is);
}

#[test]
fn nothing_is_unfinished_and_words_are_from_the_glossary() {
    check(&rust_sources(), no_forbidden_words);
}

#[test]
fn texts_are_plain() {
    check(&texts(), no_dialect);
}

#[test]
fn no_path_of_one_machine() {
    check(&texts(), no_machine_paths);
}

// ---- tests: each rule reports a bad sample -------------------------------------------------------------

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
    for good in ["/usr/bin/chromium", concat!("$WORK/ro", "ot/bin"), concat!("${a}/ho", "me/")] {
        assert!(no_machine_paths("x", good).is_empty(), "{good}");
    }
}

#[test]
fn the_dialect_rule_sees_comments_names_and_phrases_over_two_lines() {
    for (phrase, _) in DIALECT {
        assert!(!no_dialect("x", &format!("// a {phrase} b")).is_empty(), "{phrase}");
    }
    for bad in [
        "fn a_viewer_is_told_the_reason() {}",
        "/// Is passed to whoever\n",
        "// it is\n// told",
        "\"Nobody\"",
    ] {
        assert_eq!(no_dialect("x", bad).len(), 1, "{bad}");
    }
    assert_eq!(no_dialect("x", "/// Whether it is full.").len(), 1);
    for good in [
        "// the reason is. Told apart",
        "let go_on = 1;",
        "stream.request_keyframe(KeyframeRequestKind::Pli)",
        "// says whether it is full",
        "keyframe_requests_total 3",
        "sample.keyframe",
        "@keyframes pulse {}",
    ] {
        assert!(no_dialect("x", good).is_empty(), "{good}");
    }
    assert!(no_dialect("x.md", "## Glossary\n| IDR | keyframe |\n").is_empty());
    assert_eq!(no_dialect("x.md", "## Glossary\n\n## Next\nkeyframe\n").len(), 1);
}
