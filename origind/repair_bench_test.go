package origind

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/control/origin"
)

// BenchmarkRepair is how fast a new member of three is given all that the two others keep.
func BenchmarkRepair(b *testing.B) {
	for _, tt := range []struct{ size, blobs int }{{1 << 10, 1000}, {256 << 10, 200}, {4 << 20, 40}} {
		b.Run(fmt.Sprintf("%dKiB", tt.size>>10), func(b *testing.B) { benchRepair(b, tt.size, tt.blobs) })
	}
}

func benchRepair(b *testing.B, size, blobs int) {
	b.SetBytes(int64(size))
	took := time.Duration(0)
	for b.Loop() {
		b.StopTimer()
		var members []string
		cfgs := make([]Config, 3)
		for i := range cfgs {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			cfgs[i] = testConfig(b, b.TempDir(), nil)
			cfgs[i].Node, cfgs[i].Listener = string(rune('a'+i)), l
			members = append(members, cfgs[i].Node+"="+l.Addr().String())
		}
		for i := range cfgs {
			cfgs[i].Ring.Members, cfgs[i].Ring.RepairRate = members, 0
			if i < 2 {
				keepMany(b, cfgs[i], size, blobs)
			}
			defer start(b, cfgs[i]).stop()
		}
		c, err := origin.NewMember(origin.Config{Origins: []string{cfgs[2].Listener.Addr().String()}})
		if err != nil {
			b.Fatal(err)
		}
		has := func() int {
			st, err := c.RingStatus(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			return st.Blobs
		}
		eventually(b, "it is given something", func() bool { return has() > 0 })
		began := time.Now()
		b.StartTimer()
		eventually(b, "it has everything", func() bool { return has() == blobs })
		took += time.Since(began)
		c.Close()
	}
	b.ReportMetric(float64(b.N*blobs)/took.Seconds(), "blobs/s")
}

// keepMany has a member that has not started yet keep blobs.
func keepMany(b *testing.B, cfg Config, size, blobs int) {
	store, err := content.Open(b.Context(), content.Config{Root: cfg.Root, FreeFloor: -1})
	if err != nil {
		b.Fatal(err)
	}
	l, err := openLedger(cfg.Root, cfg.Node)
	if err != nil {
		b.Fatal(err)
	}
	h := &holdings{store, l}
	for i := range blobs {
		data, _ := testBlob(size, uint64(i))
		h.keep(b, data, lives("kept", "", false))
	}
	if err := errors.Join(l.close(), store.Close()); err != nil {
		b.Fatal(err)
	}
}
