package origind

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
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
	"github.com/capelin-io/capelin/origind/ringstate"
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
		s.ring = &toldRing{}
		bad.set(errors.New("no permission:\n" + strings.Repeat("x", 1000)))
		began := time.Now()
		done := make(chan struct{})
		go func() { s.run(ctx); close(done) }()
		synctest.Wait()
		up := func() string {
			var all []string
			s.collect(func(d *prometheus.Desc, v float64, labels ...string) {
				if d == descBackend {
					all = append(all, fmt.Sprint(labels[0], v))
				}
			})
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

// toldRing has members that say which storages they have.
type toldRing struct {
	mu     sync.Mutex
	others map[string][]ringstate.Storage
	told   []ringstate.Storage
}

func (r *toldRing) storages() map[string][]ringstate.Storage {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.others)
}

func (r *toldRing) tellStorages(all []ringstate.Storage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = all
}

func (r *toldRing) say(name, backend, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.others[name] = []ringstate.Storage{{Backend: backend, ID: id}}
}

// knownBackend has an id.
type knownBackend struct {
	checkedBackend
	joined int
	id     string
}

func (k *knownBackend) Join(context.Context) error { k.joined++; return nil }
func (k *knownBackend) ID() string                 { return k.id }

// Members whose storage is another one are named at once, and in the log when that was not for a moment only, once an hour.
func TestStoragesDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logger, hook := logtest.NewNullLogger()
		ctx, cancel := context.WithCancel(log.WithLogger(t.Context(), logrus.NewEntry(logger)))
		b, ring := &knownBackend{id: "1"}, &toldRing{others: map[string][]ringstate.Storage{}}
		ring.say("same", "main", "1")
		ring.say("other", "main", "2")
		ring.say("elsewhere", "team", "3")
		s := newStorages(map[string]fetcher.Backend{"main": b, "plain": &checkedBackend{}})
		s.ring = ring
		done := make(chan struct{})
		go func() { s.run(ctx); close(done) }()
		synctest.Wait()
		if st := s.list()[0]; st.Storage != "1" || !slices.Equal(st.Differs, []string{"other"}) {
			t.Errorf("%+v", st)
		}
		if ring.told == nil || !slices.Equal(ring.told, []ringstate.Storage{{Backend: "main", ID: "1"}}) || b.joined != 1 {
			t.Errorf("told %v, joined %d", ring.told, b.joined)
		}
		differs := map[string]float64{}
		s.collect(func(d *prometheus.Desc, v float64, labels ...string) {
			if d == descDiffers {
				differs[labels[0]] = v
			}
		})
		if differs["main"] != 1 || differs["plain"] != 0 {
			t.Errorf("%v", differs)
		}
		if n := len(hook.AllEntries()); n != 0 {
			t.Errorf("%d lines at once", n)
		}
		time.Sleep(storageUpEvery + time.Second)
		if e := hook.LastEntry(); e == nil || e.Data["members"] != "other" || e.Data["backend"] != "main" {
			t.Errorf("%+v", e)
		}
		time.Sleep(2*time.Hour + time.Minute)
		if n := len(hook.AllEntries()); n != 3 {
			t.Errorf("%d lines in two hours", n)
		}
		ring.say("other", "main", "1")
		if st := s.list()[0]; len(st.Differs) != 0 {
			t.Errorf("%+v", st)
		}
		cancel()
		<-done
	})
}

// Members of a ring hear from each other which storages they have.
func TestStoragesInRing(t *testing.T) {
	var members []string
	var cfgs []Config
	for i := range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		b := &knownBackend{id: strconv.Itoa(i / 2)} // c has another one
		b.Backend = &fetchertest.Memory{}
		cfg := testConfig(t, t.TempDir(), stores{"main": b})
		cfg.Node, cfg.Listener = string(rune('a'+i)), l
		cfgs = append(cfgs, cfg)
		members = append(members, cfg.Node+"="+l.Addr().String())
	}
	var ring []*running
	for i := range cfgs {
		cfgs[i].Ring.Members = members
		ring = append(ring, start(t, cfgs[i]))
	}
	for i, want := range [][]string{{"c"}, {"c"}, {"a", "b"}} {
		eventually(t, "members hear of other storages", func() bool {
			resp, err := http.Get("http://" + ring[i].addr + origin.PathRing)
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			var st origin.RingStatus
			return json.NewDecoder(resp.Body).Decode(&st) == nil && len(st.Backends) == 1 && slices.Equal(st.Backends[0].Differs, want)
		})
	}
	http.DefaultClient.CloseIdleConnections()
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
