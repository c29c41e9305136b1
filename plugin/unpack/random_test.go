package unpack

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
)

// randomLayer makes entries with few names, so that they get in each other's way.
func randomLayer(r *rand.Rand, n int) []entry {
	// In wild layers anything may be anything, and most of them fail; in tame
	// ones names tell what they are for.
	wild := r.IntN(4) == 0
	pick := func(s string) string { return string(s[r.IntN(len(s))]) }
	name := func(leaves string) string {
		above := "abl"
		if wild {
			above, leaves = "abcd", "abcd"
		}
		var p []string
		for range r.IntN(3) {
			p = append(p, pick(above))
		}
		p = append(p, pick(leaves))
		if wild && r.IntN(10) == 0 {
			p[r.IntN(len(p))] = ".."
		}
		s := strings.Join(p, "/")
		if r.IntN(20) == 0 {
			s = "/" + s
		}
		return s
	}
	made := []string{"x"}
	var es []entry
	for range n {
		var e entry
		switch k := r.IntN(100); {
		case k < 40:
			e = reg(name("xyz"), strings.Repeat("x", r.IntN(3)*r.IntN(700)))
			made = append(made, e.Name)
		case k < 42:
			e = reg(name("xyz"), strings.Repeat("big", smallFile/3+10))
			made = append(made, e.Name)
		case k < 55:
			e = directory(name("ab"))
		case k < 68:
			to := name("ab")
			if r.IntN(3) == 0 {
				to = "../" + to
			}
			e = symlink(name("lllz"), to)
		case k < 80:
			e = hardlink(name("xyz"), made[r.IntN(len(made))])
			if wild {
				e.Linkname = name("")
			}
		case k < 87:
			e = reg(".wh."+pick("abcdlxyz"), "")
			if r.IntN(2) == 0 {
				e.Name = name("ab") + "/" + e.Name
			}
		case k < 91:
			e = reg(name("abl")+"/.wh..wh..opq", "")
		case k < 95:
			e = entry{Header: tar.Header{Name: name("xyz"), Typeflag: tar.TypeFifo, Mode: 0o600}}
		default:
			e = entry{Header: tar.Header{Name: name("xyz"), Typeflag: tar.TypeChar, Mode: 0o600, Devmajor: 1, Devminor: int64(r.IntN(9))}}
		}
		if r.IntN(4) == 0 {
			e.Mode = int64([]int{0o4755, 0o2755, 0o1777, 0o600, 0}[r.IntN(5)])
			e.Uid, e.Gid = r.IntN(3), r.IntN(3)
		}
		if r.IntN(8) == 0 {
			e.PAXRecords = map[string]string{paxXattr + "user.x": strconv.Itoa(r.IntN(100))}
		}
		es = append(es, e)
	}
	return es
}

// TestRandomLayers applies random layers, one to three on top of each other.
// UNPACK_ROUNDS sets how many, UNPACK_SEED which.
func TestRandomLayers(t *testing.T) {
	needRoot(t)
	rounds, seed := 80, uint64(1)
	if v, err := strconv.Atoi(os.Getenv("UNPACK_ROUNDS")); err == nil {
		rounds = v
		seed = rand.Uint64()
	}
	if v, err := strconv.ParseUint(os.Getenv("UNPACK_SEED"), 10, 64); err == nil {
		seed = v
	}
	good, bad := 0, 0
	for i := range rounds {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		k := kind(r.IntN(2))
		var layers [][]byte
		var entries [][]entry
		for range 1 + r.IntN(3) {
			es := randomLayer(r, 1+r.IntN(14))
			entries = append(entries, es)
			layers = append(layers, layer(t, es...))
		}
		ok := t.Run(fmt.Sprint(i), func(t *testing.T) {
			d, stockErr, ourErr := applyBoth(t, k, layers)
			if stockErr == nil {
				good++
			} else {
				bad++
			}
			if d == "" {
				return
			}
			t.Errorf("seed %d, round %d, kind %d: %v, %v\n%s", seed, i, k, stockErr, ourErr, d)
			for _, es := range entries {
				for _, e := range es {
					t.Logf("%q", []any{e.Typeflag, e.Name, e.Linkname, len(e.body), e.Mode, e.Uid, e.Gid, e.PAXRecords})
				}
				t.Log("--")
			}
		})
		if !ok {
			break
		}
	}
	t.Logf("%d applied, %d failed with both", good, bad)
}
