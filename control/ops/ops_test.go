package ops

import (
	"net/http/httptest"
	"strings"
	"testing"

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
