/*
 * pet_camera_ring.h: the camera's side of the lease ring, as a single header for C11 on Linux. It has no dependencies.
 *
 * NAME
 *     pcr_create, pcr_claim, pcr_publish, pcr_abandon, pcr_take_keyframe_request, pcr_bitrate_request, pcr_close
 *         - pass H.264 access units to streaming-server and to other readers without a copy
 *
 * SYNOPSIS
 *     #define PET_CAMERA_RING_IMPLEMENTATION    in exactly one .c file, before all includes
 *     #include "pet_camera_ring.h"              (link with -lrt if the C library is older than glibc 2.34)
 *
 *     int   pcr_create(struct pcr *ring, const struct pcr_config *config);
 *     void *pcr_claim(struct pcr *ring);
 *     int   pcr_publish(struct pcr *ring, const struct pcr_unit *unit);
 *     void  pcr_abandon(struct pcr *ring);
 *     int   pcr_take_keyframe_request(struct pcr *ring);
 *     uint32_t pcr_bitrate_request(const struct pcr *ring);
 *     void  pcr_close(struct pcr *ring, int remove);
 *
 * DESCRIPTION
 *     The ring is a POSIX shared-memory segment of slots. The camera claims a slot, its encoder writes one access
 *     unit (Annex B, with start codes) into the slot, and the camera publishes the slot. Readers lease the slots
 *     that they read. A slot is claimed again only when no reader leases it. So no reader sees half a unit, and no
 *     reader needs a copy. The camera never waits for a reader. It takes back the slots of crashed readers. If every
 *     slot is leased, the camera drops the unit, and readers see that the unit's number is missing.
 *
 *     pcr_create() creates the segment. If an earlier camera has left a segment with the same name and sizes,
 *     pcr_create() continues in that segment: readers keep their leases and see that the camera restarted. A field
 *     of the configuration that is 0 takes the default that is given in brackets below.
 *
 *     pcr_claim() returns the memory of a free slot, which has pcr_room(ring) bytes. It returns NULL if every slot is
 *     leased. Then the unit is counted as dropped: skip this picture and encode the next one as an IDR. Only one slot
 *     can be claimed at a time.
 *
 *     pcr_publish() publishes the claimed slot and wakes the readers.
 *
 *     pcr_abandon() gives back the claimed slot without a unit. Call it if there was no picture to encode. If an
 *     encoded unit is lost, call pcr_publish() with `unit->bytes` set to 0 instead, so that readers see that a unit is
 *     missing.
 *
 *     pcr_take_keyframe_request() returns 1 once after a reader has requested an IDR, otherwise 0. Call it before
 *     each picture.
 *
 *     pcr_bitrate_request() returns the highest bit rate in kbit/s that the camera may use now, because the viewers'
 *     links carry no more. It returns 0 if there is no such limit: then use the camera's own rate. Call it once per GOP
 *     or more often, and set `config.obeys_bitrate` to 1 if the encoder follows the result: without this flag,
 *     streaming-server requests nothing (and nothing without --min-kbps). The result is a request of another process.
 *     Limit it to what the encoder can do, and never exceed the camera's own rate because of it. A request that is
 *     not renewed ends after 5 seconds, so the rate comes back if the server has ended. A camera may also read
 *     `header->bitrate_request` itself, with a relaxed atomic load, if it checks `bitrate_requested_s` too.
 *
 *     pcr_close() closes the ring, and readers see that the camera is away. If `remove` is not 0, pcr_close() also
 *     removes the name, and the next camera creates a new segment.
 *
 *     Only one thread may use a ring. The segment is created with mode 0666, reduced by the umask, because readers
 *     write their leases into the segment. A living camera holds a lock on the segment. The lock ends with the last
 *     descriptor and mapping of the open file, so a child of fork(2) keeps it until the child ends or calls execve(2).
 *
 * RETURN VALUE
 *     pcr_create() and pcr_publish() return 0 on success, otherwise a negative errno. pcr_create() returns -EBUSY if
 *     another camera writes this ring, -EINVAL if the name or a size is invalid, and otherwise the errors of
 *     shm_open(3), ftruncate(2) and mmap(2). pcr_publish() returns -EMSGSIZE if the unit is larger than its slot,
 *     -ENODATA if the unit has 0 bytes, and -EINVAL if no slot is claimed. With -EMSGSIZE and -ENODATA the unit is
 *     dropped: encode the next unit as an IDR.
 *
 * EXAMPLE
 *     This is a complete camera around your encoder (tests/promises/c_camera.rs compiles and runs it):
 *
 *     #define PET_CAMERA_RING_IMPLEMENTATION
 *     #include "pet_camera_ring.h"
 *     #include "encoder.h"                    // yours
 *
 *     int main(void)
 *     {
 *         struct pcr ring;
 *         struct pcr_config config = { .name = "/pet_camera_stream", .width = 1280, .height = 720, .fps_num = 30 };
 *         int error = pcr_create(&ring, &config);
 *         if (error != 0) {
 *             fprintf(stderr, "ring: %s\n", strerror(-error));
 *             return 1;
 *         }
 *         int want_idr = 1;
 *         for (uint64_t frame = 0; encoder_wait_for_picture(); frame++) {
 *             struct pcr_unit unit = { .captured_ns = encoder_captured_ns(), .frame_number = frame };
 *             want_idr |= pcr_take_keyframe_request(&ring);
 *             void *slot = pcr_claim(&ring);
 *             if (slot == NULL) {             // every slot is leased, so this picture is skipped
 *                 want_idr = 1;
 *                 continue;
 *             }
 *             unit.bytes = encoder_encode(slot, pcr_room(&ring), want_idr);
 *             unit.flags = want_idr ? PCR_IDR : 0;
 *             want_idr = pcr_publish(&ring, &unit) != 0;
 *         }
 *         pcr_close(&ring, 1);
 *         return 0;
 *     }
 *
 * The numbers below are the same as in src/camera/lease_header.rs and src/camera/lease.rs. A test compares them.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#ifndef PET_CAMERA_RING_H
#define PET_CAMERA_RING_H

#if defined(PET_CAMERA_RING_IMPLEMENTATION) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* needed for syscall(2) and for locks of open file descriptions */
#endif

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define PCR_MAGIC UINT64_C(0x474e49524d414350) /* "PCAMRING" */
#define PCR_VERSION 1u
#define PCR_HEADER_BYTES 4096u
#define PCR_PAGE_BYTES 65536u
#define PCR_READERS_MAX 16u
#define PCR_SLOTS_MIN 8u
#define PCR_SLOTS_MAX 256u
#define PCR_SLOT_BYTES_MAX (UINT32_C(16) << 20)
#define PCR_FOURCC_H264 UINT32_C(0x34363248) /* "H264" */
#define PCR_WRITER_LOCK 0x7ffe0000L
#define PCR_READER_LOCKS 0x7fff0000L
#define PCR_STATE_OPEN 1u
#define PCR_STATE_CLOSED 2u
#define PCR_NAL_OFFSETS_MAX 15u
#define PCR_WRITING (UINT64_C(1) << 16)
#define PCR_READERS (PCR_WRITING - 1)
#define PCR_SEQUENCE_SHIFT 24
#define PCR_SEQUENCE_MAX ((UINT64_C(1) << 40) - 1)
#define PCR_LATEST_SHIFT 8

