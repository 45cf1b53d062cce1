//! The writing side of a lease ring in Rust, for the simulator and for tests. `pet_camera_ring.h` is the C version for
//! the camera daemon. The writer never waits for a reader. Mapping the segment is the task of `writer.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fd::OwnedFd;
use rustix::thread::futex;

use super::layout::{FORMAT_H264, SlotMetadata};
use super::lease::{self, READERS_MAX, Slots, Sound};
use super::lease_header::{
    BITRATE_REQUEST_S, CONTROL_BYTES, FLAG_OBEYS_BITRATE, FOURCC_H264, Geometry, HEADER_SIZE, MAGIC,
    READER_LOCKS, STATE_CLOSED, STATE_OPEN, VERSION, WRITER_LOCK, control, header,
};
use super::locks::{lock_byte, unlock_byte};
use super::shared_map::SharedMap;

/// The only writer of a lease ring. Dropping the writer marks the ring as closed but keeps the segment.
pub(super) struct LeaseWriter {
    map: Arc<SharedMap>,
    /// The open segment. The writer lock lasts as long as this file or its mapping. `None` after
    /// [`LeaseWriter::abandon`].
    file: Option<OwnedFd>,
    geometry: Geometry,
    /// Sequence of the last unit, published or dropped.
    sequence: u64,
}

impl LeaseWriter {
    /// Becomes the writer of the ring in `map`. If `fresh_interval_ms` is given, writes the header of a new ring.
    /// Otherwise takes over the existing ring. Returns `None` if the ring has a living writer.
    pub(super) fn new(
        map: Arc<SharedMap>,
        file: OwnedFd,
        geometry: Geometry,
        fresh_interval_ms: Option<u32>,
    ) -> Option<LeaseWriter> {
        if !lock_byte(&file, WRITER_LOCK) {
            return None;
        }
        let mut writer = LeaseWriter { map, file: Some(file), geometry, sequence: 0 };
        match fresh_interval_ms {
            Some(interval_ms) => writer.write_header(interval_ms),
            None => writer.take_over(),
        }
        writer.set_obeys_bitrate(false);
        Some(writer)
    }

    fn write_header(&mut self, interval_ms: u32) {
        let words = [
            (header::VERSION, VERSION),
            (header::HEADER_SIZE, HEADER_SIZE),
            (header::SLOT_COUNT, self.geometry.slot_count()),
            (header::MAX_READERS, READERS_MAX),
            (header::FOURCC, FOURCC_H264),
            (header::FPS_NUM, 1000),
            (header::FPS_DEN, interval_ms),
            (header::STATE, STATE_OPEN),
        ];
        for (offset, value) in words {
            self.map.word(offset).store(value, Ordering::Relaxed);
        }
        let long_words = [
            (header::SLOT_SIZE, self.geometry.slot_bytes()),
            (header::CTL_OFFSET, self.geometry.control_of(0)),
            (header::DATA_OFFSET, self.geometry.data_offset()),
            (header::TOTAL_SIZE, self.geometry.segment_bytes()),
            (header::EPOCH, 1),
            (header::EPOCH_SEQUENCE, 1),
        ];
        for (offset, value) in long_words {
            self.map.long_word(offset).store(value as u64, Ordering::Relaxed);
        }
        // The magic is stored last, with release ordering. So a reader that sees the magic also sees the whole header.
        self.map.long_word(header::MAGIC).store(MAGIC, Ordering::Release);
    }

    /// Continues the ring of a writer that has ended. Leases stay and sequences continue. Slots that the old writer had
    /// not finished become empty.
    fn take_over(&mut self) {
        lease::sweep(self);
        (self.sequence, _) = lease::latest::<Sound>(self.map.long_word(header::LATEST));
        let first = lease::after(self.sequence);
        self.map.long_word(header::EPOCH_SEQUENCE).store(first, Ordering::Relaxed);
        self.map.word(header::STATE).store(STATE_OPEN, Ordering::Relaxed);
        self.map.word(header::KEYFRAME_REQUEST).store(0, Ordering::Relaxed);
        self.map.long_word(header::EPOCH).fetch_add(1, Ordering::Release);
        self.wake_readers();
    }

    /// Writes one unit, given in two parts, into a free slot and publishes it. Calls `between` after the first part.
    ///
    /// Returns false if no slot is free or the unit is larger than a slot. The unit is then dropped, and readers see
    /// that its sequence is missing.
    pub(super) fn publish(
        &mut self,
        metadata: &SlotMetadata,
        flags: u32,
        parts: [&[u8]; 2],
        between: impl FnOnce(),
    ) -> bool {
        let sequence = lease::after(self.sequence);
        self.sequence = sequence;
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let slot = if bytes <= self.geometry.slot_bytes() { self.claim(sequence) } else { None };
        let Some(slot) = slot else {
            self.map.long_word(header::DROPPED).fetch_add(1, Ordering::Relaxed);
            return false;
        };
        let [first, second] = parts;
        let data = self.geometry.data_offset() + self.geometry.data_of(slot);
        self.write_control(slot, metadata, flags);
        self.map.copy_in(data, first);
        between();
        self.map.copy_in(data + first.len(), second);
        lease::publish::<Sound>(self, slot, sequence, self.map.long_word(header::LATEST));
        self.wake_readers();
        true
    }

