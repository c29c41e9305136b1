package index

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Source says which write of a tag this is, among those of all clusters: of two, the later one counts. Its time is that of a hybrid
// clock, milliseconds since 1970 shifted left by 16 bits: above each that the tag had before.
type Source struct {
	Cluster string `json:"cluster"`
	Stamp   uint64 `json:"stamp"`
}

// HeaderSource names a Source in requests and answers of the registry API: a tag that comes from another cluster, or what a
// tag is.
const HeaderSource = "Capelin-Source"

// HeaderSuperseded, in an answer to such a request, is what the tag is instead, because that is later.
const HeaderSuperseded = "Capelin-Superseded"

// HeaderCluster, in answers to GET /v2/, says that a registry is the gateway of that cluster.
const HeaderCluster = "Capelin-Cluster"

// MaxAhead is how far a stamp may be ahead of the clock of an index that is to take it.
const MaxAhead = 5 * time.Minute

// Stamp returns the stamp of a time, without a count.
func Stamp(t time.Time) uint64 { return uint64(max(t.UnixMilli(), 0)) << 16 }

// Time returns when it was written, by the clock of the cluster that wrote it.
func (s Source) Time() time.Time { return time.UnixMilli(int64(s.Stamp >> 16)).UTC() }

// Later reports whether s counts, and not o.
func (s Source) Later(o Source) bool {
	return s.Stamp > o.Stamp || s.Stamp == o.Stamp && s.Cluster > o.Cluster
}

// String is the cluster's name, escaped as in the query of a URL, a slash, and the stamp.
func (s Source) String() string {
	return url.QueryEscape(s.Cluster) + "/" + strconv.FormatUint(s.Stamp, 10)
}

// maxCluster is how many bytes the name of a cluster has at most.
const maxCluster = 64

// ParseSource reads what String returns.
func ParseSource(text string) (Source, error) {
	escaped, number, _ := strings.Cut(text, "/")
	cluster, err := url.QueryUnescape(escaped)
	var s Source
	if err == nil {
		s.Cluster = cluster
		s.Stamp, err = strconv.ParseUint(number, 10, 63)
	}
	if err != nil || cluster == "" || len(cluster) > maxCluster || s.Stamp == 0 || s.String() != text {
		return Source{}, fmt.Errorf("%s is no source, such as \"west/115292150460684697\": %w", quote(text), errdefs.ErrInvalidArgument)
	}
	return s, nil
}
