//! A small scanner of Rust text for `tests/fast/tidy.rs`: hides comments and strings, finds words, functions and
//! the rooms a file names. It knows brackets, not grammar; it must not grow into a parser.

/// The text with the insides of comments, strings and characters replaced by blanks; same byte offsets, same
/// lines. Raw strings and nested comments are understood; a `'` that begins a lifetime is left alone.
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

/// Where the comment or literal that begins at `at` ends; `at` itself when none begins here.
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

/// 0 when no raw string begins here (`r#"..."#`, any number of `#`).
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

/// Whether the bytes at `at..at + length` stand alone and are not part of a longer word.
pub(crate) fn is_word_at(text: &str, at: usize, length: usize) -> bool {
    let bytes = text.as_bytes();
    let before = at.checked_sub(1).and_then(|i| bytes.get(i)).is_some_and(|&byte| is_word(byte));
    let last_is_word = bytes.get(at + length - 1).is_some_and(|&byte| is_word(byte));
    let after = last_is_word && bytes.get(at + length).is_some_and(|&byte| is_word(byte));
    !before && !after
}

/// Offsets at which `word` stands alone.
pub(crate) fn words(masked: &str, word: &str) -> Vec<usize> {
    let hits = masked.match_indices(word).map(|(at, _)| at);
    hits.filter(|&at| is_word_at(masked, at, word.len())).collect()
}

/// The line, from 1, that holds the byte at `at`.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// (line, name, code lines of the body) of every function with a body. Blank lines and lines that held only
/// a comment do not count.
pub(crate) fn function_lengths(masked: &str) -> Vec<(usize, String, usize)> {
    let mut found = Vec::new();
    for at in words(masked, "fn") {
        let rest = masked[at + 2..].trim_start();
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name.is_empty() {
            continue; // a function pointer type
        }
        if let Some((open, close)) = body_of(masked, at) {
            let code = masked[open + 1..close].lines().filter(|line| !line.trim().is_empty()).count();
            found.push((line_of(masked, at), name, code));
        }
    }
    found
}

/// Offsets of the braces around the body of the function that begins at `at`; `None` for a declaration.
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

/// (line, room) for every room that a path of the file begins with: `crate::room`, `streaming_server::room`,
/// groups `crate::{room, other::X}`, and as many `super::` as the file is `depth` modules deep.
pub(crate) fn references_to_rooms(masked: &str, rooms: &[&str], depth: usize) -> Vec<(usize, String)> {
    let supers = "super::".repeat(depth);
    let mut found = Vec::new();
    for prefix in ["crate::", "streaming_server::", supers.as_str()] {
        for (at, _) in masked.match_indices(prefix) {
            if prefix == supers && masked[..at].ends_with("super::") {
                continue;
            }
            if !is_word_at(masked, at, 1) && at > 0 && is_word(masked.as_bytes()[at - 1]) {
                continue;
            }
            for name in names_after(&masked[at + prefix.len()..]) {
                if rooms.contains(&name.as_str()) {
                    found.push((line_of(masked, at), name));
                }
            }
        }
    }
    found
}

/// The first name of a path, or of each member of a `{...}` group.
fn names_after(rest: &str) -> Vec<String> {
    let first_name = |part: &str| -> String {
        part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    if !rest.starts_with('{') {
        return vec![first_name(rest)];
    }
    let group = &rest[1..closing_brace(rest, 0)];
    let mut names = Vec::new();
    let (mut nesting, mut start) = (0_usize, 0);
    for (offset, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => nesting += 1,
            b'}' => nesting = nesting.saturating_sub(1),
            b',' if nesting == 0 => {
                names.push(first_name(&group[start..offset]));
                start = offset + 1;
            }
            _ => {}
        }
    }
    names.push(first_name(&group[start..]));
    names
}
