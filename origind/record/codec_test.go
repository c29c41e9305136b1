package record

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// vectors calls f for each line of a file, with its fields.
func vectors(t *testing.T, name string, fields, most int, f func(t *testing.T, field []string)) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		field := strings.Split(line, " | ")
		if len(field) != fields {
			t.Fatalf("%q is no vector", line)
		}
		n++
		f(t, field)
	}
	if n < most {
		t.Errorf("%s: %d vectors", name, n)
	}
}

func digestOf(text string) digest.Digest {
	_, d, _ := strings.Cut(text, `"digest":"`)
	d, _, _ = strings.Cut(d, `"`)
	return digest.Digest(d)
}

func parseVector(t *testing.T, text string) *Record {
	t.Helper()
	r, err := Parse([]byte(text), digestOf(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return r
}

// One text, one packed form and one hash for what a record says. They never change.
func TestVectors(t *testing.T) {
	vectors(t, "records.txt", 3, 5, func(t *testing.T, f []string) {
		r := parseVector(t, f[0])
		if text, err := r.JSON(); err != nil || string(text) != f[0] {
			t.Errorf("written again: %s, %v\nwant %s", text, err, f[0])
		}
		packed := r.AppendPacked(nil)
		if got := hex.EncodeToString(packed); got != f[1] {
			t.Errorf("%s\npacked %s\nwant   %s", f[0], got, f[1])
		}
		if got := fmt.Sprintf("%x", r.Hash()); got != f[2] {
			t.Errorf("%s: hash %s, want %s", f[0], got, f[2])
		}
		if again, err := Unpack(packed); err != nil || !Equal(again, r) {
			t.Errorf("unpacked: %+v, %v", again, err)
		}
		for i := range packed {
			if _, err := Unpack(packed[:i]); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%d of %d packed bytes: %v", i, len(packed), err)
			}
		}
		if _, err := Unpack(append(packed, 0)); err == nil {
			t.Error("a byte after a packed record is taken")
		}
	})
}

func TestInvalidVectors(t *testing.T) {
	vectors(t, "invalid.txt", 2, 20, func(t *testing.T, f []string) {
		r, err := Parse([]byte(f[1]), blob)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), f[0]) {
			t.Errorf("%s\ngot %+v, %v, want an error about %s", f[1], r, err, f[0])
		}
	})
}

func TestMergeVectors(t *testing.T) {
	vectors(t, "merge.txt", 3, 6, func(t *testing.T, f []string) {
		a, b := parseVector(t, f[0]), parseVector(t, f[1])
		for _, m := range []*Record{Merge(a, b), Merge(b, a)} {
			if got, err := m.JSON(); err != nil || string(got) != f[2] {
				t.Errorf("%s\n%s\ngot  %s, %v\nwant %s", f[0], f[1], got, err, f[2])
			}
		}
	})
}

func TestLimits(t *testing.T) {
	var many *Record
	for i := range MaxHomes + 1 {
		many = Merge(many, pushed(Place{"s3", fmt.Sprint("k", i)}, "a", 5))
	}
	if err := many.Check(); !errdefs.IsResourceExhausted(err) {
		t.Errorf("%d homes: %v", len(many.Homes), err)
	}
	if _, err := many.JSON(); !errdefs.IsResourceExhausted(err) {
		t.Errorf("%d homes: %v", len(many.Homes), err)
	}
	if _, err := Unpack(many.AppendPacked(nil)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%d homes, packed: %v", len(many.Homes), err)
	}
	many.Homes = many.Homes[:MaxHomes]
	for i := range MaxNamespaces {
		ns := fmt.Sprintf("%0200d/%050d", i, i)
		for k := range many.Homes {
			many.Homes[k].Namespaces[ns] = 5
			delete(many.Homes[k].Namespaces, "a")
		}
	}
	if err := many.Check(); err != nil {
		t.Errorf("all that can be named: %v", err)
	}
	if _, err := many.JSON(); !errdefs.IsResourceExhausted(err) {
		t.Errorf("more than %d bytes: %v", MaxRecord, err)
	}
	for k := range many.Homes {
		many.Homes[k].Namespaces["b"] = 5
	}
	if err := many.Check(); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%d names: %v", MaxNamespaces+1, err)
	}
	if _, err := Parse(make([]byte, MaxRecord+1), blob); !errdefs.IsResourceExhausted(err) {
		t.Errorf("%d bytes: %v", MaxRecord+1, err)
	}
}

