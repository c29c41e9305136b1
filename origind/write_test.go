package origind

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/capelin-io/capelin/content"
	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/fetchertest"
	"github.com/capelin-io/capelin/swarm/piece"
)

// newHoldings opens an empty content directory and records.
func newHoldings(t testing.TB) *holdings {
	t.Helper()
	root := t.TempDir()
	store, err := content.Open(t.Context(), content.Config{Root: root, FreeFloor: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return &holdings{store, openRecords(filepath.Join(root, "records"))}
}

// keep takes a blob in, as a push to some homes does.
func (h *holdings) keep(t testing.TB, data []byte, homes ...home) digest.Digest {
	t.Helper()
	id := idOf(t, data)
	sums := piece.NewSums(id)
	if err := piece.NewHasher(sums).Write(sums, data); err != nil {
		t.Fatal(err)
	}
	pushed := filepath.Join(filepath.Dir(h.records.dir), "pushed")
	if err := os.WriteFile(pushed, data, 0o600); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(data)
	r := &record{Digest: d, Size: id.Size, Homes: homes}
	if err := errors.Join(h.store.Import(t.Context(), pushed, sums), h.records.put(r)); err != nil {
		t.Fatal(err)
	}
	return d
}

// known is what is remembered of objects, for a writer of a test.
type known struct {
	bad       error
	forgotten int
}

func (k *known) condemned(digest.Digest, string, string) error { return k.bad }
func (k *known) forget(digest.Digest)                          { k.forgotten++ }

// A blob is pinned until every backend that is to have it has it: the blob first, then its
// record. What is there already is not written again, unless it is known to be wrong.
func TestWrite(t *testing.T) {
	data, d := testBlob(100_000, 1)
	key, _ := fetcher.BlobKey(d)
	a, b, kept := home{Backend: "a", Key: key}, home{Backend: "b", Key: key}, home{Backend: "here"}
	done := home{Backend: "b", Key: key, Written: true}
	failing := func(what string) fetcher.Backend {
		return &fetchertest.Faulty{Backend: &fetchertest.Memory{}, Fail: func(op fetchertest.Op, k string) error {
			if op == fetchertest.OpWrite && strings.HasPrefix(k, what) {
				return errDown
			}
			return nil
		}}
	}
	for _, tt := range []struct {
		name    string
		homes   []home
		a, b    fetcher.Backend // nil: one that is empty
		there   string          // what a has under the blob's name
		bad     bool            // and it is known to be wrong
		err     bool
		pinned  bool
		wrote   string // to a, in order
		written []bool // the record's homes
	}{
		{name: "one home", homes: []home{a}, wrote: "blobs records", written: []bool{true}},
		{name: "two homes", homes: []home{a, b}, wrote: "blobs records", written: []bool{true, true}},
		{name: "the other has it", homes: []home{a, done}, b: failing(""), wrote: "blobs records", written: []bool{true, true}},
		{name: "it is kept here, too", homes: []home{a, kept}, wrote: "blobs records", pinned: true, written: []bool{true, false}},
		{name: "the blob cannot be written", homes: []home{a}, a: failing("blobs"), err: true,
			pinned: true, wrote: "blobs", written: []bool{false}},
		{name: "the record cannot be written", homes: []home{a}, a: failing("records"), err: true,
			pinned: true, wrote: "blobs records", written: []bool{false}},
		{name: "the other cannot be written", homes: []home{a, b}, b: failing("blobs"), err: true,
			pinned: true, wrote: "blobs records", written: []bool{true, false}},
		{name: "the first cannot be written", homes: []home{a, b}, a: failing("blobs"), err: true,
			pinned: true, wrote: "blobs", written: []bool{false, true}},
		{name: "the backend is not configured any more", homes: []home{{Backend: "c", Key: key}}, err: true,
			pinned: true, written: []bool{false}},
		{name: "it is there", homes: []home{a}, there: string(data), wrote: "records", written: []bool{true}},
		{name: "something shorter is there", homes: []home{a}, there: "short", wrote: "blobs records", written: []bool{true}},
		{name: "what is there is wrong", homes: []home{a}, there: string(data), bad: true, wrote: "blobs records", written: []bool{true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var wrote []string
			for _, b := range []*fetcher.Backend{&tt.a, &tt.b} {
				if *b == nil {
					*b = &fetchertest.Memory{}
				}
			}
			if tt.there != "" {
				if _, err := tt.a.Write(t.Context(), key, int64(len(tt.there)), strings.NewReader(tt.there)); err != nil {
					t.Fatal(err)
				}
			}
			spy := &fetchertest.Faulty{Backend: tt.a, Fail: func(op fetchertest.Op, k string) error {
				if op == fetchertest.OpWrite {
					kind, _, _ := strings.Cut(k, "/")
					wrote = append(wrote, kind)
				}
				return nil
			}}
			h, k := newHoldings(t), &known{}
			if tt.bad {
				k.bad = errdefs.ErrDataLoss
			}
			h.keep(t, data, tt.homes...)
			w := &writer{blobs: h, homes: homes{stores{"a": spy, "b": tt.b}}, objects: k, metrics: newMetrics(prometheus.NewRegistry())}
			err := w.write(t.Context(), d)
			if (err != nil) != tt.err {
				t.Errorf("got %v, want an error: %t", err, tt.err)
			}
			if got := strings.Join(wrote, " "); got != tt.wrote {
				t.Errorf("wrote %q, want %q", got, tt.wrote)
			}
			r, err := h.records.get(d)
			if err != nil {
				t.Fatal(err)
			}
			var written []bool
			for _, x := range r.Homes {
				written = append(written, x.Written)
			}
			if pinned := h.store.PresenceOf(d) == content.Committed; !slices.Equal(written, tt.written) || pinned != tt.pinned {
				t.Errorf("written %v, pinned: %t; want %v, %t", written, pinned, tt.written, tt.pinned)
			}
			if now := slices.Contains(written, true); now != (k.forgotten > 0) {
				t.Errorf("written: %t, and what was known of the object before was forgotten %d times", now, k.forgotten)
			}
			if strings.Contains(tt.wrote, "records") && !tt.err {
				rc, _, err := tt.a.Open(t.Context(), recordKey(d), 0, -1)
				if err != nil {
					t.Fatal(err)
				}
				text, _ := io.ReadAll(rc)
				told, err := parseRecord(text, d)
				if err != nil || len(told.Homes) != 1 || told.Homes[0].Backend != "a" || !told.Homes[0].Written {
					t.Errorf("the backend's record is %s, %v", text, err)
				}
			}
		})
	}
}

// A blob that is deleted while it is being written does not stay behind in the backend,
// nor come back here, whether or not the writing succeeded.
func TestWriteDeleted(t *testing.T) {
	data, d := testBlob(100_000, 1)
	key, _ := fetcher.BlobKey(d)
	for _, fails := range []bool{false, true} {
		h, k, mem := newHoldings(t), &known{}, &fetchertest.Memory{}
		h.keep(t, data, home{Backend: "a", Key: key})
		b := &fetchertest.Faulty{Backend: mem, FailAfter: func(op fetchertest.Op, key string) error {
			if op != fetchertest.OpWrite || !strings.HasPrefix(key, "records/") {
				return nil
			}
			if err := h.records.remove(d); err != nil {
				t.Error(err)
			}
			if fails {
				return errDown
			}
			return nil
		}}
		w := &writer{blobs: h, homes: homes{stores{"a": b}}, objects: k, metrics: newMetrics(prometheus.NewRegistry())}
		if err := w.write(t.Context(), d); err != nil {
			t.Errorf("fails %t: %v", fails, err)
		}
		if _, err := mem.Stat(t.Context(), recordKey(d)); has(mem, d) || !errdefs.IsNotFound(err) {
			t.Errorf("fails %t: the backend has what was deleted (record: %v)", fails, err)
		}
		if r, err := h.records.get(d); r != nil || err != nil {
			t.Errorf("fails %t: the record is back: %v, %v", fails, r, err)
		}
		if err := w.write(t.Context(), d); err != nil {
			t.Errorf("fails %t: written once more, there is nothing to do: %v", fails, err)
		}
	}
}
