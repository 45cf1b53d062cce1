//! A small scanner of Rust text for `tests/tidy`. It blanks comments, strings and tests, and finds words, functions and
//! the paths that a file names. It matches brackets but knows no grammar. It must not grow into a parser.

/// Returns the text with comments, strings and character literals replaced by blanks. Byte offsets and line numbers
/// stay the same. Raw strings and nested comments are handled, and lifetimes are left unchanged.
pub(crate) fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = hidden_until(bytes, at);
        if end == at {
            at += 1;
            continue;
        }
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(out).unwrap_or_default()
}

/// Returns the offset at which the comment or literal that begins at `at` ends, or `at` if neither begins there.
fn hidden_until(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        return at + rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        return at + block_comment_bytes(rest);
    }
    if rest[0] == b'"' {
        return at + quoted_bytes(rest, b'"');
    }
    if rest[0] == b'r' && (at == 0 || !is_word(bytes[at - 1]) || bytes[at - 1] == b'b') {
        return at + raw_string_bytes(rest);
    }
    if rest[0] == b'\'' {
        let is_char = rest.get(1) == Some(&b'\\') || rest.iter().take(6).skip(2).any(|&byte| byte == b'\'');
        let is_lifetime = rest.get(1).is_some_and(|&byte| is_word(byte)) && rest.get(2) != Some(&b'\'');
        if is_char && !(is_lifetime && rest[1].is_ascii()) {
            return at + quoted_bytes(rest, b'\'');
        }
    }
    at
}

fn block_comment_bytes(rest: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn quoted_bytes(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Returns the length of the raw string (`r#"..."#` with any number of `#`) at the start of `rest`, or 0 if there is
/// none.
fn raw_string_bytes(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|&&byte| byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let mut close = vec![b'"'];
    close.extend(std::iter::repeat_n(b'#', hashes));
    let body = 2 + hashes;
    let end = rest[body..].windows(close.len()).position(|window| window == close);
    end.map_or(rest.len(), |end| body + end + close.len())
}

fn is_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric() || byte >= 0x80
}

/// Returns true if the bytes at `at..at + length` form a whole word.
pub(crate) fn is_word_at(text: &str, at: usize, length: usize) -> bool {
    let bytes = text.as_bytes();
    let before = at.checked_sub(1).and_then(|i| bytes.get(i)).is_some_and(|&byte| is_word(byte));
    let last_is_word = bytes.get(at + length - 1).is_some_and(|&byte| is_word(byte));
    let after = last_is_word && bytes.get(at + length).is_some_and(|&byte| is_word(byte));
    !before && !after
}

/// Returns the offsets at which `word` occurs as a whole word.
pub(crate) fn words(masked: &str, word: &str) -> Vec<usize> {
    let hits = masked.match_indices(word).map(|(at, _)| at);
    hits.filter(|&at| is_word_at(masked, at, word.len())).collect()
}

/// Returns the number of the line that contains the byte at `at`. The first line has number 1.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// Returns (line, name, code lines of the body) for every function with a body. Blank lines are not counted, and a line
/// with only a comment is blank in masked text.
pub(crate) fn function_lengths(masked: &str) -> Vec<(usize, String, usize)> {
    let mut found = Vec::new();
    for at in words(masked, "fn") {
        let rest = masked[at + 2..].trim_start();
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name.is_empty() {
            continue; // `fn` without a name is a function pointer type
        }
        if let Some((open, close)) = body_of(masked, at) {
            let code = masked[open + 1..close].lines().filter(|line| !line.trim().is_empty()).count();
            found.push((line_of(masked, at), name, code));
        }
    }
    found
}

/// Returns the offsets of the braces around the body of the function that begins at `at`, or `None` if it has no body.
fn body_of(masked: &str, at: usize) -> Option<(usize, usize)> {
    let mut nesting = 0_usize;
    for (offset, byte) in masked.bytes().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => nesting += 1,
            b')' | b']' => nesting = nesting.saturating_sub(1),
            b';' if nesting == 0 => return None,
            b'{' if nesting == 0 => return Some((offset, closing_brace(masked, offset))),
            _ => {}
        }
    }
    None
}

fn closing_brace(masked: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, byte) in masked.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return offset,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    masked.len()
}

