package gateway

import (
	"context"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/containerd/log"

	"github.com/capelin-io/capelin/internal/daemon/config"
)

// Action is what somebody does to a repository.
type Action string

// The actions. List is for the catalog as a whole, which shows only what the
// caller may pull.
const (
	Pull   Action = "pull"
	Push   Action = "push"
	Delete Action = "delete"
	List   Action = "list"
	// Replicate: what a tag comes with from another cluster is obeyed.
	Replicate Action = "replicate"
)

// Anonymous is the user that a request without credentials comes from.
const Anonymous = "anonymous"

// RuleConfig allows users something. What no rule allows is refused; the order of
// rules does not matter.
type RuleConfig struct {
	Users      []string `toml:"users" comment:"Names of users; * stands for any characters. \"anonymous\": whoever shows no credentials. Users by [[oidc]] have the names that its key user says. Owners of certificates are \"<role>:<name>\", such as \"node:worker-*\"; an admin's certificate may do everything without a rule."`
	Namespaces []string `toml:"namespaces" comment:"Regular expressions that match a repository's whole name, such as \"team/.*\"."`
	Actions    []string `toml:"actions" comment:"Any of \"pull\", \"push\", \"delete\" and \"replicate\": another cluster's index brings tags, with the time of their own, and deletes them. It needs pull and push, too."`
}

// Example returns what a printed configuration shows.
func (RuleConfig) Example() any {
	return RuleConfig{Users: []string{"ci-*"}, Namespaces: []string{"team/.*"}, Actions: []string{"pull", "push"}}
}

// rule is a RuleConfig that was read.
type rule struct {
	users      []string
	namespaces []*regexp.Regexp
	actions    map[Action]bool
}

// readRules reads the list under a key, such as "rule".
func readRules(configs []RuleConfig, key string) (rules []rule, errs []error) {
	for i, c := range configs {
		bad := func(name, format string, args ...any) {
			errs = append(errs, config.Invalid(fmt.Sprintf("%s[%d].%s", key, i, name), format, args...))
		}
		r := rule{users: c.Users, actions: map[Action]bool{}}
		for _, u := range c.Users {
			if _, err := path.Match(u, ""); err != nil {
				bad("users", "%q: %v", u, err)
			}
		}
		for _, n := range c.Namespaces {
			re, err := config.Pattern(n)
			if err != nil {
				bad("namespaces", "%q: %v", n, err)
				continue
			}
			r.namespaces = append(r.namespaces, re)
		}
		for _, a := range c.Actions {
			switch Action(a) {
			case Pull, Push, Delete, Replicate:
				r.actions[Action(a)] = true
			default:
				bad("actions", "%q is none of \"pull\", \"push\", \"delete\", \"replicate\"", a)
			}
		}
		if len(c.Users) == 0 || len(c.Namespaces) == 0 || len(c.Actions) == 0 {
			bad("users", "a rule needs users, namespaces and actions")
		}
		rules = append(rules, r)
	}
	return rules, errs
}

// forUser reports whether the rule is about a user. "*" stands for any characters, those between slashes in the names that
// OIDC brings included.
func (r *rule) forUser(user string) bool {
	return slices.ContainsFunc(r.users, func(pattern string) bool { return matches(pattern, user) })
}

// matches is path.Match without its slashes.
func matches(pattern, s string) bool {
	flat := func(s string) string { return strings.ReplaceAll(s, "/", "\x00") }
	ok, _ := path.Match(flat(pattern), flat(s))
	return ok
}

func (r *rule) allows(user string, a Action, repo string) bool {
	return r.actions[a] && r.forUser(user) && slices.ContainsFunc(r.namespaces, func(n *regexp.Regexp) bool { return n.MatchString(repo) })
}

// caller is who a request comes from, and what it may do.
type caller struct {
	owner
	rules  []rule
	remote string
	from   provenance // of the tag that the request is about
	shown  bool       // there were credentials, though perhaps nobody's
	told   bool       // its refusal is in the log
	// challenge is what to answer if it has to show who it is.
	challenge func(error) string
}

type callerKey struct{}

func withCaller(ctx context.Context, c *caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf returns the request's caller; without one nothing is allowed.
func callerOf(ctx context.Context) *caller {
	if c, ok := ctx.Value(callerKey{}).(*caller); ok {
		return c
	}
	return &caller{owner: owner{user: Anonymous}, challenge: func(error) string { return basicChallenge }}
}

// may reports whether rules allow something, and the caller's token does, if it has one.
func (c *caller) may(a Action, repo string) bool { return c.ruled(a, repo) && c.access.allows(a, repo) }

// ruled reports whether rules allow something.
func (c *caller) ruled(a Action, repo string) bool {
	if c.all || a == List && c.user != Anonymous {
		return true
	}
	for _, user := range append([]string{c.user}, c.also...) {
		for i := range c.rules {
			if r := &c.rules[i]; a == List && r.actions[Pull] && r.forUser(user) || r.allows(user, a, repo) {
				return true
			}
		}
	}
	return false
}

// shows reports whether the catalog shows a repository to the caller, whose token is for the catalog then, and whether what is in it may be
// mounted elsewhere, which a token is for.
func (c *caller) shows(repo string) bool { return c.ruled(Pull, repo) }

// allow is permitted as an error of the registry API: 401 for those who showed no
// credentials, or a token for something else, 403 for those who are known.
func allow(ctx context.Context, a Action, repo string) error {
	c := callerOf(ctx)
	ruled := c.ruled(a, repo)
	if ruled && c.access.allows(a, repo) {
		return nil
	}
	if ruled { // it only has to get another token
		return fmt.Errorf("%w: %w: %s %s", ociregistry.ErrUnauthorized, errScope, a, repo)
	}
	if c.shown && !c.told { // who has shown nothing was asked, not refused
		c.told = true
		fields(ctx, a, repo, "", "").WithField("result", "refused").Warn("audit")
	}
	switch {
	case c.user != Anonymous:
		return fmt.Errorf("%w: %s may not %s %s", ociregistry.ErrDenied, c.user, a, repo)
	case c.access != nil:
		return fmt.Errorf("%w: %w: log in to %s %s", ociregistry.ErrUnauthorized, errScope, a, repo)
	}
	return fmt.Errorf("%w: log in to %s", ociregistry.ErrUnauthorized, a)
}

// audit logs what was done to a repository, or that it failed.
func audit(ctx context.Context, a Action, repo, what, digest string, err error) {
	l := fields(ctx, a, repo, what, digest)
	if err != nil {
		l.WithField("result", "failed").WithError(err).Warn("audit")
		return
	}
	l.WithField("result", "done").Info("audit")
}

func fields(ctx context.Context, a Action, repo, what, digest string) *log.Entry {
	c := callerOf(ctx)
	f := log.Fields{"user": c.user, "remote": c.remote, "action": string(a), "repository": repo}
	if what != "" {
		f["reference"] = what
	}
	if digest != "" {
		f["digest"] = digest
	}
	return log.G(ctx).WithFields(f)
}
