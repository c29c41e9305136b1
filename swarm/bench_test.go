package swarm_test

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/capelin-io/capelin/swarm"
	"github.com/capelin-io/capelin/swarm/swarmtest"
)

// benchDir is on a file system in memory where there is one, so that the disk
// is not what is measured.
func benchDir(b *testing.B) string {
	dir, err := os.MkdirTemp("/dev/shm", "capelin-bench-")
	if err != nil {
		return b.TempDir()
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSwarm moves a blob from one seeder to n nodes in this process over
// loopback, TCP handshakes, SHA-256 and writing included. MiB/s counts what the
// nodes stored in all; cpu-s/GiB is this whole process's, both ends.
func BenchmarkSwarm(b *testing.B) {
	for _, n := range []int{1, 8, 16} {
		b.Run(fmt.Sprintf("1to%d", n), func(b *testing.B) {
			size := 1 << 30
			if n > 1 {
				size = 256 << 20
			}
			benchSwarm(b, n, size, nil)
		})
	}
}

func benchSwarm(b *testing.B, n, size int, change func(*swarm.NodeConfig)) {
	dir := benchDir(b)
	sub := func(name string) *swarmtest.Store {
		d := dir + "/" + name
		if err := os.Mkdir(d, 0o700); err != nil {
			b.Fatal(err)
		}
		return swarmtest.NewStore(d)
	}
	seeder := loopback.start(b, "seeder", sub("seeder"), change)
	id, _, _ := addBlob(b, seeder.store, size)
	seeder.join(b, id, false)
	b.SetBytes(int64(n * size))
	var cpu, wall time.Duration
	var sent int64
	for i := range b.N {
		var leeches []*testNode
		infos := []swarm.PeerInfo{seeder.info(true)}
		for j := range n {
			l := loopback.start(b, fmt.Sprintf("leech%d-%d", i, j), sub(fmt.Sprintf("%d-%d", i, j)), change)
			leeches = append(leeches, l)
			infos = append(infos, l.info(false))
		}
		b.StartTimer()
		before, began, out := cpuTime(), time.Now(), seeder.Snapshot().Total.BytesOut
		for _, l := range leeches {
			l.join(b, id, true)
			l.AddPeers(id, infos)
		}
		for _, l := range leeches {
			if err := l.wait(b, id); err != nil {
				b.Fatal(err)
			}
		}
		cpu += cpuTime() - before
		wall += time.Since(began)
		sent += seeder.Snapshot().Total.BytesOut - out
		b.StopTimer()
		for j, l := range leeches {
			l.stop()
			l.store.Close()
			os.RemoveAll(fmt.Sprintf("%s/%d-%d", dir, i, j))
		}
	}
	moved := float64(b.N) * float64(n) * float64(size)
	b.ReportMetric(moved/(1<<20)/wall.Seconds(), "MiB/s")
	b.ReportMetric(cpu.Seconds()/(moved/(1<<30)), "cpu-s/GiB")
	b.ReportMetric(float64(sent)/float64(b.N)/float64(size), "seeder-x")
}

// BenchmarkSwarmLimited moves a blob from one seeder to 16 nodes, all limited
// to 20 MB/s each way. The ideal time is that of one node alone, size/limit:
// x-ideal is how many times as long the median and the last node took, and
// seeder-x how many times the seeder sent the blob.
func BenchmarkSwarmLimited(b *testing.B) {
	const (
		n     = 16
		limit = 20_000_000
		size  = 200_000_000
	)
	change := func(c *swarm.NodeConfig) { c.Peer.Up, c.Peer.Down = limit, limit }
	seeder := loopback.start(b, "seeder", swarmtest.NewStore(benchDir(b)), change)
	id, _, _ := addBlob(b, seeder.store, size)
	seeder.join(b, id, false)
	var median, last, cpu time.Duration
	for i := range b.N {
		infos := []swarm.PeerInfo{seeder.info(true)}
		var leeches []*testNode
		for j := range n {
			l := loopback.start(b, fmt.Sprintf("leech%d-%d", i, j), swarmtest.NewStore(benchDir(b)), change)
			leeches = append(leeches, l)
			infos = append(infos, l.info(false))
		}
		before, began := cpuTime(), time.Now()
		took := make(chan time.Duration, n)
		for _, l := range leeches {
			l.join(b, id, true)
			l.AddPeers(id, infos)
			done := l.Done(id)
			go func() {
				if err := <-done; err != nil {
					b.Error(err)
				}
				took <- time.Since(began)
			}()
		}
		for j := range n { // they come in order
			if d := <-took; j == n/2 {
				median += d
			} else if j == n-1 {
				last += d
			}
		}
		cpu += cpuTime() - before
		for _, l := range leeches {
			l.stop()
			l.store.Close()
		}
	}
	b.ReportMetric(cpu.Seconds()/(float64(b.N)*n*size/(1<<30)), "cpu-s/GiB")
	ideal := float64(b.N) * size / limit
	b.ReportMetric(median.Seconds()/ideal, "x-ideal-p50")
	b.ReportMetric(last.Seconds()/ideal, "x-ideal-last")
	b.ReportMetric(float64(seeder.Snapshot().Total.BytesOut)/size/float64(b.N), "seeder-x")
}
