package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// README sends whoever wants to know what a package is to its doc.go. So each has one,
// in the integration module too, and no second file that says it differently.
func TestEveryPackageHasDoc(t *testing.T) {
	const top = "../.."
	packages := 0
	err := filepath.WalkDir(top, func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if name := d.Name(); dir != top && (strings.HasPrefix(name, ".") || slices.Contains([]string{"bin", "testdata", "tools"}, name)) {
			return filepath.SkipDir
		}
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			return err
		}
		packages++
		if _, err := os.Stat(filepath.Join(dir, "doc.go")); err != nil {
			t.Errorf("%s has no doc.go: what is it, where does one start, what may run concurrently, what does it not do?", dir)
		}
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				return err
			}
			want := "Package " + f.Name.Name + " "
			if f.Name.Name == "main" {
				want = "Command " + filepath.Base(dir) + " "
			}
			says := strings.HasPrefix(f.Doc.Text(), want)
			switch isDoc := filepath.Base(file) == "doc.go"; {
			case isDoc && !says:
				t.Errorf("%s: its comment begins with %.40q, not %q", file, f.Doc.Text(), want)
			case !isDoc && says:
				t.Errorf("%s has a package comment: that belongs into doc.go", file)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if packages < 40 {
		t.Errorf("only %d packages were found", packages)
	}
}