// What is accepted means the same when it is written again, whichever way.
func FuzzParse(f *testing.F) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 4 {
		b, err := random(rng).JSON()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Parse(b, blob)
		if err != nil {
			return
		}
		text, err := r.JSON()
		if errdefs.IsResourceExhausted(err) {
			return
		}
		again, err2 := Parse(text, blob)
		if err != nil || err2 != nil || !Equal(again, r) {
			t.Fatalf("%s became %s: %v, %v", b, text, err, err2)
		}
		if p, err := Unpack(r.AppendPacked(nil)); err != nil || !Equal(p, r) {
			t.Errorf("%s packed became %+v: %v", b, p, err)
		}
		if !Equal(Merge(r, r), r) {
			t.Errorf("merged with itself %s becomes another", b)
		}
		v1, err := r.V1()
		if err != nil || v1 == nil {
			return
		}
		old, err := FromV1(v1, blob, "origin-1")
		if err != nil || old.Pinned() != r.Pinned() || old.Pending() != r.Pending() || old.Durable() != r.Durable() {
			t.Errorf("%s by format 1, %s, became %+v: %v", b, v1, old, err)
		}
	})
}

// There is one packed form of a record, and no other bytes are taken.
func FuzzUnpack(f *testing.F) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 4 {
		f.Add(random(rng).AppendPacked(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Unpack(b)
		if err != nil {
			return
		}
		if again := r.AppendPacked(nil); !bytes.Equal(again, b) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

func TestV1(t *testing.T) {
	old := `{
 "digest": "` + string(blob) + `",
 "size": 5,
 "homes": [
  {
   "backend": "file",
   "key": "a/b",
   "namespaces": [
    "a",
    "b"
   ],
   "more": true,
   "written": true
  },
  {
   "backend": "origin",
   "namespaces": [
    "k"
   ]
  },
  {
   "backend": "s3",
   "key": "c/d",
   "written": true
  },
  {
   "backend": "s4",
   "key": "c/d",
   "namespaces": [
    "p"
   ]
  }
 ]
}`
	r, err := FromV1([]byte(old), blob, "origin-1")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.V1(); err != nil || string(got) != old {
		t.Errorf("there and back: %s, %v", got, err)
	}
	text, err := r.JSON()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"format":2,"digest":"` + string(blob) + `","size":5,"homes":[` +
		`{"backend":"file","key":"a/b","by":"origin-1","since":1,"namespaces":{"a":1,"b":1},"more":1,"written":2},` +
		`{"backend":"origin","by":"origin-1","since":1,"namespaces":{"k":1}},` +
		`{"backend":"s3","key":"c/d","by":"origin-1","since":1,"namespaces":{"":1},"written":2},` +
		`{"backend":"s4","key":"c/d","by":"origin-1","since":1,"namespaces":{"p":1}}]}`
	if string(text) != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
	// The latest push comes last, as format 1 has it; what was removed is left out.
	at := Place{"file", "a/b"}
	r = mergeAll(r, pushed(at, "0", 9), pushed(at, "a", 8), removed("b", 7), removed("p", 7))
	got, err := r.V1()
	if err != nil {
		t.Fatal(err)
	}
	s := strings.Join(strings.Fields(string(got)), "")
	if !strings.Contains(s, `"namespaces":["a","0"],"more":true}`) || strings.Contains(s, "s4") {
		t.Errorf("got %s", s)
	}
	r = Merge(r, removed("", 10))
	if got, err := r.V1(); got != nil || err != nil {
		t.Errorf("what lives nowhere: %s, %v", got, err)
	}
	with := func(what, by string) string { return strings.Replace(old, what, by, 1) }
	for _, bad := range []string{``, `{}`, `[]`, with(`"size": 5`, `"size": 0`), with(`a/b`, `a//b`), with(`"file"`, `""`),
		with(string(blob), string(digest.FromString("y"))), strings.Repeat(" ", maxV1+1)} {
		if _, err := FromV1([]byte(bad), blob, "origin-1"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%.200s: %v", bad, err)
		}
	}
}