/* Value of pcr_header.flags if the camera obeys bitrate_request, and the seconds for which a request is valid. */
#define PCR_OBEYS_BITRATE 1u
#define PCR_BITRATE_REQUEST_S 5u

/* Value of pcr_unit.flags for an IDR. */
#define PCR_IDR 1u

/* The first page of the segment. */
struct pcr_header {
    _Atomic uint64_t magic; /* stored last, when all other fields are valid */
    uint32_t version, header_size, slot_count, max_readers;
    uint64_t slot_size, ctl_offset, data_offset, total_size;
    uint32_t fourcc, flags;
    _Atomic uint32_t width, height; /* picture size in pixels; 0 if only the control blocks have it */
    uint32_t fps_num, fps_den;
    _Atomic uint64_t epoch;          /* every camera that takes over the segment adds one */
    _Atomic uint64_t epoch_sequence; /* first sequence of the current camera */
    uint8_t unused_0[32];
    _Atomic uint64_t latest; /* sequence << 8 | slot of the newest unit */
    uint8_t unused_1[56];
    _Atomic uint32_t futex; /* readers wait on this word, which changes with every unit */
    uint8_t unused_2[60];
    _Atomic uint32_t keyframe_request;
    uint8_t unused_3[60];
    _Atomic uint64_t dropped; /* number of units that the camera dropped */
    _Atomic uint32_t state;
    uint8_t unused_4[52];
    _Atomic uint32_t bitrate_request;     /* highest bit rate in kbit/s, 0 for no request; readers write it */
    _Atomic uint32_t bitrate_requested_s; /* when it was last renewed, in seconds of CLOCK_MONOTONIC */
    uint8_t unused_5[56];
};

