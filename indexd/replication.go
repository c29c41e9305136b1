package indexd

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/capelin-io/capelin/control/index"
)

// replicate sets the rules of the configuration when the index may write, and then brings what it has to where the rules say.
func (s *server) replicate(ctx context.Context, rules []index.Rule) error {
	select {
	case <-s.proof.known:
	case <-ctx.Done():
		return nil
	}
	for i := 0; i < len(rules) && ctx.Err() == nil; {
		err := s.index.outbox.SetRule(ctx, rules[i])
		if err == nil || errdefs.IsResourceExhausted(err) {
			i++
		}
		if err != nil {
			log.G(ctx).WithError(err).WithField("rule", rules[i%len(rules)].Name).Warn("cannot set a rule of the configuration")
			select {
			case <-time.After(joinAgain):
			case <-ctx.Done():
			}
		}
	}
	return s.replication.Run(ctx)
}

func (s *server) replicationStatus(ctx context.Context, _ *request) (any, error) {
	return s.index.outbox.Status(ctx)
}

func (s *server) setRule(ctx context.Context, r *request) (any, error) {
	var rule index.Rule
	if err := r.body(&rule); err != nil {
		return nil, err
	}
	if rule.Name != r.name() {
		return nil, fmt.Errorf("the request is about rule %.100q, its body about %.100q: %w", r.name(), rule.Name, errdefs.ErrInvalidArgument)
	}
	if err := rule.CheckFiles(""); err != nil {
		return nil, fmt.Errorf("rule %s, on this index's machine: %w: %w", rule.Name, err, errdefs.ErrInvalidArgument)
	}
	err := s.index.outbox.SetRule(ctx, rule)
	if err == nil {
		r.log(ctx, "rule of replication set", log.Fields{"rule": rule.Name, "url": rule.URL})
	}
	return nil, err
}

func (s *server) removeRule(ctx context.Context, r *request) (any, error) {
	err := s.index.outbox.RemoveRule(ctx, r.name())
	if err == nil {
		r.log(ctx, "rule of replication removed", log.Fields{"rule": r.name()})
	}
	return nil, err
}

func (s *server) retry(ctx context.Context, r *request) (any, error) {
	if err := index.CheckRuleName(r.name()); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	n, err := s.index.outbox.Retry(ctx, r.name(), index.RetryOptions{Repository: r.repo(), Tag: r.query.Get("tag")})
	return index.Retried{Keys: n}, err
}

// verify compares all tags of a rule with the remote's for an admin, and answers with a line for each thing that it has to say.
func (s *server) verify(w http.ResponseWriter, req *http.Request) {
	start := time.Now()
	err := s.verifyLines(w, req)
	class, _ := index.Class(err)
	s.metrics.done("verify", class, time.Since(start))
}

func (s *server) verifyLines(w http.ResponseWriter, req *http.Request) error {
	_, err := s.who(req, admins)
	deep := false
	if err == nil && req.FormValue("deep") != "" {
		if deep, err = strconv.ParseBool(req.FormValue("deep")); err != nil {
			err = fmt.Errorf("deep %.20q is not true or false: %w", req.FormValue("deep"), errdefs.ErrInvalidArgument)
		}
	}
	if err != nil {
		index.WriteError(w, err)
		return err
	}
	var say func(any) error // once there is something to say
	err = s.replication.Verify(req.Context(), req.FormValue("name"), deep, func(e index.VerifyEvent) error {
		if say == nil {
			say = lines(w)
		}
		return say(e)
	})
	switch {
	case err != nil && say == nil:
		index.WriteError(w, err)
	case err != nil && req.Context().Err() == nil:
		_ = say(index.VerifyEvent{Error: err.Error()})
	}
	return err
}
