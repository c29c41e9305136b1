package ringtest

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/capelin-io/capelin/control/ring"
)

// Vector says who owns a digest.
type Vector struct {
	Members []ring.Member
	N       int // how many own it
	Digest  string
	Owners  []string // names, the first one first
}

// Members reads "name=zone ..."; a zone may be left out.
func Members(s string) (all []ring.Member) {
	for f := range strings.FieldsSeq(s) {
		name, zone, _ := strings.Cut(f, "=")
		all = append(all, ring.Member{Name: name, Zone: zone})
	}
	return all
}

// Names returns the members' names.
func Names(all []ring.Member) []string {
	names := make([]string, len(all))
	for i, m := range all {
		names[i] = m.Name
	}
	return names
}

// Vectors reads a file like control/testdata/place.txt.
func Vectors(t testing.TB, path string) (all []Vector) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, " | ")
		if len(f) != 4 {
			t.Fatalf("%s: %q is no vector", path, line)
		}
		n, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatalf("%s: %q: %v", path, line, err)
		}
		all = append(all, Vector{Members(f[0]), n, f[2], strings.Fields(f[3])})
	}
	if len(all) < 8 {
		t.Fatalf("%s: only %d vectors", path, len(all))
	}
	return all
}
