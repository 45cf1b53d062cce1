// Watches with pion: watch [-audio] [-whep] [-first] [-viewers N] URL... SECONDS. Prints the number of units, of
// missing units, and the latency from the camera to the last packet of a unit. Viewers take the URLs in turn.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/pion/webrtc/v4"
)

var stamp = []byte("camera-sim stamp")

// count counts units by their stamps, and packets by their sequence numbers.
type count struct {
	sync.Mutex
	units   map[uint64]bool
	packets map[int64]bool
	newest  int64
	// When the first packet arrived, in nanoseconds of CLOCK_MONOTONIC. Older units come from the replay of the GOP.
	began int64
	// When the camera published the unit that is arriving, or 0.
	published int64
	// Latencies of complete units.
	latencies []time.Duration
}

func (c *count) packet(sequence uint16, payload []byte, isLast bool) {
	now := monotonic()
	c.Lock()
	defer c.Unlock()
	if len(c.packets) == 0 {
		c.newest, c.began = int64(sequence), now
	}
	extended := c.newest + int64(int16(sequence-uint16(c.newest)))
	c.newest = max(c.newest, extended)
	c.packets[extended] = true
	if at := bytes.Index(payload, stamp); at >= 0 && len(payload) >= at+len(stamp)+20 {
		fields := payload[at+len(stamp):]
		c.units[value(fields[:10])] = true
		c.published = int64(value(fields[10:20]))
	}
	if isLast && c.published != 0 {
		if c.published >= c.began {
			c.latencies = append(c.latencies, time.Duration(now-c.published))
		}
		c.published = 0
	}
}

// waitForUnit ends the program with an error if no unit arrives.
func (c *count) waitForUnit(longest time.Duration) {
	for deadline := time.Now().Add(longest); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		c.Lock()
		seen := len(c.units)
		c.Unlock()
		if seen > 0 {
			return
		}
	}
	log.Fatal("no unit")
}

// value decodes a number of a stamp: seven bits in each byte.
func value(digits []byte) uint64 {
	number := uint64(0)
	for _, digit := range digits {
		number = number<<7 | uint64(digit&0x7f)
	}
	return number
}

// monotonic returns CLOCK_MONOTONIC in nanoseconds, which the camera uses too. Go has no function for it.
func monotonic() int64 {
	const clockMonotonic = 1
	var now syscall.Timespec
	_, _, failed := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&now)), 0)
	if failed != 0 {
		log.Fatal(failed)
	}
	return now.Nano()
}

// gaps returns how many numbers between the lowest and the highest one are missing.
func gaps[N uint64 | int64](seen map[N]bool) int {
	if len(seen) == 0 {
		return 0
	}
	var low, high N
	first := true
	for number := range seen {
		if first || number < low {
			low = number
		}
		if first || number > high {
			high = number
		}
		first = false
	}
	return int(high-low) + 1 - len(seen)
}

// watch connects a viewer, which counts what it receives.
func watch(url string, audio, whep bool) (*webrtc.PeerConnection, *count) {
	viewer, err := webrtc.NewPeerConnection(webrtc.Configuration{})
	check(err)
	receive := webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly}
	if audio {
		_, err = viewer.AddTransceiverFromKind(webrtc.RTPCodecTypeAudio, receive)
		check(err)
		_, err = viewer.CreateDataChannel("data", nil)
		check(err)
	}
	_, err = viewer.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo, receive)
	check(err)
	seen := &count{units: map[uint64]bool{}, packets: map[int64]bool{}}
	viewer.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		for {
			packet, _, err := track.ReadRTP()
			if err != nil {
				return
			}
			seen.packet(packet.SequenceNumber, packet.Payload, packet.Marker)
		}
	})
	offer, err := viewer.CreateOffer(nil)
	check(err)
	gathered := webrtc.GatheringCompletePromise(viewer)
	check(viewer.SetLocalDescription(offer))
	<-gathered
	check(viewer.SetRemoteDescription(exchange(url, viewer.LocalDescription(), whep)))
	return viewer, seen
}

// exchange sends the offer and returns the answer.
func exchange(url string, offer *webrtc.SessionDescription, whep bool) webrtc.SessionDescription {
	answer := webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer}
	if whep {
		answer.SDP = string(post(url, "application/sdp", []byte(offer.SDP), http.StatusCreated))
		return answer
	}
	body, err := json.Marshal(offer)
	check(err)
	check(json.Unmarshal(post(url+"/api/webrtc/offer", "application/json", body, http.StatusOK), &answer))
	return answer
}

func post(url, contentType string, body []byte, expected int) []byte {
	response, err := http.Post(url, contentType, bytes.NewReader(body))
	check(err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	check(err)
	if response.StatusCode != expected {
		log.Fatalf("%s: %s", response.Status, text)
	}
	return text
}

func main() {
	audio := flag.Bool("audio", false, "also offer audio and a data channel")
	whep := flag.Bool("whep", false, "the URLs are WHEP endpoints")
	first := flag.Bool("first", false, "wait at most SECONDS for the first unit, and fail if there is none")
	viewers := flag.Int("viewers", 1, "number of viewers")
	flag.Parse()
	last := flag.NArg() - 1
	seconds, err := strconv.Atoi(flag.Arg(last))
	check(err)
	var connected []*webrtc.PeerConnection
	var counts []*count
	for index := range *viewers {
		viewer, seen := watch(flag.Arg(index%last), *audio, *whep)
		connected, counts = append(connected, viewer), append(counts, seen)
	}
	if *first {
		counts[0].waitForUnit(time.Duration(seconds) * time.Second)
		return
	}
	time.Sleep(time.Duration(seconds) * time.Second)
	fmt.Println(result(counts, seconds))
	for _, viewer := range connected {
		check(viewer.Close())
	}
}

// result returns the line that the scripts read. Fewer than 20 units a second count as missing: the camera has 30, and
// connecting takes time.
func result(counts []*count, seconds int) string {
	units, missing, lost, late := 0, 0, 0, 0
	var latencies []time.Duration
	for _, seen := range counts {
		seen.Lock()
		defer seen.Unlock()
		units += len(seen.units)
		missing += gaps(seen.units)
		lost += gaps(seen.packets)
		late += max(0, 20*(seconds-2)-len(seen.units))
		latencies = append(latencies, seen.latencies...)
	}
	line := fmt.Sprintf("%d units, %d missing (%d packets, %d too few)", units, missing+lost+late, lost, late)
	if len(latencies) == 0 {
		return line
	}
	slices.Sort(latencies)
	parts := []string{line + ", latency"}
	for _, percent := range []int{50, 95, 99} {
		latency := latencies[min(len(latencies)*percent/100, len(latencies)-1)]
		parts = append(parts, fmt.Sprintf("p%d %.1f ms", percent, latency.Seconds()*1000))
	}
	return strings.Join(parts, " ")
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
