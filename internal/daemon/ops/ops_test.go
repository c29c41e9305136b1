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

func TestHandler(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "capelin_test_total", Help: "A test."})
	reg.MustRegister(c)
	ready := false
	for _, profiler := range []bool{false, true} {
		h := Handler(reg, func() bool { return ready }, profiler)
		get := func(path string) (int, string) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			return w.Code, w.Body.String()
		}
		if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "capelin_test_total 0") {
			t.Errorf("/metrics: %d %q", code, body)
		}
		if code, _ := get("/healthz"); code != 200 {
			t.Errorf("/healthz: %d", code)
		}
		for _, ready = range []bool{false, true} {
			if code, _ := get("/readyz"); (code == 200) != ready {
				t.Errorf("/readyz: %d, ready %t", code, ready)
			}
		}
		if code, _ := get("/debug/pprof/cmdline"); (code == 200) != profiler {
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
