package daemon

import (
	"errors"
	"testing"
)

// Two addresses overlap if one process cannot listen on both.
func TestOverlap(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"127.0.0.1:1", "127.0.0.1:1", true},
		{"127.0.0.1:1", "127.0.0.1:2", false},
		{"127.0.0.1:1", "127.0.0.2:1", false},
		{"127.0.0.1:1", ":1", true},
		{"0.0.0.0:1", "127.0.0.1:1", true},
		{"127.0.0.1:1", "[::]:1", true},
		{"localhost:1", "127.0.0.1:1", true},
		{"[::ffff:127.0.0.1]:1", "127.0.0.1:1", true},
		{"[::1]:1", "127.0.0.1:1", false},
		{"a:1", "b:1", false},
		{":0", "127.0.0.1:0", false}, // any port
		{"", "127.0.0.1:1", false},
	} {
		if got, back := Overlap(tt.a, tt.b), Overlap(tt.b, tt.a); got != tt.want || back != tt.want {
			t.Errorf("%q and %q: %t, and the other way round %t, want %t", tt.a, tt.b, got, back, tt.want)
		}
	}
}

// Each address can be listened on once: the later key is the one that is wrong, about the first that it meets.
func TestCheckPorts(t *testing.T) {
	for _, tt := range []struct {
		name string
		all  []Address
		want string
	}{
		{"different", []Address{{"listen", ":1"}, {"metrics", "127.0.0.1:2"}, {"shim.listen", "127.0.0.1:0"}, {"x", "127.0.0.1:0"}}, ""},
		{"none", []Address{{"listen", ":1"}, {"metrics", ""}, {"shim.listen", ""}}, ""},
		{"two", []Address{{"listen", ":1"}, {"metrics", "127.0.0.1:1"}},
			`metrics: "127.0.0.1:1" is the port of listen (":1"), too: choose another one`},
		{"three", []Address{{"listen", ":1"}, {"metrics", ":1"}, {"shim.listen", ":1"}},
			"metrics: \":1\" is the port of listen (\":1\"), too: choose another one\n" +
				"shim.listen: \":1\" is the port of listen (\":1\"), too: choose another one"},
	} {
		got := ""
		if err := errors.Join(CheckPorts(tt.all...)...); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