/* The control block of one slot. */
struct pcr_control {
    _Atomic uint64_t word; /* sequence << 24 | writing << 16 | one bit for each reader that leases the slot */
    _Atomic uint64_t captured_ns, frame_number;
    _Atomic uint32_t len, flags, nal_count, nal_offset[PCR_NAL_OFFSETS_MAX];
    _Atomic uint32_t width, height; /* picture size in pixels; 0 means the size in the header */
    uint8_t unused[24];
};

struct pcr_config {
    const char *name;          /* name of the segment: a slash, then a name without a slash, see shm_open(3) */
    uint32_t slot_count;       /* number of slots, 8 to 256 [30] */
    uint32_t slot_bytes;       /* bytes of the largest unit, at most 16 MiB [3110400] */
    uint32_t width, height;    /* picture size in pixels */
    uint32_t fps_num, fps_den; /* pictures per second, as a fraction [30 / 1] */
    uint32_t obeys_bitrate;    /* 1 if the camera follows pcr_bitrate_request() [0] */
};

struct pcr_unit {
    size_t bytes;              /* bytes of the unit; 0 means that the unit was lost */
    uint64_t captured_ns;      /* capture time in nanoseconds of CLOCK_MONOTONIC or CLOCK_REALTIME */
    uint64_t frame_number;     /* the camera's own picture count */
    uint32_t flags;            /* PCR_IDR for an IDR, otherwise 0 */
    uint32_t width, height;    /* picture size in pixels; 0 means the size in the configuration */
    uint32_t nal_count;        /* number of entries of nal_offset, at most 15; 0 if the offsets are unknown */
    const uint32_t *nal_offset; /* offsets of the NAL units' start codes in the unit */
};

/* A camera's ring. Only the functions of this file may use the fields. */
struct pcr {
    struct pcr_header *header;
    struct pcr_control *control;
    uint8_t *data;
    uint64_t sequence; /* sequence of the last unit, published or dropped */
    size_t total;
    uint32_t slot_count, slot_bytes;
    int file, claimed;
    char name[256];
};

int pcr_create(struct pcr *ring, const struct pcr_config *config);
void *pcr_claim(struct pcr *ring);
int pcr_publish(struct pcr *ring, const struct pcr_unit *unit);
void pcr_abandon(struct pcr *ring);
int pcr_take_keyframe_request(struct pcr *ring);
uint32_t pcr_bitrate_request(const struct pcr *ring);
void pcr_close(struct pcr *ring, int remove);

/* Returns the number of bytes in a slot. */
static inline size_t pcr_room(const struct pcr *ring)
{
    return ring->slot_bytes;
}

_Static_assert(sizeof(struct pcr_header) == 448, "readers expect this size");
_Static_assert(offsetof(struct pcr_header, latest) == 128, "on its own cache line");
_Static_assert(offsetof(struct pcr_header, futex) == 192, "on its own cache line");
_Static_assert(offsetof(struct pcr_header, keyframe_request) == 256, "on its own cache line");
_Static_assert(offsetof(struct pcr_header, dropped) == 320, "on its own cache line");
_Static_assert(offsetof(struct pcr_header, bitrate_request) == 384, "on its own cache line");
_Static_assert(sizeof(struct pcr_control) == 128, "a control block has two cache lines");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "atomics must not use locks of the C library");

#ifdef PET_CAMERA_RING_IMPLEMENTATION

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Locks one byte of the segment for this open file. With F_UNLCK as type, unlocks the byte. Returns 0 or a negative
 * errno. */
static int pcr_lock(int file, off_t byte, short type)
{
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    return fcntl(file, F_OFD_SETLK, &lock) == 0 ? 0 : -errno;
}

