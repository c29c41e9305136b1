package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"iter"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Problem is one thing wrong with a file.
type Problem struct {
	File   string
	Line   int    // from 1; 0: the key is not in the file
	Column int    // from 1, in bytes
	Key    string // dotted; "": the file as a whole
	Text   string
}

func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Text)
	return b.String()
}

// Invalid returns an error for Validate methods: the value of key (dotted, as in
// the file) is refused. Tables of an array count from 0: "backend[1].name". Several
// are combined with errors.Join.
func Invalid(key, format string, args ...any) error {
	return &invalid{key, fmt.Sprintf(format, args...)}
}

// Within returns the errors of a Validate method as those of a table in a larger
// configuration: their keys are below it.
func Within(table string, err error) []error {
	errs := flatten(err)
	for i, err := range errs {
		var inv *invalid
		if errors.As(err, &inv) {
			errs[i] = &invalid{join(table, inv.key), inv.text}
		}
	}
	return errs
}

type invalid struct{ key, text string }

func (e *invalid) Error() string { return e.key + ": " + e.text }

// Load reads the TOML file at path into a pointer to a struct, whose fields keep
// the values they have (the defaults) where the file does not set them. If into
// has a method Validate() error it is called last. All that is wrong is returned
// at once: the error joins Problems, in the order of the file. After an error
// into may be half filled.
func Load(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	return Parse(path, data, into)
}

// Parse is Load for a file that was read already; path is for messages.
func Parse(path string, data []byte, into any) error {
	data = bytes.Clone(data) // values that do not fit are blanked out
	exprs, problem := outline(path, data)
	if problem != nil {
		return problem // nothing after a syntax error can be trusted
	}
	var problems []*Problem
	for _, n := range numbers(data) {
		if typeOf(reflect.TypeOf(into), n.key) == reflect.TypeFor[Duration]() {
			// The decoder would take it for nanoseconds.
			line, col := position(data, n.start)
			p := &Problem{File: path, Line: line, Column: col, Key: n.name,
				Text: "a duration needs a unit, such as \"150ms\", \"5s\" or \"1h30m\""}
			problems = append(problems, p)
			blank(data, exprs, p)
		}
	}
	for range len(exprs) + 1 {
		err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(into)
		if err == nil {
			break
		}
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) { // only when all else is well
			for i := range strict.Errors {
				problems = append(problems, locate(path, data, exprs, &strict.Errors[i], "no such key"))
			}
			break
		}
		var bad *toml.DecodeError
		if !errors.As(err, &bad) {
			problems = append(problems, &Problem{File: path, Text: strings.TrimPrefix(err.Error(), "toml: ")})
			break
		}
		p := locate(path, data, exprs, bad, "")
		problems = append(problems, p)
		if !blank(data, exprs, p) {
			break
		}
	}
	if v, ok := into.(interface{ Validate() error }); ok && len(problems) == 0 {
		for _, err := range flatten(v.Validate()) {
			p := &Problem{File: path, Text: err.Error()}
			var inv *invalid
			if errors.As(err, &inv) {
				p.Key, p.Text = inv.key, inv.text
				if e := find(exprs, inv.key); e != nil {
					p.Line, p.Column = position(data, e.start)
				}
			}
			problems = append(problems, p)
		}
	}
	slices.SortStableFunc(problems, func(a, b *Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = p
	}
	return errors.Join(errs...)
}

func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range j.Unwrap() {
			all = append(all, flatten(e)...)
		}
		return all
	}
	return []error{err}
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

// expr is a line (or more) of the file: a key with its value, or a table's name.
type expr struct {
	key        string // dotted, the table's name included, with [0] after an array's
	value      bool
	start, end int // bytes; end is the next one's start
}

// outline finds all keys, and the first syntax error.
func outline(path string, data []byte) ([]expr, *Problem) {
	var all []expr
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
		e := expr{key: strings.Join(parts, "."), value: node.Kind == unstable.KeyValue, start: start}
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
			line, col := bad.Position()
			return nil, &Problem{File: path, Line: line, Column: col, Text: text(bad)}
		}
		return nil, &Problem{File: path, Text: err.Error()}
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
	name  string // the same, dotted, and numbered as in expr
	start int
}

// numbers finds all of them but those in arrays. data has no syntax error.
func numbers(data []byte) (all []number) {
	var p unstable.Parser
	p.Reset(data)
	var table []string
	name := ""
	arrays := map[string]int{}
	var visit func(prefix []string, kv *unstable.Node)
	visit = func(prefix []string, kv *unstable.Node) {
		key := slices.Clone(prefix)
		for it := kv.Key(); it.Next(); {
			key = append(key, string(it.Node().Data))
		}
		switch v := kv.Value(); v.Kind {
		case unstable.Integer, unstable.Float:
			all = append(all, number{key, join(name, strings.Join(key[len(table):], ".")), int(v.Raw.Offset)})
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
			name = numbered(arrays, table, node.Kind == unstable.ArrayTable)
		}
	}
	return all
}

// typeOf returns the type of the field that a key names, or nil.
func typeOf(t reflect.Type, key []string) reflect.Type {
	for t != nil && (t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice) {
		t = t.Elem()
	}
	if len(key) == 0 || t == nil || t.Kind() != reflect.Struct {
		if len(key) > 0 {
			return nil
		}
		return t
	}
	for name, f := range fields(t) {
		if strings.EqualFold(name, key[0]) {
			return typeOf(f.Type, key[1:])
		}
	}
	return nil
}

// fields returns those that are keys, what is embedded included, with their names. A
// struct that is embedded has no table of its own: its keys are those of the struct
// around it.
func fields(t reflect.Type) iter.Seq2[string, reflect.StructField] {
	return func(yield func(string, reflect.StructField) bool) {
		for _, f := range reflect.VisibleFields(t) {
			name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
			if name != "" && name != "-" && !yield(name, f) {
				return
			}
		}
	}
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "." + b
}

func text(err *toml.DecodeError) string { return strings.TrimPrefix(err.Error(), "toml: ") }

// locate makes a Problem of the decoder's error. say replaces its text.
func locate(path string, data []byte, exprs []expr, err *toml.DecodeError, say string) *Problem {
	p := &Problem{File: path, Text: cmp.Or(say, text(err)), Key: strings.Join(err.Key(), ".")}
	p.Line, p.Column = err.Position()
	if e := at(data, exprs, p); e != nil {
		p.Key = e.key
	}
	return p
}

// at returns the expression that a Problem points into.
func at(data []byte, exprs []expr, p *Problem) *expr {
	off := 0
	for range p.Line - 1 {
		off += bytes.IndexByte(data[off:], '\n') + 1
	}
	off += p.Column - 1
	for i := range exprs {
		if exprs[i].start <= off && off < exprs[i].end {
			return &exprs[i]
		}
	}
	return nil
}

// blank overwrites the expression that p points into, so that the rest of the
// file can be looked at. It keeps line ends, so that positions stay.
func blank(data []byte, exprs []expr, p *Problem) bool {
	e := at(data, exprs, p)
	if e == nil {
		return false
	}
	blanked := false
	for i := e.start; i < e.end; i++ {
		if data[i] != '\n' && data[i] != ' ' {
			data[i] = ' '
			blanked = true
		}
	}
	return blanked
}

func position(data []byte, off int) (line, col int) {
	before := data[:off]
	return bytes.Count(before, []byte{'\n'}) + 1, off - (bytes.LastIndexByte(before, '\n') + 1) + 1
}
