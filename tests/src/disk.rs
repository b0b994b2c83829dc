//! A small disk: an ext4 file system in a file, mounted by the loop driver, that can be filled.

use std::{
    fs::{self, File},
    os::{fd::AsRawFd as _, unix::fs::symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::files;

/// The file that takes the room.
const BALLAST: &str = "ballast";

/// A mounted disk. Dropping it unmounts.
#[derive(Debug)]
pub struct Disk {
    mounted: PathBuf,
}

impl Disk {
    /// Makes a disk of `bytes` beside `data_dir`, which becomes a link into it.
    ///
    /// # Errors
    /// No root, no loop device, or no `mkfs.ext4`.
    pub fn new(data_dir: &Path, bytes: u64) -> Result<Self> {
        let (image, mounted) = (data_dir.with_extension("image"), data_dir.with_extension("disk"));
        File::create(&image)?.set_len(bytes)?;
        fs::create_dir_all(&mounted)?;
        files::sh("mkfs.ext4 -q -m 0 \"$1\" && mount -o loop \"$1\" \"$2\"", &[&image, &mounted])
            .context("cannot make a small disk: it takes root, loop devices and mkfs.ext4 (e2fsprogs)")?;
        let disk = Self { mounted };
        fs::create_dir(disk.mounted.join("data"))?;
        symlink(disk.mounted.join("data"), data_dir)?;
        Ok(disk)
    }

    /// Takes all room.
    ///
    /// # Errors
    /// The disk fails.
    pub fn fill(&self) -> Result<()> {
        let file = File::options().create(true).append(true).open(self.mounted.join(BALLAST))?;
        let mut length = i64::try_from(file.metadata()?.len())?;
        // Larger steps first, until not even a block is left.
        for shift in (12..28).rev() {
            let step = 1_i64 << shift;
            // SAFETY: a system call on an open descriptor.
            while unsafe { libc::fallocate(file.as_raw_fd(), 0, length, step) } == 0 {
                length += step;
            }
        }
        Ok(())
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// The disk fails.
    pub fn free(&self) -> Result<()> {
        match fs::remove_file(self.mounted.join(BALLAST)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = files::sh("umount \"$1\" || umount -l \"$1\"", &[&self.mounted]) {
            eprintln!("{} stays mounted: {error}", self.mounted.display());
        }
    }
}
