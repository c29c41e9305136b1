package origind

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/control/origin"
	"github.com/capelin-io/capelin/swarm/piece"
)

// getSums answers with the sums of a blob that is here, so that another member can tell which of our bytes are wrong.
func (a *api) getSums(w http.ResponseWriter, r *http.Request) error {
	d := digest.Digest(r.PathValue("digest"))
	if err := origin.CheckDigest(d); err != nil {
		return err
	}
	q, err := query(r, origin.ParamSize)
	if err != nil {
		return err
	}
	size, ok := number(q[origin.ParamSize])
	if !ok {
		return fmt.Errorf("query: %s is no size of a blob: %w", origin.ParamSize, errdefs.ErrInvalidArgument)
	}
	id, err := piece.ParseID(string(d), size)
	if err != nil {
		return fmt.Errorf("sums of %s: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	sums, err := a.s.store.StoredSums(id)
	if err != nil {
		return err
	}
	if sums == nil {
		return fmt.Errorf("sums of %s are not here: %w", id, errdefs.ErrNotFound)
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.Itoa(len(sums.Bytes())))
	h.Set(origin.HeaderSize, strconv.FormatInt(id.Size, 10))
	if r.Method == http.MethodHead {
		return nil
	}
	_, err = w.Write(sums.Bytes())
	return err
}
