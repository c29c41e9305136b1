package storages

import (
	"os"
	"path/filepath"
	"strconv"
)

// FakeGCS is a server of Google Cloud Storage's JSON API, over a directory. It is not Google's, and differs:
//
//   - Delete ignores ifGenerationMatch.
//   - A chunk of an upload that is sent again is appended again, and X-Goog-Hash is not looked at: the object is wrong. A session
//     whose last chunk was taken is not there any more, when Google's answers with the object.
//   - A bucket that is not there has an empty list, and testIamPermissions is not known.
//   - It holds an upload in memory as a whole, more than once.
type FakeGCS struct {
	*Process
	dir string
}

// StartFakeGCS starts one that keeps its objects below dir.
func StartFakeGCS(t TB, dir string) *FakeGCS {
	t.Helper()
	g := &FakeGCS{dir: filepath.Join(dir, "data")}
	tool := Tool(t, "fake-gcs-server")
	g.Process = Start(t, Command{
		Name: "fake-gcs-server", Dir: dir,
		Args: func(port int) []string {
			return []string{tool, "-scheme", "http", "-host", "127.0.0.1", "-port", strconv.Itoa(port),
				"-filesystem-root", g.dir, "-log-level", "warn"}
		},
	})
	return g
}

// Bucket makes a bucket.
func (g *FakeGCS) Bucket(t TB, name string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(g.dir, name), 0o750); err != nil {
		t.Fatalf("%v", err)
	}
}
