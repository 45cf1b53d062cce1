package main

import (
	"log"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/pion/interceptor"
	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
	"github.com/pion/webrtc/v4"
)

// Best is the fastest variant. A unit is packetised once, directly from the slot, and written to tracks. All viewers of
// a core share one track. NACK and sender reports stay, as in streaming-server. Statistics, TWCC and receiver reports
// are left out.
type Best struct {
	ring     *Ring
	recorder *Recorder
	api      *webrtc.API
	lanes    []*lane
	mu       sync.Mutex
	joined   int
}

// lane is a shared track with its own goroutine.
type lane struct {
	track *webrtc.TrackLocalStaticRTP
	units chan []*rtp.Packet
	done  *sync.WaitGroup
}

const payloadBytes = 1140 // as in streaming-server, so that both send the same number of datagrams

// NewBest returns a server with this many lanes; 0 means one per core.
func NewBest(ring *Ring, recorder *Recorder, lanes int) (*Best, error) {
	debug.SetGCPercent(400)
	if lanes == 0 {
		lanes = runtime.NumCPU()
	}
	engine, err := mediaEngine()
	if err != nil {
		return nil, err
	}
	registry := &interceptor.Registry{}
	if err := webrtc.ConfigureNack(engine, registry); err != nil {
		return nil, err
	}
	if err := webrtc.ConfigureRTCPReports(registry); err != nil {
		return nil, err
	}
	best := &Best{ring: ring, recorder: recorder}
	best.api = webrtc.NewAPI(webrtc.WithMediaEngine(engine), webrtc.WithInterceptorRegistry(registry),
		webrtc.WithSettingEngine(loopback()))
	for range lanes {
		track, err := webrtc.NewTrackLocalStaticRTP(
			webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeH264}, "video", "pet-camera")
		if err != nil {
			return nil, err
		}
		best.lanes = append(best.lanes, &lane{track: track, units: make(chan []*rtp.Packet, 1)})
	}
	return best, nil
}

// HandleOffer assigns viewers to the lanes in turn.
func (b *Best) HandleOffer(offerJSON []byte) ([]byte, error) {
	b.mu.Lock()
	lane := b.lanes[b.joined%len(b.lanes)]
	b.joined++
	b.mu.Unlock()
	pc, answer, err := connect(b.api, lane.track, offerJSON)
	if err != nil {
		return nil, err
	}
	pc.OnConnectionStateChange(func(state webrtc.PeerConnectionState) {
		if state == webrtc.PeerConnectionStateFailed {
			go pc.Close()
		}
	})
	return answer, nil
}

func (l *lane) write(packets []*rtp.Packet) {
	for _, packet := range packets {
		if err := l.track.WriteRTP(packet); err != nil {
			log.Printf("write: %v", err)
		}
	}
}

// Start waits for the camera's semaphore and writes each unit to all lanes. It writes to the first lane on its own
// goroutine.
func (b *Best) Start() {
	runtime.LockOSThread()
	packetizer := rtp.NewPacketizerWithOptions(payloadBytes+12, &codecs.H264Payloader{},
		rtp.NewRandomSequencer(), 90000, rtp.WithSSRC(1), rtp.WithPayloadType(96), rtp.WithTimestamp(rand.Uint32()))
	var done sync.WaitGroup
	for _, lane := range b.lanes[1:] {
		go func() {
			for packets := range lane.units {
				lane.write(packets)
				done.Done()
			}
		}()
	}
	for {
		b.ring.Wait()
		for unit := b.ring.Next(); unit != nil; unit = b.ring.Next() {
			if err := b.recorder.WriteFrame(unit); err != nil {
				log.Printf("[Recorder] %v", err)
			}
			packets := packetizer.Packetize(unit, 3000)
			done.Add(len(b.lanes) - 1)
			for _, lane := range b.lanes[1:] {
				lane.units <- packets
			}
			b.lanes[0].write(packets)
			done.Wait()
		}
	}
}
