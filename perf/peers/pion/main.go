// The Go design that this project began with, on the newest pion, as a peer for measurements. With --variant faithful,
// it is the design as written: a 33 ms ticker, a copy of the frame through cgo, and one track and one WriteSample per
// viewer. With --variant best, it is the fastest server that we could write with unmodified pion. The camera's
// semaphore wakes it, the frame is not copied, each unit is packetised once, and the viewers of a core share one track.
//
// Both variants differ from the design in three points. They have flags instead of constants. They use no STUN server,
// because they run on one machine only. Their answer waits for ICE gathering, because the design's answer has no
// candidates and never connects.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"os/signal"
	"syscall"
)

// mediaIP is the only address for video: that of the HTTP API.
var mediaIP = net.IPv4(127, 0, 0, 1)

// streamer is the interface of both variants.
type streamer interface {
	HandleOffer(offer []byte) ([]byte, error)
	Start()
}

func main() {
	variant := flag.String("variant", "faithful", "faithful, best (a shared track per core) or best-1 (one shared track)")
	shmName := flag.String("shm", "/pet_camera_stream", "shared memory of the camera")
	httpAddress := flag.String("http", "127.0.0.1:8080", "address of the HTTP API")
	recordPath := flag.String("record-path", "./recordings", "directory of recordings")
	flag.Parse()

	if host, _, err := net.SplitHostPort(*httpAddress); err == nil {
		if ip := net.ParseIP(host); ip != nil {
			mediaIP = ip
		}
	}
	ring, err := OpenRing(*shmName)
	if err != nil {
		log.Fatalf("Failed to open shared memory: %v", err)
	}
	recorder, err := NewRecorder(*recordPath)
	if err != nil {
		log.Fatalf("Failed to create recorder: %v", err)
	}
	var server streamer
	switch *variant {
	case "faithful":
		server, err = NewFaithful(ring, recorder)
	case "best":
		server, err = NewBest(ring, recorder, 0)
	case "best-1":
		server, err = NewBest(ring, recorder, 1)
	default:
		log.Fatalf("no variant %q", *variant)
	}
	if err != nil {
		log.Fatalf("Failed to create WebRTC server: %v", err)
	}
	listener, err := net.Listen("tcp", *httpAddress)
	if err != nil {
		log.Fatal(err)
	}
	routes(server, recorder)
	go server.Start()
	go func() { log.Fatal(http.Serve(listener, nil)) }()
	fmt.Printf("listening: http=%s\n", listener.Addr())

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
}

func routes(server streamer, recorder *Recorder) {
	http.HandleFunc("/api/webrtc/offer", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, "Failed to read body", http.StatusBadRequest)
			return
		}
		answer, err := server.HandleOffer(body)
		if err != nil {
			http.Error(w, fmt.Sprintf("Failed to handle offer: %v", err), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(answer)
	})
	http.HandleFunc("/api/recording/start", func(w http.ResponseWriter, r *http.Request) {
		var request struct {
			Filename string `json:"filename,omitempty"`
		}
		_ = json.NewDecoder(r.Body).Decode(&request)
		filename, err := recorder.Start(request.Filename)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		reply(w, map[string]any{"status": "recording", "filename": filename})
	})
	http.HandleFunc("/api/recording/stop", func(w http.ResponseWriter, r *http.Request) {
		stats, err := recorder.Stop()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		reply(w, stats)
	})
	http.HandleFunc("/health", func(w http.ResponseWriter, r *http.Request) {
		reply(w, map[string]string{"status": "ok"})
	})
}

func reply(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(value)
}
