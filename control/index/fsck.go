package index

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/capelin-io/capelin/internal/httpclient"
)

// FsckOptions say how an index looks through its storage.
type FsckOptions struct {
	// Repair: what can be mended is.
	Repair bool
	// Rate is how many requests to the storage and to the origins are made per second at most.
	Rate int
	// Settle is for how long something must be wrong. What writers that are under way, or have just died, leave for a
	// moment is no finding: their requests have a minute.
	Settle time.Duration
}

// DefaultFsck are the options of an index that is written to.
var DefaultFsck = FsckOptions{Rate: 500, Settle: 65 * time.Second}

// FsckEvent is a line of what a look through the storage says: one of its fields.
type FsckEvent struct {
	Finding  *Finding      `json:"finding,omitempty"`
	Orphan   *Orphan       `json:"orphan,omitempty"`
	Unknown  string        `json:"unknown,omitempty"` // something that could not be looked at, and why
	Progress *FsckProgress `json:"progress,omitempty"`
	Done     *FsckResult   `json:"done,omitempty"` // the last line; without it, it was broken off
}

// Finding is something that is wrong.
type Finding struct {
	Kind       string        `json:"kind"` // see INDEX.md
	Repository string        `json:"repository,omitempty"`
	Tag        string        `json:"tag,omitempty"`
	Digest     digest.Digest `json:"digest,omitempty"` // what is concerned
	Key        string        `json:"key"`              // of the object in the storage
	Text       string        `json:"text"`             // what is wrong
	Mend       string        `json:"mend,omitempty"`   // what would mend it; empty: nothing that an index can do
	Mended     bool          `json:"mended,omitempty"`
	Error      string        `json:"error,omitempty"` // why it was not mended
}

// Orphan is a manifest that no tag names, no index lists, and that has no subject. It is nothing wrong.
type Orphan struct {
	Repository string        `json:"repository"`
	Digest     digest.Digest `json:"digest"`
}

// FsckProgress is how far it is.
type FsckProgress struct {
	FsckResult
	Repository string        `json:"repository,omitempty"` // that is looked at
	Again      int           `json:"again,omitempty"`      // suspects that are looked at again
	Wait       time.Duration `json:"wait,omitempty"`       // in nanoseconds, before that
}

// FsckResult is what was found.
type FsckResult struct {
	Repositories int64 `json:"repositories"`
	Objects      int64 `json:"objects"`
	Orphans      int64 `json:"orphans"`
	Findings     int64 `json:"findings"`
	Mended       int64 `json:"mended"`
	Unknown      int64 `json:"unknown"` // what could not be looked at
}

// Query returns the parameters of a request.
func (o FsckOptions) Query() url.Values {
	return params("repair", strconv.FormatBool(o.Repair), "rate", strconv.Itoa(o.Rate), "settle", o.Settle.String())
}

// ParseFsck reads the parameters of a request, those that are not there as in DefaultFsck: errdefs.ErrInvalidArgument.
func ParseFsck(v url.Values) (o FsckOptions, err error) {
	o = DefaultFsck
	bad := func(key string) (FsckOptions, error) {
		return o, fmt.Errorf("%s %.20q cannot be: %w", key, v.Get(key), errdefs.ErrInvalidArgument)
	}
	if s := v.Get("repair"); s != "" {
		if o.Repair, err = strconv.ParseBool(s); err != nil {
			return bad("repair")
		}
	}
	if s := v.Get("rate"); s != "" {
		if o.Rate, err = strconv.Atoi(s); err != nil || o.Rate < 1 || o.Rate > 1e6 {
			return bad("rate")
		}
	}
	if s := v.Get("settle"); s != "" {
		if o.Settle, err = time.ParseDuration(s); err != nil || o.Settle < 0 || o.Settle > time.Hour {
			return bad("settle")
		}
	}
	return o, nil
}

// maxEvent is how long a line is at most.
const maxEvent = 1 << 20

// Fsck has an index look through its whole storage, and calls each with what it says, the last with Done. It takes as long as
// that takes. errdefs.ErrUnavailable if it did not come to its end.
func (c *Client) Fsck(ctx context.Context, o FsckOptions, each func(FsckEvent) error) error {
	return lines(ctx, c, PathFsck+"?"+o.Query().Encode(), func(e FsckEvent) (bool, error) { return e.Done != nil, each(e) })
}

// lines asks an index for what it answers with a line at a time, until each says that one was the last.
func lines[T any](ctx context.Context, c *Client, path string, each func(T) (last bool, err error)) error {
	r := &httpclient.Request{Method: "POST", Path: path}
	var errs []error
	for x := range c.http.Turns(ctx, c.indexes, false) {
		resp, err := c.http.Do(ctx, x, r) //nolint:bodyclose // readLines does
		if err != nil {
			errs = append(errs, err)
			continue
		}
		return readLines(c, x, r, resp, each)
	}
	return c.http.LastRound(errs)
}

func readLines[T any](c *Client, x *httpclient.Server, r *httpclient.Request, resp *http.Response, each func(T) (bool, error)) error {
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		answer, err := io.ReadAll(io.LimitReader(resp.Body, maxEvent))
		if err == nil {
			if err, ok := readError(x.Base, answer); ok {
				return err
			}
		}
		return c.http.Stranger(x, r, fmt.Sprintf("status %d without an index's answer", resp.StatusCode))
	}
	all := bufio.NewScanner(resp.Body)
	all.Buffer(nil, maxEvent)
	for all.Scan() {
		var e T
		if err := json.Unmarshal(all.Bytes(), &e); err != nil {
			return fmt.Errorf("index %s: %s: %w: %w", x.Base, r.Path, err, errdefs.ErrUnavailable)
		}
		last, err := each(e)
		if err != nil {
			return err
		}
		if last {
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxEvent)) // until the index is ready for the next one
			return nil
		}
	}
	err := all.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("index %s: it was broken off: %w: %w", x.Base, err, errdefs.ErrUnavailable)
}
