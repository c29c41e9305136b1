package config

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2/unstable"
)

// edit is a place where a document's data differs from its text: the value of a string
// with variables of the environment.
type edit struct{ start, end, textStart, textEnd int }

// origin returns which offset of the text an offset of data comes from.
func (d *document) origin(off int) int {
	ahead := 0 // how much longer data is up to here
	for _, e := range d.edits {
		if off < e.start {
			break
		}
		if off < e.end {
			return e.textStart
		}
		ahead = e.end - e.textEnd
	}
	return off - ahead
}

// expand puts variables of the environment into strings: "${NAME}" is NAME's value,
// "$${" is "${". It returns what is wrong with them.
func (d *document) expand() (problems []*Problem) {
	if !bytes.Contains(d.text, []byte("${")) {
		return nil
	}
	var data []byte
	var unfit []edit // values with mistakes
	at := 0
	for _, s := range stringsIn(d.text) {
		if !strings.Contains(s.value, "${") {
			continue
		}
		value, mistake := expand(s.value, os.LookupEnv)
		data = append(data, d.text[at:s.start]...)
		e := edit{start: len(data), textStart: s.start, textEnd: s.end}
		data = append(data, quote(value)...)
		e.end, at = len(data), s.end
		d.edits = append(d.edits, e)
		if mistake != "" {
			unfit = append(unfit, e)
			problems = append(problems, &Problem{Text: mistake})
		}
	}
	d.data = append(data, d.text[at:]...)
	d.exprs, _ = d.outline()
	for i, e := range unfit {
		problems[i] = d.refuse(e.start, problems[i].Text)
	}
	return problems
}

// Expanded returns a file's text with the values of variables in their places, which means
// the same without the environment. What is wrong with it stays as it is.
func Expanded(data []byte) []byte {
	d := &document{text: data, data: data}
	if _, problem := d.outline(); problem != nil {
		return data
	}
	var out []byte
	at := 0
	for _, s := range stringsIn(data) {
		if !strings.Contains(s.value, "${") {
			continue
		}
		value, mistake := expand(s.value, os.LookupEnv)
		if mistake != "" {
			continue
		}
		out = append(out, data[at:s.start]...)
		out = append(out, quote(strings.ReplaceAll(value, "${", "$${"))...)
		at = s.end
	}
	return append(out, data[at:]...)
}

var variable = regexp.MustCompile(`\$?\$\{[^}]*\}?`)

// expand returns s with its variables, and what is wrong with them, or "".
func expand(s string, lookup func(string) (string, bool)) (value, mistake string) {
	value = variable.ReplaceAllStringFunc(s, func(v string) string {
		if literal, ok := strings.CutPrefix(v, "$$"); ok {
			return "$" + literal
		}
		name := strings.TrimSuffix(strings.TrimPrefix(v, "${"), "}")
		if !variableName.MatchString(name) || !strings.HasSuffix(v, "}") {
			mistake = fmt.Sprintf("%q is not ${NAME}, a variable of the environment; \"$${\" stands for \"${\"", v)
			return ""
		}
		value, ok := lookup(name)
		switch {
		case !ok:
			mistake = fmt.Sprintf("the environment has no variable %s", name)
		case !utf8.ValidString(value):
			mistake = fmt.Sprintf("the environment's variable %s is not UTF-8", name)
		}
		return value
	})
	return value, mistake
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// quote returns s as a TOML string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteRune('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, "\\u%04X", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// text is a string among the values of a document.
type text struct {
	value      string
	start, end int
}

// stringsIn finds all of them, those in arrays and inline tables included. data has no
// syntax error.
func stringsIn(data []byte) (all []text) {
	var p unstable.Parser
	p.Reset(data)
	var visit func(v *unstable.Node)
	visit = func(v *unstable.Node) {
		switch v.Kind {
		case unstable.String:
			start := int(v.Raw.Offset)
			all = append(all, text{string(v.Data), start, start + int(v.Raw.Length)})
		case unstable.Array:
			for it := v.Children(); it.Next(); {
				visit(it.Node())
			}
		case unstable.InlineTable:
			for it := v.Children(); it.Next(); {
				visit(it.Node().Value())
			}
		}
	}
	for p.NextExpression() {
		if node := p.Expression(); node.Kind == unstable.KeyValue {
			visit(node.Value())
		}
	}
	return all
}
