/* A camera for the stress test. Usage: stress_camera NAME UNITS_PER_SECOND.
 * Each unit consists of its number, a CRC-32 of the bytes after the CRC, and 500 to 8000 bytes made from the number.
 * SIGTERM ends the program. It then prints its counts and longest times in one line. */
#define PET_CAMERA_RING_IMPLEMENTATION
#include "pet_camera_ring.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

static volatile sig_atomic_t is_stopped;
static uint32_t crc_table[256];

static void stop(int signal)
{
    (void)signal;
    is_stopped = 1;
}

static uint64_t now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void make_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) {
            value = value & 1 ? value >> 1 ^ 0xedb88320u : value >> 1;
        }
        crc_table[i] = value;
    }
}

static uint32_t crc32(const uint8_t *bytes, size_t count)
{
    uint32_t crc = 0xffffffffu;
    while (count-- > 0) {
        crc = crc >> 8 ^ crc_table[(crc ^ *bytes++) & 0xff];
    }
    return ~crc;
}

/* Fills the slot with a unit and returns the size of the unit in bytes. */
static size_t make_unit(uint8_t *slot, uint64_t number)
{
    uint64_t state = number * UINT64_C(0x9e3779b97f4a7c15) | 1;
    size_t bytes = 512 + (size_t)(state >> 40) % 7488;
    uint32_t crc;
    for (size_t at = 12; at < bytes; at++) {
        if (at % 8 == 0) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        slot[at] = (uint8_t)(state >> at % 8 * 8);
    }
    slot[12] = 0x61; /* makes the checksummed bytes look like a coded slice: the reader's CRC covers slices only */
    crc = crc32(slot + 12, bytes - 12);
    memcpy(slot, &number, sizeof number);
    memcpy(slot + 8, &crc, sizeof crc);
    return bytes;
}

/* The longest time that one call to claim or publish a slot has taken. */
struct longest {
    uint64_t wall_ns, cpu_ns;
};

static void note(struct longest *longest, uint64_t wall_ns, uint64_t cpu_ns)
{
    longest->wall_ns = wall_ns > longest->wall_ns ? wall_ns : longest->wall_ns;
    longest->cpu_ns = cpu_ns > longest->cpu_ns ? cpu_ns : longest->cpu_ns;
}

int main(int count, char **arguments)
{
    struct pcr_config config = { .slot_count = 64, .slot_bytes = 8192, .width = 640, .height = 480 };
    struct pcr ring;
    struct longest longest = { 0, 0 };
    uint64_t number = 0, published = 0, interval_ns, due_ns, leased = 0;
    int error;
    if (count != 3 || (interval_ns = strtoull(arguments[2], NULL, 10)) == 0) {
        fprintf(stderr, "stress_camera NAME UNITS_PER_SECOND\n");
        return 2;
    }
    interval_ns = 1000000000u / interval_ns;
    config.name = arguments[1];
    error = pcr_create(&ring, &config);
    if (error != 0) {
        fprintf(stderr, "%s: %s\n", config.name, strerror(-error));
        return 1;
    }
    make_crc_table();
    signal(SIGTERM, stop);
    printf("ready\n");
    fflush(stdout);
    for (due_ns = now_ns(CLOCK_MONOTONIC); !is_stopped; due_ns += interval_ns, number++) {
        struct timespec due = { (time_t)(due_ns / 1000000000u), (long)(due_ns % 1000000000u) };
        struct pcr_unit unit = { .frame_number = number };
        uint64_t wall_ns, cpu_ns;
        void *slot;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
        unit.captured_ns = wall_ns = now_ns(CLOCK_MONOTONIC);
        cpu_ns = now_ns(CLOCK_THREAD_CPUTIME_ID);
        slot = pcr_claim(&ring);
        note(&longest, now_ns(CLOCK_MONOTONIC) - wall_ns, now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_ns);
        if (slot == NULL) {
            continue;
        }
        unit.bytes = make_unit(slot, number);
        wall_ns = now_ns(CLOCK_MONOTONIC);
        cpu_ns = now_ns(CLOCK_THREAD_CPUTIME_ID);
        published += pcr_publish(&ring, &unit) == 0;
        note(&longest, now_ns(CLOCK_MONOTONIC) - wall_ns, now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_ns);
    }
    for (uint32_t slot = 0; slot < ring.slot_count; slot++) {
        leased += (atomic_load(&ring.control[slot].word) & PCR_READERS) != 0;
    }
    printf("units=%" PRIu64 " published=%" PRIu64 " dropped=%" PRIu64 " leased=%" PRIu64 " longest_us=%" PRIu64
           " longest_cpu_us=%" PRIu64 "\n",
        number, published, (uint64_t)atomic_load(&ring.header->dropped), leased, longest.wall_ns / 1000,
        longest.cpu_ns / 1000);
    pcr_close(&ring, 1);
    return 0;
}
