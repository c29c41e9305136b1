package unpack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/plugin/unpack/treetest"
)

func needRoot(tb testing.TB) {
	tb.Helper()
	switch {
	case Able():
	case os.Geteuid() == 0:
		tb.Fatal("root cannot unpack here: openat2 or /proc is missing")
	default:
		tb.Skip("needs root, openat2 and /proc")
	}
}

// An entry of a test layer. The zero values of most fields are filled in.
type entry struct {
	tar.Header
	body string
}

func reg(name, body string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, body: body}
}
func directory(name string) entry {
	return entry{Header: tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}}
}
func symlink(name, to string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}}
}
func hardlink(name, to string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to, Mode: 0o644}}
}

func (e entry) with(f func(*tar.Header)) entry { f(&e.Header); return e }

// layer makes an archive. Entries without a time get one of their own.
func layer(tb testing.TB, entries ...entry) []byte {
	tb.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for i, e := range entries {
		if e.ModTime.IsZero() && e.Typeflag != tar.TypeXGlobalHeader {
			e.ModTime = time.Unix(1_600_000_000+int64(i), 0)
		}
		e.Size = int64(len(e.body))
		if err := tw.WriteHeader(&e.Header); err != nil {
			tb.Fatal(err)
		}
		if _, err := tw.Write([]byte(e.body)); err != nil {
			tb.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(b []byte) []byte {
	var buf bytes.Buffer
	w, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	w.Write(b)
	w.Close()
	return buf.Bytes()
}

func describe(tb testing.TB, root string, since time.Time) map[string]string {
	tb.Helper()
	m, err := treetest.Describe(root, since)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// kind is where layers are applied to.
type kind int

const (
	bind    kind = iota // all layers to one directory
	overlay             // each layer to an upper directory of its own
)

// applyBoth applies layers, the lowest first, with containerd's archive.Apply
// and with Layer, and reports the first difference. stockErr and ourErr are
// those of the first layer with which one of them failed.
func applyBoth(tb testing.TB, k kind, layers [][]byte) (difference string, stockErr, ourErr error) {
	tb.Helper()
	since := time.Now().Add(-time.Minute)
	tmp := tb.TempDir()
	var stockLower, ourLower []string
	stock, ours := filepath.Join(tmp, "stock0"), filepath.Join(tmp, "ours0")
	for i, l := range layers {
		if k == overlay || i == 0 {
			stock, ours = filepath.Join(tmp, fmt.Sprint("stock", i)), filepath.Join(tmp, fmt.Sprint("ours_", i))
			for _, d := range []string{stock, ours} {
				if err := os.Mkdir(d, 0o755); err != nil {
					tb.Fatal(err)
				}
			}
		}
		var opts []archive.ApplyOpt
		o := Options{Workers: 1 + i%3}
		if k == overlay && i > 0 {
			opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(stockLower))
			o.Overlay, o.Lower = true, ourLower
		}
		_, stockErr = archive.Apply(context.Background(), stock, bytes.NewReader(l), opts...)
		var res Result
		blob := l
		if i%2 == 1 {
			blob = gzipped(l)
		}
		res, ourErr = Layer(context.Background(), bytes.NewReader(blob), int64(len(blob)), true, ours, o)
		if (stockErr == nil) != (ourErr == nil) {
			return fmt.Sprintf("layer %d: containerd's error is %v, ours is %v", i, stockErr, ourErr), stockErr, ourErr
		}
		if stockErr != nil {
			return "", stockErr, ourErr
		}
		if want := digest.FromBytes(l); res.DiffID != want || res.Size != int64(len(l)) {
			return fmt.Sprintf("layer %d: diff ID %s, %d bytes; want %s, %d bytes", i, res.DiffID, res.Size, want, len(l)), nil, nil
		}
		if d := treetest.Diff(describe(tb, stock, since), describe(tb, ours, since)); d != "" {
			return fmt.Sprintf("layer %d:\n%s", i, d), nil, nil
		}
		stockLower = append([]string{stock}, stockLower...)
		ourLower = append([]string{ours}, ourLower...)
	}
	return "", nil, nil
}

func TestSameTree(t *testing.T) {
	needRoot(t)
	long := strings.Repeat("n", 255)
	big := strings.Repeat("0123456789abcdef", smallFile/16+1000)
	acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x05\x00\x01\x00\x00\x00" +
		"\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	caps := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	xattrs := func(kv ...string) func(*tar.Header) {
		return func(h *tar.Header) {
			h.PAXRecords = make(map[string]string)
			for i := 0; i < len(kv); i += 2 {
				h.PAXRecords[paxXattr+kv[i]] = kv[i+1]
			}
		}
	}
	owner := func(uid, gid int, mode int64) func(*tar.Header) {
		return func(h *tar.Header) { h.Uid, h.Gid, h.Mode = uid, gid, mode }
	}
	format := func(f tar.Format) func(*tar.Header) { return func(h *tar.Header) { h.Format = f } }

	for name, layers := range map[string][][]entry{
		"empty": {{}},
		"plain": {{directory("d"), reg("d/f", "content"), reg("empty", ""), symlink("s", "d/f"), hardlink("h", "d/f")}},
		"large": {
			{
				reg("big", big), hardlink("same", "big"), reg("exact", big[:smallFile]), reg("more", big[:smallFile+1]),
				reg("last", "x"),
			},
		},
		"no parents": {{reg("a/b/c/f", "x"), reg("a/b/g", "y"), symlink("l/m/n", "x")}},
		"names": {
			{
				reg(long, "x"), directory(long + "2"), reg("\xff\xfe\x80", "not UTF-8"), reg(" ", "blank"), reg("a\nb", "newline"),
				reg("-", ""), symlink("x", "\xff"),
			},
			{directory("d\x01")},
		},
		"modes": {
			{
				reg("suid", "x").with(owner(0, 0, 0o4755)), reg("sgid", "x").with(owner(1, 2, 0o2755)),
				reg("both", "x").with(owner(1000, 1000, 0o6711)), reg("none", "x").with(owner(0, 0, 0)),
				reg("w", "").with(owner(0, 0, 0o666)), directory("tmp").with(owner(0, 0, 0o1777)),
				directory("sg").with(owner(3, 4, 0o2770)), reg("sg/f", "x"), directory("sg/d"), reg("sg/p/q", "implied in setgid"),
				directory("locked").with(owner(7, 7, 0)), reg("locked/f", "x"),
			},
		},
		"big ids": {
			{
				reg("f", "x").with(owner(1<<31, 1<<32-2, 0o600)), symlink("s", "f").with(owner(5, 6, 0o777)),
				hardlink("h", "f").with(owner(9, 9, 0o4755)),
			},
		},
		"times": {
			{
				reg("ns", "x").with(func(h *tar.Header) { h.ModTime = time.Unix(1, 123456789); h.Format = tar.FormatPAX }),
				reg("neg", "x").with(func(h *tar.Header) { h.ModTime = time.Unix(-5, 0); h.Format = tar.FormatPAX }),
				reg("far", "x").with(func(h *tar.Header) { h.ModTime = time.Unix(1<<35, 0); h.Format = tar.FormatPAX }),
				reg("at", "x").with(func(h *tar.Header) { h.AccessTime = time.Unix(1_700_000_000, 5); h.Format = tar.FormatPAX }),
				reg("old", "x").with(func(h *tar.Header) { h.AccessTime = time.Unix(5, 5); h.Format = tar.FormatPAX }),
				directory("d").with(func(h *tar.Header) { h.ModTime = time.Unix(77, 7); h.Format = tar.FormatPAX }), reg("d/f", "x"),
				symlink("s", "d").with(func(h *tar.Header) { h.ModTime = time.Unix(78, 0) }),
			},
		},
		"xattrs": {
			{
				reg("cap", "x").with(xattrs("security.capability", caps)),
				reg("capown", "x").with(owner(5, 5, 0o755)).with(xattrs("security.capability", caps)), hardlink("caplink", "cap"),
				directory("d").with(xattrs("user.a", "b", "trusted.no", "x")),
				reg("d/u", "x").with(xattrs("user.k", "v\x01\xff", "user.empty", "")),
				symlink("s", "x").with(xattrs("user.ignored", "x")), reg("trusted", "x").with(xattrs("trusted.overlay.opaque", "y")),
			},
		},
		"bad xattr":  {{reg("f", "x").with(xattrs("nonsense", "x"))}, {reg("g", "x")}},
		"huge xattr": {{reg("f", "x").with(xattrs("user.x", strings.Repeat("v", 70000)))}},
		"long xattr": {{reg("f", "x").with(xattrs("user."+strings.Repeat("k", 300), "v"))}},
		"bad acl":    {{reg("f", "x").with(xattrs("system.posix_acl_access", "x"))}},
		"default acl": {
			{
				directory("d").with(xattrs("system.posix_acl_default", acl)), reg("d/f", "x"), directory("d/e"), reg("d/e/g", "x"),
				reg("d/i/h", "x"), {Header: tar.Header{Name: "d/fifo", Typeflag: tar.TypeFifo, Mode: 0o640}},
			},
		},
		"devices": {
			{
				{Header: tar.Header{Name: "c", Typeflag: tar.TypeChar, Mode: 0o620, Devmajor: 1, Devminor: 3, Uid: 3, Gid: 4}},
				{Header: tar.Header{Name: "b", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 259, Devminor: 300}},
				{Header: tar.Header{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o4666}}, hardlink("c2", "c"),
				{Header: tar.Header{Name: "wh", Typeflag: tar.TypeChar, Mode: 0}},
			},
		},
		"formats": {
			{
				reg("ustar", "x").with(format(tar.FormatUSTAR)),
				reg(strings.Repeat("p", 90)+"/"+strings.Repeat("q", 90), "prefix").with(format(tar.FormatUSTAR)),
				reg("gnu"+long[:200], "x").with(format(tar.FormatGNU)), symlink("gnulink", long+"/"+long).with(format(tar.FormatGNU)),
				reg("pax"+long[:200], "x").with(format(tar.FormatPAX)),
				reg("gnuid", "x").with(owner(1<<30, 1<<30, 0o644)).with(format(tar.FormatGNU)),
			},
		},
		"global": {
			{
				reg("GlobalHead.0.0", "x"),
				{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}, Format: tar.FormatPAX}},
				reg("f", "x"),
			},
		},
		"cont": {{{Header: tar.Header{Name: "x", Typeflag: tar.TypeCont, Mode: 0o644}}}},
		"slashes": {
			{
				reg("./a", "x"), reg(".//b//c", "x"), directory("./"), directory("/abs"), reg("/abs/f", "x"), reg("abs/../g", "x"),
				reg("./abs/./h", "x"),
			},
		},
		"climb": {
			{reg("../up", "x"), reg("../../../etc/passwd", "x"), reg("/../r", "x"), directory(".."), symlink("../s", "..")},
		},
		"escape": {
			{
				symlink("evil", "/etc"), reg("evil/f", "in the root"), symlink("up", "../../.."), reg("up/g", "also"),
				symlink("abs", "/nowhere/at/all"), reg("abs/h", "made"), hardlink("passwd", "/../../etc/f"), symlink("self", "/self"),
			},
		},
		"chains": {
			{
				directory("real"), symlink("l1", "real"), symlink("l2", "l1"), symlink("l3", "/l2"), reg("l3/f", "x"),
				directory("real/sub"), symlink("real/sub/back", "../../l1"), reg("l2/sub/back/g", "x"), hardlink("l3/h", "l2/f"),
				directory("l1"),
			},
		},
		"loop":                  {{symlink("a", "b"), symlink("b", "a"), reg("a/f", "x")}},
		"dangling":              {{symlink("a", "nowhere"), reg("a/f", "x"), directory("nowhere/d")}},
		"lexical":               {{directory("d/e"), symlink("s", "d/e"), symlink("t", "s/../x"), reg("t/f", "x")}},
		"dir as link":           {{directory("a"), symlink("b", "a"), directory("b"), reg("b/f", "x")}},
		"final symlink to root": {{directory("a"), symlink("b", "/")}, {directory("b/c")}},
		"replace": {
			{
				directory("d"), reg("d/f", "x"), reg("d", "now a file"), reg("f", "1"), directory("f"), reg("f/g", "2"),
				symlink("f", "d"), reg("s", "1"), symlink("s", "f"), reg("s", "2"),
			},
		},
		"replace tree": {
			{
				directory("a/b/c"), reg("a/b/c/f", "x"), symlink("l", "a/b"), reg("l/g", "x"), directory("o"), symlink("a", "o"),
				reg("a/new", "x"),
			},
		},
		"redirect": {
			{
				directory("a/d"), directory("b"), symlink("l", "a"), reg("l/1", "x"), symlink("l", "b"), reg("l/2", "x"),
				directory("l/d"), symlink("l", "a"),
			},
			{reg("b/d/e", "")},
		},
		"same often": {
			{
				reg("f", "1"), reg("f", "22"), reg("f", "333"), hardlink("g", "f"), reg("f", "4444"), reg("g", "5"),
				hardlink("f", "g"),
			},
		},
		"link to self": {{reg("f", "x"), hardlink("f", "f")}},
		"link order":   {{hardlink("g", "f"), reg("f", "x")}},
		"links": {
			{
				reg("d/f", "x"), symlink("s", "d/f"), hardlink("hs", "s"), hardlink("hd", "./d/../d/f"), hardlink("habs", "/d/f"),
				symlink("sd", "d"), hardlink("hvia", "sd/f"), hardlink("slash", "d/f/"), hardlink("up", "../../d/f"),
			},
		},
		"link to dir":  {{directory("d"), hardlink("h", "d")}},
		"link to root": {{hardlink("h", "..")}},
		"through file": {{reg("f", "x"), reg("f/g", "x")}},
		"whiteouts": {
			{directory("d"), reg("d/a", "1"), reg("d/b", "2"), directory("d/sub"), reg("d/sub/x", "3"), directory("e"), reg("e/x", "4"),
				reg("top", "5"), symlink("sl", "d")},
			{reg("d/.wh.a", ""), reg(".wh.top", "ignored content"), reg("d/.wh.none", ""), reg("d/c", "new"), reg("e/.wh..wh..opq", ""),
				reg("e/y", "6"), reg("d/.wh.sub", "").with(owner(5, 6, 0o600))},
			{reg("d/a", "again"), directory("d/sub"), reg("d/sub/z", "7"), directory("top"), reg("e/x", "back"), reg(".wh.sl", "")},
		},
		"opaque": {
			{directory("d/sub/deep"), reg("d/sub/deep/f", "1"), reg("d/f", "2"), reg("d/sub/g", "3"), symlink("d/l", "sub")},
			{reg("d/new", "before"), directory("d/sub"), reg("d/sub/h", "kept"), reg("d/i/j", "implied"), reg("d/.wh..wh..opq", ""),
				reg("d/after", "x"), reg("d/.wh..wh..opq", ""), reg("d/l", "")},
			{reg(".wh..wh..opq", ""), reg("only", "this")},
		},
		"bad whiteout":   {{reg(".wh..", "")}},
		"bad whiteout 2": {{reg(".wh...", "")}},
		"bad whiteout 3": {{reg("d/.wh.", "")}},
		"whiteout own":   {{reg("base", "")}, {reg("f", "x"), reg(".wh.f", "")}},
		"whiteout first": {{reg("f", "0")}, {reg(".wh.f", ""), reg("f", "x"), directory("d"), reg("d/.wh.g", ""), directory("d/g")}},
		"whiteout dir":   {{reg("x", "")}, {directory("d"), reg(".wh.d", "")}},
		"whiteout meta":  {{reg("x", "")}, {reg(".wh..wh.foo", ""), reg(".wh..wh.plnk/1", "")}},
		"inherit": {
			{directory("p").with(owner(11, 12, 0o1750)).with(xattrs("user.i", "j")), directory("p/q").with(owner(13, 14, 0o700)),
				reg("p/q/f", "x"), reg("r", "a file"), symlink("ln", "p")},
			{reg("p/q/g", "y"), reg("ln/q/h", "z"), reg("r/x", "over a file")},
		},
		"path too long": {{directory(strings.TrimSuffix(strings.Repeat(long[:250]+"/", 20), "/"))}},
		"name too long": {{reg(long+"n", "x")}},
	} {
		for _, k := range []kind{bind, overlay} {
			t.Run(fmt.Sprint(name, [...]string{", bind", ", overlay"}[k]), func(t *testing.T) {
				var ls [][]byte
				for _, es := range layers {
					ls = append(ls, layer(t, es...))
				}
				d, stockErr, ourErr := applyBoth(t, k, ls)
				if d != "" {
					t.Error(d)
				}
				if stockErr != nil {
					t.Logf("both fail:\n  %.300s\n  %.300s", stockErr, ourErr)
				}
			})
		}
	}
}
