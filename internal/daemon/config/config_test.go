package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type sample struct {
	Name   string   `toml:"name" comment:"The name. Default \"x\"."`
	Count  int      `toml:"count" comment:"How many; 0: none. This one has a long comment, which is longer than a line has columns and so is wrapped."`
	Ratio  float64  `toml:"ratio" comment:"A ratio."`
	On     bool     `toml:"on" comment:"A switch."`
	Wait   Duration `toml:"wait" comment:"How long."`
	Space  Bytes    `toml:"space" comment:"How much."`
	Hosts  []string `toml:"hosts" comment:"Where."`
	Ports  []int    `toml:"ports" comment:"More."`
	Limits struct {
		Up   Rate `toml:"up" comment:"Upload."`
		Down Rate `toml:"down" comment:"Download."`
		Deep struct {
			X int `toml:"x" comment:"X."`
		} `toml:"deep" comment:"Deep."`
	} `toml:"limits" comment:"Limits of bandwidth."`
	Stores []store `toml:"store" comment:"Stores, of which there may be any number. This comment is long enough to be wrapped into two lines at least."`
	Hidden func()  `toml:"-"`
}

type store struct {
	Name  string   `toml:"name" comment:"Its name. This comment, too, is long enough to be wrapped into two lines in the example."`
	Wait  Duration `toml:"wait" comment:"Its wait."`
	Where struct {
		Path string `toml:"path" comment:"Its path."`
	} `toml:"where" comment:"Where it is."`
	Parts []struct {
		N int `toml:"n" comment:"A number."`
	} `toml:"part" comment:"Its parts."`
}

func (store) Example() any {
	s := store{Name: "main", Wait: Duration(time.Second)}
	s.Where.Path = "/x"
	return s
}

func (s *sample) Validate() error {
	var errs []error
	if s.Count < 0 {
		errs = append(errs, Invalid("count", "%d is negative", s.Count))
	}
	if s.Limits.Up < 0 {
		errs = append(errs, Invalid("limits.up", "%v is negative", s.Limits.Up))
	}
	if s.Name == "" {
		errs = append(errs, Invalid("name", "must be set"))
	}
	if s.Ratio > 1 {
		errs = append(errs, errors.New("no key"))
	}
	for i, st := range s.Stores {
		key := fmt.Sprintf("store[%d].", i)
		if st.Name == "" {
			errs = append(errs, Invalid(key+"name", "must be set"))
		}
		if st.Where.Path == "relative" {
			errs = append(errs, Invalid(key+"where.path", "is relative"))
		}
		for j, p := range st.Parts {
			if p.N < 0 {
				errs = append(errs, Invalid(fmt.Sprintf("%spart[%d].n", key, j), "%d is negative", p.N))
			}
		}
	}
	return errors.Join(errs...)
}

