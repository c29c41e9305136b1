package origind

import (
	"context"
	"testing"
)

type limits struct{ up, down int64 }

func (l *limits) SetLimits(up, down int64) { *l = limits{up, down} }

// A configuration that was read again changes the limits of what runs.
func TestReload(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	configs, done := make(chan Config), make(chan struct{})
	got := &limits{1, 1}
	go func() {
		defer close(done)
		reload(ctx, configs, got)
	}()
	configs <- Config{}
	configs <- Config{Swarm: SwarmConfig{Upload: 3}}
	cancel()
	<-done
	if want := (limits{3, 0}); *got != want {
		t.Errorf("got %v, want %v", *got, want)
	}
}
