//! Names and paths: any bytes but NUL and `/`.

use crate::error::ErrorCode;

/// Longest name of an entry in bytes, as on Linux file systems.
pub const NAME_MAX: usize = 255;
/// Longest path and symbolic link target in bytes, as on Linux (PATH_MAX).
pub const PATH_MAX: usize = 4096;

/// Checks the name of a new entry.
///
/// # Errors
/// [`ErrorCode::NameTooLong`] over 255 bytes; [`ErrorCode::InvalidArgument`] for an empty name, `.`, `..`, or one with NUL
/// or `/`.
pub fn check(name: &[u8]) -> Result<(), ErrorCode> {
    if name.len() > NAME_MAX {
        return Err(ErrorCode::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|b| *b == 0 || *b == b'/') {
        return Err(ErrorCode::InvalidArgument);
    }
    Ok(())
}

/// The components of a path from the root; empty ones and `.` are skipped, a leading `/` may be missing.
///
/// # Errors
/// As [`check`] for any component; `..` is refused.
pub fn split(path: &[u8]) -> Result<Vec<&[u8]>, ErrorCode> {
    let parts: Vec<_> = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    parts.iter().try_for_each(|part| check(part))?;
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_255_bytes() {
        assert_eq!(check(&[b'x'; 255]), Ok(()));
        assert_eq!(check(&[b'x'; 256]), Err(ErrorCode::NameTooLong));
    }

    #[test]
    fn any_byte_but_nul_and_slash() {
        for b in 1..=255u8 {
            assert_eq!(check(&[b'a', b]).is_ok(), b != b'/', "{b}");
        }
        assert_eq!(check(b"a\0"), Err(ErrorCode::InvalidArgument));
    }

    #[test]
    fn splits_paths() {
        assert_eq!(split(b"/a//b c/./d\n"), Ok(vec![&b"a"[..], b"b c", b"d\n"]));
        assert_eq!(split(b"/"), Ok(vec![]));
        assert!(split(b"/a/../b").is_err());
    }
}
