//! Tests of rules about modules: which module may use which, no two files import each other, every public item has a
//! user, and the table of modules in ARCHITECTURE.md agrees with the code.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;

use super::scan::{Named, line_of, mask, paths_named, without_tests};
use super::{Source, check, listed, report, root, rust_sources, sources};

/// Each module with the modules that it may use. To allow a new arrow, change this table and the one in
/// ARCHITECTURE.md.
const ARROWS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("camera", &["base"]),
    ("h264", &["base"]),
    ("uring", &["base"]),
    ("metrics", &["base"]),
    ("profiling", &["base"]),
    ("live", &["camera", "recorder", "base"]),
    ("recorder", &["camera", "h264", "metrics", "base"]),
    ("session", &["h264", "metrics", "base"]),
    ("simulator", &["camera", "h264", "base"]),
    // `config` uses these modules because each of them defines the types of its own options.
    ("config", &["camera", "recorder", "session", "base"]),
    ("http", &["config", "metrics", "base"]),
    ("worker", &["camera", "h264", "session", "uring", "metrics", "base"]),
];

/// The only pair of files that may import each other. They share one soundness argument, because `ring.rs` moves memory
/// between the two states that `buffers.rs` defines: ours, and held by the kernel.
const MUTUAL: &[(&str, &str)] = &[("src/uring/buffers.rs", "src/uring/ring.rs")];

/// Unit tests of the whole program. They may use every module.
const TESTS_OF_ALL: &[&str] = &["src/worker/simulated_day/", "src/simulated_day/", "src/simulated_day.rs"];

/// Returns the module that a file of src belongs to. Returns `None` for files that may use every module: `app`, `main`,
/// `lib`, the binaries and the tests of the whole program.
fn module_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/").filter(|_| !listed(path, TESTS_OF_ALL))?;
    let first = inside.split('/').next()?.trim_end_matches(".rs");
    (!matches!(first, "main" | "app" | "lib" | "bin")).then_some(first)
}

/// Returns the path of a file's module from the root of the crate. The path is empty for lib.rs and main.rs.
fn module_path(path: &str) -> Vec<String> {
    let inside = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    if matches!(inside, "lib" | "main" | "mod") {
        Vec::new()
    } else {
        inside.split('/').map(str::to_owned).collect()
    }
}

fn is_unit_test(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    listed(path, TESTS_OF_ALL)
        || path.contains("/tests/")
        || matches!(name, "tests.rs" | "testing.rs")
        || name.ends_with("_tests.rs")
        || name.starts_with("test_")
        || name.starts_with("fake_")
}

/// Returns the modules of `ARROWS` that a file uses, each with the line number of the use.
fn modules_used(path: &str, text: &str) -> Vec<(usize, String)> {
    let named = paths_named(&mask(text), &module_path(path));
    let known = |name: &String| ARROWS.iter().any(|(module, _)| module == name);
    named.into_iter().filter_map(|n| Some((n.line, n.path.into_iter().next().filter(known)?))).collect()
}

fn arrows(path: &str, text: &str) -> Vec<String> {
    let Some(module) = module_of(path) else { return Vec::new() };
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
        return vec![format!("{path}: module `{module}` is not in the table of tests/tidy/layout.rs")];
    };
    modules_used(path, text)
        .into_iter()
        .filter(|(_, used)| used != module && !allowed.contains(&used.as_str()))
        .map(|(line, used)| format!("{path}:{line}: `{module}` may not use `{used}`"))
        .collect()
}

fn unused_arrows(table: &[(&str, &[&str])], files: &[Source]) -> Vec<String> {
    let mut used = HashSet::new();
    for (path, text) in files {
        let Some(module) = module_of(path) else { continue };
        used.extend(modules_used(path, text).into_iter().map(|(_, other)| (module.to_owned(), other)));
    }
    let all = table.iter().flat_map(|(module, allowed)| allowed.iter().map(move |other| (*module, *other)));
    all.filter(|(module, other)| !used.contains(&((*module).to_owned(), (*other).to_owned())))
        .map(|(module, other)| format!("`{module}` may use `{other}` and does not: remove the arrow"))
        .collect()
}

