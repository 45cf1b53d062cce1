/* The "encoder" of the example in pet_camera_ring.h. It plays the file named by CAMERA_FILE once, at 30 units a second,
 * and ends on SIGTERM. The file is Annex B with a delimiter before each access unit. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const uint8_t encoder_delimiter[5] = { 0, 0, 0, 1, 9 };

static uint8_t *encoder_stream;
static size_t encoder_length, encoder_at;
static uint64_t encoder_due_ns;
static volatile sig_atomic_t encoder_is_stopped;

static void encoder_stop(int signal)
{
    (void)signal;
    encoder_is_stopped = 1;
}

static uint64_t encoder_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void encoder_open(void)
{
    const char *path = getenv("CAMERA_FILE");
    FILE *file = path != NULL ? fopen(path, "rb") : NULL;
    long length;
    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (length = ftell(file)) <= 0) {
        fprintf(stderr, "CAMERA_FILE: nothing to play\n");
        exit(2);
    }
    rewind(file);
    encoder_length = (size_t)length;
    encoder_stream = malloc(encoder_length);
    if (encoder_stream == NULL || fread(encoder_stream, 1, encoder_length, file) != encoder_length) {
        fprintf(stderr, "CAMERA_FILE: cannot be read\n");
        exit(2);
    }
    fclose(file);
    signal(SIGTERM, encoder_stop);
    encoder_due_ns = encoder_now_ns();
}

/* Waits until the next picture is due. Returns 0 if the file has ended or SIGTERM has arrived. */
static int encoder_wait_for_picture(void)
{
    struct timespec due;
    if (encoder_stream == NULL) {
        encoder_open();
    }
    encoder_due_ns += 33333333;
    due.tv_sec = (time_t)(encoder_due_ns / 1000000000u);
    due.tv_nsec = (long)(encoder_due_ns % 1000000000u);
    while (!encoder_is_stopped && clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == EINTR) {
    }
    return !encoder_is_stopped && encoder_at < encoder_length;
}

static uint64_t encoder_captured_ns(void)
{
    return encoder_due_ns;
}

/* Writes the next access unit. Returns its size in bytes, or 0 if it does not fit into the slot. want_idr is ignored,
 * because a file cannot insert an IDR. */
static size_t encoder_encode(void *slot, size_t room, int want_idr)
{
    size_t end = encoder_at + sizeof encoder_delimiter, bytes;
    (void)want_idr;
    while (end < encoder_length
        && (encoder_length - end < sizeof encoder_delimiter
            || memcmp(encoder_stream + end, encoder_delimiter, sizeof encoder_delimiter) != 0)) {
        end++;
    }
    bytes = end - encoder_at;
    if (bytes <= room) {
        memcpy(slot, encoder_stream + encoder_at, bytes);
    }
    encoder_at = end;
    return bytes <= room ? bytes : 0;
}
