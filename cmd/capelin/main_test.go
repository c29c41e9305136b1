package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/log"

	"github.com/capelin-io/capelin/plugin"
)

func TestMain(m *testing.M) {
	if os.Getenv("CAPELIN_TEST_MAIN") != "" { // this is capelin, for a test of processes
		main()
		return
	}
	// A test's SIGHUP is for the daemon that it runs, if that listens yet.
	signal.Ignore(syscall.SIGHUP)
	log.L.Logger.AddHook(lines)
	os.Exit(m.Run())
}

// lines is what has been logged since a test began to watch.
var lines = &logged{}

type logged struct {
	mu     sync.Mutex
	all    []*log.Entry
	more   chan struct{}          // closed at the next line
	onLine func(entry *log.Entry) // nil: none
}

func (*logged) Levels() []log.Level {
	return []log.Level{log.ErrorLevel, log.WarnLevel, log.InfoLevel}
}

func (l *logged) Fire(e *log.Entry) error {
	l.mu.Lock()
	l.all = append(l.all, e)
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
	f := l.onLine
	l.mu.Unlock()
	if f != nil {
		f(e)
	}
	return nil
}

// watch forgets all lines; f, if not nil, is called with each that comes, before
// whoever logs it goes on.
func (l *logged) watch(t *testing.T, f func(*log.Entry)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all, l.onLine = nil, f
	t.Cleanup(func() { l.mu.Lock(); l.onLine = nil; l.mu.Unlock() })
}

// next waits for a line with that message, "" for any, and forgets those up to it.
func (l *logged) next(ctx context.Context, message string) (*log.Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute) // for hangs only
	defer cancel()
	for {
		l.mu.Lock()
		for i, e := range l.all {
			if message == "" || e.Message == message {
				l.all = l.all[i+1:]
				l.mu.Unlock()
				return e, nil
			}
		}
		if l.more == nil {
			l.more = make(chan struct{})
		}
		more := l.more
		l.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return nil, fmt.Errorf("nobody has logged %q", message)
		}
	}
}

// daemonRun is a command that runs until it is stopped.
type daemonRun struct {
	stop    context.CancelFunc
	done    chan error
	metrics string
}

// start runs a daemon's command line, and waits until the role is up.
func start(t *testing.T, up string, args ...string) *daemonRun {
	t.Helper()
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(hangups) })
	return startWith(t, hangups, up, args...)
}

// startWith is start with a channel of one's own in the place of the process's SIGHUPs.
func startWith(t *testing.T, hangups chan os.Signal, up string, args ...string) *daemonRun {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	d := &daemonRun{stop: cancel, done: make(chan error, 1)}
	waiting, ended := context.WithCancel(t.Context())
	go func() {
		defer ended()
		d.done <- run(ctx, hangups, args)
	}()
	t.Cleanup(func() { d.end(t) })
	line, err := lines.next(waiting, up)
	if err != nil {
		t.Fatalf("%q: %v; %v", args, err, <-d.done)
	}
	d.metrics, _ = line.Data["metrics"].(string)
	return d
}

// end stops it.
func (d *daemonRun) end(t *testing.T) {
	t.Helper()
	d.stop()
	if d.done == nil {
		return
	}
	select {
	case err := <-d.done:
		if err != nil {
			t.Errorf("it ended with: %v", err)
		}
	case <-time.After(5 * time.Minute):
		t.Fatal("it does not end")
	}
	d.done = nil
}

// get asks for a path on the address of the metrics; 0: nobody answers.
func (d *daemonRun) get(path string) (int, string) { return get(d.metrics, path) }

func get(addr, path string) (int, string) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + addr + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// file writes a file and returns its path.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// hangup sends the signal that reloads, which reaches the daemon that the test runs.
func hangup(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// What a node lacks is told where people look for it.
func TestStatusSays(t *testing.T) {
	address := "t1:7470"
	for _, tt := range []struct {
		name string
		st   plugin.Status
		want []string
	}{
		{"all is well", plugin.Status{Node: "n", Cluster: "c", Advertise: "10.0.0.1:7401",
			Trackers: []plugin.TrackerStatus{{Address: address, Connected: true}}},
			[]string{"n in cluster c, at 10.0.0.1:7401\n", "t1:7470 connected\n"}},
		{"not in the swarm", plugin.Status{Node: "n", Cluster: "c", Swarm: "its port is taken",
			Trackers: []plugin.TrackerStatus{{Address: address, Error: "not asked"}}},
			[]string{"n in cluster c, not in the swarm: its port is taken\n", "t1:7470 not asked\n"}},
		{"a tracker that is away", plugin.Status{
			Trackers: []plugin.TrackerStatus{{Address: address, Error: "tracker t1:7470: connection refused"}}},
			[]string{"t1:7470 away: connection refused\n"}},
		{"one that hangs", plugin.Status{
			Trackers: []plugin.TrackerStatus{{Address: address, Connected: true, Error: "tracker t1:7470: no answer"}}},
			[]string{"t1:7470 silent: no answer\n"}},
		{"none", plugin.Status{}, []string{"tracker  none\n"}},
	} {
		var b strings.Builder
		if err := printStatus(&b, tt.st, time.Now()); err != nil {
			t.Fatal(err)
		}
		for _, want := range tt.want {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s: %s lacks %q", tt.name, b.String(), want)
			}
		}
	}
}
