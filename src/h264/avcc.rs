//! Builds the content of the `avcC` box, with which an MP4 describes its H.264 stream (ISO/IEC 14496-15).
//! `recorder::format` writes the MP4 boxes and files.

use super::parameter_sets::ParameterSets;

/// Values of `profile_idc` for which the record ends with chroma format and bit depths (5.3.3.1.2).
const PROFILES_WITH_CHROMA_INFO: [u8; 4] = [100, 110, 122, 144];
const PPS_COUNT_MAX: usize = 255; // local bound: the record counts them in one byte

/// Returns the content of an `avcC` box: an `AVCDecoderConfigurationRecord` (5.3.3.1.2). It contains the active
/// sequence parameter set and the picture parameter sets that refer to it. Returns `None` until both kinds are known.
#[must_use]
pub fn configuration_record(sets: &ParameterSets) -> Option<Vec<u8>> {
    let sps = sets.active_sps()?;
    let pps = || sets.pps().filter(|pps| pps.fields.sps_id == sps.id).take(PPS_COUNT_MAX);
    let pps_count = u8::try_from(pps().count()).ok().filter(|count| *count > 0)?;
    let [profile, constraints, level] = sps.fields.info.profile_level_id;
    let length_size_minus_one = 3; // each NAL unit is preceded by a length of 4 bytes
    let sps_count = 1;
    let mut record = vec![1, profile, constraints, level, 0xFC | length_size_minus_one, 0xE0 | sps_count];
    append_set(&mut record, &sps.bytes)?;
    record.push(pps_count);
    for pps in pps() {
        append_set(&mut record, &pps.bytes)?;
    }
    if PROFILES_WITH_CHROMA_INFO.contains(&profile) {
        let no_sps_extensions = 0;
        record.extend([
            0xFC | sps.fields.chroma_format_idc,
            0xF8 | sps.fields.bit_depth_luma_minus8,
            0xF8 | sps.fields.bit_depth_chroma_minus8,
            no_sps_extensions,
        ]);
    }
    Some(record)
}

fn append_set(record: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    record.extend(u16::try_from(bytes.len()).ok()?.to_be_bytes());
    record.extend_from_slice(bytes);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::Assembler;
    use super::super::testing::{annex_b, idr, pps, sps};
    use super::*;

    #[test]
    fn record_holds_the_active_sps_and_its_pps() {
        let mut assembler = Assembler::default();
        assert_eq!(configuration_record(assembler.parameter_sets()), None);
        let (first, second) = (sps(0, 31, 80, 45), sps(1, 40, 120, 68));
        let unit = annex_b(&[first, second.clone(), pps(0, 0, 0), pps(1, 1, 0), pps(2, 1, 3), idr(2)]);
        assembler.assemble(&unit).unwrap();
        let mut expected = vec![1, 66, 0xC0, 40, 0xFF, 0xE1, 0, u8::try_from(second.len()).unwrap()];
        expected.extend(&second);
        expected.push(2);
        for pps in [pps(1, 1, 0), pps(2, 1, 3)] {
            expected.extend([0, u8::try_from(pps.len()).unwrap()]);
            expected.extend(&pps);
        }
        assert_eq!(configuration_record(assembler.parameter_sets()), Some(expected));
    }

    #[test]
    fn high_profile_adds_chroma_format_and_bit_depths() {
        let sps = [
            0x67, 0x6E, 0x00, 0x28, 0xA6, 0xCD, 0x94, 0x07, 0x80, 0x22, 0x7A, 0x97, 0x01, 0x10, 0x00, 0x00,
            0x03, 0x00, 0x10, 0x00, 0x00, 0x03, 0x03, 0xC0, 0xF1, 0x83, 0x19, 0x60,
        ];
        let mut assembler = Assembler::default();
        let unit = annex_b(&[sps.to_vec(), pps(0, 0, 0), idr(0)]);
        assembler.assemble(&unit).unwrap();
        let record = configuration_record(assembler.parameter_sets()).unwrap();
        assert_eq!(record[..6], [1, 0x6E, 0x00, 0x28, 0xFF, 0xE1]);
        assert_eq!(record[record.len() - 4..], [0xFD, 0xFA, 0xFA, 0]);
    }

    #[test]
    fn record_is_none_without_a_pps() {
        let mut assembler = Assembler::default();
        let _ = assembler.assemble(&annex_b(&[sps(0, 31, 80, 45)]));
        assert_eq!(configuration_record(assembler.parameter_sets()), None);
    }
}
