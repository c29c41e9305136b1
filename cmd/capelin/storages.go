package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/backends"
	filestorage "github.com/capelin-io/capelin/fetcher/file"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

// storageHelp says how a storage is named on the command line.
const storageHelp = `A storage is a directory, or a file NAME.toml with a table [storage] as in
"capelin indexd config".`

// storageFile is a file that names a storage.
type storageFile struct {
	Storage backends.Storage `toml:"storage"`
}

// Validate reports what is wrong.
func (f *storageFile) Validate() error { return errors.Join(f.Storage.Check("storage.")...) }

// storageOpener returns what opens the storage that an argument names: a directory, or a file of TOML. A directory that is read
// must be there.
func storageOpener(arg string, read bool) (func() (fetcher.Backend, error), error) {
	if !strings.HasSuffix(arg, ".toml") {
		dir, err := filepath.Abs(arg)
		if err == nil && read {
			var fi os.FileInfo
			if fi, err = os.Stat(dir); err == nil && !fi.IsDir() {
				err = fmt.Errorf("%s is neither a directory nor a file of TOML", arg)
			}
		}
		if err != nil {
			return nil, err
		}
		s := backends.Storage{Kind: backends.KindFile, File: filestorage.Config{Path: dir}}
		return s.Open, nil
	}
	text, err := os.ReadFile(arg)
	if err != nil {
		return nil, err
	}
	var f storageFile
	if err := config.Parse(arg, text, &f); err != nil {
		return nil, err
	}
	return f.Storage.Open, nil
}

// openStorage opens a storage that is read (see storageOpener), or written.
func openStorage(arg string, read bool) (fetcher.Backend, error) {
	open, err := storageOpener(arg, read)
	if err != nil {
		return nil, err
	}
	return open()
}
