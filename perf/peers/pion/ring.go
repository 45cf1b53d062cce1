package main

/*
#cgo LDFLAGS: -lrt -lpthread
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// The camera's ring, layouts v1 and v3 (shared_memory.h of the camera daemon).
#define FRAME_MAX 3110400

typedef struct {
	uint64_t frame_number;
	struct timespec timestamp;
	int camera_id, width, height, format;
	uint64_t data_size;
	uint8_t data[FRAME_MAX];
} Frame;

typedef struct {
	uint8_t *base;
	size_t size;
	size_t slots_at, stride, data_at, sem_at;
	uint32_t slots;
	uint32_t next;
} SharedMemory;

static SharedMemory *shm_frame_buffer_open(const char *name) {
	int fd = shm_open(name, O_RDWR, 0);
	struct stat st;
	if (fd < 0) return NULL;
	if (fstat(fd, &st) != 0) { close(fd); return NULL; }
	SharedMemory *shm = calloc(1, sizeof *shm);
	shm->size = (size_t)st.st_size;
	if (shm->size == 93313480) { // v1
		shm->slots_at = 40; shm->stride = 3110448; shm->data_at = 48; shm->sem_at = 8; shm->slots = 30;
	} else if (shm->size == 93314112) { // v3
		shm->slots_at = 192; shm->stride = 3110464; shm->data_at = 60; shm->sem_at = 128; shm->slots = 30;
	} else { close(fd); free(shm); return NULL; }
	shm->base = mmap(NULL, shm->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (shm->base == MAP_FAILED) { free(shm); return NULL; }
	shm->next = __atomic_load_n((uint32_t *)shm->base, __ATOMIC_ACQUIRE);
	return shm;
}

static uint32_t ring_index(SharedMemory *shm) {
	return __atomic_load_n((uint32_t *)shm->base, __ATOMIC_ACQUIRE);
}

static uint8_t *ring_slot(SharedMemory *shm, uint32_t unit) {
	return shm->base + shm->slots_at + (size_t)(unit % shm->slots) * shm->stride;
}

// Copies the newest frame. Returns -1 if this frame was read before or its size is invalid.
static int shm_frame_buffer_read(SharedMemory *shm, Frame *frame) {
	uint32_t index = ring_index(shm);
	if (index == shm->next) return -1;
	uint8_t *slot = ring_slot(shm, index - 1);
	memcpy(frame, slot, offsetof(Frame, data));
	if (frame->data_size > FRAME_MAX) return -1;
	memcpy(frame->data, slot + shm->data_at, frame->data_size);
	shm->next = index;
	return 0;
}

// Waits for the camera's post. Returns 0 after a post, 1 after one second without a post.
static int ring_wait(SharedMemory *shm) {
	struct timespec deadline;
	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += 1;
	return sem_timedwait((sem_t *)(shm->base + shm->sem_at), &deadline) == 0 ? 0 : 1;
}

// Returns the address and size of the next unit in its slot, or NULL if there is none. Skips overwritten units.
static uint8_t *ring_next(SharedMemory *shm, uint64_t *bytes) {
	uint32_t index = ring_index(shm);
	if (index == shm->next) return NULL;
	if (index - shm->next >= shm->slots - 1) shm->next = index - 1;
	uint8_t *slot = ring_slot(shm, shm->next++);
	*bytes = ((Frame *)slot)->data_size;
	return *bytes > FRAME_MAX ? NULL : slot + shm->data_at;
}
*/
import "C"

import (
	"errors"
	"unsafe"
)

// Ring is the camera's shared memory.
type Ring struct {
	c *C.SharedMemory
}

// Frame is a frame as in the design.
type Frame struct {
	FrameNumber uint64
	Format      int
	Data        []byte
}

const formatH264 = 3

// OpenRing maps the segment.
func OpenRing(name string) (*Ring, error) {
	cName := C.CString(name)
	defer C.free(unsafe.Pointer(cName))
	c := C.shm_frame_buffer_open(cName)
	if c == nil {
		return nil, errors.New("failed to open shared memory")
	}
	return &Ring{c: c}, nil
}

// ReadFrame copies the newest frame twice, as the design does: once into a Frame of C, and once into a Go slice.
func (r *Ring) ReadFrame() (*Frame, error) {
	var cFrame C.Frame
	if C.shm_frame_buffer_read(r.c, &cFrame) != 0 {
		return nil, errors.New("failed to read frame")
	}
	return &Frame{
		FrameNumber: uint64(cFrame.frame_number),
		Format:      int(cFrame.format),
		Data:        C.GoBytes(unsafe.Pointer(&cFrame.data[0]), C.int(cFrame.data_size)),
	}, nil
}

// Wait blocks until the camera posts. It returns false after one second without a post.
func (r *Ring) Wait() bool { return C.ring_wait(r.c) == 0 }

// Next returns the next unit in its slot, or nil if there is none.
func (r *Ring) Next() []byte {
	var bytes C.uint64_t
	at := C.ring_next(r.c, &bytes)
	if at == nil {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(at)), int(bytes))
}
