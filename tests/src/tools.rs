//! Programs of the system that some tests use.

use anyhow::{Result, bail};

/// Whether a program is installed. A person's machine may lack it: that is said, and the part of the test that needs it is left
/// out.
///
/// # Errors
/// It is missing on a machine that must have it: in continuous integration nothing is left out.
pub fn have(program: &str) -> Result<bool> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&paths).any(|dir| dir.join(program).is_file()) {
        return Ok(true);
    }
    if std::env::var_os("CI").is_some_and(|value| value == "true") {
        bail!("{program} is not installed, and CI=true");
    }
    eprintln!("{program} is not installed: what needs it is not tested here");
    Ok(false)
}
