package indexd

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/capelin-io/capelin/control/index"
)

// eventTimeout is how long whoever asked may take to read a line.
const eventTimeout = time.Minute

// fsck looks through the storage for an admin, and answers with a line for each thing that it has to say, for as long as it takes.
func (s *server) fsck(w http.ResponseWriter, req *http.Request) {
	start := time.Now()
	err := s.fsckLines(w, req)
	class, _ := index.Class(err)
	s.metrics.done("fsck", class, time.Since(start))
}

// fsckLines answers with an error only as long as nothing else was.
func (s *server) fsckLines(w http.ResponseWriter, req *http.Request) error {
	opts, from, err := s.fsckAsked(req)
	if err == nil && !s.looking.TryLock() {
		err = fmt.Errorf("somebody is looking through the storage already: %w", errdefs.ErrUnavailable)
	}
	if err != nil {
		index.WriteError(w, err)
		return err
	}
	defer s.looking.Unlock()
	ctx := req.Context()
	l := log.G(ctx).WithFields(log.Fields{"by": from, "repair": opts.Repair, "rate": opts.Rate})
	l.Info("looking through the storage")
	say := lines(w)
	err = s.index.Fsck(ctx, opts, func(e index.FsckEvent) error {
		if f := e.Finding; f != nil && f.Mended {
			l.WithFields(log.Fields{"kind": f.Kind, "key": f.Key, "mend": f.Mend}).Info("mended: " + f.Text)
		}
		return say(e)
	})
	if err != nil {
		l.WithError(err).Warn("did not look through all of the storage")
		if ctx.Err() == nil {
			_ = say(index.FsckEvent{Unknown: err.Error()})
		}
	}
	return err
}

// lines answers with a line at a time, each at once.
func lines(w http.ResponseWriter) (say func(any) error) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // whoever asked has nothing more to say, for a long time
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return func(line any) error {
		_ = rc.SetWriteDeadline(time.Now().Add(eventTimeout)) // a recorder of tests has none
		if err := enc.Encode(line); err != nil {
			return err
		}
		return rc.Flush()
	}
}

func (s *server) fsckAsked(req *http.Request) (opts index.FsckOptions, from string, err error) {
	if from, err = s.who(req, admins); err != nil {
		return opts, from, err
	}
	query, err := url.ParseQuery(req.URL.RawQuery)
	if err != nil {
		return opts, from, fmt.Errorf("the request's parameters: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if opts, err = index.ParseFsck(query); err != nil || !opts.Repair || s.proof == nil {
		return opts, from, err
	}
	ctx, cancel := context.WithTimeout(req.Context(), writeTimeout)
	defer cancel()
	return opts, from, s.proof.wait(ctx)
}