/// Returns the masked text with every item under `#[cfg(test)]` blanked as well. Byte offsets stay the same.
pub(crate) fn without_tests(masked: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = masked.as_bytes().to_vec();
    for (at, _) in masked.match_indices(MARK) {
        let end = end_of_item(masked, at + MARK.len());
        out[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    }
    String::from_utf8(out).unwrap_or_default()
}

/// Returns the offset at which the item, field or statement after an attribute ends.
fn end_of_item(masked: &str, from: usize) -> usize {
    let rest = masked[from..].trim_start();
    let start = masked.len() - rest.len();
    if rest.starts_with("#[") {
        let close = masked[start..].find(']').map_or(masked.len(), |offset| start + offset + 1);
        return end_of_item(masked, close);
    }
    let word: String = rest.chars().take_while(|c| is_word_char(*c)).collect();
    let is_field = !ITEM_WORDS.contains(&word.as_str());
    let mut nesting = 0_usize;
    for (offset, byte) in masked.bytes().enumerate().skip(start) {
        match byte {
            b'(' | b'[' => nesting += 1,
            b')' | b']' => nesting = nesting.saturating_sub(1),
            b';' if nesting == 0 => return offset + 1,
            b',' if nesting == 0 && is_field => return offset + 1,
            b'}' if nesting == 0 => return offset,
            b'{' if nesting == 0 && masked[start..offset].starts_with("use ") => {}
            b'{' if nesting == 0 => return closing_brace(masked, offset) + 1,
            _ => {}
        }
    }
    masked.len()
}

/// First words of items and statements. If another word follows an attribute, the attribute belongs to a field, a
/// variant or a match arm.
const ITEM_WORDS: [&str; 17] = [
    "mod",
    "use",
    "fn",
    "pub",
    "impl",
    "struct",
    "enum",
    "const",
    "static",
    "type",
    "trait",
    "let",
    "async",
    "unsafe",
    "extern",
    "macro_rules",
    "proptest",
];

fn is_word_char(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// A path that a file names, from the root of the crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) line: usize,
    pub(crate) path: Vec<String>,
    /// True if the path is in a `use` that exports it again (`pub use`, `pub(crate) use`).
    pub(crate) is_reexport: bool,
}

/// Returns every path of the file that begins with `crate::`, `streaming_server::`, `super::` or `self::`, resolved
/// from the root of the crate. Each member of a `use` group is a path. `module` is the path of the file itself, empty
/// for `lib.rs`.
pub(crate) fn paths_named(masked: &str, module: &[String]) -> Vec<Named> {
    let mut found = Vec::new();
    for start in ["crate", "streaming_server", "super", "self"] {
        for at in words(masked, start) {
            if masked[..at].ends_with("::") || !masked[at + start.len()..].starts_with("::") {
                continue;
            }
            let mut base = if matches!(start, "super" | "self") { module.to_vec() } else { Vec::new() };
            if start == "super" {
                base.pop();
            }
            let line = line_of(masked, at);
            let is_reexport = is_reexport(&masked[..at]);
            for path in expand(&masked[at + start.len() + 2..], base) {
                found.push(Named { line, path, is_reexport });
            }
        }
    }
    found
}

/// Returns true if `before` ends inside a statement that began with `pub use` or `pub(...) use`.
fn is_reexport(before: &str) -> bool {
    let statement = before.rsplit([';', '}']).next().unwrap_or_default();
    statement
        .rsplit('\n')
        .next()
        .is_some_and(|line| line.trim_start().starts_with("pub") && line.contains(" use "))
}

/// Returns the full paths that begin with `base` and continue with `rest`. A group gives one path for each member.
pub(crate) fn expand(rest: &str, mut base: Vec<String>) -> Vec<Vec<String>> {
    let rest = rest.trim_start();
    if rest.starts_with('{') {
        let group = &rest[1..closing_brace(rest, 0)];
        return members(group).into_iter().flat_map(|member| expand(member, base.clone())).collect();
    }
    let name: String = rest.chars().take_while(|c| is_word_char(*c)).collect();
    match name.as_str() {
        "" | "self" => return vec![base],
        "super" => drop(base.pop()),
        _ => base.push(name.clone()),
    }
    match rest[name.len()..].strip_prefix("::") {
        Some(tail) => expand(tail, base),
        None => vec![base],
    }
}

/// Returns the members of a `{...}` group. It is split at its own commas, not at those of nested groups.
fn members(group: &str) -> Vec<&str> {
    let mut members = Vec::new();
    let (mut nesting, mut start) = (0_usize, 0);
    for (offset, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => nesting += 1,
            b'}' => nesting = nesting.saturating_sub(1),
            b',' if nesting == 0 => {
                members.push(&group[start..offset]);
                start = offset + 1;
            }
            _ => {}
        }
    }
    members.push(&group[start..]);
    members.retain(|member| !member.trim().is_empty());
    members
}
