package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// document is a text with keys and values: a file, or an assignment of the command line.
type document struct {
	path  string // for messages
	inner bool   // positions in it say nothing to people
	text  []byte // as somebody wrote it

	data  []byte // text with variables in their places; values that do not fit are blanked out
	edits []edit // where they differ
	exprs []expr // of data
}

// decode sets the fields that the document names, and returns what is wrong with it,
// in its order.
func (d *document) decode(into any) (problems []*Problem) {
	d.data = bytes.Clone(d.text)
	var problem *Problem
	if d.exprs, problem = d.outline(); problem != nil {
		return []*Problem{problem} // nothing after a syntax error can be trusted
	}
	problems = d.expand()
	for _, n := range numbers(d.data) {
		if typeOf(reflect.TypeOf(into), n.key) == reflect.TypeFor[Duration]() {
			// The decoder would take it for nanoseconds.
			problems = append(problems, d.refuse(n.start, "a duration needs a unit, such as \"150ms\", \"5s\" or \"1h30m\""))
		}
	}
	for range len(d.exprs) + 1 {
		err := toml.NewDecoder(bytes.NewReader(d.data)).DisallowUnknownFields().Decode(into)
		if err == nil {
			break
		}
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) { // only when all else is well
			for i := range strict.Errors {
				p, _ := d.locate(&strict.Errors[i])
				p.Text = noSuchKey
				problems = append(problems, p)
			}
			break
		}
		var bad *toml.DecodeError
		if !errors.As(err, &bad) {
			problems = append(problems, &Problem{File: d.path, Text: strings.TrimPrefix(err.Error(), "toml: ")})
			break
		}
		p, off := d.locate(bad)
		p.Text = d.plainly(p.Text)
		problems = append(problems, p)
		if !d.blank(off) {
			break
		}
	}
	slices.SortStableFunc(problems, func(a, b *Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return problems
}

// refuse blanks out the expression that has data's offset, and returns a Problem of it.
func (d *document) refuse(off int, text string) *Problem {
	p := &Problem{File: d.path, Text: text}
	d.place(p, off)
	if e := d.at(off); e != nil {
		p.Key = e.key
	}
	d.blank(off)
	return p
}

// place says of a Problem where it is: at data's offset.
func (d *document) place(p *Problem, off int) {
	if d.inner {
		return
	}
	before := d.text[:d.origin(off)]
	p.Line, p.Column = bytes.Count(before, []byte{'\n'})+1, len(before)-(bytes.LastIndexByte(before, '\n')+1)+1
}

// expr is a line (or more) of a document: a key with its value, or a table's name.
type expr struct {
	key        string   // dotted, the table's name included, with [0] after an array's
	parts      []string // of a value's key, without the table's name
	value      bool
	start, end int // bytes; end is the next one's start
}

// outline finds all keys, and the first syntax error.
func (d *document) outline() ([]expr, *Problem) {
	var all []expr
	data := d.data
	var p unstable.Parser
	p.Reset(data)
	table := ""
	arrays := map[string]int{} // how many tables each has up to here
	for p.NextExpression() {
		node := p.Expression()
		var parts []string
		start := -1
		for it := node.Key(); it.Next(); {
			if start < 0 {
				start = int(it.Node().Raw.Offset)
			}
			parts = append(parts, string(it.Node().Data))
		}
		if start < 0 {
			continue
		}
		e := expr{key: strings.Join(parts, "."), parts: parts, value: node.Kind == unstable.KeyValue, start: start}
		if e.value {
			e.key = join(table, e.key)
		} else {
			table = numbered(arrays, parts, node.Kind == unstable.ArrayTable)
			e.key = table
			e.start = bytes.LastIndexByte(data[:start], '\n') + 1
		}
		if n := len(all); n > 0 {
			all[n-1].end = e.start
		}
		all = append(all, e)
	}
	if n := len(all); n > 0 {
		all[n-1].end = len(data)
	}
	if err := p.Error(); err != nil {
		// The decoder says where, the parser does not.
		var v map[string]any
		var bad *toml.DecodeError
		if errors.As(toml.Unmarshal(data, &v), &bad) {
			p, _ := d.locate(bad)
			p.Key = ""
			return nil, p
		}
		return nil, &Problem{File: d.path, Text: err.Error()}
	}
	return all, nil
}

// numbered returns a table's name with the numbers of the arrays in it; one more
// for its own, if it begins a table of an array.
func numbered(arrays map[string]int, parts []string, array bool) string {
	name := ""
	for i, part := range parts {
		name = join(name, part)
		if array && i == len(parts)-1 {
			arrays[name]++
		}
		if n := arrays[name]; n > 0 {
			name = fmt.Sprintf("%s[%d]", name, n-1)
		}
	}
	return name
}

// number is a value that is a bare number.
type number struct {
	key   []string
	start int
}

// numbers finds all of them but those in arrays. data has no syntax error.
func numbers(data []byte) (all []number) {
	var p unstable.Parser
	p.Reset(data)
	var table []string
	var visit func(prefix []string, kv *unstable.Node)
	visit = func(prefix []string, kv *unstable.Node) {
		key := slices.Clone(prefix)
		for it := kv.Key(); it.Next(); {
			key = append(key, string(it.Node().Data))
		}
		switch v := kv.Value(); v.Kind {
		case unstable.Integer, unstable.Float:
			all = append(all, number{key, int(v.Raw.Offset)})
		case unstable.InlineTable:
			for it := v.Children(); it.Next(); {
				visit(key, it.Node())
			}
		}
	}
	for p.NextExpression() {
		switch node := p.Expression(); node.Kind {
		case unstable.KeyValue:
			visit(table, node)
		case unstable.Table, unstable.ArrayTable:
			table = nil
			for it := node.Key(); it.Next(); {
				table = append(table, string(it.Node().Data))
			}
		}
	}
	return all
}

// structField is what the decoder says of our types, which is nothing to people.
var structField = regexp.MustCompile(`into struct field \S+ of type (\S+)`)

// mismatch is how the decoder says that a value is of another type than its key.
var mismatch = regexp.MustCompile(`^cannot decode TOML \S+ into (\S+)$`)

// plainly says of a mismatch what the value should be.
func (d *document) plainly(text string) string {
	m := mismatch.FindStringSubmatch(text)
	if m == nil {
		return text
	}
	bare := ", without quotes"
	if d.inner { // where nobody writes any
		bare = ""
	}
	switch t := m[1]; {
	case t == "[]string" && d.inner:
		return `is a list, such as '["t1:7470"]'` // as a shell wants it
	case t == "[]string":
		return `is a list, such as ["t1:7470"]`
	case strings.HasPrefix(t, "[]"):
		return "is a list"
	case t == "bool":
		return "is true or false" + bare
	case t == "string":
		return "a text goes in quotes"
	case strings.HasPrefix(t, "int"), strings.HasPrefix(t, "uint"):
		return "is a whole number" + bare
	case strings.HasPrefix(t, "float"):
		return "is a number" + bare
	}
	return text
}

// locate makes a Problem of the decoder's error, and returns its offset in data.
func (d *document) locate(err *toml.DecodeError) (*Problem, int) {
	p := &Problem{File: d.path, Text: strings.TrimPrefix(err.Error(), "toml: "), Key: strings.Join(err.Key(), ".")}
	p.Text = structField.ReplaceAllString(p.Text, "into $1")
	line, col := err.Position()
	off := 0
	for range line - 1 {
		off += bytes.IndexByte(d.data[off:], '\n') + 1
	}
	off += col - 1
	d.place(p, off)
	if e := d.at(off); e != nil {
		p.Key = e.key
		if key := inlineKey(d.data[e.start:off], d.data[off:e.end]); e.value && key != "" {
			p.Key = join(p.Key, key)
		}
	}
	return p, off
}

var (
	inlineTable     = regexp.MustCompile(`"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|#.*|([\w.-]+)\s*=\s*\{|\}`) // or what is none
	inlineKeyHere   = regexp.MustCompile(`^([\w.-]+)\s*=`)
	inlineKeyBefore = regexp.MustCompile(`[{,]\s*([\w.-]+)\s*=\s*$`)
)

// inlineKey returns the key in inline tables that begins after before, or whose value does; "" if none does.
func inlineKey(before, after []byte) string {
	var tables []string
	for _, m := range inlineTable.FindAllSubmatch(before, -1) {
		switch {
		case m[1] != nil:
			tables = append(tables, string(m[1]))
		case m[0][0] == '}' && len(tables) > 0:
			tables = tables[:len(tables)-1]
		}
	}
	if len(tables) == 0 {
		return ""
	}
	key := inlineKeyHere.FindSubmatch(after)
	if key == nil {
		key = inlineKeyBefore.FindSubmatch(before)
	}
	if key == nil {
		return ""
	}
	return strings.Join(append(tables[1:], string(key[1])), ".") // the first is the expression's own
}

// at returns the expression that has an offset of data.
func (d *document) at(off int) *expr {
	for i := range d.exprs {
		if d.exprs[i].start <= off && off < d.exprs[i].end {
			return &d.exprs[i]
		}
	}
	return nil
}

// blank overwrites the expression that has an offset, so that the rest of the
// document can be looked at. It keeps line ends, so that positions stay.
func (d *document) blank(off int) bool {
	e := d.at(off)
	if e == nil {
		return false
	}
	blanked := false
	for i := e.start; i < e.end; i++ {
		if d.data[i] != '\n' && d.data[i] != ' ' {
			d.data[i] = ' '
			blanked = true
		}
	}
	return blanked
}

// find returns the expression that sets a key, or nil. A key that is not there, of a
// table of an array, is told by that table.
func find(exprs []expr, key string) (found *expr) {
	for i := range exprs {
		e := &exprs[i]
		if e.key == key && e.value {
			return e
		}
		if !e.value && strings.HasSuffix(e.key, "]") && strings.HasPrefix(key, e.key+".") {
			found = e // of several the innermost, which comes last
		}
	}
	return found
}
