package fetchertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
)

// FaultOptions adapts RunFaults to a storage.
type FaultOptions struct {
	Options
	// Once are faults that hit one request and are no answer to it: a backend tries again, or finds out what became of it.
	// They are added to those that every storage has: no connection, no answer, 429, 500, 503.
	Once map[string]Fault
	// Denied is how the storage says that one may not. The zero value: status 403.
	Denied Fault
	// WritesAgain: a Write whose request failed is sent again. A storage to which the bytes only stream cannot do that.
	WritesAgain bool
	// Clean is called after each part; it fails t if something is left in the storage that is no object, such as an unfinished upload.
	Clean func(t *testing.T, b fetcher.Backend)
}

// RunFaults checks what a backend makes of a storage that fails: nothing is said that is not known. What is there is never
// NotFound, and a compare-and-swap that nobody else disturbed is never lost, though its answer was; a write that failed has changed
// nothing or all, and bytes are never those of two versions. open returns a backend without objects whose requests all go through
// the proxy.
func RunFaults(t *testing.T, open func(t *testing.T) (fetcher.Backend, *Proxy), o FaultOptions) {
	if o.Large == 0 {
		o.Large = 3<<20 + 17
	}
	if o.Missing == "" {
		o.Missing = "conformance/missing"
	}
	if o.Denied.Status == 0 {
		o.Denied.Status = http.StatusForbidden
	}
	once := map[string]Fault{
		"refused": {Refused: true}, "lost": {Lost: true}, "500": {Status: 500}, "503": {Status: 503},
		"429": {Status: 429, Header: http.Header{"Retry-After": {"0"}}},
	}
	for name, f := range o.Once {
		once[name] = f
	}
	for _, part := range []struct {
		name  string
		needs func(fetcher.Capabilities) bool
		test  func(*testing.T, faults)
	}{
		{"Reads", nil, testFaultyReads},
		{"Bodies", nil, testFaultyBodies},
		{"Stalls", nil, testStalls},
		{"Denied", nil, testDenied},
		{"Away", nil, testAway},
		{"Writes", canWrite, testFaultyWrites},
		{"Swaps", canSwap, testFaultySwaps},
		{"Lists", canList, testFaultyLists},
		{"Deletes", canDelete, testFaultyDeletes},
	} {
		t.Run(part.name, func(t *testing.T) {
			b, p := open(t)
			t.Cleanup(func() {
				if err := b.Close(); err != nil {
					t.Errorf("closing: %v", err)
				}
			})
			if part.needs != nil && !part.needs(b.Capabilities()) || slices.Contains(o.Without, part.name) {
				t.Skipf("%s cannot", b.Name())
			}
			part.test(t, faults{suite{b, o.Options}, p, o, once})
			p.Fail(nil)
			if o.Clean != nil {
				o.Clean(t, b)
			}
		})
	}
}

type faults struct {
	suite
	proxy *Proxy
	o     FaultOptions
	once  map[string]Fault
}

// each calls f once for each fault and each request that f makes: one of them fails. hit tells whether it did.
func (s faults) each(t *testing.T, f func(t *testing.T, name string)) {
	for kind, fault := range s.once {
		for nth := int32(1); ; nth++ {
			var n atomic.Int32
			s.proxy.Fail(func(*http.Request) *Fault {
				if n.Add(1) == nth {
					return &fault
				}
				return nil
			})
			f(t, fmt.Sprintf("%s-%d", kind, nth))
			s.proxy.Fail(nil)
			if n.Load() < nth || t.Failed() {
				break
			}
		}
	}
}

// always has all requests fail.
func (s faults) always(f Fault) { s.proxy.Fail(func(*http.Request) *Fault { return &f }) }

func testFaultyReads(t *testing.T, s faults) {
	data := random(1000)
	key := s.put(t, data)
	s.each(t, func(t *testing.T, name string) {
		if info, err := s.Stat(t.Context(), key); err != nil || info.Size != 1000 {
			t.Errorf("%s: Stat: %+v, %v", name, info, err)
		}
	})
	s.each(t, func(t *testing.T, name string) {
		if _, err := s.Stat(t.Context(), s.o.Missing); !errdefs.IsNotFound(err) {
			t.Errorf("%s: Stat of what is not there: %v", name, err)
		}
	})
	s.each(t, func(t *testing.T, name string) {
		r, info, err := s.Open(t.Context(), key, 10, 100)
		if err != nil {
			t.Errorf("%s: Open: %v", name, err)
			return
		}
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data[10:110]) || info.Size != 1000 {
			t.Errorf("%s: read %d bytes, %+v, %v", name, len(got), info, err)
		}
	})
	s.each(t, func(t *testing.T, name string) {
		if err := s.Check(t.Context()); err != nil && !errdefs.IsUnavailable(err) {
			t.Errorf("%s: Check: %v", name, err)
		}
	})
}

