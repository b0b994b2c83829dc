//! Making and comparing files.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

/// Bytes of one chunk with default settings.
pub const CHUNK: usize = 4 << 20;

/// A stream of bytes that no compressor shrinks, the same for the same seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Noise(u64);

impl Noise {
    /// The stream of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Overwrites `buffer` with the next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let bytes = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes();
            word.copy_from_slice(&bytes[..word.len()]);
        }
    }
}

/// `length` bytes of noise.
#[must_use]
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Noise::new(seed).fill(&mut bytes);
    bytes
}

/// Writes `length` bytes of noise to a new file, closes it, and returns their SHA-256.
///
/// # Errors
/// As the file system says.
pub fn write_noise(path: &Path, seed: u64, length: u64) -> Result<String> {
    let mut file = File::create(path).with_context(|| path.display().to_string())?;
    let mut noise = Noise::new(seed);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut left = length;
    while left > 0 {
        let count = usize::try_from(left.min(1 << 20))?;
        noise.fill(&mut buffer[..count]);
        hash.update(&buffer[..count]);
        file.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    close(file)?;
    Ok(hex(&hash.finalize()))
}

/// Closes a file and returns the error of close, which dropping would swallow.
///
/// # Errors
/// What close(2) says.
pub fn close(file: File) -> std::io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor comes from a File that gave it up, so it is open and closed exactly once.
    if unsafe { libc::close(file.into_raw_fd()) } == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Creates or replaces a file, and closes it with error check.
///
/// # Errors
/// As the file system says.
pub fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    close(file)
}

/// SHA-256 of a file as hexadecimal digits.
///
/// # Errors
/// As the file system says.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..count]);
    }
}

/// SHA-256 of bytes as hexadecimal digits.
#[must_use]
pub fn sha256_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs a program and demands success.
///
/// # Errors
/// It cannot be started or fails; its output is in the message.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| program.to_owned())?;
    ensure!(
        output.status.success(),
        "{program} {args:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a shell script with `$1`, `$2` ... and demands success.
///
/// # Errors
/// As [`run`].
pub fn sh(script: &str, args: &[&Path]) -> Result<String> {
    let mut all = vec!["-c", script, "sh"];
    let texts: Vec<_> = args.iter().map(|path| path.to_str().context("path is UTF-8")).collect::<Result<_>>()?;
    all.extend(texts);
    run("sh", &all)
}

/// Demands that two trees are equal: names, kinds, contents, link targets.
///
/// # Errors
/// They differ; the first differences are in the message.
pub fn same_tree(one: &Path, other: &Path) -> Result<()> {
    let output = Command::new("diff").args(["-r", "-q", "--no-dereference"]).arg(one).arg(other).output()?;
    ensure!(
        output.status.success(),
        "trees differ: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Demands that what `find -printf FORMAT` says of two trees is equal, apart from lines with `except` in them.
///
/// # Errors
/// They differ; the lines are in the message.
pub fn same_attributes(one: &Path, other: &Path, format: &str, except: &str) -> Result<()> {
    let list = |root: &Path| -> Result<BTreeSet<String>> {
        let text = sh("cd \"$1\" && find . -printf \"$2\"", &[root, Path::new(format)])?;
        Ok(text.lines().filter(|line| except.is_empty() || !line.contains(except)).map(str::to_owned).collect())
    };
    let (one, other) = (list(one)?, list(other)?);
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).take(5).cloned().collect::<Vec<_>>();
    ensure!(one == other, "attributes differ: {:#?} against {:#?}", only(&one, &other), only(&other, &one));
    Ok(())
}

/// The names in a directory, sorted.
///
/// # Errors
/// As the file system says.
pub fn names(dir: &Path) -> std::io::Result<Vec<std::ffi::OsString>> {
    let mut names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// The errno of a failed operation; panics if it did not fail with one.
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("the operation must fail").raw_os_error().expect("an error of the system")
}