/// Returns the pairs of files that import each other. Unit tests are ignored. A parent and its child module may import
/// each other, because the child is a part of the parent, moved to its own file to keep files short.
fn mutual_imports(files: &[Source]) -> Vec<String> {
    let by_module: HashMap<Vec<String>, &str> = files
        .iter()
        .filter(|(path, _)| !path.starts_with("src/bin/") && !path.ends_with("main.rs"))
        .map(|(path, _)| (module_path(path), path.as_str()))
        .collect();
    let named: HashMap<&str, Vec<Named>> = files
        .iter()
        .filter(|(path, _)| !is_unit_test(path))
        .map(|(path, text)| (path.as_str(), paths_named(&without_tests(&mask(text)), &module_path(path))))
        .collect();
    let exports = reexports(files);
    let mut edges: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (path, names) in &named {
        for name in names.iter().filter(|name| !name.is_reexport) {
            let target = resolve(&name.path, &by_module, &exports, 0);
            if let Some(target) = target.filter(|target| target != path && !is_unit_test(target)) {
                edges.entry((path, target)).or_insert(name.line);
            }
        }
    }
    let is_family = |a: &str, b: &str| {
        let (a, b) = (module_path(a), module_path(b));
        a.starts_with(&b) || b.starts_with(&a)
    };
    let both = edges.iter().filter(|((a, b), _)| a < b && edges.contains_key(&(*b, *a)) && !is_family(a, b));
    both.filter(|((a, b), _)| !MUTUAL.contains(&(a, b)))
        .map(|((a, b), line)| format!("{a}:{line} and {b}:{} import each other", edges[&(*b, *a)]))
        .collect()
}

/// Returns the names that modules export again with `pub use`, as (module, name) -> full path.
fn reexports(files: &[Source]) -> HashMap<(Vec<String>, String), Vec<String>> {
    let mut exports = HashMap::new();
    for (path, text) in files {
        let (module, masked) = (module_path(path), mask(text));
        for (at, _) in masked.match_indices("use ") {
            let line = masked[..at].rsplit('\n').next().unwrap_or_default().trim();
            if !line.starts_with("pub") {
                continue;
            }
            let rest = masked[at + 4..].trim_start();
            let first: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let (base, rest) = match first.as_str() {
                "crate" => (Vec::new(), &rest[7..]),
                "self" => (module.clone(), &rest[6..]),
                "super" => (module[..module.len().saturating_sub(1)].to_vec(), &rest[7..]),
                _ => (module.clone(), rest),
            };
            for full in super::scan::expand(rest, base) {
                if let Some(name) = full.last().cloned() {
                    exports.insert((module.clone(), name), full);
                }
            }
        }
    }
    exports
}

/// Returns the file that a path leads to. Re-exports are followed to the deepest module that has its own file.
fn resolve<'a>(
    path: &[String],
    by_module: &HashMap<Vec<String>, &'a str>,
    exports: &HashMap<(Vec<String>, String), Vec<String>>,
    depth: usize,
) -> Option<&'a str> {
    let length = (1..=path.len()).rev().find(|length| by_module.contains_key(&path[..*length]))?;
    let module = &path[..length];
    if let Some(full) = path.get(length).and_then(|name| exports.get(&(module.to_vec(), name.clone())))
        && full[..] != path[..]
        && depth < 5
    {
        return resolve(full, by_module, exports, depth + 1);
    }
    by_module.get(module).copied()
}

/// Reports each public item (function, type, constant) whose name occurs in no other file.
fn dead_items(files: &[Source], users: &[Source]) -> Vec<String> {
    let all: Vec<(&str, String)> =
        files.iter().chain(users).map(|(path, text)| (path.as_str(), mask(text))).collect();
    let mut holders: HashMap<&str, BTreeSet<&str>> = HashMap::new();
    for (path, masked) in &all {
        for word in masked.split(|c: char| c != '_' && !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
            holders.entry(word).or_default().insert(path);
        }
    }
    let mut found = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| !path.starts_with("src/bin/") && !is_unit_test(path))
    {
        let masked = without_tests(&mask(text));
        for (at, kind, name) in public_items(&masked) {
            let is_used = holders.get(name.as_str()).is_some_and(|holders| holders.len() > 1);
            // A type that a signature of its own file names must be as public as the function, so it needs no other
            // user.
            let is_in_signature = kind != "fn" && names_in_signatures(&masked, &name);
            if !is_used && !is_in_signature {
                found.push(format!("{path}:{}: no other file uses `pub {kind} {name}`", line_of(text, at)));
            }
        }
    }
    found
}

