package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Recorder works as in the design: every frame is written to the file under a lock.
type Recorder struct {
	directory    string
	mu           sync.Mutex
	file         *os.File
	frameCount   int
	bytesWritten int64
	startedAt    time.Time
}

// NewRecorder returns a recorder after it has created the directory.
func NewRecorder(directory string) (*Recorder, error) {
	return &Recorder{directory: directory}, os.MkdirAll(directory, 0o755)
}

// Start opens a file and returns its path.
func (r *Recorder) Start(filename string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file != nil {
		return "", fmt.Errorf("already recording")
	}
	if filename == "" {
		filename = fmt.Sprintf("recording_%s.h264", time.Now().Format("20060102_150405"))
	}
	path := filepath.Join(r.directory, filename)
	file, err := os.Create(path)
	if err != nil {
		return "", err
	}
	r.file, r.frameCount, r.bytesWritten, r.startedAt = file, 0, 0, time.Now()
	return path, nil
}

// Stop closes the file and returns the statistics of the recording.
func (r *Recorder) Stop() (map[string]any, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil, fmt.Errorf("not recording")
	}
	err := r.file.Close()
	r.file = nil
	return map[string]any{
		"status": "stopped", "frame_count": r.frameCount, "bytes_written": r.bytesWritten,
		"duration": time.Since(r.startedAt).Seconds(),
	}, err
}

// WriteFrame writes a frame if a recording runs.
func (r *Recorder) WriteFrame(data []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil
	}
	n, err := r.file.Write(data)
	r.frameCount++
	r.bytesWritten += int64(n)
	return err
}
