package index

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/capelin-io/capelin/internal/httpclient"
)

// Paths of the API; INDEX.md says what goes with them.
const (
	PathRepositories = "/v1/repositories"
	PathTags         = "/v1/tags"
	PathTag          = "/v1/tag"
	PathManifests    = "/v1/manifests"
	PathManifest     = "/v1/manifest"
	PathReferrers    = "/v1/referrers"
	PathBlob         = "/v1/blob"
	PathProve        = "/v1/prove"
	PathFsck         = "/v1/fsck"
	PathReplication  = "/v1/replication"
	PathRule         = "/v1/replication/rule"
	PathVerify       = "/v1/replication/verify"
	PathRetry        = "/v1/replication/retry"
	PathTokenKeys    = "/v1/token-keys"
)

// Parameters of tags.
const (
	ParamSource = "source" // of a write: the Source that it has, because it comes from another cluster
	ParamState  = "state"  // of a read, "true": also a tag that was deleted
)

// Limits of the API.
const (
	MaxPage     = 1000     // elements of a page; also what a limit of 0 means
	MaxRequest  = 64 << 10 // bytes of a request's body
	MaxResponse = 16 << 20 // bytes of an answer's body
	maxMessage  = 4 << 10  // bytes of an error's text
)

// Names is a page of repositories, tags or manifests.
type Names struct {
	Names []string `json:"names"`
	More  bool     `json:"more"` // there are others after the last one
}

// Referrers is a page of referrers, in the order of their digests.
type Referrers struct {
	Referrers []ocispec.Descriptor `json:"referrers"`
	More      bool                 `json:"more"`
}

// Content is the body of what writes a tag, a manifest or a blob's link, and of what
// reads the latter.
type Content struct {
	Descriptor ocispec.Descriptor `json:"descriptor"`
}

// errorBody is the body of every answer that is an error.
type errorBody struct {
	Error struct {
		Class      string    `json:"class"`
		Message    string    `json:"message"`
		Repository string    `json:"repository,omitempty"`
		Missing    []Missing `json:"missing,omitempty"`
		More       int       `json:"more,omitempty"`
	} `json:"error"`
}

// WriteError answers a request with an error.
func WriteError(w http.ResponseWriter, err error) {
	var body errorBody
	e := &body.Error
	class, status := Class(err)
	e.Class, e.Message = class, err.Error()
	if len(e.Message) > maxMessage {
		e.Message = strings.ToValidUTF8(e.Message[:maxMessage], "") + "…"
	}
	var missing *MissingError
	if errors.As(err, &missing) {
		e.Repository, e.More = missing.Repository, missing.More
		e.Missing = missing.Missing[:min(len(missing.Missing), MaxMissing)]
	}
	WriteJSON(w, status, &body)
}

// WriteJSON answers a request with a value.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // whoever asked is gone
}

// readError makes an error of an answer that is one. ok is false if the answer is
// not an index's.
func readError(index string, body []byte) (err error, ok bool) {
	var b errorBody
	if json.Unmarshal(body, &b) != nil {
		return nil, false //nolint:nilerr // something else than an index's error
	}
	e := &b.Error
	class := classOf(e.Class)
	if class == nil {
		return nil, false
	}
	if len(e.Missing) > 0 && e.Class == "failed_precondition" {
		return &MissingError{e.Repository, e.Missing[:min(len(e.Missing), MaxMissing)], e.More}, true
	}
	if len(e.Message) > 2*maxMessage {
		e.Message = e.Message[:2*maxMessage]
	}
	return httpclient.Refused("index "+index, e.Message, class), true
}
