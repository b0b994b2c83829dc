//! Consecutive bytes that came in pieces, cut without a copy.

use bytes::Bytes;

#[derive(Clone, Debug, Default)]
pub(crate) struct Pieces {
    pieces: Vec<Bytes>,
    /// Where each piece ends.
    ends: Vec<usize>,
}

impl Pieces {
    pub(crate) fn new(pieces: Vec<Bytes>) -> Self {
        let ends = pieces
            .iter()
            .scan(0, |end, piece| {
                *end += piece.len();
                Some(*end)
            })
            .collect();
        Self { pieces, ends }
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    pub(crate) fn as_slice(&self) -> &[Bytes] {
        &self.pieces
    }

    pub(crate) fn into_inner(self) -> Vec<Bytes> {
        self.pieces
    }

    /// Adds `len` bytes from `at` to `out`. All of them must be there.
    pub(crate) fn slice(&self, mut at: usize, mut len: usize, out: &mut Vec<Bytes>) {
        let mut i = self.ends.partition_point(|end| *end <= at);
        while len > 0 {
            let piece = &self.pieces[i];
            let start = at - (self.ends[i] - piece.len());
            let take = len.min(piece.len() - start);
            out.push(piece.slice(start..start + take));
            (at, len, i) = (at + take, len - take, i + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_is_right() {
        let pieces = Pieces::new([&b"abc"[..], b"", b"d", b"efgh"].map(Bytes::from_static).to_vec());
        let all = b"abcdefgh";
        for at in 0..=all.len() {
            for len in 0..=all.len() - at {
                let mut out = Vec::new();
                pieces.slice(at, len, &mut out);
                assert_eq!(out.concat(), all[at..at + len]);
            }
        }
    }
}
