package ops

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A page has the metrics of all its roles, those of the process once, and is ready
// when all of them are.
func TestPage(t *testing.T) {
	counter := func(name string) *prometheus.Registry {
		reg := prometheus.NewRegistry()
		reg.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: "A test."}))
		return reg
	}
	page := NewPage()
	one, two := page.Role("one"), page.Role("two")
	get := func(profiler bool, path string) (int, string) {
		w := httptest.NewRecorder()
		page.Handler(profiler).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	oneReady, twoReady := false, true
	for _, step := range []struct {
		name string
		do   func()
		want string // of /readyz
	}{
		{"before they are shown", func() {}, "not ready: one, two\n"},
		{"one is shown", func() { one.Show(counter("capelin_one_total"), func() bool { return oneReady }) }, "not ready: one, two\n"},
		{"one is ready", func() { oneReady = true }, "not ready: two\n"},
		{"two is shown", func() { two.Show(counter("capelin_two_total"), func() bool { return twoReady }) }, "ok\n"},
		{"two stops", func() { twoReady = false }, "not ready: two\n"},
	} {
		step.do()
		code, body := get(false, "/readyz")
		if body != step.want || (code == http.StatusOK) != (step.want == "ok\n") {
			t.Errorf("%s: /readyz: %d %q, want %q", step.name, code, body, step.want)
		}
		if code, body := get(false, "/healthz"); code != http.StatusOK {
			t.Errorf("%s: /healthz: %d %q", step.name, code, body)
		}
	}
	code, body := get(false, "/metrics")
	for _, want := range []string{"capelin_one_total 0\n", "capelin_two_total 0\n", "\ngo_goroutines ", "\nprocess_open_fds "} {
		if code != http.StatusOK || strings.Count(body, want) != 1 {
			t.Errorf("/metrics: %d, has %q %d times, want once", code, want, strings.Count(body, want))
		}
	}
	for _, profiler := range []bool{false, true} {
		if code, _ := get(profiler, "/debug/pprof/cmdline"); (code == http.StatusOK) != profiler {
			t.Errorf("/debug/pprof/cmdline: %d, profiler %t", code, profiler)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		metrics  string
		profiler bool
		want     string // in the error; empty: none
	}{
		{"", false, ""},
		{"", true, "needs a metrics address"},
		{"127.0.0.1:1", true, ""},
		{"[::1]:1", true, ""},
		{"localhost:1", true, ""},
		{":1", false, ""},
		{":1", true, "loopback only"},
		{"0.0.0.0:1", true, "loopback only"},
		{"x", false, "not host:port"},
	} {
		errs := Check(tt.metrics, tt.profiler)
		if ok := len(errs) == 0; ok != (tt.want == "") || !ok && !strings.Contains(errs[0].Error(), tt.want) {
			t.Errorf("Check(%q, %t) = %v, want %q", tt.metrics, tt.profiler, errs, tt.want)
		}
	}
}

// Requests have their time when the server ends, and no more.
func TestServe(t *testing.T) {
	for _, tt := range []struct {
		name  string
		stop  time.Duration
		whole bool
	}{{"enough time", time.Minute, true}, {"no time", 0, false}} {
		t.Run(tt.name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			entered, left := make(chan struct{}), make(chan error, 1)
			served := make(chan error, 1)
			go func() {
				served <- Serve(ctx, ln, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					close(entered)
					<-ctx.Done()
					if !tt.whole {
						<-r.Context().Done()
					}
					left <- r.Context().Err()
				})}, tt.stop)
			}()
			answered := make(chan error, 1)
			go func() {
				resp, err := http.Get("http://" + ln.Addr().String())
				if err == nil {
					resp.Body.Close()
				}
				answered <- err
			}()
			<-entered
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
			if err := <-left; (err == nil) != tt.whole {
				t.Errorf("the request's context: %v", err)
			}
			if err := <-answered; (err == nil) != tt.whole {
				t.Errorf("the client: %v", err)
			}
			if c, err := net.Dial("tcp", ln.Addr().String()); err == nil {
				c.Close()
				t.Error("it still listens")
			}
		})
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := Serve(t.Context(), ln, &http.Server{}, 0); err == nil || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("a closed listener: %v", err)
	}
}
