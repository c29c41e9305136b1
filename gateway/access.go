package gateway

import (
	"context"
	"fmt"
	"net/http"
	"path"
	"regexp"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/ociapi"
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
	Users      []string `toml:"users" comment:"Names of users; * stands for any characters. \"anonymous\": whoever shows no credentials (containerd, skopeo and others; Docker's engine asks a registry that has users for nothing without a login). Owners of certificates are \"<role>:<name>\", such as \"node:worker-*\"; an admin's certificate may do everything without a rule."`
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

func (r *rule) allows(user string, a Action, repo string) bool {
	if !r.actions[a] {
		return false
	}
	for _, u := range r.users {
		if ok, _ := path.Match(u, user); ok {
			for _, n := range r.namespaces {
				if n.MatchString(repo) {
					return true
				}
			}
		}
	}
	return false
}

// caller is who a request comes from, and what it may do.
type caller struct {
	user   string
	also   []string // other names of the same owner of a certificate, one per role
	all    bool     // may do everything
	rules  []rule
	remote string
	from   provenance // of the tag that the request is about
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
	return &caller{user: Anonymous}
}

// permitted reports whether the request's caller may do something.
func permitted(ctx context.Context, a Action, repo string) bool {
	c := callerOf(ctx)
	if c.all {
		return true
	}
	if a == List && c.user != Anonymous {
		return true
	}
	for _, user := range append([]string{c.user}, c.also...) {
		for i := range c.rules {
			if r := &c.rules[i]; a == List && r.allowsAny(user) || r.allows(user, a, repo) {
				return true
			}
		}
	}
	return false
}

func (r *rule) allowsAny(user string) bool {
	for _, u := range r.users {
		if ok, _ := path.Match(u, user); ok && r.actions[Pull] {
			return true
		}
	}
	return false
}

// allow is permitted as an error of the registry API: 401 for those who showed no
// credentials, 403 for those who are known.
func allow(ctx context.Context, a Action, repo string) error {
	if permitted(ctx, a, repo) {
		return nil
	}
	c := callerOf(ctx)
	fields(ctx, a, repo, "", "").WithField("result", "refused").Warn("audit")
	if c.user == Anonymous {
		return fmt.Errorf("%w: log in to %s", ociregistry.ErrUnauthorized, a)
	}
	return fmt.Errorf("%w: %s may not %s %s", ociregistry.ErrDenied, c.user, a, repo)
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

// refuse answers that the credentials are wrong, or that some are needed.
func refuse(w http.ResponseWriter, why error) {
	challenge(w.Header())
	err := fmt.Errorf("%w: %w", ociregistry.ErrUnauthorized, why)
	ociapi.WriteError(w, err, told(err))
}

func challenge(h http.Header) { h.Set("WWW-Authenticate", `Basic realm="Capelin", charset="UTF-8"`) }

var errWrong = fmt.Errorf("wrong user name, password or token: %w", errdefs.ErrUnauthenticated)
