//! The build script: compresses the files of the viewer page and the description of the API with gzip, so that the
//! program carries them compressed (`src/http/assets.rs`). Scripts lose their comments, which are a quarter of their
//! compressed bytes.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

const PAGE: &str = "src/http/assets";
const DESCRIPTION: &str = "src/http/openapi.json";

fn main() -> io::Result<()> {
    let out = env::var_os("OUT_DIR").map(PathBuf::from).ok_or(io::ErrorKind::NotFound)?;
    println!("cargo::rerun-if-changed={PAGE}");
    println!("cargo::rerun-if-changed={DESCRIPTION}");
    for file in fs::read_dir(PAGE)? {
        compress(&file?.path(), &out)?;
    }
    compress(Path::new(DESCRIPTION), &out)
}

/// Writes `NAME.gz` for the file NAME. `GzEncoder` writes no name and no time, so equal files give equal bytes.
fn compress(file: &Path, out: &Path) -> io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".gz");
    let mut content = fs::read(file)?;
    if file.extension().is_some_and(|extension| extension == "js") {
        content = without_comments(&String::from_utf8_lossy(&content)).into_bytes();
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&content)?;
    fs::write(out.join(name), encoder.finish()?)
}

/// Returns the script with an empty line in place of each line that has only a comment, so that the browser's error
/// messages name the lines of the source. A comment after code stays, because finding it needs a parser.
fn without_comments(script: &str) -> String {
    let mut is_inside = false; // of a comment of several lines
    let mut kept = String::with_capacity(script.len());
    for line in script.lines() {
        let text = line.trim();
        let is_comment = is_inside || text.starts_with("//") || text.starts_with("/**");
        is_inside = is_comment && !text.ends_with("*/") && (is_inside || text.starts_with("/**"));
        kept.push_str(if is_comment { "" } else { line });
        kept.push('\n');
    }
    kept
}
