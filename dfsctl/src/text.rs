//! How names, sizes, times and tables are printed.
//!
//! Names are any bytes. For people they are escaped as `ls -b` does, so that a name cannot move the cursor or end a line; in
//! JSON they are strings, with the exact bytes in hexadecimal beside them when they are not UTF-8.

use serde_json::{Map, Value};

pub(crate) use dfs_common::units::utc;

/// `name` for people: control characters, backslashes and bytes that are not UTF-8 as escapes.
#[must_use]
pub(crate) fn escape(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for piece in name.utf8_chunks() {
        for c in piece.valid().chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                '\\' => out.push_str("\\\\"),
                c if c.is_control() => {
                    let mut bytes = [0; 4];
                    c.encode_utf8(&mut bytes).bytes().for_each(|b| out.push_str(&format!("\\{b:03o}")));
                }
                c => out.push(c),
            }
        }
        piece.invalid().iter().for_each(|b| out.push_str(&format!("\\{b:03o}")));
    }
    out
}

/// Puts `name` into a JSON object under `key`, and its bytes under `KEY_hex` if it is not UTF-8.
pub(crate) fn json_name(object: &mut Map<String, Value>, key: &str, name: &[u8]) {
    object.insert(key.to_owned(), String::from_utf8_lossy(name).into());
    if std::str::from_utf8(name).is_err() {
        let hex: String = name.iter().map(|b| format!("{b:02x}")).collect();
        object.insert(format!("{key}_hex"), hex.into());
    }
}

/// Bytes for people, in powers of 1024 with three digits.
#[must_use]
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match (unit, value) {
        (0, _) => format!("{count} B"),
        (_, v) if v < 9.995 => format!("{v:.2} {}", UNITS[unit]),
        (_, v) if v < 99.95 => format!("{v:.1} {}", UNITS[unit]),
        (_, v) => format!("{v:.0} {}", UNITS[unit]),
    }
}

/// A count with its noun: `1 chunk`, `2 chunks`.
#[must_use]
pub(crate) fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// `part` of `whole` in percent, rounded up so that nothing used shows as 0 % only if it is.
#[must_use]
pub(crate) fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { (u128::from(part) * 100).div_ceil(u128::from(whole)).try_into().unwrap_or(u64::MAX) }
}

/// The time of `2026-01-31T12:34[:56]` or the same with a space, UTC, in nanoseconds since the Unix epoch.
///
/// Source: as [`utc`], days_from_civil.
#[must_use]
pub(crate) fn parse_utc(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00"));
    let number = |text: &str| text.parse::<i64>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    let date: Vec<i64> = date.split('-').map(number).collect::<Option<_>>()?;
    let time: Vec<i64> = time.split(':').map(number).collect::<Option<_>>()?;
    let [year, month, day] = date[..] else { return None };
    let (hour, minute, second) = match time[..] {
        [hour, minute] => (hour, minute, 0),
        [hour, minute, second] => (hour, minute, second),
        _ => return None,
    };
    let is_time = (1..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !is_time {
        return None;
    }
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted_year.div_euclid(400), shifted_year.rem_euclid(400));
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    (days * 86_400 + hour * 3600 + minute * 60 + second).checked_mul(1_000_000_000)
}

/// Which side a column's cells stand at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a header, columns two spaces apart.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    #[must_use]
    pub(crate) fn new(columns: &[(&str, Align)]) -> Self {
        Self {
            columns: columns.iter().map(|(_, align)| *align).collect(),
            rows: vec![columns.iter().map(|(heading, _)| (*heading).to_owned()).collect()],
        }
    }

    /// A table without a heading.
    #[must_use]
    pub(crate) fn bare(columns: &[Align]) -> Self {
        Self { columns: columns.to_vec(), rows: vec![] }
    }

    /// Adds a row; it must have one cell for each column.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "one cell for each column");
        self.rows.push(cells);
    }

    /// The lines, aligned, without spaces at their ends.
    #[must_use]
    pub(crate) fn lines(&self) -> Vec<String> {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..self.columns.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&self.columns).zip(&widths).map(|((cell, align), width)| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_a_line() {
        assert_eq!(escape(b"plain name"), "plain name");
        assert_eq!(escape("gr\u{fc}n".as_bytes()), "gr\u{fc}n");
        assert_eq!(escape(b"a\nb\\c\x1b[0m\xff"), "a\\nb\\\\c\\033[0m\\377");
        assert_eq!(escape("\u{85}".as_bytes()), "\\302\\205");
    }

    #[test]
    fn json_names_keep_their_bytes() {
        let mut object = Map::new();
        json_name(&mut object, "name", b"a\xff");
        assert_eq!(object["name"], "a\u{fffd}");
        assert_eq!(object["name_hex"], "61ff");
        let mut object = Map::new();
        json_name(&mut object, "name", b"a\n");
        assert_eq!(object["name"], "a\n");
        assert!(!object.contains_key("name_hex"));
    }

    #[test]
    fn sizes_have_three_digits() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1024, "1.00 KiB"),
            (4 << 20, "4.00 MiB"),
            (100 << 30, "100 GiB"),
            (1000 << 20, "0.98 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(951_782_400_000_000_000), "2000-02-29 00:00:00");
        assert_eq!(utc(-1), "1969-12-31 23:59:59");
        assert_eq!(utc(1_798_761_599_000_000_000), "2026-12-31 23:59:59");
        for time_ns in [0, 951_782_400_000_000_000, 1_798_761_599_000_000_000] {
            assert_eq!(parse_utc(&utc(time_ns)), Some(time_ns));
            assert_eq!(parse_utc(&format!("{}Z", utc(time_ns).replace(' ', "T"))), Some(time_ns));
        }
        assert_eq!(parse_utc("2000-02-29"), Some(951_782_400_000_000_000));
        for text in ["", "2026-13-01", "2026-01-01T24:00", "2026-01-01T10", "10m", "2026-1-1-1", "9999999999999-01-01"]
        {
            assert_eq!(parse_utc(text), None, "{text}");
        }
    }

    #[test]
    fn tables_align() {
        let mut table = Table::new(&[("NAME", Align::Left), ("USED", Align::Right)]);
        table.row(vec!["storage-1".into(), "1 B".into()]);
        assert_eq!(table.lines(), ["NAME       USED", "storage-1   1 B"]);
    }
}
