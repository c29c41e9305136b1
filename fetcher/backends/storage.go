package backends

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher"
	"github.com/capelin-io/capelin/fetcher/azure"
	"github.com/capelin-io/capelin/fetcher/file"
	"github.com/capelin-io/capelin/fetcher/gcs"
	"github.com/capelin-io/capelin/fetcher/hdfs"
	"github.com/capelin-io/capelin/fetcher/httpfile"
	"github.com/capelin-io/capelin/fetcher/registry"
	"github.com/capelin-io/capelin/fetcher/s3"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

// Kinds of storages.
const (
	KindFile     = "file"
	KindGCS      = "gcs"
	KindAzure    = "azure"
	KindHDFS     = "hdfs"
	KindRegistry = "registry"
	KindHTTP     = "http"
	KindS3       = "s3"
	// KindNone is no storage: an origin keeps the bytes itself.
	KindNone = "none"
)

// Storage is one storage, whoever uses it: its kind, and a table for each kind of which that one counts.
type Storage struct {
	Kind     string          `toml:"kind" comment:"\"file\": a directory. \"gcs\": a bucket of Google Cloud Storage. \"azure\": a container of Azure's Blob Storage. \"s3\": a bucket of AWS S3, or of another storage with its API. \"hdfs\": a directory of a Hadoop file system. \"registry\": another OCI registry, from which is pulled and to which is not pushed. \"http\": a web server, which is only read. \"none\": nowhere else, the origins themselves keep it."`
	File     file.Config     `toml:"file" comment:"If kind is \"file\"."`
	GCS      gcs.Config      `toml:"gcs" comment:"If kind is \"gcs\"."`
	Azure    azure.Config    `toml:"azure" comment:"If kind is \"azure\"."`
	HDFS     hdfs.Config     `toml:"hdfs" comment:"If kind is \"hdfs\"."`
	Registry registry.Config `toml:"registry" comment:"If kind is \"registry\"."`
	HTTP     httpfile.Config `toml:"http" comment:"If kind is \"http\"."`
	S3       s3.Config       `toml:"s3" comment:"If kind is \"s3\"."`
}

// IndexStorage is a Storage that can keep an index: it compares and swaps.
type IndexStorage struct {
	Kind  string       `toml:"kind" comment:"\"file\": a directory. \"gcs\": a bucket of Google Cloud Storage. \"azure\": a container of Azure's Blob Storage. \"s3\": a bucket of AWS S3, or of another storage with its API that can compare and swap (If-Match). Default \"file\"."`
	File  file.Config  `toml:"file" comment:"If kind is \"file\"."`
	GCS   gcs.Config   `toml:"gcs" comment:"If kind is \"gcs\"."`
	Azure azure.Config `toml:"azure" comment:"If kind is \"azure\"."`
	S3    s3.Config    `toml:"s3" comment:"If kind is \"s3\"."`
}

// Storage is the same, for blobs.
func (s IndexStorage) Storage() *Storage {
	return &Storage{Kind: s.Kind, File: s.File, GCS: s.GCS, Azure: s.Azure, S3: s.S3}
}

// Check is Storage's.
func (s IndexStorage) Check(prefix string) []error {
	var able []string
	for _, k := range s.Storage().kinds() {
		if k.swaps {
			able = append(able, k.name)
		}
	}
	switch k, err := s.Storage().kind(); {
	case err != nil:
		return []error{config.Invalid(prefix+"kind", "%q is no storage for an index; use %s", s.Kind, oneOf(able))}
	case !k.swaps:
		return []error{config.Invalid(prefix+"kind", "%q cannot compare and swap, and keeps no index; use %s", s.Kind, oneOf(able))}
	default:
		return k.check(prefix + k.name + ".")
	}
}

// Open is Storage's. It refuses a directory where another index on another machine would not be seen at once (file.Coherent).
func (s IndexStorage) Open() (fetcher.Backend, error) {
	b, err := s.Storage().Open()
	if err == nil && s.Kind == KindFile {
		if err = file.Coherent(s.File.Path); err != nil {
			_ = b.Close()
			return nil, err
		}
	}
	return b, err
}

// Shared reports whether indexes on several machines that have this storage in their configuration have the same one, as far as
// that tells: a directory may be each machine's own.
func (s IndexStorage) Shared() bool { return s.Kind != KindFile }

// kind is what is to be known of one.
type kind struct {
	name  string
	swaps bool // compares and swaps, and so can keep an index
	// writes, lists and deletes
	writes bool
	check  func(prefix string) []error
	open   func() (fetcher.Backend, error)
}

// kinds are all, with what s has for each.
func (s *Storage) kinds() []kind {
	return []kind{
		{KindFile, true, true, s.File.Check, opener(s.File, file.Open)},
		{KindGCS, true, true, s.GCS.Check, opener(s.GCS, gcs.Open)},
		{KindAzure, true, true, s.Azure.Check, opener(s.Azure, azure.Open)},
		{KindHDFS, false, true, s.HDFS.Check, opener(s.HDFS, hdfs.Open)},
		{KindRegistry, false, false, s.Registry.Check, opener(s.Registry, registry.Open)},
		{KindHTTP, false, false, s.HTTP.Check, opener(s.HTTP, httpfile.Open)},
		{KindS3, true, true, s.S3.Check, opener(s.S3, s3.Open)},
	}
}

// opener makes an interface of a backend, and a nil one if there is none.
func opener[C any, B fetcher.Backend](cfg C, open func(C) (B, error)) func() (fetcher.Backend, error) {
	return func() (fetcher.Backend, error) {
		b, err := open(cfg)
		if err != nil {
			return nil, err
		}
		return b, nil
	}
}

func (s *Storage) kind() (kind, error) {
	all := s.kinds()
	if i := slices.IndexFunc(all, func(k kind) bool { return k.name == s.Kind }); i >= 0 {
		return all[i], nil
	}
	var names []string
	for _, k := range all {
		names = append(names, k.name)
	}
	return kind{}, fmt.Errorf("%q is not %s", s.Kind, oneOf(append(names, KindNone)))
}

// oneOf returns their names: "a", "b" or "c".
func oneOf(names []string) string {
	for i, n := range names {
		names[i] = strconv.Quote(n)
	}
	last := len(names) - 1
	if last == 0 {
		return names[0]
	}
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// Check reports what is wrong, as config.Invalid errors whose keys begin with prefix, such as "backend[0].".
func (s *Storage) Check(prefix string) []error {
	k, err := s.kind()
	if err != nil {
		return []error{config.Invalid(prefix+"kind", "%v", err)}
	}
	return k.check(prefix + k.name + ".")
}

// Open opens the storage. It asks nobody whether it can be reached: see fetcher.Backend.Check.
func (s *Storage) Open() (fetcher.Backend, error) {
	k, err := s.kind()
	if err != nil {
		return nil, fmt.Errorf("storage: kind %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return k.open()
}
