package config

import (
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Set says how values are given on command lines.
const Set = `value that goes over the file, such as zone=rack7, cache.size=50GiB or trackers='["t1:7470"]'; repeat for several`

// assignment makes a document of "key=value". The key is dotted. The value is TOML, or
// else, like all that a field for text gets, a string as it is.
func assignment(s string, into reflect.Type) (*document, *Problem) {
	path := "--set " + s
	key, value, ok := strings.Cut(s, "=")
	d := &document{path: path, inner: true, data: []byte(key + " = 0")}
	exprs, problem := d.outline()
	if !ok || problem != nil || len(exprs) != 1 || !exprs[0].value {
		return nil, &Problem{File: path, Text: "is not key=value, such as cluster=prod or cache.size=50GiB"}
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
