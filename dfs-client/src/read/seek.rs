//! Data and holes of a file, in whole chunks: what lseek(2) tells with `SEEK_DATA` and `SEEK_HOLE`.

/// What is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    /// The next byte that is stored.
    Data,
    /// The next byte that is not. The end of the file counts as one.
    Hole,
}

/// Where `what` begins at or behind `offset` in a file of `size` bytes; `is_hole` tells which slots have no chunk. `None` behind
/// the end, and if only a hole follows where data is wanted.
pub(crate) fn seek(size: u64, chunk_size: u64, offset: u64, what: Seek, is_hole: impl Fn(u64) -> bool) -> Option<u64> {
    if offset >= size {
        return None;
    }
    let found = (offset / chunk_size..size.div_ceil(chunk_size))
        .find(|index| is_hole(*index) == (what == Seek::Hole))
        .map(|index| (index * chunk_size).max(offset));
    match what {
        Seek::Data => found,
        Seek::Hole => found.or(Some(size)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_and_holes_of_a_sparse_file() {
        // Slots of 10 bytes: data, hole, hole, data, 5 bytes of data.
        let at = |offset, what| seek(45, 10, offset, what, |index| index == 1 || index == 2);
        assert_eq!(at(0, Seek::Data), Some(0));
        assert_eq!(at(7, Seek::Data), Some(7));
        assert_eq!(at(10, Seek::Data), Some(30));
        assert_eq!(at(0, Seek::Hole), Some(10));
        assert_eq!(at(15, Seek::Hole), Some(15));
        assert_eq!(at(31, Seek::Hole), Some(45), "the end");
        assert_eq!(at(45, Seek::Hole), None);
        assert_eq!(at(45, Seek::Data), None);
        assert_eq!(seek(20, 10, 3, Seek::Data, |_| true), None, "nothing but a hole");
        assert_eq!(seek(0, 10, 0, Seek::Hole, |_| true), None);
    }
}
