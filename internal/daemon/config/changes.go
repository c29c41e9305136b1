package config

import (
	"encoding"
	"reflect"
)

// Adopt gives a struct (by pointer) the values of another one of its type, as far as
// they can change while a role runs: those of fields with the tag `live:"true"`. It
// returns the keys that it changed, and those that differ still.
func Adopt(running, next any) (changed, restart []string) {
	adopt("", reflect.ValueOf(running).Elem(), reflect.ValueOf(next).Elem(), &changed, &restart)
	return changed, restart
}

func adopt(prefix string, running, next reflect.Value, changed, restart *[]string) {
	for name, f := range fields(running.Type()) {
		a, b := running.FieldByIndex(f.Index), next.FieldByIndex(f.Index)
		key := join(prefix, name)
		switch {
		case isTable(a):
			adopt(key, a, b, changed, restart)
		case reflect.DeepEqual(a.Interface(), b.Interface()) || a.Kind() == reflect.Slice && a.Len()+b.Len() == 0:
		case isLive(f):
			a.Set(b)
			*changed = append(*changed, key)
		default:
			*restart = append(*restart, key)
		}
	}
}

func isLive(f reflect.StructField) bool { return f.Tag.Get("live") == "true" }

// isTable reports whether a field is a table, and no value with a text.
func isTable(v reflect.Value) bool {
	_, text := v.Interface().(encoding.TextMarshaler)
	return !text && v.Kind() == reflect.Struct
}
