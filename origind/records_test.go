package origind

import (
	"encoding/json"
	"fmt"
	"testing"

	digest "github.com/opencontainers/go-digest"

	format2 "github.com/capelin-io/capelin/origind/record"
)

// What this origin writes is read as format 2, and written as it was.
func TestRecordsOfBothFormats(t *testing.T) {
	d := digest.FromString("x")
	many := &record{Digest: d, Size: 1}
	for i := range maxNamespaces + 5 {
		many.add(home{Backend: "s3", Key: "a/b"}, fmt.Sprintf("team/%04d", i))
	}
	found := &record{Digest: d, Size: 1}
	found.add(home{Backend: "hub", Key: "x", Written: true}, "")
	pushed := &record{Digest: d, Size: 1 << 40}
	pushed.add(home{Backend: "file", Key: "a/b", Written: true}, "team/app")
	pushed.add(home{Backend: "kept"}, "kept/app")
	pushed.add(home{Backend: "s3", Key: "a/b"}, "team/app")
	for _, r := range []*record{many, found, pushed} {
		text, err := json.MarshalIndent(r, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		n, err := format2.FromV1(text, d, "origin-1")
		if err != nil {
			t.Fatal(err)
		}
		if n.Pinned() != r.pinned() || n.Pending() != r.pending() || n.Durable() != r.durable() {
			t.Errorf("%s means another thing as %+v", text, n)
		}
		if again, err := n.V1(); err != nil || string(again) != string(text) {
			t.Errorf("%s became %s: %v", text, again, err)
		}
		// And what is removed by name is removed in both.
		for _, h := range r.Homes {
			for _, ns := range h.Namespaces {
				n = format2.Merge(n, format2.Removed(d, ns, 9))
			}
		}
		for _, ns := range []string{"team/app", "kept/app"} {
			r.remove(ns)
		}
		if n.Live() != (len(r.Homes) > 0) {
			t.Errorf("after removals %+v, and %+v", r, n)
		}
	}
}
