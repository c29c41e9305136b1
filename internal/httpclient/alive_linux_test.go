package httpclient

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestJudge(t *testing.T) {
	const long, short = 5000, 4999
	for _, tt := range []struct {
		what          string
		info          unix.TCPInfo
		pending, gone bool
	}{
		{"nothing is sent, for a minute", unix.TCPInfo{Last_ack_recv: 60_000}, false, false},
		{"sent just now, after a minute", unix.TCPInfo{Unacked: 3, Last_ack_recv: 60_000}, true, false},
		{"sent twice more", unix.TCPInfo{Unacked: 3, Retransmits: 2, Last_ack_recv: 60_000}, true, false},
		{"sent again and again", unix.TCPInfo{Unacked: 3, Retransmits: 3, Last_ack_recv: long}, true, true},
		{"not for so long yet", unix.TCPInfo{Unacked: 3, Retransmits: 9, Last_ack_recv: short}, true, false},
		{"it takes nothing, and answers", unix.TCPInfo{Notsent_bytes: 9, Last_ack_recv: 25_000}, true, false},
		{"it took nothing, and answers no more", unix.TCPInfo{Notsent_bytes: 9, Probes: 3, Last_ack_recv: 30_000}, true, true},
		{"nothing is sent, and probes are not answered", unix.TCPInfo{Probes: 3, Last_ack_recv: long}, false, false},
	} {
		if pending, gone := judge(&tt.info); pending != tt.pending || gone != tt.gone {
			t.Errorf("%s: pending %t, gone %t", tt.what, pending, gone)
		}
	}
}

// A server that takes nothing for longer than a machine may be silent is there, and its connection stays.
func TestBusyServerKeepsItsConnection(t *testing.T) {
	t.Parallel()
	c, other := aliveLoopback(t, unacknowledged, lookEvery)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 64<<20)) // more than all buffers on the way
		wrote <- err
	}()
	for began := time.Now(); time.Since(began) < silentFor+3*lookEvery; time.Sleep(lookEvery) {
		select {
		case err := <-wrote:
			t.Fatalf("after %v: %v", time.Since(began), err)
		default:
		}
	}
	for buf, n := make([]byte, 1<<20), 0; n < 64<<20; {
		m, err := other.Read(buf)
		if n += m; err != nil {
			t.Fatalf("byte %d: %v", n, err)
		}
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}
