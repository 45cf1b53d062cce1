//! The buffers in which downloads get the bytes of a file. They are reused, so that many downloads one after another
//! leave no memory behind.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::base::limits;

/// Idle buffers, at most [`limits::DOWNLOAD_PIECES_KEPT`].
#[derive(Debug, Default)]
pub(super) struct Pieces {
    idle: Mutex<Vec<Vec<u8>>>,
}

impl Pieces {
    /// Fills a buffer of at most `bytes_max` bytes with `read`, which returns the number of bytes it has filled. The
    /// buffer becomes idle again when the returned bytes are dropped.
    pub(super) fn fill(
        self: &Arc<Self>,
        bytes_max: u64,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<Bytes> {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = kept.unwrap_or_else(|| Vec::with_capacity(limits::DOWNLOAD_PIECE_BYTES));
        let bytes = usize::try_from(bytes_max).unwrap_or(usize::MAX).min(limits::DOWNLOAD_PIECE_BYTES);
        buffer.resize(bytes, 0);
        let mut piece = Piece { buffer, pieces: Arc::clone(self) };
        let filled = read(&mut piece.buffer)?;
        piece.buffer.truncate(filled);
        Ok(Bytes::from_owner(piece))
    }
}

struct Piece {
    buffer: Vec<u8>,
    pieces: Arc<Pieces>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut idle = self.pieces.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < limits::DOWNLOAD_PIECES_KEPT {
            idle.push(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_reused_and_only_a_few_are_kept() {
        let pieces = Arc::new(Pieces::default());
        let full = |bytes: u64| pieces.fill(bytes, |out| (out.fill(7), Ok(out.len())).1).unwrap();
        let held: Vec<Bytes> = (0..200).map(|_| full(u64::MAX)).collect();
        assert!(held.iter().all(|piece| piece.len() == limits::DOWNLOAD_PIECE_BYTES));
        drop(held);
        let idle = || pieces.idle.lock().unwrap().len();
        assert_eq!(idle(), limits::DOWNLOAD_PIECES_KEPT);
        let short = full(5);
        assert_eq!((&short[..], idle()), (&[7; 5][..], limits::DOWNLOAD_PIECES_KEPT - 1));
        drop(short);
        assert!(pieces.fill(5, |_| Err(io::ErrorKind::Other.into())).is_err());
        assert_eq!(idle(), limits::DOWNLOAD_PIECES_KEPT, "a failed read returns its buffer");
    }
}