// testFaultyBodies: an answer that is cut is resumed, or its end is told; also if the object has changed since.
func testFaultyBodies(t *testing.T, s faults) {
	a := random(s.o.Options.Large)
	key := s.put(t, a)
	for _, after := range []int64{1, 64 << 10, int64(len(a)) / 2, int64(len(a)) - 1} {
		for _, writes := range []bool{false, true} {
			if writes && !s.Capabilities().Write {
				continue
			}
			var n atomic.Int32
			s.proxy.Fail(func(r *http.Request) *Fault {
				if r.Method == http.MethodGet && n.Add(1) < 3 {
					return &Fault{AnswerAfter: after}
				}
				return nil
			})
			got, err := s.readBeside(t, key, writes)
			s.proxy.Fail(nil)
			if err == nil && !bytes.Equal(got, a) || err != nil && !bytes.HasPrefix(a, got) {
				t.Errorf("cut after %d, written meanwhile %v: %d bytes that are not the object's, %v", after, writes, len(got), err)
			}
			if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errdefs.IsUnavailable(err) {
				t.Errorf("cut after %d: %v", after, err)
			}
			if writes {
				s.write(t, key, a)
			}
		}
	}
}

// readBeside reads an object, which another write replaces when its first bytes have come.
func (s faults) readBeside(t *testing.T, key string, writes bool) ([]byte, error) {
	r, _, err := s.Open(t.Context(), key, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var first [1]byte
	if _, err := io.ReadFull(r, first[:]); err != nil {
		return nil, err
	}
	if writes {
		s.write(t, key, bytes.Repeat([]byte("b"), s.o.Options.Large))
	}
	rest, err := io.ReadAll(r)
	return append(first[:], rest...), err
}

// testStalls: an answer that does not come, or does not go on, ends with its context.
func testStalls(t *testing.T, s faults) {
	key := s.put(t, random(s.o.Options.Large))
	for _, after := range []int64{0, 64 << 10} {
		ctx, cancel := context.WithCancel(t.Context())
		s.always(Fault{Stalls: true, AnswerAfter: after})
		go func() {
			<-s.proxy.Stalled()
			cancel()
		}()
		r, _, err := s.Open(ctx, key, 0, -1)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled when it stalled after %d bytes: %v", after, err)
		}
		cancel()
		s.proxy.Fail(nil)
	}
}

// calls are all that may be called, but those of a backend that cannot.
func (s faults) calls(t *testing.T, key, version string) map[string]func() error {
	ctx, caps := t.Context(), s.Capabilities()
	all := map[string]func() error{
		"Check": func() error { return s.Check(ctx) },
		"Stat":  func() error { _, err := s.Stat(ctx, key); return err },
		"Open": func() error {
			r, _, err := s.Open(ctx, key, 0, -1)
			if err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
			return err
		},
	}
	if caps.Write {
		all["Write"] = func() error { _, err := s.Write(ctx, key+"2", 5, bytes.NewReader([]byte("other"))); return err }
	}
	if canSwap(caps) {
		all["WriteIf creates"] = func() error { _, err := s.WriteIf(ctx, key+"3", []byte("other"), ""); return err }
		all["WriteIf replaces"] = func() error { _, err := s.WriteIf(ctx, key, []byte("other"), version); return err }
	}
	if caps.List {
		all["List"] = func() error { _, _, err := s.List(ctx, "", "", 0); return err }
	}
	if caps.Delete {
		all["Delete"] = func() error { return s.Delete(ctx, key) }
	}
	return all
}