static void pcr_wake(struct pcr *ring)
{
    atomic_fetch_add_explicit(&ring->header->futex, 1, memory_order_release);
    syscall(SYS_futex, (void *)&ring->header->futex, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static uint64_t pcr_after(uint64_t sequence)
{
    return sequence >= PCR_SEQUENCE_MAX ? 1 : sequence + 1;
}

static size_t pcr_data_offset(uint32_t slot_count)
{
    size_t end = PCR_HEADER_BYTES + (size_t)slot_count * sizeof(struct pcr_control);
    return (end + PCR_PAGE_BYTES - 1) / PCR_PAGE_BYTES * PCR_PAGE_BYTES;
}

/* Writes the flags, and forgets the request that readers made to an earlier camera. */
static void pcr_write_flags(struct pcr_header *header, const struct pcr_config *config)
{
    header->flags = config->obeys_bitrate != 0 ? PCR_OBEYS_BITRATE : 0;
    atomic_store_explicit(&header->bitrate_request, 0, memory_order_relaxed);
}

/* Returns 1 if the mapped segment is the ring that this camera would create, apart from picture size and rate. */
static int pcr_is_same(const struct pcr *ring)
{
    const struct pcr_header *header = ring->header;
    return atomic_load_explicit(&header->magic, memory_order_acquire) == PCR_MAGIC && header->version == PCR_VERSION
        && header->header_size == PCR_HEADER_BYTES && header->max_readers == PCR_READERS_MAX
        && header->slot_count == ring->slot_count && header->slot_size == ring->slot_bytes
        && header->ctl_offset == PCR_HEADER_BYTES && header->data_offset == pcr_data_offset(ring->slot_count)
        && header->total_size == ring->total && header->fourcc == PCR_FOURCC_H264;
}

/* Continues the ring of a camera that has ended. Leases stay and sequences continue. Slots that the old camera had not
 * finished become empty. */
static void pcr_take_over(struct pcr *ring, const struct pcr_config *config)
{
    struct pcr_header *header = ring->header;
    for (uint32_t slot = 0; slot < ring->slot_count; slot++) {
        if (atomic_load_explicit(&ring->control[slot].word, memory_order_relaxed) & PCR_WRITING) {
            atomic_store_explicit(&ring->control[slot].word, 0, memory_order_release);
        }
    }
    ring->sequence = atomic_load_explicit(&header->latest, memory_order_acquire) >> PCR_LATEST_SHIFT;
    atomic_store_explicit(&header->width, config->width, memory_order_relaxed);
    atomic_store_explicit(&header->height, config->height, memory_order_relaxed);
    atomic_store_explicit(&header->epoch_sequence, pcr_after(ring->sequence), memory_order_relaxed);
    atomic_store_explicit(&header->keyframe_request, 0, memory_order_relaxed);
    pcr_write_flags(header, config);
    atomic_store_explicit(&header->state, PCR_STATE_OPEN, memory_order_relaxed);
    atomic_fetch_add_explicit(&header->epoch, 1, memory_order_release);
    pcr_wake(ring);
}

static void pcr_write_header(struct pcr *ring, const struct pcr_config *config)
{
    struct pcr_header *header = ring->header;
    header->version = PCR_VERSION;
    header->header_size = PCR_HEADER_BYTES;
    header->slot_count = ring->slot_count;
    header->max_readers = PCR_READERS_MAX;
    header->slot_size = ring->slot_bytes;
    header->ctl_offset = PCR_HEADER_BYTES;
    header->data_offset = pcr_data_offset(ring->slot_count);
    header->total_size = ring->total;
    header->fourcc = PCR_FOURCC_H264;
    pcr_write_flags(header, config);
    atomic_store_explicit(&header->width, config->width, memory_order_relaxed);
    atomic_store_explicit(&header->height, config->height, memory_order_relaxed);
    header->fps_num = config->fps_num != 0 ? config->fps_num : 30;
    header->fps_den = config->fps_den != 0 ? config->fps_den : 1;
    atomic_store_explicit(&header->epoch, 1, memory_order_relaxed);
    atomic_store_explicit(&header->epoch_sequence, 1, memory_order_relaxed);
    atomic_store_explicit(&header->state, PCR_STATE_OPEN, memory_order_relaxed);
    /* The magic is stored last, with release ordering. So a reader that sees the magic also sees the whole header. */
    atomic_store_explicit(&header->magic, PCR_MAGIC, memory_order_release);
}

/* Opens, locks and maps the segment, and checks its size. Returns 0 or a negative errno: -EBUSY if another camera
 * writes the ring, -ESTALE if the segment has another size. */
static int pcr_map(struct pcr *ring, int flags)
{
    struct stat status;
    int error;
    ring->file = shm_open(ring->name, O_RDWR | O_CLOEXEC | flags, 0666);
    if (ring->file < 0) {
        return -errno;
    }
    if (pcr_lock(ring->file, PCR_WRITER_LOCK, F_WRLCK) != 0) {
        error = -EBUSY;
    } else if ((flags & O_CREAT) != 0 && ftruncate(ring->file, (off_t)ring->total) != 0) {
        error = -errno;
    } else if (fstat(ring->file, &status) != 0) {
        error = -errno;
    } else if ((size_t)status.st_size != ring->total) {
        error = -ESTALE; /* the segment has another size, or is not a lease ring */
    } else {
        void *map = mmap(NULL, ring->total, PROT_READ | PROT_WRITE, MAP_SHARED, ring->file, 0);
        if (map != MAP_FAILED) {
            ring->header = map;
            ring->control = (struct pcr_control *)(void *)((uint8_t *)map + PCR_HEADER_BYTES);
            ring->data = (uint8_t *)map + pcr_data_offset(ring->slot_count);
            return 0;
        }
        error = -errno;
    }
    close(ring->file);
    return error;
}

int pcr_create(struct pcr *ring, const struct pcr_config *config)
{
    int error;
    memset(ring, 0, sizeof *ring);
    ring->claimed = -1;
    ring->slot_count = config->slot_count != 0 ? config->slot_count : 30;
    ring->slot_bytes = config->slot_bytes != 0 ? config->slot_bytes : 3110400;
    if (config->name == NULL || config->name[0] != '/' || strlen(config->name) >= sizeof ring->name
        || ring->slot_count < PCR_SLOTS_MIN || ring->slot_count > PCR_SLOTS_MAX
        || ring->slot_bytes > PCR_SLOT_BYTES_MAX) {
        return -EINVAL;
    }
    memcpy(ring->name, config->name, strlen(config->name) + 1);
    ring->slot_bytes = (ring->slot_bytes + 63) / 64 * 64;
    ring->total = pcr_data_offset(ring->slot_count) + (size_t)ring->slot_count * ring->slot_bytes;
    error = pcr_map(ring, 0);
    if (error == 0) {
        if (pcr_is_same(ring)) {
            pcr_take_over(ring, config);
            return 0;
        }
        munmap(ring->header, ring->total);
        close(ring->file);
        error = -ESTALE;
    }
    if (error == -ESTALE && shm_unlink(ring->name) != 0 && errno != ENOENT) {
        return -errno;
    }
    if (error != -ESTALE && error != -ENOENT) {
        return error;
    }
    error = pcr_map(ring, O_CREAT | O_EXCL);
    if (error == 0) {
        pcr_write_header(ring, config);
    }
    return error;
}

/* Releases the leases of readers that have ended. `readers` has one bit for each reader to check. The lock of each
 * reader number is held meanwhile, so that no new reader takes the number. */
static void pcr_reap(struct pcr *ring, uint64_t readers)
{
    for (uint32_t reader = 0; reader < PCR_READERS_MAX; reader++) {
        uint64_t bit = UINT64_C(1) << reader;
        off_t byte = (off_t)(PCR_READER_LOCKS + (long)reader);
        if ((readers & bit) == 0 || pcr_lock(ring->file, byte, F_WRLCK) != 0) {
            continue;
        }
        for (uint32_t slot = 0; slot < ring->slot_count; slot++) {
            if (atomic_load_explicit(&ring->control[slot].word, memory_order_relaxed) & bit) {
                atomic_fetch_and_explicit(&ring->control[slot].word, ~bit, memory_order_release);
            }
        }
        pcr_lock(ring->file, byte, F_UNLCK);
    }
}

/* Claims a slot and returns its number, or -1 if no slot is free. Among the slots that no reader leases, takes the one
 * with the oldest unit, but never the slot of the newest unit. Stores in `*overdue` one bit for each reader that leases
 * a unit which a ring without leases would already have overwritten. */
static int pcr_try_claim(struct pcr *ring, uint64_t sequence, uint64_t *overdue)
{
    uint64_t latest = atomic_load_explicit(&ring->header->latest, memory_order_acquire);
    uint64_t oldest = sequence > ring->slot_count ? sequence - ring->slot_count : 0;
    *overdue = 0;
    for (int attempt = 0; attempt < 64; attempt++) {
        int best = -1;
        uint64_t best_word = 0;
        for (uint32_t slot = 0; slot < ring->slot_count; slot++) {
            uint64_t word = atomic_load_explicit(&ring->control[slot].word, memory_order_relaxed);
            if ((word >> PCR_SEQUENCE_SHIFT) <= oldest) {
                *overdue |= word & PCR_READERS;
            }
            if ((word & PCR_READERS) != 0 || (latest != 0 && slot == (latest & (PCR_SLOTS_MAX - 1)))) {
                continue;
            }
            if (best < 0 || word < best_word) {
                best = (int)slot;
                best_word = word;
            }
        }
        if (best < 0) {
            return -1;
        }
        if (atomic_compare_exchange_strong_explicit(&ring->control[best].word, &best_word,
                sequence << PCR_SEQUENCE_SHIFT | PCR_WRITING, memory_order_acq_rel, memory_order_relaxed)) {
            return best;
        }
    }
    return -1;
}

void *pcr_claim(struct pcr *ring)
{
    uint64_t sequence = pcr_after(ring->sequence);
    uint64_t overdue;
    if (ring->claimed >= 0) {
        return ring->data + (size_t)ring->claimed * ring->slot_bytes;
    }
    ring->claimed = pcr_try_claim(ring, sequence, &overdue);
    if (overdue != 0 || ring->claimed < 0) {
        pcr_reap(ring, ring->claimed < 0 ? PCR_READERS : overdue);
    }
    if (ring->claimed < 0) {
        ring->claimed = pcr_try_claim(ring, sequence, &overdue);
    }
    if (ring->claimed < 0) {
        ring->sequence = sequence; /* the dropped unit uses up its sequence, which readers then miss */
        atomic_fetch_add_explicit(&ring->header->dropped, 1, memory_order_relaxed);
        return NULL;
    }
    return ring->data + (size_t)ring->claimed * ring->slot_bytes;
}

int pcr_publish(struct pcr *ring, const struct pcr_unit *unit)
{
    struct pcr_control *control;
    uint32_t nal_count = unit->nal_count <= PCR_NAL_OFFSETS_MAX && unit->nal_offset != NULL ? unit->nal_count : 0;
    int slot = ring->claimed;
    if (slot < 0) {
        return -EINVAL;
    }
    ring->sequence = pcr_after(ring->sequence);
    control = &ring->control[slot];
    ring->claimed = -1;
    if (unit->bytes == 0 || unit->bytes > ring->slot_bytes) {
        atomic_store_explicit(&control->word, 0, memory_order_release);
        atomic_fetch_add_explicit(&ring->header->dropped, 1, memory_order_relaxed);
        return unit->bytes == 0 ? -ENODATA : -EMSGSIZE;
    }
    atomic_store_explicit(&control->captured_ns, unit->captured_ns, memory_order_relaxed);
    atomic_store_explicit(&control->frame_number, unit->frame_number, memory_order_relaxed);
    atomic_store_explicit(&control->len, (uint32_t)unit->bytes, memory_order_relaxed);
    atomic_store_explicit(&control->flags, unit->flags, memory_order_relaxed);
    atomic_store_explicit(&control->width, unit->width, memory_order_relaxed);
    atomic_store_explicit(&control->height, unit->height, memory_order_relaxed);
    atomic_store_explicit(&control->nal_count, nal_count, memory_order_relaxed);
    for (uint32_t i = 0; i < nal_count; i++) {
        atomic_store_explicit(&control->nal_offset[i], unit->nal_offset[i], memory_order_relaxed);
    }
    atomic_store_explicit(&control->word, ring->sequence << PCR_SEQUENCE_SHIFT, memory_order_release);
    atomic_store_explicit(
        &ring->header->latest, ring->sequence << PCR_LATEST_SHIFT | (uint64_t)slot, memory_order_release);
    pcr_wake(ring);
    return 0;
}

void pcr_abandon(struct pcr *ring)
{
    if (ring->claimed >= 0) {
        atomic_store_explicit(&ring->control[ring->claimed].word, 0, memory_order_release);
        ring->claimed = -1;
    }
}

int pcr_take_keyframe_request(struct pcr *ring)
{
    return atomic_exchange_explicit(&ring->header->keyframe_request, 0, memory_order_relaxed) != 0;
}

uint32_t pcr_bitrate_request(const struct pcr *ring)
{
    uint32_t kbps = atomic_load_explicit(&ring->header->bitrate_request, memory_order_relaxed);
    uint32_t renewed_s = atomic_load_explicit(&ring->header->bitrate_requested_s, memory_order_relaxed);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint32_t)now.tv_sec - renewed_s <= PCR_BITRATE_REQUEST_S ? kbps : 0;
}

void pcr_close(struct pcr *ring, int remove)
{
    pcr_abandon(ring);
    atomic_store_explicit(&ring->header->state, PCR_STATE_CLOSED, memory_order_relaxed);
    pcr_wake(ring);
    if (remove) {
        shm_unlink(ring->name);
    }
    munmap(ring->header, ring->total);
    close(ring->file);
}

#endif /* PET_CAMERA_RING_IMPLEMENTATION */
#endif /* PET_CAMERA_RING_H */
