package index

import (
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestSource(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.UTC)
	for _, s := range []Source{{"west", Stamp(now) + 3}, {"Ost/ä 1%", Stamp(now)}} {
		if got, err := ParseSource(s.String()); err != nil || got != s || !got.Time().Equal(now) {
			t.Errorf("%v, %v, %v", got, got.Time(), err)
		}
	}
	for _, tt := range []struct {
		a, b  Source
		later bool
	}{
		{Source{"a", 2}, Source{"b", 1}, true},
		{Source{"a", 1}, Source{"b", 2}, false},
		{Source{"b", 1}, Source{"a", 1}, true},
		{Source{"a", 1}, Source{"a", 1}, false},
		{Source{"a", 1}, Source{}, true},
	} {
		if tt.a.Later(tt.b) != tt.later {
			t.Errorf("%v later than %v: %v", tt.a, tt.b, !tt.later)
		}
	}
	for _, bad := range []string{
		"", "west", "west/", "/1", "west/-1", "west/+1", "west/01", "west/1/2", "we st/1", "west/18446744073709551615",
		"west/0", "w%65st/1", strings.Repeat("x", 65) + "/1",
	} {
		if _, err := ParseSource(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzSource(f *testing.F) {
	f.Add("west/115292150460684697")
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := ParseSource(text); err == nil && s.String() != text {
			t.Errorf("%q is read as %v", text, s)
		}
	})
}
