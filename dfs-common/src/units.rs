//! Sizes and durations as people write them: `256M`, `4MiB`, `10s`, `100ms`.

use std::{fmt, str::FromStr, time::Duration};

/// A number of bytes. `K`, `M`, `G`, `T` (with or without `iB`) are powers of 1024; `KB`, `MB`, `GB`, `TB` powers of 1000.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ByteSize(pub u64);

/// A duration with a unit: `ms`, `s`, `m`, `h`, `d`. A bare number is refused, since it hides its unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span(pub Duration);

/// The text is not a size or duration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseUnitError {
    /// Not a size.
    #[error("{0:?} is not a size: write a number with an optional unit, like 4096, 256M or 4MiB")]
    Size(String),
    /// Not a duration.
    #[error("{0:?} is not a duration: write a number with a unit, like 100ms, 3s, 10m, 24h or 14d")]
    Duration(String),
}

impl FromStr for ByteSize {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        let error = || ParseUnitError::Size(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let number: u64 = number.parse().map_err(|_| error())?;
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(error()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl FromStr for Span {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        let error = || ParseUnitError::Duration(text.to_owned());
        let trimmed = text.trim();
        // No time at all needs no unit.
        if trimmed == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let split = trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
        let (number, unit) = trimmed.split_at(split);
        let number: u64 = number.parse().map_err(|_| error())?;
        let ms: u64 = match unit.trim() {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(error()),
        };
        number.checked_mul(ms).map(|ms| Self(Duration::from_millis(ms))).ok_or_else(error)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        for (unit_ms, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
            if ms != 0 && ms.is_multiple_of(unit_ms) {
                return write!(f, "{}{unit}", ms / unit_ms);
            }
        }
        write!(f, "{ms}ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!("4MiB".parse(), Ok(ByteSize(4 << 20)));
        assert_eq!("256M".parse(), Ok(ByteSize(256 << 20)));
        assert_eq!("2 GB".parse(), Ok(ByteSize(2_000_000_000)));
        assert_eq!("7".parse(), Ok(ByteSize(7)));
        for bad in ["", "M", "-1", "1.5G", "4Q", "99999999999T"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        assert_eq!(ByteSize(4 << 20).to_string(), "4M");
    }

    #[test]
    fn durations() {
        assert_eq!("100ms".parse(), Ok(Span(Duration::from_millis(100))));
        assert_eq!("24h".parse(), Ok(Span(Duration::from_secs(86_400))));
        for bad in ["", "10", "s", "-3s", "1.5s", "3 weeks"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        assert_eq!(Span(Duration::from_secs(90)).to_string(), "90s");
    }
}
