//! Compiles C programs for tests. All warnings are errors, and each test uses its own directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::unique_shm;

/// The compilers that must accept `pet_camera_ring.h` without a warning.
pub const COMPILERS: [&str; 2] = ["gcc", "clang"];

/// A directory for compiled programs. It is removed on drop.
pub struct Workshop(PathBuf);

impl Workshop {
    pub fn create() -> Workshop {
        let path = std::env::temp_dir().join(format!("ss-c-{}", unique_shm().replace('/', "")));
        std::fs::create_dir_all(&path).unwrap();
        Workshop(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Compiles a file of tests/support/c and returns the path of the program.
    pub fn compile(&self, compiler: &str, source: &str, flags: &[&str]) -> PathBuf {
        self.run(compiler, &sources().join(source), source, flags)
    }

    /// Compiles `text` and returns the path of the program.
    pub fn compile_text(&self, compiler: &str, name: &str, text: &str, flags: &[&str]) -> PathBuf {
        let source = self.0.join(format!("{name}.c"));
        std::fs::write(&source, text).unwrap();
        self.run(compiler, &source, name, flags)
    }

    fn run(&self, compiler: &str, source: &Path, name: &str, flags: &[&str]) -> PathBuf {
        let program = self.0.join(format!("{name}-{compiler}.out"));
        let mut command = Command::new(compiler);
        command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]).args(flags);
        command.arg("-I").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/camera"));
        command.arg("-I").arg(sources()).arg("-o").arg(&program).arg(source).arg("-lrt");
        let output = command.output().unwrap_or_else(|error| panic!("{compiler}: {error}"));
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && complaint.is_empty(), "{compiler} {name}: {complaint}");
        program
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("c")
}
