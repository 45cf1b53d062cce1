package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"sync"
	"time"

	"github.com/pion/webrtc/v4"
	"github.com/pion/webrtc/v4/pkg/media"
)

// StreamProcessor works as in the design: it caches parameter sets and puts them before an IDR.
type StreamProcessor struct {
	spsCache, ppsCache []byte
	hasHeader          bool
}

// ProcessFrame works as in the design.
func (p *StreamProcessor) ProcessFrame(data []byte) ([]byte, error) {
	if len(data) < 5 {
		return nil, errors.New("frame too short")
	}
	nalUnits := p.parseNALUnits(data)
	if len(nalUnits) == 0 {
		return nil, errors.New("no NAL units found")
	}
	switch nalUnits[0][4] & 0x1F {
	case 7:
		p.spsCache = append([]byte(nil), nalUnits[0]...)
	case 8:
		p.ppsCache = append([]byte(nil), nalUnits[0]...)
		p.hasHeader = true
	case 5:
		if p.hasHeader {
			result := make([]byte, 0, len(p.spsCache)+len(p.ppsCache)+len(data))
			result = append(result, p.spsCache...)
			result = append(result, p.ppsCache...)
			return append(result, data...), nil
		}
	}
	return data, nil
}

func (p *StreamProcessor) parseNALUnits(data []byte) [][]byte {
	var nalUnits [][]byte
	startCode := []byte{0, 0, 0, 1}
	start := 0
	for {
		index := bytes.Index(data[start+4:], startCode)
		if index == -1 {
			return append(nalUnits, data[start:])
		}
		index += start + 4
		nalUnits = append(nalUnits, data[start:index])
		start = index
	}
}

// Faithful is the server as the design describes it.
type Faithful struct {
	ring      *Ring
	recorder  *Recorder
	processor StreamProcessor

	mu          sync.RWMutex
	connections map[string]*webrtc.PeerConnection
	tracks      map[string]*webrtc.TrackLocalStaticSample
	api         *webrtc.API
}

// NewFaithful returns a server with H.264 only and pion's default interceptors.
func NewFaithful(ring *Ring, recorder *Recorder) (*Faithful, error) {
	engine, err := mediaEngine()
	if err != nil {
		return nil, err
	}
	return &Faithful{
		ring:        ring,
		recorder:    recorder,
		connections: make(map[string]*webrtc.PeerConnection),
		tracks:      make(map[string]*webrtc.TrackLocalStaticSample),
		api:         webrtc.NewAPI(webrtc.WithMediaEngine(engine), webrtc.WithSettingEngine(loopback())),
	}, nil
}

func mediaEngine() (*webrtc.MediaEngine, error) {
	engine := &webrtc.MediaEngine{}
	return engine, engine.RegisterCodec(webrtc.RTPCodecParameters{
		RTPCodecCapability: webrtc.RTPCodecCapability{
			MimeType:     webrtc.MimeTypeH264,
			ClockRate:    90000,
			SDPFmtpLine:  "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
			RTCPFeedback: []webrtc.RTCPFeedback{{Type: "nack"}, {Type: "nack", Parameter: "pli"}},
		},
		PayloadType: 96,
	}, webrtc.RTPCodecTypeVideo)
}

// loopback returns settings with loopback candidates: the measurement uses loopback, which pion excludes by default.
func loopback() webrtc.SettingEngine {
	settings := webrtc.SettingEngine{}
	settings.SetIncludeLoopbackCandidate(true)
	settings.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	settings.SetIPFilter(func(ip net.IP) bool { return ip.Equal(mediaIP) })
	return settings
}

// HandleOffer works as in the design.
func (s *Faithful) HandleOffer(offerJSON []byte) ([]byte, error) {
	track, err := webrtc.NewTrackLocalStaticSample(
		webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeH264}, "video", "pet-camera")
	if err != nil {
		return nil, err
	}
	pc, answer, err := connect(s.api, track, offerJSON)
	if err != nil {
		return nil, err
	}
	id := fmt.Sprintf("pc-%d", time.Now().UnixNano())
	s.mu.Lock()
	s.connections[id] = pc
	s.tracks[id] = track
	s.mu.Unlock()
	pc.OnConnectionStateChange(func(state webrtc.PeerConnectionState) {
		if state == webrtc.PeerConnectionStateFailed || state == webrtc.PeerConnectionStateClosed {
			s.remove(id)
		}
	})
	return answer, nil
}

// connect returns a connection with one track, and its answer to an offer as JSON.
func connect(api *webrtc.API, track webrtc.TrackLocal, offerJSON []byte) (*webrtc.PeerConnection, []byte, error) {
	var offer webrtc.SessionDescription
	if err := json.Unmarshal(offerJSON, &offer); err != nil {
		return nil, nil, fmt.Errorf("failed to parse offer: %w", err)
	}
	pc, err := api.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		return nil, nil, err
	}
	sender, err := pc.AddTrack(track)
	if err != nil {
		return nil, nil, err
	}
	go func() {
		buffer := make([]byte, 1500)
		for {
			if _, _, err := sender.Read(buffer); err != nil {
				return
			}
		}
	}()
	if err := pc.SetRemoteDescription(offer); err != nil {
		return nil, nil, err
	}
	answer, err := pc.CreateAnswer(nil)
	if err != nil {
		return nil, nil, err
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(answer); err != nil {
		return nil, nil, err
	}
	<-gathered
	answerJSON, err := json.Marshal(pc.LocalDescription())
	return pc, answerJSON, err
}

// Start is the streaming loop of the design.
func (s *Faithful) Start() {
	ticker := time.NewTicker(33 * time.Millisecond)
	defer ticker.Stop()
	for range ticker.C {
		if err := s.processFrame(); err != nil {
			log.Printf("[WebRTC] Error processing frame: %v", err)
		}
	}
}

func (s *Faithful) processFrame() error {
	frame, err := s.ring.ReadFrame()
	if err != nil {
		return err
	}
	if frame.Format != formatH264 {
		return fmt.Errorf("invalid frame format: %d", frame.Format)
	}
	data, err := s.processor.ProcessFrame(frame.Data)
	if err != nil {
		return err
	}
	if err := s.recorder.WriteFrame(data); err != nil {
		log.Printf("[Recorder] %v", err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id, track := range s.tracks {
		sample := media.Sample{Data: data, Duration: 33 * time.Millisecond}
		if err := track.WriteSample(sample); err != nil && err != io.ErrClosedPipe {
			log.Printf("[WebRTC] Failed to write sample to %s: %v", id, err)
		}
	}
	return nil
}

func (s *Faithful) remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if pc, ok := s.connections[id]; ok {
		go pc.Close()
		delete(s.connections, id)
		delete(s.tracks, id)
	}
}
