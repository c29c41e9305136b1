package disk

import (
	"os"
	"path/filepath"
	"time"
)

// Root is an os.Root: names below a directory, none of which leads out of it.
type Root struct{ *os.Root }

// OpenRoot is os.OpenRoot.
func OpenRoot(dir string) (*Root, error) {
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Root{r}, nil
}

func (r *Root) at(name string) string { return filepath.Join(r.Name(), name) }

// OpenFile is OpenFile below r.
func (r *Root) OpenFile(name string, flag int, perm os.FileMode) (f *os.File, err error) {
	err = perform(Op{Kind: OpOpen, Path: r.at(name)}, func() error {
		f, err = r.Root.OpenFile(name, flag, perm)
		return err
	})
	return f, err
}

// Mkdir is Mkdir below r.
func (r *Root) Mkdir(name string, perm os.FileMode) error {
	return perform(Op{Kind: OpMkdir, Path: r.at(name)}, func() error { return r.Root.Mkdir(name, perm) })
}

// Rename is Rename below r.
func (r *Root) Rename(from, to string) error {
	return perform(Op{Kind: OpRename, Path: r.at(from), To: r.at(to)}, func() error { return r.Root.Rename(from, to) })
}

// Remove is Remove below r.
func (r *Root) Remove(name string) error {
	return perform(Op{Kind: OpRemove, Path: r.at(name)}, func() error { return r.Root.Remove(name) })
}

// RemoveAll is RemoveAll below r.
func (r *Root) RemoveAll(name string) error {
	return perform(Op{Kind: OpRemove, Path: r.at(name)}, func() error { return r.Root.RemoveAll(name) })
}

// Chtimes is Chtimes below r.
func (r *Root) Chtimes(name string, atime, mtime time.Time) error {
	return perform(Op{Kind: OpChtimes, Path: r.at(name)}, func() error { return r.Root.Chtimes(name, atime, mtime) })
}
