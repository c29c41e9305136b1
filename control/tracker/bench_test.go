package tracker

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/capelin-io/capelin/control/trackerpb"
	"github.com/capelin-io/capelin/swarm/piece"
)

func benchID(n int) piece.ID {
	id := piece.ID{Alg: piece.SHA256, Size: 1 << 20}
	id.Sum[0], id.Sum[1], id.Sum[2] = byte(n), byte(n>>8), byte(n>>16)
	return id
}

// sent performs what a Step returned for a driver whose streams and Handler are always
// ready, and returns how many messages that were.
func sent(m *Machine, now time.Time, acts []Action) (n int) {
	for len(acts) > 0 {
		var ready []Event
		for _, act := range acts {
			if s, ok := act.(ActSend); ok {
				ready = append(ready, EvReady{Tracker: s.Tracker})
				n++
			} else {
				ready = append(ready, EvHandlerReady{})
			}
		}
		acts = nil
		for _, ev := range ready {
			acts = append(acts, m.Step(now, ev)...)
		}
	}
	return n
}

// BenchmarkReconnect is a node of so many blobs that tells a tracker of them anew, and
// what it remembers of each.
func BenchmarkReconnect(b *testing.B) {
	for _, blobs := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(blobs), func(b *testing.B) {
			now := time.Unix(1000, 0)
			hash := [32]byte{1}
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			m := NewMachine("n")
			m.Step(now, EvTrackers{Names: []string{"a:1", "b:1", "c:1"}})
			for n := range blobs {
				m.Step(now, EvAnnounce{ID: benchID(n), State: StateComplete, SumsHash: &hash})
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			messages, longest := 0, time.Duration(0)
			for b.Loop() {
				m.Announceable("a:1")
				start := time.Now()
				m.Step(now, EvConnected{Tracker: "a:1", Welcome: &trackerpb.Welcome{Features: trackerpb.FeatureOffers}})
				longest = max(longest, time.Since(start))
				messages += sent(m, now, m.Step(now, EvReady{Tracker: "a:1"}))
				m.Step(now, EvDisconnected{Tracker: "a:1"})
			}
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(blobs), "B/blob")
			b.ReportMetric(float64(messages)/float64(b.N), "messages")
			b.ReportMetric(longest.Seconds()*1e3, "ms-longest-step")
		})
	}
}

// BenchmarkWant is a blob that is wanted anew while so many others are wanted.
func BenchmarkWant(b *testing.B) {
	for _, wanted := range []int{10, 1000} {
		b.Run(fmt.Sprint(wanted), func(b *testing.B) {
			now := time.Unix(1000, 0)
			m := NewMachine("n")
			names := []string{"a:1", "b:1", "c:1"}
			m.Step(now, EvTrackers{Names: names})
			for _, name := range names {
				m.Step(now, EvConnected{Tracker: name, Welcome: &trackerpb.Welcome{Features: trackerpb.FeatureOffers}})
				sent(m, now, m.Step(now, EvReady{Tracker: name}))
			}
			sent(m, now, m.Step(now, EvHandlerReady{}))
			for n := range wanted {
				sent(m, now, m.Step(now, EvWant{ID: benchID(n), Want: Want{Waiting: true}}))
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				id := benchID(n % wanted)
				n++
				sent(m, now, m.Step(now, EvUnwant{ID: id}))
				sent(m, now, m.Step(now, EvWant{ID: id, Want: Want{Waiting: true}}))
				m.Deadline()
			}
		})
	}
}
