//! The streams that the camera plays: the test card of camera-sim, and files that x264 encodes from a moving picture.
//! Each picture of a file shows its number, as the test card does. The luma of each decoded picture has a known
//! checksum, because H.264 decoders are exact to the bit. So each picture that the browser shows can be compared.

use std::fmt::Write as _;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use streaming_server::simulator::NumberBlocks;

use crate::Fallible;

/// Pictures of a file. The camera plays it in a loop. A picture's number in the loop is unambiguous as long as no
/// picture is shown later than the length of the loop, which is 20 s.
const PICTURES: u32 = 600;
const PICTURES_PER_S: u32 = 30;
const HASH_FIRST_ROW: usize = 3;
const HASH_ROW_STEP: usize = 8;

/// A stream by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) name: &'static str,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) kbps: u32,
    /// True if the camera lowers its rate at the request of streaming-server, through a lease ring.
    pub(crate) obeys: bool,
    encoder: Option<Encoder>,
}

/// Settings of x264.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Encoder {
    /// Strength of the noise in the picture, which decides the size of an IDR.
    noise: u32,
    options: &'static str,
}

const fn card(name: &'static str, kbps: u32) -> Stream {
    Stream { name, width: 1280, height: 720, kbps, obeys: false, encoder: None }
}

pub(crate) const STREAMS: &[Stream] = &[
    card("card", 8_000),
    card("card-600k", 600),
    Stream { obeys: true, ..card("card-obeys", 8_000) },
    Stream {
        name: "x264-720p",
        width: 1_280,
        height: 720,
        kbps: 8_000,
        obeys: false,
        encoder: Some(Encoder { noise: 12, options: "vbv-init=0.25:ipratio=1.8" }),
    },
    Stream {
        name: "x264-1080p",
        width: 1_920,
        height: 1_080,
        kbps: 8_000,
        obeys: false,
        encoder: Some(Encoder { noise: 12, options: "vbv-init=0.4:ipratio=2.1" }),
    },
    Stream {
        name: "x264-600k",
        width: 1_280,
        height: 720,
        kbps: 600,
        obeys: false,
        encoder: Some(Encoder { noise: 4, options: "vbv-init=0.4" }),
    },
];

/// A stream that is ready to be played.
pub(crate) struct Prepared {
    pub(crate) stream: Stream,
    file: Option<PathBuf>,
    /// Checksum of each picture of the file. Empty for the test card.
    pub(crate) hashes: Vec<u32>,
}

impl Stream {
    pub(crate) fn parse(name: &str) -> Fallible<Stream> {
        let names = || STREAMS.iter().map(|stream| stream.name).collect::<Vec<_>>().join(", ");
        let found = STREAMS.iter().find(|stream| stream.name == name).copied();
        found.ok_or_else(|| format!("unknown stream {name:?}; known: {}", names()).into())
    }

    /// Makes the file of the stream in `directory`, if it is not there.
    pub(crate) fn prepare(self, directory: &Path) -> Fallible<Prepared> {
        let Some(encoder) = self.encoder else {
            return Ok(Prepared { stream: self, file: None, hashes: Vec::new() });
        };
        let file = directory.join(format!("{}.h264", self.name));
        let list = directory.join(format!("{}.hashes", self.name));
        if !file.exists() || !list.exists() {
            eprintln!("encoding {} ({PICTURES} pictures, once)", file.display());
            std::fs::create_dir_all(directory)?;
            let unfinished = directory.join(format!("{}.unfinished", self.name));
            self.encode(encoder, &unfinished)?;
            let hashes = self.decode(&unfinished)?;
            let lines: String = hashes.iter().fold(String::new(), |mut lines, hash| {
                let _ = writeln!(lines, "{hash:08x}");
                lines
            });
            std::fs::write(&list, lines)?;
            std::fs::rename(&unfinished, &file)?;
        }
        let text = std::fs::read_to_string(&list)?;
        let hashes = text.lines().map(|line| u32::from_str_radix(line, 16)).collect::<Result<Vec<_>, _>>()?;
        Ok(Prepared { stream: self, file: Some(file), hashes })
    }

