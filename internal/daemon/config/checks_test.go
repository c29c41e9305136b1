package config

import "testing"

func TestAddresses(t *testing.T) {
	for _, tt := range []struct {
		addr            string
		listen, connect bool
	}{
		{"127.0.0.1:7401", true, true}, {":7401", true, false}, {"[::]:0", true, false}, {"node-1:7401", true, true},
		{"h:65535", true, true}, {"h:65536", false, false}, {"h:-1", false, false}, {"h:", false, false}, {"h", false, false},
		{"", false, false}, {"::1:7401", false, false}, {"h:no-such-service", false, false},
	} {
		if got := IsListen(tt.addr); got != tt.listen {
			t.Errorf("one can listen on %q: %t", tt.addr, got)
		}
		if got := IsAddress(tt.addr); got != tt.connect {
			t.Errorf("one can connect to %q: %t", tt.addr, got)
		}
	}
	for s, want := range map[string]bool{"": true, "rack 7 ü": true, "a\tb": false, "a\x7f": false, "a\xff": false} {
		if got := IsText(s); got != want {
			t.Errorf("%q is a text: %t", s, got)
		}
	}
}
