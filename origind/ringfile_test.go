package origind

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/origind/ringstate"
)

// filled sets all that can be set to something that is not zero.
func filled(v reflect.Value, n *uint64) {
	*n++
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		filled(v.Elem(), n)
	case reflect.Struct:
		for i := range v.NumField() {
			filled(v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		filled(v.Index(0), n)
		filled(v.Index(1), n)
	case reflect.String:
		v.SetString(fmt.Sprint("<é> \"", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(int64(*n))
	case reflect.Uint8:
		v.SetUint(1 + *n%3)
	case reflect.Uint64:
		v.SetUint(1<<62 + *n)
	default:
		panic(v.Kind().String() + " in what is kept of a ring: ring.json does not know it")
	}
}

func filledRing() *ringFile {
	var n uint64
	f := &ringFile{incarnation: 1<<63 + 5, log: 7, saved: new(ringstate.Saved)}
	filled(reflect.ValueOf(f.saved).Elem(), &n)
	f.saved.Incarnation = f.incarnation
	return f
}

// Nothing that a ring has kept is forgotten, also not what it keeps from some release on.
func TestRingFile(t *testing.T) {
	for _, f := range []*ringFile{filledRing(), {incarnation: 1, log: 1<<64 - 1}} {
		b, err := f.text()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseRing(b); err != nil || !reflect.DeepEqual(got, f) {
			t.Errorf("%s became %+v, %v, want %+v", b, got, err, f)
		}
		for i := range b { // of the file, too, each wrong bit is found, but in names that are not read
			for _, bit := range []byte{1, 4, 0x20} {
				bad := bytes.Clone(b)
				bad[i] ^= bit
				if got, err := parseRing(bad); err == nil && !reflect.DeepEqual(got, f) {
					t.Fatalf("byte %d is wrong: %s", i, bad)
				}
			}
		}
	}
	for what, spoil := range map[string]func(f *ringFile){
		"no incarnation":     func(f *ringFile) { f.incarnation, f.saved.Incarnation = 0, 0 },
		"another one":        func(f *ringFile) { f.saved.Incarnation++ },
		"no member":          func(f *ringFile) { f.saved.Members = nil },
		"a late stamp":       func(f *ringFile) { f.saved.Clock = 1 << 63 },
		"no copies":          func(f *ringFile) { f.saved.Lowest = 0 },
		"fewer":              func(f *ringFile) { f.saved.Whole.Min = -1 },
		"a mode":             func(f *ringFile) { f.saved.Members[1].Mode = 4 },
		"a name":             func(f *ringFile) { f.saved.Lost[1].Name = "\xff" },
		"a zone":             func(f *ringFile) { f.saved.Members[0].Zone = "\xff" },
		"a name of removals": func(f *ringFile) { f.saved.Removals[0].Name = "\xff" },
	} {
		f := filledRing()
		spoil(f)
		if _, err := f.text(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	f := filledRing()
	f.saved.Members[0].Addr = strings.Repeat("x", maxRing)
	if _, err := f.text(); !errdefs.IsResourceExhausted(err) {
		t.Errorf("too large: %v", err)
	}
}

// envelope is a file with a right sum.
func envelope(ring string) []byte {
	return fmt.Appendf(nil, `{"format":1,"crc":%q,"ring":%s}`, ringCRC([]byte(ring)), ring)
}

func TestParseRing(t *testing.T) {
	const good = `{"incarnation":"00000000000000ab","log":"0000000000000001","order":3,"lowest":2,` +
		`"members":[{"name":"a","mode":"up","mode_at":2,"read":5}]}`
	f, err := parseRing(envelope(good))
	if err != nil || f.incarnation != 0xab || f.saved.Members[0].Mode != ringstate.Up || f.saved.Order != 3 {
		t.Errorf("%+v, %v", f, err)
	}
	for _, r := range []string{ // of a later release, and nothing that this one has to know
		strings.Replace(good, `"read":5`, `"read":5,"written":6`, 1), strings.Replace(good, `{"incarnation"`, `{"x":{},"incarnation"`, 1),
	} {
		if got, err := parseRing(envelope(r)); err != nil || !reflect.DeepEqual(got, f) {
			t.Errorf("%s became %+v, %v", r, got, err)
		}
	}
	for _, r := range []string{
		"null", "[]", "{}", strings.Replace(good, "ab", "AB", 1), strings.Replace(good, "00ab", "ab", 1), strings.Replace(good, "up", "down", 1),
		strings.Replace(good, `"lowest":2`, `"lowest":-1`, 1), strings.Replace(good, `"order":3`, `"order":-3`, 1),
		strings.Replace(good, `"order":3`, `"clock":9223372036854775808`, 1), strings.Replace(good, "00ab", "0000", 1),
	} {
		if got, err := parseRing(envelope(r)); err == nil {
			t.Errorf("%s became %+v", r, got)
		}
	}
	for _, b := range []string{"", "null", string(envelope(good)) + "x", strings.Replace(string(envelope(good)), "1", "0", 1), good} {
		if got, err := parseRing([]byte(b)); err == nil || errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s became %+v, %v", b, got, err)
		}
	}
	if _, err := parseRing([]byte(`{"format":2,"crc":"","ring":[]}`)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a later release: %v", err)
	}
}

// Whatever is in a ring.json, what is read of it can be written and is the same when it is read again.
func FuzzRingFile(f *testing.F) {
	b, err := filledRing().text()
	if err != nil {
		f.Fatal(err)
	}
	_, ring, _ := bytes.Cut(b, []byte(`"ring": `))
	f.Add(b)
	f.Add(bytes.TrimSuffix(ring, []byte("\n}\n")))
	f.Add([]byte(`{"incarnation":"00000000000000ab","log":"0000000000000001","members":[{"name":"a","mode":"up"}],"lowest":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, envelope(string(b))} {
			got, err := parseRing(b)
			if err != nil {
				continue
			}
			text, err := got.text()
			if errdefs.IsResourceExhausted(err) {
				continue
			}
			if err != nil {
				t.Fatalf("%+v cannot be written: %v", got, err)
			}
			if again, err := parseRing(text); err != nil || !reflect.DeepEqual(again, got) {
				t.Fatalf("%+v became %+v, %v", got, again, err)
			}
		}
	})
}