    fn encode(self, encoder: Encoder, file: &Path) -> Fallible<()> {
        let rate = format!("{}k", self.kbps);
        let picture = self.filters(encoder)?;
        let mut command = Command::new("ffmpeg");
        command.args(["-hide_banner", "-loglevel", "error", "-nostdin", "-y", "-f", "lavfi", "-i", &picture]);
        command.args(["-frames:v", &PICTURES.to_string(), "-c:v", "libx264", "-preset", "superfast"]);
        command.args(["-tune", "zerolatency", "-profile:v", "high", "-pix_fmt", "yuv420p", "-bf", "0"]);
        command.args(["-g", "30", "-keyint_min", "30", "-sc_threshold", "0"]);
        command.args(["-b:v", &rate, "-maxrate", &rate, "-bufsize", &rate]);
        command.args(["-x264-params", encoder.options, "-f", "h264"]).arg(file);
        let output = command.output().map_err(|error| format!("cannot run ffmpeg: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("ffmpeg: {}", String::from_utf8_lossy(&output.stderr)).into())
    }

    /// Returns the filters of ffmpeg that paint the picture: movement, noise, and the cells of the number.
    fn filters(self, encoder: Encoder) -> Fallible<String> {
        let Stream { width, height, .. } = self;
        let blocks = NumberBlocks::of(width, height).ok_or("the number does not fit into the picture")?;
        let NumberBlocks { cell, left, top } = blocks;
        let mut text = format!(
            "testsrc2=s={width}x{height}:r={PICTURES_PER_S},noise=alls={}:allf=t,\
             drawbox=x={left}:y={top}:w={}:h={}:color=black:t=fill",
            encoder.noise,
            cell * NumberBlocks::COLUMNS,
            cell * NumberBlocks::ROWS,
        );
        for index in 0..NumberBlocks::CELLS {
            let Some(enable) = cell_expression(index) else { continue };
            let x = left + index % NumberBlocks::COLUMNS * cell;
            let y = top + index / NumberBlocks::COLUMNS * cell;
            write!(text, ",drawbox=x={x}:y={y}:w={cell}:h={cell}:color=white:t=fill:enable='{enable}'")?;
        }
        Ok(text)
    }

    /// Decodes the file, checks the number in each picture, and returns the checksums.
    fn decode(self, file: &Path) -> Fallible<Vec<u32>> {
        let mut command = Command::new("ffmpeg");
        command.args(["-hide_banner", "-loglevel", "error", "-nostdin", "-f", "h264", "-i"]).arg(file);
        command.args(["-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]).stdout(Stdio::piped());
        let mut decoder = command.spawn()?;
        let output = decoder.stdout.take().ok_or("ffmpeg has no output")?;
        let mut reader = BufReader::new(output);
        let (width, height) = (self.width as usize, self.height as usize);
        let mut picture = vec![0; width * height * 3 / 2];
        let blocks = NumberBlocks::of(self.width, self.height).ok_or("the number does not fit")?;
        let mut hashes = Vec::new();
        for number in 0..PICTURES {
            reader.read_exact(&mut picture)?;
            let shown = blocks.read(|x, y| picture[y as usize * width + x as usize]);
            if shown != Some(number) {
                return Err(format!("picture {number} of {} shows {shown:?}", file.display()).into());
            }
            hashes.push(hash_of_luma(&picture[..width * height], width));
        }
        decoder.wait()?;
        Ok(hashes)
    }
}

/// Returns the expression that is not 0 in those pictures `n` in which the cell is 1. Returns `None` if it is never 1
/// in a file of [`PICTURES`] pictures.
fn cell_expression(index: u32) -> Option<String> {
    match index {
        0 | 35 => Some("1".to_owned()),
        1..=32 => {
            let half = 1_u64 << (32 - index);
            (half < u64::from(PICTURES)).then(|| format!("mod(floor((n+{half})/{}),2)", 2 * half))
        }
        33 => Some("mod(n,2)".to_owned()),
        _ => None,
    }
}

/// Returns the checksum of a picture's luma samples. Only every eighth row is used: that is two rows of each macroblock.
fn hash_of_luma(luma: &[u8], width: usize) -> u32 {
    luma.chunks_exact(width).skip(HASH_FIRST_ROW).step_by(HASH_ROW_STEP).fold(0x811C_9DC5, |hash, row| {
        let (words, _) = row.as_chunks::<4>();
        words
            .iter()
            .fold(hash, |hash: u32, word| (hash ^ u32::from_le_bytes(*word)).wrapping_mul(0x0100_0193))
    })
}

impl Prepared {
    /// Returns the options of camera-sim that play this stream.
    pub(crate) fn camera_arguments(&self) -> Vec<String> {
        let Stream { width, height, kbps, obeys, .. } = self.stream;
        let fps = PICTURES_PER_S.to_string();
        let mut arguments = vec!["--fps".to_owned(), fps];
        if let Some(file) = &self.file {
            arguments.extend(["--file".to_owned(), file.display().to_string()]);
        } else {
            let size = format!("{width}x{height}");
            arguments.extend(
                ["--pattern", &size, "--gop", "30", "--bitrate-kbps", &kbps.to_string()].map(str::to_owned),
            );
            arguments.extend(obeys.then(|| "--obey-bitrate".to_owned()));
        }
        arguments
    }

    /// Returns the number of pictures after which the numbers in the pictures repeat.
    pub(crate) fn period(&self) -> u64 {
        if self.file.is_some() { PICTURES.into() } else { 1 << 32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cells_of_a_file_show_the_number_of_each_picture() {
        // Evaluates the expressions that `cell_expression` makes.
        let value = |expression: &str, n: u32| -> bool {
            let mut numbers = expression.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
            let mut next = || numbers.next().and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
            match expression {
                "1" => true,
                "mod(n,2)" => n % 2 == 1,
                _ => (n + next()) / next() % 2 == 1,
            }
        };
        for n in 0..PICTURES {
            for index in 0..NumberBlocks::CELLS {
                let shown = cell_expression(index).is_some_and(|expression| value(&expression, n));
                assert_eq!(shown, NumberBlocks::value(index, n), "cell {index} of picture {n}");
            }
        }
    }

    #[test]
    fn the_checksum_sees_a_change_in_every_macroblock() {
        let (width, height) = (64, 48);
        let luma = vec![100; width * height];
        let before = hash_of_luma(&luma, width);
        for (row, column) in (0..height / 16).flat_map(|row| (0..width / 16).map(move |column| (row, column)))
        {
            let mut changed = luma.clone();
            for y in 0..16 {
                let start = (row * 16 + y) * width + column * 16;
                changed[start..start + 16].fill(101);
            }
            assert_ne!(hash_of_luma(&changed, width), before);
        }
    }
}
