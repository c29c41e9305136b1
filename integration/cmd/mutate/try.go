package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// result is what became of a place.
type result struct {
	killed string // by which test
	err    error  // it could not be tried
}

func (r result) String() string {
	switch {
	case r.err != nil:
		return "NOT TRIED: " + r.err.Error()
	case r.killed == "":
		return "SURVIVED"
	}
	return "killed by " + r.killed
}

// trial tries places one after the other.
type trial struct {
	mod   *module
	dir   string // for what it makes
	limit time.Duration
}

// try runs the tests of a place's packages until one fails.
func (t *trial) try(ctx context.Context, m *mutant) result {
	overlay, err := t.overlay(m)
	if err != nil {
		return result{err: err}
	}
	for _, pkg := range m.packages {
		name, err := t.test(ctx, overlay, pkg)
		if err != nil || name != "" {
			return result{name, err}
		}
	}
	return result{}
}

// overlay writes the changed file, and the file that tells the compiler of it.
func (t *trial) overlay(m *mutant) (string, error) {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(t.mod.dir, m.file)
	changed := append(append(append([]byte{}, m.src[:m.from]...), m.text...), m.src[m.to:]...)
	if m.head != "" {
		clause := packageClause.FindIndex(changed)
		changed = append(append(append([]byte{}, changed[:clause[1]]...), "; "+m.head...), changed[clause[1]:]...)
	}
	mutated := filepath.Join(t.dir, "mutated.go")
	if err := os.WriteFile(mutated, changed, 0o600); err != nil {
		return "", err
	}
	b, err := json.Marshal(map[string]map[string]string{"Replace": {path: mutated}})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(t.dir, "overlay.json")
	return overlay, os.WriteFile(overlay, b, 0o600)
}

var packageClause = regexp.MustCompile(`(?m)^package \w+`)

// quick are the tests that are tried first.
const quick = "PowerCut|FailingDisk"

// test builds a package's tests and runs them, those that play power cuts first. It
// returns the name of one that failed.
func (t *trial) test(ctx context.Context, overlay, pkg string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*t.limit+5*time.Minute) // the compiler's time included
	defer cancel()
	bin := filepath.Join(t.dir, "test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", bin, pkg)
	build.Dir = t.mod.dir
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go test -c %s: %w: %s", pkg, err, firstLines(out))
	}
	if _, err := os.Stat(bin); errors.Is(err, os.ErrNotExist) {
		return "", nil // it has no tests
	}
	defer os.Remove(bin)
	for _, run := range []string{quick, "."} {
		cmd := exec.CommandContext(ctx, bin, "-test.failfast", "-test.run", run, "-test.timeout", t.limit.String())
		cmd.Dir = filepath.Join(t.mod.dir, strings.TrimPrefix(pkg, t.mod.path))
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil || !errors.As(err, &exit):
			return "", fmt.Errorf("testing %s: %w", pkg, err)
		}
		return failedTest(out.Bytes()) + " (" + strings.TrimPrefix(pkg, t.mod.path+"/") + ")", nil
	}
	return "", nil
}

var (
	failLine  = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)
	hangLine  = regexp.MustCompile(`(?m)^panic: test timed out after .*\n(?:.*\n)*?\s+(Test\S+)`)
	panicLine = regexp.MustCompile(`(?m)^panic: (.*)`)
)

// failedTest names a test that failed, with its subtest.
func failedTest(out []byte) string {
	name := "a test that says nothing"
	if all := failLine.FindAllSubmatch(out, -1); all != nil {
		name = string(all[0][1])
		for _, m := range all[1:] {
			if sub := string(m[1]); strings.HasPrefix(sub, name+"/") {
				return sub
			}
		}
		return name
	}
	if m := hangLine.FindSubmatch(out); m != nil {
		return string(m[1]) + ", which hangs"
	}
	if m := panicLine.FindSubmatch(out); m != nil {
		return "a panic: " + string(m[1])
	}
	return name
}

func firstLines(b []byte) string {
	lines := strings.SplitN(strings.TrimSpace(string(b)), "\n", 5)
	return strings.Join(lines[:min(4, len(lines))], "; ")
}