fn public_items(masked: &str) -> Vec<(usize, &'static str, String)> {
    const KINDS: [&str; 7] = ["fn", "struct", "enum", "const", "static", "trait", "type"];
    let mut items = Vec::new();
    for at in super::scan::words(masked, "pub") {
        let mut rest = masked[at + 3..].trim_start();
        if rest.starts_with('(') {
            rest = rest.split_once(')').map_or("", |(_, rest)| rest).trim_start();
        }
        for modifier in ["const fn", "unsafe fn", "async fn"] {
            if rest.starts_with(modifier) {
                rest = &rest[modifier.len() - 2..];
            }
        }
        let Some(kind) =
            KINDS.into_iter().find(|kind| rest.strip_prefix(kind).is_some_and(|r| r.starts_with(' ')))
        else {
            continue;
        };
        let name = rest[kind.len()..].trim_start();
        items.push((at, kind, name.chars().take_while(|c| *c == '_' || c.is_alphanumeric()).collect()));
    }
    items
}

/// Returns true if the name occurs in the file outside its own declaration and outside `impl` headers.
fn names_in_signatures(masked: &str, name: &str) -> bool {
    super::scan::words(masked, name).into_iter().any(|at| {
        let line = masked[..at].rsplit('\n').next().unwrap_or_default().trim_start();
        let is_declaration =
            ["struct ", "enum ", "const ", "static ", "trait ", "type "].iter().any(|k| line.ends_with(k));
        !is_declaration && !line.starts_with("impl")
    })
}

/// Returns the rows of the module table in ARCHITECTURE.md, as module -> text of the column with the modules it may
/// use.
fn table_of(document: &str) -> BTreeMap<String, String> {
    let mut rows = BTreeMap::new();
    for line in document.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [first, _, uses] = cells[..] else { continue };
        for name in first.split(',').map(|name| name.trim().trim_matches('`')) {
            if name.ends_with('/') || (name.ends_with(".rs") && !name.contains('/')) {
                let module = name.trim_end_matches('/').trim_end_matches(".rs");
                rows.insert(module.to_owned(), uses.to_owned());
            }
        }
    }
    rows
}

/// Reports where the module table of ARCHITECTURE.md, `ARROWS` and the modules of src disagree.
fn table_disagrees(document: &str, directories: &[String]) -> Vec<String> {
    let rows = table_of(document);
    let mut found = Vec::new();
    for name in directories.iter().filter(|name| !rows.contains_key(*name) && *name != "simulated_day") {
        found.push(format!("ARCHITECTURE.md: no row for `{name}`"));
    }
    for (module, uses) in &rows {
        if !directories.contains(module) {
            found.push(format!("ARCHITECTURE.md: `{module}` is not in src"));
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| name == module) else { continue };
        let listed: BTreeSet<&str> =
            uses.split('`').skip(1).step_by(2).map(|name| name.trim_end_matches('/')).collect();
        if listed != allowed.iter().copied().collect() {
            let expected: Vec<String> = allowed.iter().map(|name| format!("`{name}`")).collect();
            let expected = if expected.is_empty() { "nothing".to_owned() } else { expected.join(", ") };
            found.push(format!("ARCHITECTURE.md: `{module}` may use: {expected}"));
        }
    }
    found
}