func (s faults) refuseAll(t *testing.T, f Fault, ok func(error) bool) {
	data := []byte("what is there")
	key := s.put(t, data)
	info, err := s.Stat(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	s.always(f)
	for name, call := range s.calls(t, key, info.Version) {
		if err := call(); err == nil || !ok(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.proxy.Fail(nil)
	s.holds(t, key, data)
	for _, other := range []string{"2", "3"} {
		if s.Capabilities().Write {
			s.holds(t, key+other, nil)
		}
	}
}

func testDenied(t *testing.T, s faults) {
	s.refuseAll(t, s.o.Denied, func(err error) bool { return errdefs.IsPermissionDenied(err) || errdefs.IsUnauthorized(err) })
}

func testAway(t *testing.T, s faults) {
	for _, f := range []Fault{{Refused: true}, {Status: 503}} {
		s.refuseAll(t, f, errdefs.IsUnavailable)
	}
}

// either checks that an object is as before or after a write whose outcome nobody knows.
func (s faults) either(t *testing.T, key string, before, after []byte) {
	t.Helper()
	r, _, err := s.Open(t.Context(), key, 0, -1)
	if errdefs.IsNotFound(err) && before == nil {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, after) && (before == nil || !bytes.Equal(got, before)) {
		t.Errorf("%s has %s of %d bytes, %v: neither what was there nor what was written", key, short(string(got)), len(got), err)
	}
}

func testFaultyWrites(t *testing.T, s faults) {
	for _, size := range []int{1000, s.o.Options.Large} {
		for _, old := range [][]byte{nil, []byte("what was there before")} {
			s.each(t, func(t *testing.T, name string) {
				key, data := fmt.Sprintf("conformance/faulty/%d-%v-%s", size, old != nil, name), random(size)
				if old != nil {
					fail := s.suspend()
					s.write(t, key, old)
					s.proxy.Fail(fail)
				}
				info, err := s.Write(t.Context(), key, int64(size), bytes.NewReader(data))
				s.suspend()
				switch {
				case err == nil:
					s.holds(t, key, data)
					if got, err := s.Stat(t.Context(), key); err != nil || got.Version != info.Version {
						t.Errorf("%s: Stat says %+v, %v, Write said %+v", name, got, err, info)
					}
				case s.o.WritesAgain || !errdefs.IsUnavailable(err):
					t.Errorf("%s, %d bytes: %v", name, size, err)
				}
				s.either(t, key, old, data)
			})
		}
	}
	// The request breaks off, again and again.
	key, old := "conformance/faulty/cut", []byte("what was there before")
	s.write(t, key, old)
	for _, after := range []int64{1, 1 << 20} {
		s.always(Fault{BodyAfter: after})
		_, err := s.Write(t.Context(), key, int64(s.o.Options.Large), bytes.NewReader(random(s.o.Options.Large)))
		s.proxy.Fail(nil)
		if !errdefs.IsUnavailable(err) {
			t.Errorf("requests are cut after %d bytes: %v", after, err)
		}
		s.holds(t, key, old)
	}
}

// suspend has nothing fail for now, and returns what did.
func (s faults) suspend() func(*http.Request) *Fault {
	s.proxy.mu.Lock()
	defer s.proxy.mu.Unlock()
	f := s.proxy.fail
	s.proxy.fail = nil
	return f
}

func testFaultySwaps(t *testing.T, s faults) {
	s.each(t, func(t *testing.T, name string) {
		key := "conformance/swaps/" + name
		fail := s.suspend()
		steps := []struct{ data, version string }{{"created " + name, ""}, {"replaced " + name, "?"}}
		var at fetcher.Info
		for _, step := range steps {
			if step.version != "" {
				step.version = at.Version
			}
			s.proxy.Fail(fail)
			info, err := s.WriteIf(t.Context(), key, []byte(step.data), step.version)
			fail = s.suspend()
			if err != nil {
				t.Errorf("%s: %q, version %q: %v", name, step.data, step.version, err)
				return
			}
			s.holds(t, key, []byte(step.data))
			if at, err = s.Stat(t.Context(), key); err != nil || at.Version != info.Version {
				t.Errorf("%s: Stat says %+v, %v, WriteIf said %+v", name, at, err, info)
			}
		}
		s.proxy.Fail(fail)
		if _, err := s.WriteIf(t.Context(), key, []byte("lost"), "stale"); !errdefs.IsConflict(err) {
			t.Errorf("%s: a version that is not there: %v", name, err)
		}
	})
	// No answer ever comes: nobody knows, and nobody says that another was first.
	s.always(Fault{Lost: true})
	_, err := s.WriteIf(t.Context(), "conformance/swaps/lost", []byte("x"), "")
	s.proxy.Fail(nil)
	if !errdefs.IsUnavailable(err) {
		t.Errorf("all answers are lost: %v", err)
	}
	s.either(t, "conformance/swaps/lost", nil, []byte("x"))
}

func testFaultyLists(t *testing.T, s faults) {
	want := []string{"conformance/list/a", "conformance/list/b/c", "conformance/list/d"}
	for _, key := range want {
		s.write(t, key, []byte("x"))
	}
	s.each(t, func(t *testing.T, name string) {
		page, more, err := s.List(t.Context(), "conformance/", "", 0)
		if err != nil || more || fmt.Sprint(names(page)) != fmt.Sprint(want) {
			t.Errorf("%s: %q, more %v, %v", name, names(page), more, err)
		}
	})
}

func testFaultyDeletes(t *testing.T, s faults) {
	s.each(t, func(t *testing.T, name string) {
		key := "conformance/delete/" + name
		fail := s.suspend()
		s.write(t, key, []byte("x"))
		s.proxy.Fail(fail)
		if err := s.Delete(t.Context(), key); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		fail = s.suspend()
		s.holds(t, key, nil)
		s.proxy.Fail(fail)
	})
}
