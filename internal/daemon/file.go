package daemon

import (
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// File is the configuration file of a role that runs: whether it is what the role runs
// with.
type File struct {
	Path string // "": there is none
	// Less: the role does less than what it was started with says.
	Less bool
	// Anew, if not nil, ends the role, to be started again with a file that is good again.
	Anew func()
	// Used, if not nil, is called when the file was read again and all that has changed applies.
	Used func()

	mu    sync.Mutex
	state FileState
	old   bool  // the role was not started with the file, but with what it had before
	read  stamp // of the file, when it was read last
}

// FileState says what a role's file has to do with what it runs with.
type FileState struct {
	Refused error     // why the file is not used as it is now; nil: it is
	Since   time.Time // since when it is refused
	Instead string    // what is used in its place
	Restart []string  // keys that have changed, and are used after a restart
}

// State returns the present state.
func (f *File) State() FileState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// Mark is called before the file is read.
func (f *File) Mark() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.read = stampOf(f.Path)
}

// Refuse says that the file cannot be used as it was read. instead is used in its place: by
// a role that is being started (old) something else than the file is.
func (f *File) Refuse(err error, instead string, old bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	since := f.state.Since
	if f.state.Refused == nil {
		since = time.Now()
	}
	f.old = f.old || old
	if f.old && !old {
		instead = f.state.Instead
	}
	f.state = FileState{Refused: err, Since: since, Instead: instead}
}

// accept says that the file is good, and what of it waits for a restart.
func (f *File) accept(restart []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = FileState{Restart: restart}
}

// outdated reports whether the role was started with something else than the file, which
// is good and differs by the keys in restart.
func (f *File) outdated(restart []string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.old && (f.Less || len(restart) > 0)
}

// refused reports whether somebody should look whether the file has changed.
func (f *File) refused() bool { return f != nil && f.State().Refused != nil }

// changed reports whether the file is another than the one that was read last. It says so
// when it has found the same file twice, because it may be being written.
func (f *File) changed(before *stamp) bool {
	now := stampOf(f.Path)
	f.mu.Lock()
	defer f.mu.Unlock()
	settled := now == *before
	*before = now
	return settled && now != f.read
}

// stamp tells whether a file has changed.
type stamp struct {
	size int64
	time time.Time
	err  bool
}

func stampOf(path string) stamp {
	fi, err := os.Stat(path)
	if err != nil {
		return stamp{err: true}
	}
	return stamp{size: fi.Size(), time: fi.ModTime()}
}

// fileCollector shows whether the file is refused.
type fileCollector struct {
	f    *File
	desc *prometheus.Desc
}

func newFileCollector(f *File, role string) *fileCollector {
	return &fileCollector{f, prometheus.NewDesc("capelin_configuration_refused",
		"1 if the configuration file, as it is now, cannot be used, and the role runs with an earlier one; else 0.",
		nil, prometheus.Labels{"role": role})}
}

func (c *fileCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c *fileCollector) Collect(ch chan<- prometheus.Metric) {
	refused := 0.
	if c.f.refused() {
		refused = 1
	}
	ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, refused)
}
