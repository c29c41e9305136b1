package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
)

// decisions reads the list of decisions: for each a line
//
//	file  function  package to test ...
//
// and then the lines of that function that are replaced, with "- " before each, and
// those that stand there instead, with "+ ". A method is Type.Name. The text must be
// there once. Indentation does not matter; what is after "#" at a line's beginning is a
// comment.
func (mod *module) decisions(path string) ([]*mutant, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []*mutant
	var old, changed []string
	var head []string
	flush := func() error {
		if head == nil {
			return nil
		}
		m, err := mod.decision(head, old, changed)
		if err != nil {
			return err
		}
		all = append(all, m)
		head, old, changed = nil, nil, nil
		return nil
	}
	for i, line := range strings.Split(string(b), "\n") {
		switch {
		case strings.TrimSpace(line) == "" || line[0] == '#':
		case strings.HasPrefix(line, "-"):
			old = append(old, strings.TrimSpace(line[1:]))
		case strings.HasPrefix(line, "+"):
			changed = append(changed, strings.TrimSpace(line[1:]))
		default:
			if err := flush(); err != nil {
				return nil, err
			}
			if head = strings.Fields(line); len(head) < 3 {
				return nil, fmt.Errorf("%s:%d: want file, function and packages", path, i+1)
			}
		}
	}
	return all, flush()
}

func (mod *module) decision(head, old, changed []string) (*mutant, error) {
	file, function := head[0], head[1]
	src, err := os.ReadFile(filepath.Join(mod.dir, file))
	if err != nil {
		return nil, err
	}
	from, to, err := funcRange(src, function)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	at, n := find(string(src[from:to]), old)
	if n != 1 {
		return nil, fmt.Errorf("%s: %s has %d times %q", file, function, n, strings.Join(old, " "))
	}
	m := &mutant{
		file: file, line: 1 + strings.Count(string(src[:from+at[0]]), "\n"),
		what: fmt.Sprintf("%s: %s → %s", function, strings.Join(old, " "), strings.Join(changed, " ")),
		src:  src, from: from + at[0], to: from + at[1], text: strings.Join(changed, "\n"),
	}
	for _, pkg := range head[2:] {
		m.packages = append(m.packages, mod.path+"/"+strings.TrimPrefix(pkg, "./"))
	}
	return m, nil
}

// find finds consecutive text in a function, whatever the indentation of its lines. It
// returns where it is first, and how often.
func find(src string, old []string) (at [2]int, n int) {
	if len(old) == 0 {
		return at, 0
	}
	for i := 0; i < len(src); {
		j := strings.Index(src[i:], old[0])
		if j < 0 {
			break
		}
		start := i + j
		end := start + len(old[0])
		ok := true
		for _, line := range old[1:] {
			rest := strings.TrimLeft(src[end:], "\t \n")
			if ok = strings.HasPrefix(rest, line); !ok {
				break
			}
			end = len(src) - len(rest) + len(line)
		}
		if ok {
			if n++; n == 1 {
				at = [2]int{start, end}
			}
		}
		i = start + len(old[0])
	}
	return at, n
}

// funcRange returns where a function is, or a method as Type.Name.
func funcRange(src []byte, name string) (from, to int, err error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "", src, parser.SkipObjectResolution)
	if err != nil {
		return 0, 0, err
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && funcName(fn) == name {
			return fset.Position(fn.Pos()).Offset, fset.Position(fn.End()).Offset, nil
		}
	}
	return 0, 0, fmt.Errorf("no function %s", name)
}

func funcName(fn *ast.FuncDecl) string {
	if fn.Recv == nil {
		return fn.Name.Name
	}
	t := fn.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
			continue
		case *ast.IndexExpr:
			t = x.X
			continue
		case *ast.Ident:
			return x.Name + "." + fn.Name.Name
		}
		return fn.Name.Name
	}
}
