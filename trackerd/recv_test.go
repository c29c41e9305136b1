package trackerd

import (
	"bytes"
	"context"
	"testing"

	"google.golang.org/grpc/mem"

	"github.com/capelin-io/capelin/control/trackerpb"
)

// garbage is a stream that brings large messages which are none.
type garbage struct {
	trackerpb.Tracker_ConnectServer
}

func (garbage) Context() context.Context { return context.Background() }

func (garbage) RecvMsg(m any) error {
	m.(*frame).data = mem.BufferSlice{mem.SliceBuffer(bytes.Repeat([]byte{0xff}, 2*largeFrame))}
	return nil
}

// Strangers who send garbage, first of all, do not use up the places for decoding.
func TestGarbageGivesItsPlaceBack(t *testing.T) {
	cfg := DefaultConfig()
	s := newServer(t.Context(), &cfg, "test")
	for range 2 * maxDecoding {
		if err := s.receive(garbage{}, &stream{}, make(chan struct{})); err == nil {
			t.Fatal("garbage is taken in")
		}
		if n := len(s.decoding); n != 0 {
			t.Fatalf("%d places are taken", n)
		}
	}
}
