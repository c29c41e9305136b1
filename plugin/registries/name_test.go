package registries

import (
	"testing"
	"time"
)

func TestSame(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"r.example", "r.example", true},
		{"r.example:5000", "r.example", true},
		{"r.example", "r.example:5000", true},
		{"r.example:5000", "r.example:5000", true},
		{"r.example:5000", "r.example:5900", false},
		{"r.example", "s.example", false},
		{"[2001:db8::1]:5000", "2001:db8::1", true},
		{"a.example,b.example", "a.example", false}, // which of two is not known
	} {
		if got := Same(tt.a, tt.b); got != tt.want {
			t.Errorf("%s and %s: %t", tt.a, tt.b, got)
		}
	}
}

// What is known of a registry is known of its host, whoever said its name.
func TestPort(t *testing.T) {
	m := New()
	var d Download
	bring(m, "r:5000", 0, 2*time.Second, 5e6, &d)
	m.Over("r:5000", &d)
	m.Broke("r:5000", t0)
	if m.Rate("r") == 0 || m.Continues("r", t0) || m.Len() != 1 {
		t.Errorf("of r: %.0f bytes a second, continues %t; %d hosts", m.Rate("r"), m.Continues("r", t0), m.Len())
	}
}
