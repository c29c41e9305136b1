package indexd

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/control/index"
)

// All indexes over one storage have the same keys, whoever makes them; a new one signs after a month, and
// what the one before it has signed is good.
func TestTokenKeys(t *testing.T) {
	w := newWorld(t)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var all [8][]index.TokenKey
	var wg sync.WaitGroup
	for i := range all {
		x := w.another()
		x.now = func() time.Time { return now }
		wg.Go(func() {
			k, err := x.TokenKeys(t.Context())
			if err != nil {
				t.Error(err)
			}
			all[i] = k
		})
	}
	wg.Wait()
	first := all[0]
	for _, k := range all {
		if len(k) != 1 || k[0].ID == "" || k[0].ID != first[0].ID || !bytes.Equal(k[0].Secret, first[0].Secret) {
			t.Fatalf("%+v and %+v", k, first)
		}
	}
	if len(first[0].Secret) != 32 || !first[0].Made.Equal(now) {
		t.Errorf("%+v", first)
	}
	w.now = func() time.Time { return now }
	known := map[string]bool{}
	var last string
	for month := range 4 {
		k, err := w.TokenKeys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if want := min(month+1, 2); len(k) != want || known[k[0].ID] || month > 0 && k[1].ID != last {
			t.Errorf("after %d months: %+v", month, k)
		}
		last = k[0].ID
		known[last] = true
		now = now.Add(tokenKeyNew - time.Second)
		if k, err := w.TokenKeys(t.Context()); err != nil || k[0].ID != last {
			t.Errorf("a second before its time: %+v, %v", k, err)
		}
		now = now.Add(time.Second)
	}
	// Neither a move nor a back-up, nor who lists what an index has, sees them.
	page, _, err := w.storage.List(t.Context(), "index/", "", 100)
	if err != nil || len(page) != 0 {
		t.Errorf("below index/: %v, %v", page, err)
	}
	w.object(tokenKeysKey, "{}")
	_, err = w.TokenKeys(t.Context())
	w.wantErr("damaged", err, errdefs.ErrDataLoss, tokenKeysKey)
	if err != nil && strings.Contains(err.Error(), "secret") {
		t.Errorf("it says %v", err)
	}
	w.object(tokenKeysKey, `{"version":2}`)
	_, err = w.TokenKeys(t.Context())
	w.wantErr("of a later release", err, errdefs.ErrDataLoss)
}

// Keys go through the API as they are.
func TestTokenKeysAPI(t *testing.T) {
	w := newWorld(t)
	c := client(t, serveHTTP(t, newServer(t, w.Index).handler()).URL)
	want, err := w.TokenKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.TokenKeys(t.Context())
	if err != nil || len(got) != 1 || got[0].ID != want[0].ID ||
		!bytes.Equal(got[0].Secret, want[0].Secret) || !got[0].Made.Equal(want[0].Made) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}
