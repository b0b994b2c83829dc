//! Standard output: lines for people or one JSON document.
//!
//! Writing fails with [`Failure::stdout`] instead of panicking, so that `dfsctl ls | head` ends quietly.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::failure::Failure;

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Output {
    /// JSON instead of tables.
    pub(crate) json: bool,
    /// No progress and no notes.
    pub(crate) quiet: bool,
}

impl Output {
    /// Prints one line.
    ///
    /// # Errors
    /// Standard output is closed or full.
    pub(crate) fn line(self, text: impl AsRef<str>) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", text.as_ref()).map_err(|error| Failure::stdout(&error))
    }

    /// Prints lines in one write.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub(crate) fn lines(self, lines: &[String]) -> Result<(), Failure> {
        let mut text = lines.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Failure::stdout(&error))
    }

    /// Prints `value` as one line of JSON.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub(crate) fn value<T: Serialize>(self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(Failure::local)?;
        self.line(text)
    }

    /// Says something beside the result, on standard error; silent with `--quiet` and `--json`.
    pub(crate) fn note(self, text: impl AsRef<str>) {
        if !self.quiet && !self.json {
            eprintln!("{}", text.as_ref());
        }
    }

    /// Says something that a person should read even with `--quiet`, on standard error; silent with `--json`.
    pub(crate) fn warn(self, text: impl AsRef<str>) {
        if !self.json {
            eprintln!("warning: {}", text.as_ref());
        }
    }

    /// Whether a progress bar makes sense.
    #[must_use]
    pub(crate) fn shows_progress(self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }
}
