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
// without a toml tag, or with "-", are left out; a slice of structs must be
// empty, because a file that spells one out could not be merged with defaults.
func Print(w io.Writer, defaults any) error {
	b := bufio.NewWriter(w)
	v := reflect.Indirect(reflect.ValueOf(defaults))
	if v.Kind() != reflect.Struct {
		return fmt.Errorf("printing a configuration: %T is not a struct", defaults)
	}
	if err := printTable(b, "", v); err != nil {
		return fmt.Errorf("printing a configuration: %w", err)
	}
	return b.Flush()
}

func printTable(w *bufio.Writer, prefix string, v reflect.Value) error {
	type sub struct {
		name, comment string
		v             reflect.Value
	}
	var tables []sub
	first := prefix == ""
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		if name == "" || name == "-" {
			continue
		}
		comment := f.Tag.Get("comment")
		fv := v.Field(i)
		if _, ok := fv.Interface().(encoding.TextMarshaler); !ok && fv.Kind() == reflect.Struct {
			tables = append(tables, sub{name, comment, fv})
			continue
		}
		if comment == "" {
			return fmt.Errorf("key %s has no comment", join(prefix, name))
		}
		if !first {
			fmt.Fprintln(w)
		}
		first = false
		wrap(w, comment)
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
		fmt.Fprintln(w, text)
	}
	for _, t := range tables {
		fmt.Fprintln(w)
		if t.comment != "" {
			wrap(w, t.comment)
		}
		fmt.Fprintf(w, "[%s]\n", join(prefix, t.name))
		if err := printTable(w, join(prefix, t.name), t.v); err != nil {
			return err
		}
	}
	return nil
}

// wrap writes text as comments of at most 78 columns; "\n" in it begins a new
// line.
func wrap(w *bufio.Writer, text string) {
	for para := range strings.SplitSeq(text, "\n") {
		line := "#"
		for word := range strings.FieldsSeq(para) {
			if len(line)+1+len(word) > 78 && line != "#" {
				fmt.Fprintln(w, line)
				line = "#"
			}
			line += " " + word
		}
		fmt.Fprintln(w, line)
	}
}
