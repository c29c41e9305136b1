package replicate

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/fetcher/walk"
)

const (
	walkPage     = 100  // tags that are compared before it is written how far it is
	walkRepos    = 1000 // repositories that are looked at for them
	walkParallel = 8
)

// tags returns the next tags, deleted ones included, of the rule's repositories after a cursor, which is repository:tag. next is "" if
// there are no more.
func (s *Service) tags(ctx context.Context, r *Rule, cursor string) (all []Key, next string, err error) {
	repo, tag, in := strings.Cut(cursor, ":")
	repos := []string{repo}
	more, seen := true, 0
	if !in {
		repos = nil
	}
	for {
		for _, name := range repos {
			seen++
			for goesOn := r.Repository(name); goesOn; {
				var names []string
				if names, goesOn, err = s.Index.TagNames(ctx, name, tag, walkPage-len(all)); err != nil {
					return nil, "", err
				}
				for _, t := range names {
					all, tag = append(all, Key{Repository: name, Tag: t}), t
				}
				if len(all) >= walkPage {
					return all, name + ":" + tag, nil
				}
			}
			repo, tag = name, ""
			if seen >= walkRepos {
				return all, name + ":~", nil // after all tags
			}
		}
		if !more {
			return all, "", nil
		}
		if repos, more, err = s.Index.Repositories(ctx, repo, 0); err != nil {
			return nil, "", err
		}
		more = more && len(repos) > 0
		if len(repos) == 0 {
			return all, "", nil
		}
	}
}

// walk compares a page.
func (n *runner) walk(ctx context.Context, a Walk) Event {
	failed := Walked{Pass: a.Pass, Failed: true}
	r := n.rule.Load()
	if r.Version != a.Rule {
		return failed
	}
	keys, next, err := n.s.tags(ctx, r, a.From)
	if n.note(ctx, err) {
		return failed
	}
	found, err := n.compare(ctx, keys, false, nil)
	n.s.m.different.WithLabelValues(n.name).Add(float64(found))
	if err != nil {
		log.G(ctx).WithError(err).Debug("replication: comparing")
		return failed
	}
	var obj walkObject
	if _, err := n.s.Outbox.get(ctx, walksPrefix+n.name, &obj); err != nil && !errdefs.IsNotFound(err) {
		n.note(ctx, err)
		return failed
	}
	if a.From == "" {
		obj.Found = 0
	}
	obj.Version, obj.Cursor, obj.Rule = formatVersion, next, a.Rule
	if obj.Found += found; next == "" {
		obj.Ended, obj.Differences = time.Now().UTC().Round(0), obj.Found
	}
	if n.note(ctx, n.s.Outbox.put(ctx, walksPrefix+n.name, &obj)) {
		return failed
	}
	return Walked{Pass: a.Pass, Next: next, Tags: len(keys)}
}

// compare writes intents for those tags that differ at the remote, and are not parked.
func (n *runner) compare(ctx context.Context, keys []Key, deep bool, say func(Key)) (found int, err error) {
	var count atomic.Int64
	differ := make([]bool, len(keys))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(walkParallel)
	for i, k := range keys {
		g.Go(func() (err error) {
			differ[i], err = n.compareOne(gctx, k, deep)
			if differ[i] {
				count.Add(1)
			}
			return err
		})
	}
	err = g.Wait()
	for i, k := range keys {
		if differ[i] && say != nil {
			say(k)
		}
	}
	if count.Load() > 0 {
		n.s.Outbox.Written()
	}
	return int(count.Load()), err
}

func (n *runner) compareOne(ctx context.Context, k Key, deep bool) (bool, error) {
	t, err := n.s.Index.TagState(ctx, k.Repository, k.Tag)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if is, about := n.rule.Load().wants(&t, n.s.Cluster); !is || about {
		return false, nil
	}
	var differs bool
	d, err := n.begin(ctx, k.Repository)
	if err == nil {
		differs, err = d.differs(ctx, &t)
	}
	if err == nil && !differs && deep && !t.Deleted {
		differs, err = d.lacking(ctx, t.Descriptor.Digest, 0)
	}
	if err != nil {
		if outcome, _ := classify(err); outcome != Refused {
			return false, fmt.Errorf("tag %s:%s: %w", k.Repository, k.Tag, err)
		}
		differs = true // who delivers it is refused, too, and parks it
	}
	if !differs {
		return false, nil
	}
	o := n.s.Outbox
	_, err = o.backend.Stat(ctx, parkedKey(n.name, k))
	switch {
	case err == nil:
		return false, nil
	case !errdefs.IsNotFound(err):
		return false, o.failed("looking for", parkedKey(n.name, k), err)
	}
	return true, o.intent(ctx, n.name, k, t.Revision)
}

