package config

import (
	"bufio"
	"bytes"
	"encoding"
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Print writes the values of a struct (or a pointer to one) as TOML, each key
// preceded by its `comment` tag, wrapped. Tables come after plain keys. Fields
// without a toml tag, or with "-", are left out. A slice of structs must be empty,
// because a file that spells one out could not be merged with defaults; it is
// printed as a commented table with what the struct's method Example() any
// returns, or else its zero value. What a struct's method Notes() map[string]string
// returns is added to the comments of these keys: what it has to say of keys that
// it shares with others, by embedding. Those of the outermost struct may name keys of
// tables, dotted; they then stand for what is said of SIGHUP. A table with the tag `like` is like another one, and so only its plain keys
// are printed.
func Print(w io.Writer, defaults any) error {
	b := bufio.NewWriter(w)
	v := reflect.Indirect(reflect.ValueOf(defaults))
	if v.Kind() != reflect.Struct {
		return fmt.Errorf("printing a configuration: %T is not a struct", defaults)
	}
	if err := printTable(b, "", v, notesOf(v), 78); err != nil {
		return fmt.Errorf("printing a configuration: %w", err)
	}
	return b.Flush()
}

// printTable writes the keys of a struct and then its tables, with comments of at
// most width columns. outer are the notes of the outermost struct.
func printTable(w *bufio.Writer, prefix string, v reflect.Value, outer map[string]string, width int) error {
	type sub struct {
		name, comment string
		v             reflect.Value
		array         bool
		like          string
	}
	var tables []sub
	first := prefix == ""
	notes := notesOf(v)
	for name, f := range fields(v.Type()) {
		comment := strings.TrimSpace(f.Tag.Get("comment") + " " + notes[name])
		if note, ok := outer[join(prefix, name)]; ok && prefix != "" {
			comment += " " + note
		} else if isLive(f) {
			comment += " SIGHUP applies a change."
		}
		fv := v.FieldByIndex(f.Index)
		if isTable(fv) {
			tables = append(tables, sub{name, comment, fv, false, f.Tag.Get("like")})
			continue
		}
		if elem, ok := example(fv); ok {
			if fv.Len() > 0 {
				return fmt.Errorf("key %s has tables, which are no defaults", join(prefix, name))
			}
			tables = append(tables, sub{name, comment, elem, true, ""})
			continue
		}
		if comment == "" {
			return fmt.Errorf("key %s has no comment", join(prefix, name))
		}
		if !first {
			fmt.Fprintln(w)
		}
		first = false
		wrap(w, comment, width)
		if fv.Kind() == reflect.Slice && fv.Len() == 0 {
			fmt.Fprintf(w, "%s = []\n", name)
			continue
		}
		var line bytes.Buffer
		err := toml.NewEncoder(&line).SetTablesInline(true).Encode(map[string]any{name: fv.Interface()})
		if err != nil {
			return fmt.Errorf("key %s: %w", join(prefix, name), err)
		}
		// One line; strings in double quotes, as in the manual's examples.
		text := strings.TrimSpace(line.String())
		if key, val, ok := strings.Cut(text, " = "); ok && len(val) > 1 && val[0] == '\'' && !strings.ContainsAny(val, "\"\\") {
			text = key + " = \"" + val[1:len(val)-1] + "\""
		}
		fmt.Fprintln(w, strings.ReplaceAll(text, "${", "$${"))
	}
	for _, t := range tables {
		fmt.Fprintln(w)
		if t.comment != "" {
			wrap(w, t.comment, width)
		}
		if t.array {
			if err := printExample(w, join(prefix, t.name), t.v, outer, width); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(w, "[%s]\n", join(prefix, t.name))
		if t.like != "" {
			wrap(w, "Beside these keys it has the tables that "+t.like+" has.", width)
			t.v = withoutTables(t.v)
		}
		if err := printTable(w, join(prefix, t.name), t.v, outer, width); err != nil {
			return err
		}
	}
	return nil
}

// withoutTables returns a struct that has of v what is no table.
func withoutTables(v reflect.Value) reflect.Value {
	var keep []reflect.StructField
	for _, f := range fields(v.Type()) {
		if !isTable(v.FieldByIndex(f.Index)) {
			keep = append(keep, reflect.StructField{Name: f.Name, Type: f.Type, Tag: f.Tag})
		}
	}
	plain := reflect.New(reflect.StructOf(keep)).Elem()
	for _, f := range keep {
		plain.FieldByName(f.Name).Set(v.FieldByName(f.Name))
	}
	return plain
}

func notesOf(v reflect.Value) map[string]string {
	if n, ok := v.Interface().(interface{ Notes() map[string]string }); ok {
		return n.Notes()
	}
	return nil
}

// example returns a table to show, of a slice of structs.
func example(v reflect.Value) (reflect.Value, bool) {
	if v.Kind() != reflect.Slice || v.Type().Elem().Kind() != reflect.Struct {
		return v, false
	}
	elem := reflect.Zero(v.Type().Elem())
	switch e := elem.Interface().(type) {
	case encoding.TextMarshaler:
		return v, false
	case interface{ Example() any }:
		elem = reflect.Indirect(reflect.ValueOf(e.Example()))
	}
	return elem, true
}

// printExample writes a table of an array as comments.
func printExample(w *bufio.Writer, name string, v reflect.Value, outer map[string]string, width int) error {
	var text bytes.Buffer
	b := bufio.NewWriter(&text)
	if err := printTable(b, name, v, outer, width-2); err != nil {
		return err
	}
	_ = b.Flush()
	fmt.Fprintf(w, "#\n# [[%s]]\n", name)
	for line := range strings.Lines(text.String()) {
		fmt.Fprintln(w, strings.TrimRight("# "+line, " \n"))
	}
	return nil
}

// wrap writes text as comments of at most width columns; "\n" in it begins a new
// line.
func wrap(w *bufio.Writer, text string, width int) {
	for para := range strings.SplitSeq(text, "\n") {
		line := "#"
		for word := range strings.FieldsSeq(para) {
			if len(line)+1+len(word) > width && line != "#" {
				fmt.Fprintln(w, line)
				line = "#"
			}
			line += " " + word
		}
		fmt.Fprintln(w, line)
	}
}
