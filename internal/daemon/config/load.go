package config

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"os"
	"reflect"
	"slices"
	"strings"
)

// Problem is one thing wrong with a file.
type Problem struct {
	File   string // its path, or "--set key=value"; "": there is none
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
	if p.File != "" {
		b.WriteString(": ")
	}
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

// Unreadable is [Invalid] for a key that names a file which cannot be read.
func Unreadable(key, path string, err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok && pe.Path == path {
		err = pe.Err // who asked does not care for the system call
	}
	return Invalid(key, "%s: %v", path, err)
}

// Renamed returns the errors of a Validate method with other keys: those of a part of
// a larger configuration, say.
func Renamed(err error, name func(key string) string) []error {
	errs := flatten(err)
	for i, err := range errs {
		if key := KeyOf(err); key != "" {
			errs[i] = &invalid{name(key), err.(*invalid).text}
		}
	}
	return errs
}

// KeyOf returns the key that an error of [Invalid] is about, or "".
func KeyOf(err error) string {
	if inv, ok := err.(*invalid); ok {
		return inv.key
	}
	return ""
}

type invalid struct{ key, text string }

func (e *invalid) Error() string { return e.key + ": " + e.text }

// Problems returns those that an error of [Load] joins; an error of another kind, such as a
// file that cannot be read, is one of the file as a whole.
func Problems(err error) (all []*Problem) {
	for _, err := range flatten(err) {
		p, ok := errors.AsType[*Problem](err)
		if !ok {
			p = &Problem{Text: err.Error()}
		}
		all = append(all, p)
	}
	return all
}

// Unknown reports whether nothing is wrong but that nobody knows the key.
func (p *Problem) Unknown() bool { return p.Text == noSuchKey }

const noSuchKey = "no such key"

// Load reads the TOML file at path into a pointer to a struct, whose fields keep
// the values they have (the defaults) where the file does not set them. What set
// has, "key=value" as [Usage] describes it, goes over the file; path may be empty, and
// then there is nothing below. If into has a method
// Written(func(key string) bool) it is called then, with what reports whether somebody set
// a key, and if it has Validate() error that is called last.
//
// All that is wrong is returned at once: the error joins Problems, in the order of the
// file and of set. After an error into may be half filled.
func Load(path string, into any, set ...string) error {
	if path == "" {
		return read(nil, into, set)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	return Parse(path, data, into, set...)
}

// Parse is Load for a file that was read already; path is for messages.
func Parse(path string, data []byte, into any, set ...string) error {
	return read(&document{path: path, text: data}, into, set)
}

func read(file *document, into any, set []string) error {
	docs, problems := decode(file, into, set)
	if len(problems) == 0 {
		if w, ok := into.(interface{ Written(func(key string) bool) }); ok {
			w.Written(func(key string) bool {
				return slices.ContainsFunc(docs, func(d *document) bool { return find(d.exprs, key) != nil })
			})
		}
		if v, ok := into.(interface{ Validate() error }); ok {
			problems = place(docs, v.Validate())
		}
	}
	return joined(problems)
}

// Place returns an error of [Invalid], or several that are joined, as Load would if Validate had returned
// them: with the places in the file, or in set, that they are about. into is a pointer to a struct as Load
// fills it, and is left as it is.
func Place(err error, path string, into any, set ...string) error {
	if err == nil {
		return nil
	}
	var file *document
	if path != "" {
		data, rerr := os.ReadFile(path)
		if rerr != nil {
			return err
		}
		file = &document{path: path, text: data}
	}
	docs, _ := decode(file, reflect.New(reflect.TypeOf(into).Elem()).Interface(), set)
	return joined(place(docs, err))
}

func joined(problems []*Problem) error {
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = p
	}
	return errors.Join(errs...)
}

// decode sets the fields of into that the file names, which may be nil, and those that set does.
func decode(file *document, into any, set []string) (docs []*document, problems []*Problem) {
	if file != nil {
		docs = append(docs, file)
	}
	for _, s := range set {
		d, p := assignment(s, reflect.TypeOf(into))
		if p != nil {
			problems = append(problems, p)
			continue
		}
		docs = append(docs, d)
	}
	for _, d := range docs {
		problems = append(problems, d.decode(into)...)
	}
	return docs, problems
}

// place tells where the keys are that errors name: in the last document that sets them.
func place(docs []*document, err error) (problems []*Problem) {
	order := map[*Problem]int{}
	for _, err := range flatten(err) {
		p := &Problem{Text: err.Error()}
		if len(docs) > 0 && !docs[0].inner {
			p.File = docs[0].path
		}
		var inv *invalid
		if errors.As(err, &inv) {
			p.Key, p.Text = inv.key, inv.text
		}
		for i, d := range slices.Backward(docs) {
			if e := find(d.exprs, p.Key); e != nil {
				order[p], p.File = i, d.path
				d.place(p, e.start)
				break
			}
		}
		problems = append(problems, p)
	}
	slices.SortStableFunc(problems, func(a, b *Problem) int {
		return cmp.Or(cmp.Compare(order[a], order[b]), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return problems
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

// typeOf returns the type of the field that a key names, or nil.
func typeOf(t reflect.Type, key []string) reflect.Type {
	if len(key) == 0 {
		return t
	}
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
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