// Verify compares all tags of a rule with the remote's, at once, and has those be delivered that differ. With deep it is looked whether all
// that they reach is there. It tells say what it has found, never at the same time; an error means that it has not come to its end.
func (s *Service) Verify(ctx context.Context, name string, deep bool, say func(index.VerifyEvent) error) error {
	rules, err := s.Outbox.Rules(ctx)
	if err != nil {
		return err
	}
	for i := range rules {
		if rules[i].Name != name {
			continue
		}
		if rules[i].Broken != nil {
			return rules[i].Broken
		}
		return s.verify(ctx, newRunner(s, &rules[i]), deep, say)
	}
	return fmt.Errorf("rule %s: %w", name, errdefs.ErrNotFound)
}

func (s *Service) verify(ctx context.Context, n *runner, deep bool, say func(index.VerifyEvent) error) (err error) {
	defer n.release()
	done := index.VerifyResult{}
	for cursor := ""; ; {
		var keys []Key
		if keys, cursor, err = s.tags(ctx, n.rule.Load(), cursor); err != nil {
			return err
		}
		var serr error
		found, err := n.compare(ctx, keys, deep, func(k Key) {
			if serr == nil {
				serr = say(index.VerifyEvent{Difference: k.Repository + ":" + k.Tag})
			}
		})
		done.Tags += len(keys)
		done.Differences += found
		if err != nil || serr != nil {
			return fmt.Errorf("after %d tags: %w", done.Tags, firstOf(err, serr))
		}
		if cursor == "" {
			return say(index.VerifyEvent{Done: &done})
		}
		if err := say(index.VerifyEvent{Progress: &done}); err != nil {
			return err
		}
	}
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	statusPending = 100000 // intents that are counted at most
	statusParked  = 1000   // that are shown
)

// Status says how things stand with all rules, as far as the storage says.
func (o *Outbox) Status(ctx context.Context) (index.Replication, error) {
	var all index.Replication
	rules, err := o.Rules(ctx)
	if err != nil {
		return all, err
	}
	for i := range rules {
		st, err := o.status(ctx, &rules[i])
		if err != nil {
			return all, err
		}
		all.Rules = append(all.Rules, st)
	}
	return all, nil
}

func (o *Outbox) status(ctx context.Context, r *Rule) (index.RuleStatus, error) {
	st := index.RuleStatus{Rule: r.Rule}
	if r.Broken != nil {
		st.Broken = r.Broken.Error()
	}
	last := ""
	for info, err := range walk.All(ctx, o.backend, OutboxPrefix+r.Name+"/", "") {
		if err != nil {
			return st, o.failed("listing", OutboxPrefix+r.Name, err)
		}
		if path := info.Key[:strings.LastIndexByte(info.Key, '/')]; path != last {
			st.Pending++
			last = path
		}
		if !info.Modified.IsZero() {
			st.Lag = max(st.Lag, time.Since(info.Modified).Round(time.Millisecond).Seconds())
		}
		if st.Pending >= statusPending {
			break
		}
	}
	prefix := ParkedPrefix + r.Name + "/"
	for info, err := range walk.All(ctx, o.backend, prefix, "") {
		if err != nil {
			return st, o.failed("listing", prefix, err)
		}
		if st.Parked++; len(st.ParkedOnes) == statusParked {
			continue
		}
		k, err := parsePath(info.Key[len(prefix):])
		if err != nil {
			continue
		}
		var p parkedObject
		if _, err := o.get(ctx, info.Key, &p); err != nil {
			if errdefs.IsNotFound(err) {
				st.Parked--
				continue
			}
			p.Error = err.Error()
		}
		st.ParkedOnes = append(st.ParkedOnes, index.Parked{Repository: k.Repository, Tag: k.Tag, Digest: k.Digest,
			Reason: p.Reason, Error: p.Error, Since: p.Since})
	}
	var l leaseObject
	var w walkObject
	for key, into := range map[string]any{leasesPrefix + r.Name: &l, walksPrefix + r.Name: &w} {
		if _, err := o.get(ctx, key, into); err != nil && !errdefs.IsNotFound(err) {
			return st, err
		}
	}
	st.Working, st.Compared, st.Differences = l.Holder != "", w.Ended, w.Differences
	return st, nil
}

// Retry makes pending what is parked of a rule, and returns how many.
func (o *Outbox) Retry(ctx context.Context, rule string, which index.RetryOptions) (int, error) {
	n, prefix := 0, ParkedPrefix+rule+"/"
	for info, err := range walk.All(ctx, o.backend, prefix, "") {
		if err != nil {
			return n, o.failed("listing", prefix, err)
		}
		k, err := parsePath(info.Key[len(prefix):])
		if err != nil || which.Repository != "" && k.Repository != which.Repository || which.Tag != "" && k.Tag != which.Tag {
			continue
		}
		var p parkedObject
		if _, err := o.get(ctx, info.Key, &p); err != nil {
			if errdefs.IsNotFound(err) {
				continue
			}
			return n, err
		}
		if err := o.intent(ctx, rule, k, max(p.Revision, 1)); err != nil {
			return n, err
		}
		if err := o.remove(ctx, info.Key); err != nil {
			return n, err
		}
		n++
	}
	if n > 0 {
		o.Written()
	}
	return n, nil
}
