package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Usage says how values of a configuration are given on command lines, with some of its own keys: a text, a
// number and a list.
func Usage(defaults any) string {
	var text, number, list string
	var look func(prefix string, v reflect.Value)
	look = func(prefix string, v reflect.Value) {
		for name, f := range fields(v.Type()) {
			value, key := v.FieldByIndex(f.Index), join(prefix, name)
			switch is := value.Interface().(type) {
			case string:
				if text == "" {
					text = map[string]string{"zone": "zone=rack7", "cluster": "cluster=prod"}[key]
				}
			case []string:
				if list == "" {
					list = key + `='["HOST:PORT"]'`
				}
			case Bytes, Duration:
				if s := fmt.Sprint(is); number == "" && !value.IsZero() {
					number = key + "=" + s
				}
			default:
				if isTable(value) {
					look(key, value)
				}
			}
		}
	}
	look("", reflect.Indirect(reflect.ValueOf(defaults)))
	examples := slices.DeleteFunc([]string{text, number, list}, func(s string) bool { return s == "" })
	last := len(examples) - 1
	if last > 0 {
		examples[last-1] += " or " + examples[last]
		examples = examples[:last]
	}
	return "value that goes over the file, such as " + strings.Join(examples, ", ") + "; repeat for several"
}

// assignment makes a document of "key=value", as [Load] takes it from command lines. The key is dotted. The value is TOML, or
// else, like all that a field for text gets, a string as it is.
func assignment(s string, into reflect.Type) (*document, *Problem) {
	path := "--set " + s
	key, value, ok := strings.Cut(s, "=")
	d := &document{path: path, inner: true, data: []byte(key + " = 0")}
	exprs, problem := d.outline()
	if !ok || problem != nil || len(exprs) != 1 || !exprs[0].value {
		return nil, &Problem{File: path, Text: "is not key=value, such as cluster=prod"}
	}
	d.text = []byte(key + " = " + literal(strings.TrimSpace(value), typeOf(into, exprs[0].parts)))
	return d, nil
}

// literal returns a value as TOML: as it is if it is TOML that can fit the type, which
// may be nil, or else as a string.
func literal(value string, t reflect.Type) string {
	var v map[string]any
	if toml.Unmarshal([]byte("v = "+value), &v) != nil || len(v) != 1 {
		return quote(value)
	}
	if _, isString := v["v"].(string); t != nil && t.Kind() == reflect.String && !isString {
		return quote(value)
	}
	return value
}
