package plugin

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseManifest(t *testing.T) {
	hex := strings.Repeat("ab", 32)
	layer := func(size int) string { return fmt.Sprintf(`{"digest":"sha256:%s","size":%d}`, hex, size) }
	for _, tt := range []struct {
		name, doc string
		layers    int
	}{
		{"image", `{"config":{},"layers":[` + layer(1) + `,` + layer(2) + `]}`, 2},
		{"a layer that no swarm can carry", `{"layers":[` + layer(1) + `,` + layer(0) + `,{"digest":"md5:00","size":1}]}`, 1},
		{"index", `{"manifests":[` + layer(1) + `]}`, -1},
		{"config", `{"rootfs":{"diff_ids":["sha256:` + hex + `"]}}`, -1},
		{"no JSON", "\x1f\x8b\x08", -1},
		{"cut off", `{"layers":[` + layer(1), -1},
		{"wrong types", `{"layers":{"digest":1}}`, -1},
		{"nothing", "", -1},
		{"too many", `{"layers":[` + strings.Repeat(layer(1)+",", 2*maxLayers) + layer(1) + `]}`, maxLayers},
	} {
		got := -1
		if img := parseManifest([]byte(tt.doc)); img != nil {
			got = len(img.layers)
		}
		if got != tt.layers {
			t.Errorf("%s: %d layers, want %d", tt.name, got, tt.layers)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"layers":[{"digest":"sha256:` + strings.Repeat("ab", 32) + `","size":7}]}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		img := parseManifest(p)
		if img == nil {
			return
		}
		if len(img.layers) > maxLayers {
			t.Errorf("%d layers", len(img.layers))
		}
		for _, id := range img.layers {
			if err := id.Validate(); err != nil {
				t.Error(err)
			}
		}
	})
}
