package origind

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
)

// checkedBackend is one that can be used or not.
type checkedBackend struct {
	fetcher.Backend
	mu    sync.Mutex
	err   error
	hangs bool
	asked int
}

func (c *checkedBackend) set(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

func (c *checkedBackend) Check(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if c.hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	return c.err
}

// One warning per backend and hour, however long it is away and however often it comes and goes; a backend that hangs keeps
// no other one from being asked.
func TestStorages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, bad, hangs := &checkedBackend{}, &checkedBackend{}, &checkedBackend{hangs: true}
		logger, hook := logtest.NewNullLogger()
		ctx, cancel := context.WithCancel(log.WithLogger(t.Context(), logrus.NewEntry(logger)))
		lines := func(level logrus.Level, name string) (n int) {
			for _, e := range hook.AllEntries() {
				if e.Level == level && e.Data["backend"] == name {
					n++
				}
			}
			return n
		}
		s := newStorages(map[string]fetcher.Backend{"good": good, "bad": bad, "hangs": hangs})
		bad.set(errors.New("no permission:\n" + strings.Repeat("x", 1000)))
		began := time.Now()
		done := make(chan struct{})
		go func() { s.run(ctx); close(done) }()
		synctest.Wait()
		up := func() string {
			var all []string
			s.collect(func(_ *prometheus.Desc, v float64, labels ...string) { all = append(all, fmt.Sprint(labels[0], v)) })
			return strings.Join(all, " ")
		}
		if got := up(); got != "bad0 good1" { // of the third nothing is known yet
			t.Error(got)
		}
		time.Sleep(2*time.Hour + time.Minute)
		if got := up(); got != "bad0 good1 hangs0" {
			t.Error(got)
		}
		if n := lines(logrus.WarnLevel, "bad"); n != 3 {
			t.Errorf("%d warnings in two hours", n)
		}
		st := s.list()
		if len(st) != 3 || !st[0].Since.Equal(began) || len(st[0].Error) > maxStorageText+10 ||
			strings.Contains(st[0].Error, "\n") || st[1].Error != "" {
			t.Errorf("%+v", st)
		}
		if good.asked < 120 || good.asked > 123 || bad.asked < 240 || bad.asked > 244 {
			t.Errorf("in two hours they were asked %d and %d times", good.asked, bad.asked)
		}
		// It comes and goes.
		hook.Reset()
		for i := range 60 {
			bad.set(nil)
			if i%2 == 0 {
				bad.set(errors.New("away"))
			}
			time.Sleep(6 * time.Minute)
		}
		warned, again := lines(logrus.WarnLevel, "bad"), lines(logrus.InfoLevel, "bad")
		if warned < 5 || warned > 7 || again < warned-1 || again > warned+1 {
			t.Errorf("in six hours %d warnings, and %d times it was said that all is well again", warned, again)
		}
		if n := lines(logrus.InfoLevel, "good") + lines(logrus.WarnLevel, "good"); n > 0 {
			t.Errorf("%d lines about a backend that is good", n)
		}
		cancel()
		<-done
	})
}

// An origin whose backend cannot be used is ready, and says so where operators look.
func TestStoragesShown(t *testing.T) {
	bad := &checkedBackend{Backend: &fetchertest.Memory{}, err: errors.New("no such bucket")}
	cfg := testConfig(t, t.TempDir(), stores{"main": bad})
	cfg.Metrics = "127.0.0.1:0"
	var metrics string
	o := startWith(t, cfg, func(addr string) { metrics = addr })
	get := func(url string) (int, []byte) {
		t.Helper()
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		defer http.DefaultClient.CloseIdleConnections()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, body
	}
	for {
		var st origin.RingStatus
		if _, body := get("http://" + o.addr + origin.PathRing); json.Unmarshal(body, &st) != nil {
			t.Fatalf("%s", body)
		}
		if len(st.Backends) == 0 { // it has not been asked yet
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if b := st.Backends[0]; b.Name != "main" || b.Up || b.Error != "no such bucket" {
			t.Errorf("%+v", b)
		}
		break
	}
	if code, body := get("http://" + metrics + "/readyz"); code != http.StatusOK {
		t.Errorf("/readyz: %d %s", code, body)
	}
	if _, body := get("http://" + metrics + "/metrics"); !strings.Contains(string(body), "\ncapelin_origin_backend_up{backend=\"main\"} 0\n") {
		t.Errorf("/metrics has no backend that is away")
	}
}