/// Returns the names of the modules of src, which are its directories and its top-level files.
fn modules() -> Vec<String> {
    let names = fs::read_dir(root().join("src"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.map(|name| name.trim_end_matches(".rs").to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

// ---- tests: the sources obey each rule -----------------------------------------------------------------

#[test]
fn modules_use_only_what_the_table_allows() {
    check(&sources(&["src"], &[".rs"]), arrows);
}

#[test]
fn every_arrow_is_used() {
    report(&unused_arrows(ARROWS, &sources(&["src"], &[".rs"])));
}

#[test]
fn no_two_files_import_each_other() {
    report(&mutual_imports(&sources(&["src"], &[".rs"])));
}

#[test]
fn every_public_item_has_a_user() {
    let users: Vec<Source> =
        rust_sources().into_iter().filter(|(path, _)| !path.starts_with("src/")).collect();
    report(&dead_items(&sources(&["src"], &[".rs"]), &users));
}

#[test]
fn the_table_in_architecture_md_agrees_with_the_arrows_and_with_src() {
    let document = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    report(&table_disagrees(&document, &modules()));
}

// ---- tests: each rule reports a bad sample -------------------------------------------------------------

#[test]
fn the_arrow_rule_sees_each_way_of_naming_a_module() {
    for bad in [
        "use crate::session::Viewer;",
        "use crate::{limits, session};",
        "use crate::{limits::{A, B}, worker as w};",
        "fn f() -> crate::uring::Edge { x }",
        "use super::super::http;",
        "use streaming_server::metrics::X;",
    ] {
        assert_eq!(arrows("src/h264/nal.rs", bad).len(), 1, "{bad}");
    }
    assert_eq!(arrows("src/camera/mod.rs", "use super::h264;").len(), 1);
    assert_eq!(arrows("src/attic/mod.rs", "").len(), 1, "a module that is not in the table");
    for good in
        ["use crate::base::limits::X;", "// use crate::worker;", "\"crate::worker\"", "use super::nal;"]
    {
        assert!(arrows("src/h264/nal.rs", good).is_empty(), "{good}");
    }
    assert!(arrows("src/main.rs", "use streaming_server::worker;").is_empty());
}

fn sample(files: &[(&str, &str)]) -> Vec<Source> {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn an_arrow_that_no_file_uses_is_reported() {
    let files = sample(&[("src/camera/mod.rs", "use crate::base::limits;")]);
    assert!(unused_arrows(&[("camera", &["base"])], &files).is_empty());
    assert_eq!(unused_arrows(&[("camera", &["base", "h264"])], &files).len(), 1);
}

#[test]
fn files_that_import_each_other_are_reported() {
    let a = ("src/camera/a.rs", "use super::b::B;");
    for b in
        ["use super::a::A;", "fn f(x: crate::camera::A) {}", "use super::{C, a::{self, D}};", "use super::A;"]
    {
        let files =
            sample(&[("src/camera/mod.rs", "mod a;\nmod b;\npub use a::{A};"), a, ("src/camera/b.rs", b)]);
        assert_eq!(mutual_imports(&files).len(), 1, "{b}");
    }
    for b in ["", "// super::a", "#[cfg(test)]\nmod tests {\n    use super::super::a::A;\n}"] {
        let files = sample(&[("src/camera/mod.rs", "mod a;\nmod b;"), a, ("src/camera/b.rs", b)]);
        assert!(mutual_imports(&files).is_empty(), "{b}");
    }
    let family = sample(&[("src/camera/a.rs", "use self::c::C;"), ("src/camera/a/c.rs", "use super::A;")]);
    assert!(mutual_imports(&family).is_empty());
}

#[test]
fn a_public_item_that_no_other_file_names_is_reported() {
    for bad in ["pub fn lonely() {}", "pub(crate) const fn lonely() {}", "pub struct Lonely;\nimpl Lonely {}"]
    {
        assert_eq!(dead_items(&sample(&[("src/a.rs", bad)]), &[]).len(), 1, "{bad}");
        let user = sample(&[("tests/b.rs", "fn f() { lonely(); Lonely }")]);
        assert!(dead_items(&sample(&[("src/a.rs", bad)]), &user).is_empty(), "{bad}");
        let comment = sample(&[("tests/b.rs", "// lonely Lonely")]);
        assert_eq!(dead_items(&sample(&[("src/a.rs", bad)]), &comment).len(), 1, "{bad}");
    }
    let returned = "pub struct Lonely;\npub fn f() -> Lonely { Lonely }";
    assert!(dead_items(&sample(&[("src/a.rs", returned)]), &sample(&[("src/b.rs", "f")])).is_empty());
}

#[test]
fn a_row_that_differs_from_the_arrows_or_from_src_is_reported() {
    let directories = ["base".to_owned(), "camera".to_owned(), "main".to_owned()];
    let good = "| `base/` | x | nothing |\n| `camera/` | x | `base` |\n| `main.rs` | x | everything |\n";
    assert!(table_disagrees(good, &directories).is_empty());
    assert_eq!(table_disagrees(&good.replace("| `base` |", "| `base`, `h264` |"), &directories).len(), 1);
    assert_eq!(table_disagrees(&good.replace("`camera/`", "`lens/`"), &directories).len(), 2);
}