    fn claim(&self, sequence: u64) -> Option<u32> {
        self.file.as_ref()?;
        let (newest, slot) = lease::latest::<Sound>(self.map.long_word(header::LATEST));
        let newest = (newest != 0).then_some(slot);
        self.reap(lease::overdue(self, sequence));
        lease::claim::<Sound>(self, sequence, newest).or_else(|| {
            self.reap(u64::MAX);
            lease::claim::<Sound>(self, sequence, newest)
        })
    }

    /// Releases the leases of readers that have ended. `readers` has one bit for each reader to check. The lock of each
    /// reader number is held meanwhile, so that no new reader takes the number.
    fn reap(&self, readers: u64) {
        let Some(file) = &self.file else { return };
        for reader in (0..READERS_MAX).filter(|reader| readers & (1 << reader) != 0) {
            let byte = READER_LOCKS + i64::from(reader);
            if lock_byte(file, byte) {
                lease::reap(self, reader);
                unlock_byte(file, byte);
            }
        }
    }

    /// Writes the control block of `slot`. A unit size that does not fit in 32 bits is stored as `u32::MAX`. If the
    /// format is not H.264, the size is stored as 0. Readers reject both sizes.
    fn write_control(&self, slot: u32, metadata: &SlotMetadata, flags: u32) {
        let block = self.geometry.control_of(slot);
        let seconds_ns = metadata.timestamp_s.saturating_mul(1_000_000_000);
        let captured_ns = seconds_ns.saturating_add(metadata.timestamp_ns).cast_unsigned();
        let data_bytes = u32::try_from(metadata.data_bytes).unwrap_or(u32::MAX);
        let bytes = if metadata.format == FORMAT_H264 { data_bytes } else { 0 };
        self.map.long_word(block + control::CAPTURED_NS).store(captured_ns, Ordering::Relaxed);
        self.map.long_word(block + control::FRAME_NUMBER).store(metadata.frame_number, Ordering::Relaxed);
        let words = [
            (control::LEN, bytes),
            (control::FLAGS, flags),
            (control::NAL_COUNT, 0),
            (control::WIDTH, metadata.width.cast_unsigned()),
            (control::HEIGHT, metadata.height.cast_unsigned()),
        ];
        for (offset, value) in words {
            self.map.word(block + offset).store(value, Ordering::Relaxed);
        }
    }

    fn wake_readers(&self) {
        let word = self.map.word(header::FUTEX);
        word.fetch_add(1, Ordering::Release);
        // The result is ignored: waking no reader is no error, and this call cannot fail in another way.
        let _ = futex::wake(word, futex::Flags::empty(), i32::MAX.unsigned_abs());
    }

    pub(super) fn write_index(&self) -> u32 {
        let (sequence, _) = lease::latest::<Sound>(self.map.long_word(header::LATEST));
        #[expect(clippy::cast_possible_truncation, reason = "cursors number units with 32 bits")]
        let index = sequence as u32;
        index
    }

    pub(super) fn take_idr_request(&self) -> bool {
        self.map.word(header::KEYFRAME_REQUEST).swap(0, Ordering::Relaxed) != 0
    }

    /// Sets or clears the flag of cameras that obey bit rate requests, and forgets the current request.
    pub(super) fn set_obeys_bitrate(&mut self, obeys: bool) {
        self.map.word(header::BITRATE_REQUEST).store(0, Ordering::Relaxed);
        let flags = if obeys { FLAG_OBEYS_BITRATE } else { 0 };
        self.map.word(header::FLAGS).store(flags, Ordering::Relaxed);
    }

    /// Returns the requested bit rate in kbit/s, or `None` without a request that is valid at `now_s`.
    pub(super) fn bitrate_request(&self, now_s: u32) -> Option<u32> {
        let kbps = self.map.word(header::BITRATE_REQUEST).load(Ordering::Relaxed);
        let renewed_s = self.map.word(header::BITRATE_REQUESTED_S).load(Ordering::Relaxed);
        (kbps > 0 && now_s.wrapping_sub(renewed_s) <= BITRATE_REQUEST_S).then_some(kbps)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.map.long_word(header::DROPPED).load(Ordering::Relaxed)
    }

    pub(super) fn abandon(&mut self) {
        if let Some(file) = self.file.take() {
            unlock_byte(&file, WRITER_LOCK); // closing the file is not enough: the mapping would keep its locks
        }
    }
}

impl Slots for LeaseWriter {
    type Word = AtomicU64;

    fn count(&self) -> u32 {
        self.geometry.slot_count()
    }

    fn word(&self, slot: u32) -> &AtomicU64 {
        self.map.long_word(self.geometry.control_of(slot) + control::WORD)
    }
}

impl Drop for LeaseWriter {
    fn drop(&mut self) {
        if self.file.is_some() {
            self.map.word(header::STATE).store(STATE_CLOSED, Ordering::Relaxed);
            self.wake_readers();
        }
    }
}

const _: () = assert!(CONTROL_BYTES.is_multiple_of(64), "control blocks share no cache line");
