//! The build script: compresses the files of the viewer page and the description of the API with gzip, so that the
//! program carries them compressed (`src/http/assets.rs`).

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
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&fs::read(file)?)?;
    fs::write(out.join(name), encoder.finish()?)
}
