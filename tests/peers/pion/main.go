// Watches with pion for some seconds: watch [-audio] URL SECONDS. Prints the number of units and of missing units.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/pion/webrtc/v4"
)

var stamp = []byte("camera-sim stamp")

// count counts units by their stamps, and packets by their sequence numbers.
type count struct {
	sync.Mutex
	units   map[uint64]bool
	packets map[int64]bool
	newest  int64
}

func (c *count) packet(sequence uint16, payload []byte) {
	c.Lock()
	defer c.Unlock()
	if len(c.packets) == 0 {
		c.newest = int64(sequence)
	}
	extended := c.newest + int64(int16(sequence-uint16(c.newest)))
	c.newest = max(c.newest, extended)
	c.packets[extended] = true
	at := bytes.Index(payload, stamp)
	if at < 0 || len(payload) < at+len(stamp)+10 {
		return
	}
	number := uint64(0)
	for _, digit := range payload[at+len(stamp) : at+len(stamp)+10] {
		number = number<<7 | uint64(digit&0x7f)
	}
	c.units[number] = true
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

func main() {
	audio := flag.Bool("audio", false, "also offer audio and a data channel")
	flag.Parse()
	seconds, err := strconv.Atoi(flag.Arg(1))
	check(err)
	viewer, err := webrtc.NewPeerConnection(webrtc.Configuration{})
	check(err)
	receive := webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly}
	if *audio {
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
			seen.packet(packet.SequenceNumber, packet.Payload)
		}
	})
	offer, err := viewer.CreateOffer(nil)
	check(err)
	gathered := webrtc.GatheringCompletePromise(viewer)
	check(viewer.SetLocalDescription(offer))
	<-gathered
	body, err := json.Marshal(viewer.LocalDescription())
	check(err)
	response, err := http.Post(flag.Arg(0)+"/api/webrtc/offer", "application/json", bytes.NewReader(body))
	check(err)
	text, err := io.ReadAll(response.Body)
	check(err)
	if response.StatusCode != http.StatusOK {
		log.Fatalf("%s: %s", response.Status, text)
	}
	var answer webrtc.SessionDescription
	check(json.Unmarshal(text, &answer))
	check(viewer.SetRemoteDescription(answer))
	time.Sleep(time.Duration(seconds) * time.Second)
	seen.Lock()
	lost, late := gaps(seen.packets), max(0, 20*(seconds-2)-len(seen.units))
	fmt.Printf("%d units, %d missing (%d packets, %d too few)\n", len(seen.units), gaps(seen.units)+lost+late, lost, late)
	seen.Unlock()
	check(viewer.Close())
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