func defaults() sample {
	s := sample{Name: "it's", Count: 3, Ratio: 0.25, On: true, Wait: Duration(1500 * time.Millisecond), Space: 10 << 30,
		Hosts: []string{"a:1", "b:2"}}
	s.Limits.Up = 300e6
	s.Limits.Deep.X = 7
	return s
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct{ name, doc, want string }{
		{"fine", "name = \"y\"\nwait = \"2s\"\nspace = \"1GiB\"\n[limits]\nup = \"1MB/s\"\ndeep.x = 3\n", ""},
		{"empty", "", ""},
		{"syntax", "name = \"y\"\ncount = = 3\n", "F:2:9: unexpected character U+003D '=' at start of value"},
		{"unclosed", "name = \"y", "F:1:9: unterminated basic string"},
		{"unknown", "name = \"y\"\n  nome = 3\n", "F:2:3: nome: no such key"},
		{"unknown in table", "[limits]\nup = \"1MB\"\nupp = 1\n", "F:3:1: limits.upp: no such key"},
		{"unknown in an inline table", "limits = { up = \"1MB\", upp = 1 }\n", "F:1:24: limits.upp: no such key"},
		{"wrong in an inline table", "limits = { up = \"1MB\", deep = { x = \"3\" } }\n", "F:1:37: limits.deep.x: "},
		{"unknown table", "[limit]\nup = \"1MB\"\n", "F:1:2: limit: no such key"},
		{"a text for a whole number", "count = \"three\"\n", "F:1:9: count: is a whole number, without quotes"},
		{"a text for a number", "ratio = \"half\"\n", "F:1:9: ratio: is a number, without quotes"},
		{"a text for a switch", "on = \"yes\"\n", "F:1:6: on: is true or false, without quotes"},
		{"a number for a text", "name = 3\n", "F:1:8: name: a text goes in quotes"},
		{"a text for a list", "hosts = \"a:1\"\n", `F:1:9: hosts: is a list, such as ["t1:7470"]`},
		{"a text for a list of numbers", "ports = \"1\"\n", "F:1:9: ports: is a list"},
		{"bad duration", "# c\nwait = \"5 sec\"\n", `F:2:8: wait: "5 sec" is not a duration, such as "150ms", "5s" or "1h30m"`},
		{"duration without unit", "wait = 5\n", "F:1:8: wait: a duration needs a unit, such as \"150ms\", \"5s\" or \"1h30m\""},
		{"bad bytes", "space = \"10 gigs\"", `F:1:9: space: "10 gigs" is not a number of bytes, such as "10GiB", "500MB" or "4096"`},
		{"bad rate", "[limits]\ndown = \"fast\"\n", `F:2:8: limits.down: "fast" is not a number of bytes per second, such as "300MB/s"`},
		{"duplicate", "count = 1\ncount = 2\n", "F:2:1: count: "},
		{"in an array", "hosts = [\n  \"a\",\n  3,\n]\ncount = 1\n", "F:3:3: hosts: "},
		{"several at once", "name = 3\nnome = 3\nwait = \"x\"\n[limits]\nup = \"y\"\nleft = 1\n",
			"F:1:8: name: \nF:2:1: nome: no such key\nF:3:8: wait: \nF:5:6: limits.up: \nF:6:1: limits.left: no such key"},
		{"validate", "count = -1\n[limits]\nup = \"-5MB/s\"\n", "F:1:1: count: -1 is negative\nF:3:1: limits.up: -5MB/s is negative"},
		{"validate, not in the file, no key", "name = \"\"\nratio = 2.0\n", "F: no key\nF:1:1: name: must be set"},
		{"tables of an array",
			"[[store]]\nname = \"a\"\n[store.where]\npath = \"/a\"\n[[store]]\nname = \"b\"\n[[store.part]]\nn = 1\n[[store.part]]\nn = 2\n",
			""},
		{"unknown in the second", "[[store]]\nname = \"a\"\n[[store]]\nname = \"b\"\nnome = 3\n", "F:5:1: store[1].nome: no such key"},
		{"unknown below an array", "[[store]]\nname = \"a\"\n[store.where]\npaht = \"/a\"\n", "F:4:1: store[0].where.paht: no such key"},
		{"unknown table below an array", "[[store]]\nname = \"a\"\n[store.were]\npath = \"/a\"\n", "F:3:2: store[0].were: no such key"},
		{"unknown array", "[[shop]]\nname = \"a\"\n", "F:1:3: shop[0]: no such key"},
		{"wrong types in an array", "[[store]]\nname = 3\n[[store]]\nwait = \"soon\"\nnome = 1\n",
			"F:2:8: store[0].name: \nF:4:8: store[1].wait: \nF:5:1: store[1].nome: no such key"},
		{"duration without unit in an array", "[[store]]\nname = \"a\"\nwait = 5\n", "F:3:8: store[0].wait: "},
		{"validate tables",
			"[[store]]\nname = \"a\"\n[store.where]\npath = \"relative\"\n[[store]]\nwait = \"1s\"\n[[store.part]]\n[[store.part]]\nn = -1\n",
			"F:4:1: store[0].where.path: is relative\nF:5:1: store[1].name: must be set\nF:9:1: store[1].part[1].n: -1 is negative"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "c.toml")
			if err := os.WriteFile(path, []byte(tt.doc), 0o600); err != nil {
				t.Fatal(err)
			}
			got := ""
			s := defaults()
			if err := Load(path, &s); err != nil {
				got = strings.ReplaceAll(err.Error(), path, "F")
			}
			gots, wants := strings.Split(got, "\n"), strings.Split(tt.want, "\n")
			ok := len(gots) == len(wants)
			for i := range wants {
				// The TOML package's own texts are not ours to fix.
				ok = ok && strings.HasPrefix(gots[i], wants[i]) && (gots[i] == wants[i] || strings.HasSuffix(wants[i], ": "))
			}
			if !ok {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
	if err := Load(filepath.Join(t.TempDir(), "none"), &sample{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

// On the command line a list is written as a shell wants it.
func TestSetMismatch(t *testing.T) {
	for set, want := range map[string]string{
		"hosts=t1:7470": `--set hosts=t1:7470: hosts: is a list, such as '["t1:7470"]'`,
		"count=three":   "--set count=three: count: is a whole number",
		"on=yes":        "--set on=yes: on: is true or false",
	} {
		s := defaults()
		if err := Load("", &s, set); fmt.Sprint(err) != want {
			t.Errorf("%s: got %v, want %s", set, err, want)
		}
	}
}

func TestPrintParsesBack(t *testing.T) {
	for name, s := range map[string]sample{"defaults": defaults(), "zero but a name": {Name: `quo"te\`, Hosts: []string{}}} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := Print(&b, s); err != nil {
				t.Fatal(err)
			}
			var got sample
			if err := Parse("printed", b.Bytes(), &got); err != nil {
				t.Fatalf("%v in\n%s", err, b.Bytes())
			}
			var again bytes.Buffer
			if err := Print(&again, &got); err != nil {
				t.Fatal(err)
			}
			if again.String() != b.String() {
				t.Errorf("got\n%s\nwant\n%s", again.String(), b.String())
			}
			for line := range strings.Lines(b.String()) {
				if len(line) > 80 {
					t.Errorf("line too long: %s", line)
				}
			}
		})
	}
	if err := Print(&bytes.Buffer{}, sample{Stores: make([]store, 1)}); err == nil {
		t.Error("tables were printed as defaults")
	}
	var bare struct {
		X int `toml:"x"`
	}
	if err := Print(&bytes.Buffer{}, bare); err == nil {
		t.Error("a key without comment was printed")
	}
}

// What is printed of an array of tables is an example, which works if the "#" goes.
// A table that is like another one is printed with its plain keys, and read as a whole.
func TestPrintLike(t *testing.T) {
	type part struct {
		Kind string `toml:"kind" comment:"Its kind."`
		File struct {
			Path string `toml:"path" comment:"Its path."`
		} `toml:"file" comment:"If kind is so."`
	}
	type whole struct {
		Now  part `toml:"now" comment:"Now."`
		Next part `toml:"next" like:"now" comment:"Then."`
	}
	var b bytes.Buffer
	if err := Print(&b, whole{}); err != nil {
		t.Fatal(err)
	}
	const want = `
# Then.
[next]
# Beside these keys it has the tables that now has.

# Its kind.
kind = ""
`
	if !strings.HasSuffix(b.String(), want) || !strings.Contains(b.String(), "[now.file]") {
		t.Errorf("got\n%s", b.String())
	}
	var got whole
	if err := Parse("printed", []byte(b.String()+"file.path = \"/x\"\n"), &got); err != nil || got.Next.File.Path != "/x" {
		t.Errorf("%v, %+v", err, got)
	}
}

func TestPrintExample(t *testing.T) {
	var b bytes.Buffer
	if err := Print(&b, defaults()); err != nil {
		t.Fatal(err)
	}
	i := strings.Index(b.String(), "# Stores, of")
	if i < 0 {
		t.Fatalf("no example in\n%s", b.String())
	}
	const want = `# Stores, of which there may be any number. This comment is long enough to be
# wrapped into two lines at least.
#
# [[store]]
#
# # Its name. This comment, too, is long enough to be wrapped into two lines
# # in the example.
# name = "main"
#
# # Its wait.
# wait = "1s"
#
# # Where it is.
# [store.where]
#
# # Its path.
# path = "/x"
#
# # Its parts.
# #
# # [[store.part]]
# #
# # # A number.
# # n = 0
`
	text := b.String()[i:]
	if text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	var doc strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimPrefix(strings.TrimSuffix(line, "\n"), "# ")
		doc.WriteString(line + "\n")
	}
	// The description of the array is prose.
	_, plain, _ := strings.Cut(doc.String(), "least.")
	s := sample{Name: "x"}
	if err := Parse("printed", []byte(plain), &s); err != nil {
		t.Fatalf("%v in\n%s", err, plain)
	}
	if len(s.Stores) != 1 || s.Stores[0].Name != "main" || s.Stores[0].Where.Path != "/x" || s.Stores[0].Wait != Duration(time.Second) {
		t.Errorf("parsed %+v", s.Stores)
	}
}

func TestUnits(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Bytes
		out  string
		bad  bool
	}{
		{in: "0", want: 0, out: "0B"},
		{in: "4096", want: 4096, out: "4KiB"},
		{in: "10GiB", want: 10 << 30, out: "10GiB"},
		{in: "10 gib", want: 10 << 30, out: "10GiB"},
		{in: "1.5 MB", want: 1_500_000, out: "1500kB"},
		{in: "20MB", want: 20e6, out: "20MB"},
		{in: "7B", want: 7, out: "7B"},
		{in: "-1", want: -1, out: "-1B"},
		{in: "8TiB", want: 8 << 40, out: "8TiB"},
		{in: "", bad: true},
		{in: "GiB", bad: true},
		{in: "1e3", bad: true},
		{in: "0x10", bad: true},
		{in: "nan", bad: true},
		{in: "inf", bad: true},
		{in: "9000000TiB", bad: true},
		{in: "10Gib/s", bad: true},
	} {
		var n Bytes
		err := n.UnmarshalText([]byte(tt.in))
		if (err != nil) != tt.bad || n != tt.want || !tt.bad && n.String() != tt.out {
			t.Errorf("%q: got %d, %q, %v; want %d, %q", tt.in, n, n.String(), err, tt.want, tt.out)
		}
	}
	for in, want := range map[string]string{
		"300Mb/s":   `"300Mb/s" may be in bits: did you mean "300MB/s", or "37500kB/s" for so many bits?`,
		"10 Gib":    `"10 Gib" may be in bits: did you mean "10GiB", or "1280MiB" for so many bits?`,
		"1Gbit/s":   `"1Gbit/s" may be in bits: did you mean "1GB/s", or "125MB/s" for so many bits?`,
		"100 mbps":  `"100 mbps" may be in bits: did you mean "100MB/s", or "12500kB/s" for so many bits?`,
		"8kbits/s":  `"8kbits/s" may be in bits: did you mean "8kB/s", or "1kB/s" for so many bits?`,
		"1.2.3Mb/s": `"1.2.3Mb/s" is not a number of bytes per second, such as "300MB/s"`,
		"300mb/s":   "", "300MB/s": "", "300Mb ": `"300Mb" may be in bits: did you mean "300MB", or "37500kB" for so many bits?`,
	} {
		var r Rate
		got := ""
		if err := r.UnmarshalText([]byte(in)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	var r Rate
	if err := r.UnmarshalText([]byte("300MB/s")); err != nil || r != 300e6 || r.String() != "300MB/s" {
		t.Errorf("rate: %v %v", r, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("name = \"y\"\n[limits]\nup = \"1MB/s\"\n")
	f.Add("count = \"x\"\nhosts = [1,\n2]\n[[limits]]\n")
	f.Add("a.b.c = {d = 1, e = [1,2]}\n[x.y]\n")
	f.Add("[[store]]\nname = \"a\"\n[[store.part]]\nn = 1\n[store.where]\n[[store]]\nwait = 5\n")
	f.Fuzz(func(t *testing.T, doc string) {
		s := defaults()
		_ = Parse("f", []byte(doc), &s) // no panic, and it ends
	})
}
