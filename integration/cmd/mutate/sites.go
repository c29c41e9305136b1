package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// module is what is mutated.
type module struct {
	dir, path string
	packages  []*listed         // its own
	export    map[string]string // import path → what the compiler has exported
}

// listed is what go list says of a package.
type listed struct {
	ImportPath, Dir, Export   string
	GoFiles                   []string
	Deps                      []string
	TestImports, XTestImports []string
	Module                    *struct {
		Path, Dir string
		Main      bool
	}
}

func load(ctx context.Context, dir string) (*module, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-export", "-deps",
		"-json=ImportPath,Dir,Export,GoFiles,Deps,TestImports,XTestImports,Module", "./...")
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	mod := &module{export: map[string]string{}}
	for dec := json.NewDecoder(out); ; {
		p := new(listed)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		mod.export[p.ImportPath] = p.Export
		if p.Module != nil && p.Module.Main {
			mod.packages = append(mod.packages, p)
			mod.dir, mod.path = p.Module.Dir, p.Module.Path
		}
	}
	return mod, cmd.Wait()
}

// syncName is what functions that sync are called, theirs and ours.
var syncName = regexp.MustCompile(`(?i)^(fdata|data|f)?sync(dir|dirin|fs)?$`)

// A way says what becomes of a use of a function. %s is its arguments, with the receiver
// of a method as the first.
type way struct {
	fn   string // as types.Func.FullName has it, below the module
	pkg  string // only there, if it is not empty
	with string
	head string // imports that it needs
}

const (
	importOS   = `import mutos "os"`
	importDisk = `import mutdisk "github.com/capelin-io/capelin/internal/durable/disk"`
)

// ways are package durable's sequences without their syncs. What is named as a sync
// just does nothing.
var ways = []way{
	{fn: "internal/durable.Rename", with: "mutdisk.Rename(%s)", head: importDisk},
	{fn: "internal/durable.RenameIn", with: "func(r *mutdisk.Root, from, to string) error { return r.Rename(from, to) }(%s)",
		head: importDisk},
	{fn: "internal/durable.WriteFile", head: importOS + "; " + importDisk,
		with: "func(p string, b []byte, m mutos.FileMode) error { t := p + `.mut`; " +
			"if err := mutos.WriteFile(t, b, m); err != nil { return err }; return mutdisk.Rename(t, p) }(%s)"},
	{fn: "internal/durable.Remove", head: importOS + "; " + importDisk,
		with: "func(p string) error { if err := mutdisk.Remove(p); err != nil && !mutos.IsNotExist(err) { return err }; return nil }(%s)"},
	{fn: "internal/durable.MkdirAll", with: "mutos.MkdirAll(%s)", head: importOS},
	{fn: "(*internal/durable.Dirs).Make", pkg: "fetcher/file",
		with: "func(_ any, dir string) error { return b.root.MkdirAll(dir, 0o750) }(%s)"},
	{fn: "(*internal/durable.Dirs).Make", pkg: "internal/durable", with: "func(...any) error { return nil }(%s)"},
	{fn: "(*internal/durable.Dirs).Make", with: "func(_ any, dir string) error { return mutos.MkdirAll(dir, 0o700) }(%s)", head: importOS},
}

// syncs returns every use of a function that syncs, but in tests and their helpers.
func (mod *module) syncs() ([]*mutant, error) {
	fset := token.NewFileSet()
	imp := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		if mod.export[path] == "" {
			return nil, fmt.Errorf("nothing exported by %s", path)
		}
		return os.Open(mod.export[path])
	})
	var all []*mutant
	for _, p := range mod.packages {
		if slices.Contains(p.Deps, "testing") {
			continue // a helper of tests
		}
		var files []*ast.File
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				return nil, err
			}
			files = append(files, f)
		}
		info := &types.Info{Uses: map[*ast.Ident]types.Object{}, Selections: map[*ast.SelectorExpr]*types.Selection{}}
		conf := types.Config{Importer: imp}
		if _, err := conf.Check(p.ImportPath, fset, files, info); err != nil {
			return nil, err
		}
		s := &finder{mod: mod, fset: fset, info: info, pkg: p, packages: mod.above(p.ImportPath)}
		for _, f := range files {
			s.file(f)
		}
		all = append(all, s.found...)
	}
	return all, nil
}

