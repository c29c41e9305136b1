package httpobject

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 5-9/100")
	f.Add("bytes */0")
	f.Add("bytes 0-0/*")
	f.Fuzz(func(t *testing.T, v string) {
		start, size, err := contentRange(v)
		if err != nil {
			return
		}
		if start < -1 || size < -1 {
			t.Errorf("%q: %d, %d", v, start, size)
		}
	})
}

func TestRangeOf(t *testing.T) {
	for _, tt := range []struct {
		off, n, size int64
		want         string
	}{
		{0, -1, -1, ""}, {0, -1, 10, ""}, {0, 10, 10, ""}, {0, 20, 10, ""},
		{0, 10, -1, "bytes=0-9"}, {0, 5, 10, "bytes=0-4"},
		{5, -1, -1, "bytes=5-"}, {5, -1, 10, "bytes=5-9"}, {5, 100, 10, "bytes=5-9"}, {5, 2, 10, "bytes=5-6"},
		{5, maxOffset, -1, "bytes=5-"}, {5, maxOffset - 5, -1, fmt.Sprintf("bytes=5-%d", int64(maxOffset-1))},
	} {
		if got := rangeOf(tt.off, tt.n, tt.size, tt.size >= 0); got != tt.want {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}

func TestRetryAfter(t *testing.T) { synctest.Test(t, testRetryAfter) }

func testRetryAfter(t *testing.T) {
	for v, want := range map[string]time.Duration{"0": 0, "7": 7 * time.Second, "-1": -1, "x": -1, "": -1, "99999999999": -1} {
		got, ok := retryAfter(http.Header{"Retry-After": {v}})
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %v, want %v", v, got, want)
		}
	}
	date := time.Now().Add(time.Minute).UTC().Format(http.TimeFormat)
	if got, ok := retryAfter(http.Header{"Retry-After": {date}}); !ok || got != time.Minute {
		t.Errorf("%q: %v", date, got)
	}
}
