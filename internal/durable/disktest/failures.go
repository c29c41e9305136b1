package disktest

import (
	"fmt"
	"testing"

	"github.com/capelin-io/capelin/internal/durable/disk"
)

// Failure is how a story ended of which one operation failed.
type Failure struct {
	Disk *Disk
	Op   disk.Op // that failed,
	Fail error   // with one of Errs
	Err  error   // what the story came to
	What string  // says so, for messages: "operation 3, fsync of x, fails: "
}

// Full reports whether it failed as on a full disk.
func (f *Failure) Full() bool { return f.Fail != Errs[0] }

// FailEach plays a story again and again, in which one operation fails: the first, then the second, and so on, each with one of Errs
// in turn, until the story has no more, and so has to end without an error. The story watches a disk, has it fail (FailAt) and
// returns it.
func FailEach(t testing.TB, story func(t testing.TB, failAt int, fail error) (*Disk, error), judge func(f *Failure)) {
	t.Helper()
	for n := 0; ; n++ {
		f := &Failure{Fail: Errs[n%len(Errs)]}
		f.Disk, f.Err = story(t, n, f.Fail)
		var failed bool
		if f.Op, failed = f.Disk.Failed(); !failed {
			if f.Err != nil {
				t.Fatal(f.Err)
			}
			return
		}
		f.What = fmt.Sprintf("operation %d, %s of %s, fails: ", n, f.Op.Kind, f.Op.Path)
		judge(f)
	}
}
