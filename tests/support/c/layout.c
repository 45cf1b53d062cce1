/* Prints the constants and field offsets of pet_camera_ring.h, one name and value in each line.
 * tests/promises/c_camera.rs compares them with those of the server. */
#define PET_CAMERA_RING_IMPLEMENTATION
#include "pet_camera_ring.h"

#define NUMBER(name, value) printf("%s %llu\n", name, (unsigned long long)(value))
#define CONSTANT(name) NUMBER(#name, name)
#define HEADER(field) NUMBER("header." #field, offsetof(struct pcr_header, field))
#define CONTROL(field) NUMBER("control." #field, offsetof(struct pcr_control, field))

int main(void)
{
    CONSTANT(PCR_MAGIC);
    CONSTANT(PCR_VERSION);
    CONSTANT(PCR_HEADER_BYTES);
    CONSTANT(PCR_READERS_MAX);
    CONSTANT(PCR_SLOTS_MIN);
    CONSTANT(PCR_SLOTS_MAX);
    CONSTANT(PCR_SLOT_BYTES_MAX);
    CONSTANT(PCR_FOURCC_H264);
    CONSTANT(PCR_WRITER_LOCK);
    CONSTANT(PCR_READER_LOCKS);
    CONSTANT(PCR_STATE_OPEN);
    CONSTANT(PCR_STATE_CLOSED);
    CONSTANT(PCR_NAL_OFFSETS_MAX);
    CONSTANT(PCR_WRITING);
    CONSTANT(PCR_READERS);
    CONSTANT(PCR_SEQUENCE_SHIFT);
    CONSTANT(PCR_SEQUENCE_MAX);
    CONSTANT(PCR_LATEST_SHIFT);
    CONSTANT(PCR_IDR);
    CONSTANT(PCR_OBEYS_BITRATE);
    CONSTANT(PCR_BITRATE_REQUEST_S);
    NUMBER("control_bytes", sizeof(struct pcr_control));
    HEADER(magic);
    HEADER(version);
    HEADER(header_size);
    HEADER(slot_count);
    HEADER(max_readers);
    HEADER(slot_size);
    HEADER(ctl_offset);
    HEADER(data_offset);
    HEADER(total_size);
    HEADER(fourcc);
    HEADER(flags);
    HEADER(width);
    HEADER(height);
    HEADER(fps_num);
    HEADER(fps_den);
    HEADER(epoch);
    HEADER(epoch_sequence);
    HEADER(latest);
    HEADER(futex);
    HEADER(keyframe_request);
    HEADER(dropped);
    HEADER(state);
    HEADER(bitrate_request);
    HEADER(bitrate_requested_s);
    CONTROL(word);
    CONTROL(captured_ns);
    CONTROL(frame_number);
    CONTROL(len);
    CONTROL(flags);
    CONTROL(nal_count);
    CONTROL(nal_offset);
    CONTROL(width);
    CONTROL(height);
    NUMBER("data_offset_8", pcr_data_offset(8));
    NUMBER("data_offset_256", pcr_data_offset(256));
    return 0;
}