// above returns a package, and those that depend on it and play power cuts.
func (mod *module) above(path string) []string {
	pkgs := []string{path}
	for _, p := range mod.packages {
		plays := slices.Contains(append(p.TestImports, p.XTestImports...), mod.path+"/internal/durable/disktest")
		if plays && p.ImportPath != path && slices.Contains(p.Deps, path) {
			pkgs = append(pkgs, p.ImportPath)
		}
	}
	// The nearest first.
	slices.SortStableFunc(pkgs[1:], func(a, b string) int { return cmp.Compare(mod.depth(a), mod.depth(b)) })
	return pkgs
}

func (mod *module) depth(path string) int {
	i := slices.IndexFunc(mod.packages, func(p *listed) bool { return p.ImportPath == path })
	return len(mod.packages[i].Deps)
}

// finder finds the uses in one package.
type finder struct {
	mod      *module
	fset     *token.FileSet
	info     *types.Info
	pkg      *listed
	packages []string
	found    []*mutant
}

func (s *finder) file(f *ast.File) {
	src, err := os.ReadFile(s.fset.Position(f.Pos()).Filename)
	if err != nil {
		panic(err) // it was parsed just now
	}
	called := map[ast.Expr]*ast.CallExpr{}
	named := map[*ast.Ident]bool{} // the name in a selector that was looked at
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			called[n.Fun] = n
		case *ast.SelectorExpr:
			s.use(src, n, n.Sel, called[n])
			named[n.Sel] = true
		case *ast.Ident:
			if !named[n] {
				s.use(src, n, n, called[n])
			}
		}
		return true
	})
}

// use notes a use of a function that syncs. call is nil if it is not called.
func (s *finder) use(src []byte, expr ast.Expr, name *ast.Ident, call *ast.CallExpr) {
	fn, ok := s.info.Uses[name].(*types.Func)
	if !ok || fn.Pkg() == nil {
		return
	}
	full := strings.ReplaceAll(fn.FullName(), s.mod.path+"/", "")
	pkg := strings.TrimPrefix(s.pkg.ImportPath, s.mod.path+"/")
	i := slices.IndexFunc(ways, func(w way) bool { return w.fn == full && (w.pkg == "" || w.pkg == pkg) })
	if i < 0 && (!syncName.MatchString(fn.Name()) || !returnsError(fn)) {
		return
	}
	w := way{with: "func(...any) error { return nil }(%s)"}
	if i >= 0 {
		w = ways[i]
	}
	at := func(p token.Pos) int { return s.fset.Position(p).Offset }
	text := func(n ast.Node) string { return string(src[at(n.Pos()):at(n.End())]) }
	m := &mutant{
		line: s.fset.Position(expr.Pos()).Line, what: text(expr), head: w.head, packages: s.packages,
		src: src, from: at(expr.Pos()), to: at(expr.End()),
	}
	m.file, _ = filepath.Rel(s.mod.dir, s.fset.Position(expr.Pos()).Filename)
	if call == nil { // used as a value
		m.text = types.TypeString(fn.Signature(), (*types.Package).Name) + " { return nil }"
		s.found = append(s.found, m)
		return
	}
	var args []string
	sel, isSel := expr.(*ast.SelectorExpr)
	if isSel && s.info.Selections[sel] != nil {
		args = append(args, text(sel.X))
	}
	for _, a := range call.Args {
		args = append(args, text(a))
	}
	m.to = at(call.End())
	m.text = fmt.Sprintf(w.with, strings.Join(args, ", "))
	if isSel && s.info.Selections[sel] == nil { // so that its import stays in use
		m.text = fmt.Sprintf("func(_ any, err error) error { return err }(%s, %s)", text(sel), fmt.Sprintf(w.with, strings.Join(args, ", ")))
	}
	s.found = append(s.found, m)
}

func returnsError(fn *types.Func) bool {
	r := fn.Signature().Results()
	return r.Len() > 0 && types.Identical(r.At(r.Len()-1).Type(), types.Universe.Lookup("error").Type())
}
