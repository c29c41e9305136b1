package config

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// shared is what several configurations embed.
type shared struct {
	Level string `toml:"level" live:"true" comment:"The level."`
	Wide  struct {
		Up Rate `toml:"up" live:"true" comment:"Upload."`
		In int  `toml:"in" comment:"In."`
	} `toml:"wide" comment:"Wide."`
	Patience Duration `toml:"patience" comment:"How long."`
}

type embedding struct {
	Name string `toml:"name" comment:"The name."`
	shared
	Hosts []string `toml:"hosts" comment:"Hosts."`
	Paths []struct {
		Path string `toml:"path" comment:"Path."`
	} `toml:"path" comment:"Paths."`
	Hidden int `toml:"-"`
}

func (embedding) Notes() map[string]string { return map[string]string{"level": "Loud is \"debug\"."} }

func (e *embedding) Validate() error {
	if e.Level == "" {
		return Invalid("level", "must be set")
	}
	return nil
}

// What is embedded are keys of the struct around it, for every part of this package.
func TestEmbedded(t *testing.T) {
	e := embedding{Name: "n", Hosts: []string{"${HOME} costs $1", "$${"}}
	e.Level = "info"
	var b bytes.Buffer
	if err := Print(&b, e); err != nil {
		t.Fatal(err)
	}
	want := `# The name.
name = "n"

# The level. Loud is "debug". SIGHUP applies a change.
level = "info"

# How long.
patience = "0s"

# Hosts.
hosts = ['$${HOME} costs $1', '$$${']

# Wide.
[wide]

# Upload. SIGHUP applies a change.
up = "0B/s"

# In.
in = 0
`
	if got, _, _ := strings.Cut(b.String(), "\n# Paths."); got != want {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
	var back embedding
	if err := Parse("x", b.Bytes(), &back); err != nil || !reflect.DeepEqual(back.Hosts, e.Hosts) || back.Level != "info" {
		t.Errorf("parsed %+v, %v", back, err)
	}
	for doc, want := range map[string]string{
		"patience = 5":            "x:1:12: patience: a duration needs a unit, such as \"150ms\", \"5s\" or \"1h30m\"",
		"levl = 5":                "x:1:1: levl: no such key",
		"shared = 5":              "x:1:1: shared: no such key",
		"name = \"\"\nlevel=\"\"": "x:2:1: level: must be set",
	} {
		if err := Parse("x", []byte(doc), &embedding{}); fmt.Sprint(err) != want {
			t.Errorf("%s: got %v, want %s", doc, err, want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("CAPELIN_A", "a \"b\" \\ ${CAPELIN_B}\n")
	t.Setenv("CAPELIN_SPEED", "3MB/s")
	t.Setenv("CAPELIN_EMPTY", "")
	t.Setenv("CAPELIN_LATIN", "\xe9")
	const none = "CAPELIN_NONE"
	for _, tt := range []struct{ name, doc, want, err string }{
		{"plain", `name = "${CAPELIN_A}"`, "a \"b\" \\ ${CAPELIN_B}\n", ""},
		{"a literal string", `name = 'x${CAPELIN_SPEED}y${CAPELIN_EMPTY}'`, "x3MB/sy", ""},
		{"of many lines", "name = \"\"\"\n1\n${CAPELIN_SPEED}\n\"\"\"", "1\n3MB/s\n", ""},
		{"not a variable", `name = "$HOME $ {x} $$ }"`, "$HOME $ {x} $$ }", ""},
		{"escaped", `name = "$${CAPELIN_A} $$${x}"`, "${CAPELIN_A} $${x}", ""},
		{"none", "\nname = \"${CAPELIN_NONE}\"", "", "F:2:8: name: the environment has no variable CAPELIN_NONE"},
		{"no name", `name = "${}"`, "", `F:1:8: name: "${}" is not ${NAME}, a variable of the environment; "$${" stands for "${"`},
		{"a bad name", `name = "${A-B}"`, "", `F:1:8: name: "${A-B}" is not ${NAME}, a variable of the environment; "$${" stands for "${"`},
		{"not closed", `name = "${A"`, "", `F:1:8: name: "${A" is not ${NAME}, a variable of the environment; "$${" stands for "${"`},
		{"no text", `name = "${CAPELIN_LATIN}"`, "", "F:1:8: name: the environment's variable CAPELIN_LATIN is not UTF-8"},
		{"keys and comments", "# ${CAPELIN_NONE}\n\"${CAPELIN_NONE}\" = 1", "", "F:2:1: ${CAPELIN_NONE}: no such key"},
		{"positions after it", "hosts = [\n\"\"\"a\n${CAPELIN_A}\"\"\", '${CAPELIN_A}', 3]\nwide = { up = \"${CAPELIN_A}\", in = 1 }\nnom = 1",
			"",
			"F:3:34: hosts: \nF:4:15: wide.up: \nF:5:1: nom: no such key"},
		{"a value that does not fit", "patience = \"${CAPELIN_SPEED}\"\nname = \"${CAPELIN_NONE}\"", "",
			"F:1:12: patience: \nF:2:8: name: the environment has no variable CAPELIN_NONE"},
		{"in tables", "name = \"n\"\n[wide]\nup = \"${CAPELIN_SPEED}\"\n[[path]]\npath = \"/${CAPELIN_SPEED}\"", "n", ""},
		{"none in an array", "[[path]]\n[[path]]\npath = \"/${CAPELIN_NONE}\"", "",
			"F:3:8: path[1].path: the environment has no variable CAPELIN_NONE"},
		{"syntax", "name = \"${CAPELIN_A}\nlevel = 3", "", "F:1:"},
	} {
		e := embedding{}
		e.Level = "info"
		err := Parse("F", []byte(tt.doc), &e)
		if tt.err == "" && (err != nil || e.Name != tt.want) {
			t.Errorf("%s: got %q, %v, want %q", tt.name, e.Name, err, tt.want)
		}
		if tt.err != "" {
			matches(t, tt.name, err, tt.err)
		}
		if tt.name == "in tables" && (e.Wide.Up != 3e6 || e.Paths[0].Path != "/3MB/s") {
			t.Errorf("%s: %+v", tt.name, e)
		}
	}
	if _, ok := os.LookupEnv(none); ok {
		t.Fatal(none + " is set")
	}
}

// matches compares an error line by line; a wanted line that ends in ": " or ":" is a
// beginning.
func matches(t *testing.T, name string, err error, want string) {
	t.Helper()
	gots, wants := strings.Split(fmt.Sprint(err), "\n"), strings.Split(want, "\n")
	ok := len(gots) == len(wants)
	for i := range min(len(gots), len(wants)) {
		ok = ok && strings.HasPrefix(gots[i], wants[i]) && (gots[i] == wants[i] || strings.HasSuffix(strings.TrimSpace(wants[i]), ":"))
	}
	if !ok {
		t.Errorf("%s: got\n%v\nwant\n%s", name, err, want)
	}
}

func TestSet(t *testing.T) {
	t.Setenv("CAPELIN_A", "a")
	for _, tt := range []struct {
		name string
		set  []string
		want func(e *embedding)
		err  string
	}{
		{"a bare word", []string{"name=rack7"}, func(e *embedding) { e.Name = "rack7" }, ""},
		{"words", []string{"name = two words "}, func(e *embedding) { e.Name = "two words" }, ""},
		{"quoted", []string{`name="rack 7"`}, func(e *embedding) { e.Name = "rack 7" }, ""},
		{"a number for text", []string{"name=7", "level=true"}, func(e *embedding) { e.Name, e.Level = "7", "true" }, ""},
		{"an equals sign", []string{"name=a=b"}, func(e *embedding) { e.Name = "a=b" }, ""},
		{"nothing", []string{"name="}, func(e *embedding) { e.Name = "" }, ""},
		{"dotted, with units", []string{"wide.up=3MB/s", "wide.in=4", "patience=5s"}, func(e *embedding) {
			e.Wide.Up, e.Wide.In,
				e.Patience = 3e6, 4, 5e9
		}, ""},
		{"a list", []string{`hosts=["a:1"]`}, func(e *embedding) { e.Hosts = []string{"a:1"} }, ""},
		{"a list of the file's stays if it is not set", []string{"wide.in=1"}, func(e *embedding) { e.Wide.In = 1 }, ""},
		{"the last one", []string{"name=a", "name=b"}, func(e *embedding) { e.Name = "b" }, ""},
		{"a variable", []string{"name=${CAPELIN_A}"}, func(e *embedding) { e.Name = "a" }, ""},
		{"no variable", []string{"name=${CAPELIN_NONE}"}, nil, "--set name=${CAPELIN_NONE}: name: the environment has no variable CAPELIN_NONE"},
		{"no such key", []string{"nme=1", "wide.on=1"}, nil, "--set nme=1: nme: no such key\n--set wide.on=1: wide.on: no such key"},
		{"no unit", []string{"patience=5"}, nil, "--set patience=5: patience: a duration needs a unit"},
		{"does not fit", []string{"wide.in=four"}, nil, "--set wide.in=four: wide.in: "},
		{"no value", []string{"name"}, nil, "--set name: is not key=value"},
		{"no key", []string{"=x"}, nil, "--set =x: is not key=value"},
		{"two lines", []string{"name=a\nlevel=b"}, func(e *embedding) { e.Name = "a\nlevel=b" }, ""},
		{"a table", []string{"[wide]\nin=1"}, nil, "--set [wide]\nin=1: is not key=value"},
		{"refused", []string{"level=info", "level="}, nil, "--set level=: level: must be set"},
		{"the file's mistake is told of the file", []string{"name=x"}, nil, "F:1:1: level: must be set"},
	} {
		path := filepath.Join(t.TempDir(), "f")
		doc := "level = \"warn\"\nhosts = [\"f:1\"]\n"
		if strings.HasPrefix(tt.err, "F:") {
			doc = "level = \"\"\n"
		}
		if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
		got := embedding{Name: "default"}
		err := Load(path, &got, tt.set...)
		if tt.err != "" {
			if text := strings.ReplaceAll(fmt.Sprint(err), path, "F"); !strings.HasPrefix(text, tt.err) {
				t.Errorf("%s: got %s, want %s", tt.name, text, tt.err)
			}
			continue
		}
		want := embedding{Name: "default", Hosts: []string{"f:1"}}
		want.Level = "warn"
		tt.want(&want)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v, %v\nwant %+v", tt.name, got, err, want)
		}
	}
	// Without a file there are the defaults.
	e := embedding{Name: "default"}
	if err := Load("", &e, "wide.in=4"); fmt.Sprint(err) != "level: must be set" || e.Wide.In != 4 {
		t.Errorf("without a file: %+v, %v", e, err)
	}
}

func TestAdopt(t *testing.T) {
	make := func(change func(*embedding)) *embedding {
		e := &embedding{Name: "n", Hosts: []string{"a"}, Hidden: 1}
		e.Level, e.Wide.Up = "info", 1e6
		if change != nil {
			change(e)
		}
		return e
	}
	for _, tt := range []struct {
		name             string
		change           func(*embedding)
		changed, restart []string
		want             *embedding
	}{
		{"nothing", func(e *embedding) { e.Hidden = 2 }, nil, nil, make(nil)},
		{"live keys", func(e *embedding) { e.Level, e.Wide.Up = "debug", 0 }, []string{"level", "wide.up"}, nil,
			make(func(e *embedding) { e.Level, e.Wide.Up = "debug", 0 })},
		{"others", func(e *embedding) { e.Name, e.Wide.In, e.Hosts = "m", 3, []string{"a", "b"} }, nil, []string{"name", "wide.in", "hosts"},
			make(nil)},
		{"both", func(e *embedding) { e.Level, e.Name = "debug", "m" }, []string{"level"}, []string{"name"},
			make(func(e *embedding) { e.Level = "debug" })},
	} {
		running := make(nil)
		changed, restart := Adopt(running, make(tt.change))
		if !reflect.DeepEqual(changed, tt.changed) || !reflect.DeepEqual(slices.Sorted(slices.Values(restart)),
			slices.Sorted(slices.Values(tt.restart))) || !reflect.DeepEqual(running, tt.want) {
			t.Errorf("%s: changed %q, want %q; restart %q, want %q; now\n%+v\nwant\n%+v", tt.name, changed, tt.changed, restart, tt.restart,
				running, tt.want)
		}
	}
	a, b := make(func(e *embedding) { e.Hosts = nil }), make(func(e *embedding) { e.Hosts = []string{} })
	if changed, restart := Adopt(a, b); changed != nil || restart != nil {
		t.Errorf("no hosts twice: %q, %q", changed, restart)
	}
}

// What is kept of a file means the same when the environment is another one.
func TestExpanded(t *testing.T) {
	t.Setenv("CAPELIN_A", `a "quoted" ${CAPELIN_B}`)
	text := "# ${CAPELIN_NONE}\nname = \"${CAPELIN_A}, $${b}\" # as it was\nlist = ['${CAPELIN_A}']\nplain = \"x\"\n"
	read := func(text []byte) (v struct {
		Name  string   `toml:"name"`
		List  []string `toml:"list"`
		Plain string   `toml:"plain"`
	}) {
		if err := Parse("F", text, &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	was := read([]byte(text))
	kept := Expanded([]byte(text))
	t.Setenv("CAPELIN_A", "another")
	if is := read(kept); !reflect.DeepEqual(is, was) || was.Name != `a "quoted" ${CAPELIN_B}, ${b}` {
		t.Errorf("%+v became %+v", was, is)
	}
	for _, broken := range []string{"name = ", "name = \"${CAPELIN_NONE}\"\n"} {
		if got := string(Expanded([]byte(broken))); got != broken {
			t.Errorf("%q became %q", broken, got)
		}
	}
}

func TestProblems(t *testing.T) {
	var v struct {
		Name string `toml:"name"`
	}
	ps := Problems(Parse("F", []byte("name = 1\nother = 2\n"), &v))
	if len(ps) != 2 || ps[0].Key != "name" || ps[0].Unknown() || ps[1].Key != "other" || !ps[1].Unknown() {
		t.Errorf("%v", ps)
	}
	if ps := Problems(Load("/none", &v)); len(ps) != 1 || ps[0].Key != "" {
		t.Errorf("a file that is not there: %v", ps)
	}
	if ps := Problems(nil); len(ps) != 0 {
		t.Errorf("%v", ps)
	}
}
