package ociapi

import (
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// Some clients do not wait long for a header. Until it is sent, another can answer.
func TestHeaderNoLater(t *testing.T) {
	const after = 10 * time.Second
	for wait, want := range map[time.Duration]int{after - 1: 418, after + 1: 206} {
		synctest.Test(t, func(t *testing.T) {
			w := httptest.NewRecorder()
			l := NewLate(w)
			stop := l.NoLater(after)
			l.WriteHeader(206)
			time.Sleep(wait)
			stop()
			if !l.Begun() {
				w.WriteHeader(418)
			}
			if w.Code != want || w.Flushed != (want == 206) {
				t.Errorf("after %v: %d", wait, w.Code)
			}
		})
	}
}
