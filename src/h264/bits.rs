//! Reads the RBSP of a NAL unit bit by bit, without its emulation prevention bytes (H.264 7.3.1, 7.2, 9.1).
//! The reader reads each byte at most once and never beyond the end, and every variable-length value has a maximum.

/// Why a NAL unit could not be parsed.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    /// The NAL unit ends before the value is complete.
    #[error("the NAL unit ends too early")]
    Truncated,
    /// A field has a value that the standard does not allow. Holds the name of the field.
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
}

/// A bit reader for one NAL unit.
pub(super) struct BitReader<'a> {
    bytes: std::slice::Iter<'a, u8>,
    /// Number of consecutive zero bytes read last. After two of them, a byte with the value 3 is emulation prevention.
    zeros: u8,
    current: u8,
    bits_left: u8,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: bytes.iter(), zeros: 0, current: 0, bits_left: 0 }
    }

    fn next_byte(&mut self) -> Result<u8, SyntaxError> {
        let mut byte = *self.bytes.next().ok_or(SyntaxError::Truncated)?;
        if self.zeros >= 2 && byte == 3 {
            self.zeros = 0;
            byte = *self.bytes.next().ok_or(SyntaxError::Truncated)?;
        }
        self.zeros = if byte == 0 { self.zeros.saturating_add(1) } else { 0 };
        Ok(byte)
    }

    pub(super) fn bit(&mut self) -> Result<bool, SyntaxError> {
        if self.bits_left == 0 {
            self.current = self.next_byte()?;
            self.bits_left = 8;
        }
        self.bits_left -= 1;
        Ok(self.current >> self.bits_left & 1 == 1)
    }

    /// Reads eight bits, `u(8)`. They need not begin at a byte boundary.
    pub(super) fn byte(&mut self) -> Result<u8, SyntaxError> {
        if self.bits_left == 0 {
            return self.next_byte();
        }
        let mut value = 0;
        for _ in 0..8 {
            value = value << 1 | u8::from(self.bit()?);
        }
        Ok(value)
    }

    /// Returns true if all bytes were read.
    pub(super) fn is_at_end(&self) -> bool {
        self.bits_left == 0 && self.bytes.len() == 0
    }

    /// Reads an unsigned number of `count` bits, `u(count)`. `count` must be at most 32.
    pub(super) fn number(&mut self, count: u8) -> Result<u32, SyntaxError> {
        let mut value: u32 = 0;
        for _ in 0..count {
            value = value << 1 | u32::from(self.bit()?);
        }
        Ok(value)
    }

    /// Skips whole bytes. Must be called at a byte boundary.
    pub(super) fn skip_bytes(&mut self, count: usize) -> Result<(), SyntaxError> {
        debug_assert!(self.bits_left == 0, "not at a byte boundary");
        if count > self.bytes.len() {
            return Err(SyntaxError::Truncated);
        }
        let (skipped, rest) = self.bytes.as_slice().split_at(count);
        let has_zeros = self.zeros > 0 || memchr::memmem::find(skipped, &[0, 0]).is_some();
        if has_zeros {
            return (0..count).try_for_each(|_| self.next_byte().map(drop));
        }
        self.zeros = u8::from(skipped.last() == Some(&0));
        self.bytes = rest.iter();
        Ok(())
    }

    /// Reads an Exp-Golomb code, `ue(v)`. Returns an error with the name `field` if the value exceeds `max`.
    pub(super) fn unsigned(&mut self, field: &'static str, max: u32) -> Result<u32, SyntaxError> {
        let mut prefix = 0;
        while !self.bit()? {
            prefix += 1;
            if prefix > 31 {
                return Err(SyntaxError::OutOfRange(field));
            }
        }
        let mut value: u32 = 1;
        for _ in 0..prefix {
            value = value << 1 | u32::from(self.bit()?);
        }
        if value - 1 > max { Err(SyntaxError::OutOfRange(field)) } else { Ok(value - 1) }
    }

    /// As [`BitReader::unsigned`], for a value that fits in one byte.
    pub(super) fn unsigned_u8(&mut self, field: &'static str, max: u8) -> Result<u8, SyntaxError> {
        let value = self.unsigned(field, u32::from(max))?;
        u8::try_from(value).map_err(|_| SyntaxError::OutOfRange(field))
    }

    /// Reads a signed Exp-Golomb code, `se(v)`. All 32-bit values except the smallest are accepted.
    pub(super) fn signed(&mut self, field: &'static str) -> Result<i32, SyntaxError> {
        let code = self.unsigned(field, u32::MAX - 1)?;
        let magnitude = i32::try_from(code.div_ceil(2)).map_err(|_| SyntaxError::OutOfRange(field))?;
        Ok(if code % 2 == 1 { magnitude } else { -magnitude })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::BitWriter;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exp_golomb_codes_of_the_standard_are_read() {
        // The bits 1 010 011 00100 00101 are the codes of the values 0 to 4 (H.264 table 9-2).
        let mut bits = BitReader::new(&[0b1010_0110, 0b0100_0010, 0b1000_0000]);
        for value in 0..5 {
            assert_eq!(bits.unsigned("", u32::MAX), Ok(value));
        }
    }

    #[test]
    fn emulation_prevention_is_removed_and_other_3_bytes_are_kept() {
        let mut bits = BitReader::new(&[0, 0, 3, 1, 0, 3, 0, 0, 3, 0, 0, 3, 3]);
        let bytes: Vec<u8> = std::iter::from_fn(|| bits.byte().ok()).collect();
        assert_eq!(bytes, [0, 0, 1, 0, 3, 0, 0, 0, 0, 3]);
    }

    #[test]
    fn skipped_bytes_are_counted_without_emulation_prevention() {
        let raw = [9, 0, 0, 3, 1, 0, 3, 0, 0, 3, 0, 0, 3, 3, 7, 0, 0, 3, 2];
        let bytes: Vec<u8> = {
            let mut bits = BitReader::new(&raw);
            std::iter::from_fn(|| bits.byte().ok()).collect()
        };
        for from in 0..=bytes.len() {
            for count in 0..=bytes.len() - from {
                let mut bits = BitReader::new(&raw);
                assert_eq!(bits.skip_bytes(from), Ok(()));
                assert_eq!(bits.skip_bytes(count), Ok(()));
                assert_eq!(bits.byte().ok(), bytes.get(from + count).copied());
            }
        }
        assert_eq!(BitReader::new(&raw).skip_bytes(raw.len() + 1), Err(SyntaxError::Truncated));
        assert_eq!(BitReader::new(&raw).skip_bytes(raw.len()), Err(SyntaxError::Truncated));
    }

    #[test]
    fn truncated_and_too_long_codes_are_errors() {
        assert_eq!(BitReader::new(&[]).bit(), Err(SyntaxError::Truncated));
        assert_eq!(BitReader::new(&[0, 0, 3]).unsigned("x", 9), Err(SyntaxError::Truncated));
        assert_eq!(BitReader::new(&[0; 64]).unsigned("x", u32::MAX), Err(SyntaxError::OutOfRange("x")));
        assert_eq!(BitReader::new(&[0b0001_1000]).unsigned("x", 5), Err(SyntaxError::OutOfRange("x")));
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn written_values_are_read_back(
            values in prop::collection::vec((any::<bool>(), 0..u32::MAX - 1, -(1 << 30)..1 << 30), 0..40)
        ) {
            let mut writer = BitWriter::default();
            for (bit, unsigned, signed) in &values {
                writer = writer.bits(u32::from(*bit), 1).ue(*unsigned).se(*signed);
            }
            let nal = writer.nal(0x67);
            let mut bits = BitReader::new(&nal[1..]);
            for (bit, unsigned, signed) in values {
                prop_assert_eq!(bits.bit(), Ok(bit));
                prop_assert_eq!(bits.unsigned("", u32::MAX), Ok(unsigned));
                prop_assert_eq!(bits.signed(""), Ok(signed));
            }
        }
    }
}
