package replicate

import (
	"regexp"
	"strings"

	"github.com/capelin-io/capelin/control/index"
	"github.com/capelin-io/capelin/internal/daemon/config"
)

// cosignTag is a tag by which something is said of a manifest: cosign's, and where a registry has no list of referrers.
var cosignTag = regexp.MustCompile(`^(sha256|sha512)-([0-9a-f]{64,128})(\.(sig|att|sbom))?$`)

// Rule is an index.Rule that was read, in one version.
type Rule struct {
	index.Rule
	// Version changes when the rule does.
	Version string
	// Broken is why it cannot be read; nil: it can. Intents are then written for everything.
	Broken error

	namespaces, tags []*regexp.Regexp
}

// newRule compiles a rule.
func newRule(r index.Rule, version string) (Rule, error) {
	c := Rule{Rule: r, Version: version}
	for _, l := range []struct {
		from []string
		to   *[]*regexp.Regexp
	}{{r.Namespaces, &c.namespaces}, {r.Tags, &c.tags}} {
		for _, p := range l.from {
			re, err := config.Pattern(p)
			if err != nil {
				return c, err
			}
			*l.to = append(*l.to, re)
		}
	}
	return c, nil
}

func matches(all []*regexp.Regexp, s string) bool {
	for _, re := range all {
		if re.MatchString(s) {
			return true
		}
	}
	return false
}

// Repository reports whether a repository is the rule's.
func (r *Rule) Repository(repo string) bool { return r.Broken != nil || matches(r.namespaces, repo) }

// Tag reports whether a tag of one of its repositories is the rule's, by its own name, or because it says something of a
// manifest that may be: then only is it delivered where that is.
func (r *Rule) Tag(name string) (is, about bool) {
	if r.Broken != nil || matches(r.tags, name) {
		return true, false
	}
	about = !r.NoReferrers && cosignTag.MatchString(name)
	return about, about
}

// wants reports whether a tag's state is to be brought to the remote, and, as Tag does, whether only where what it is about is. cluster is
// this one: what others have written is passed on by rules that forward.
func (r *Rule) wants(t *index.Tag, cluster string) (is, about bool) {
	is, about = r.Tag(t.Name)
	return is && (t.Cluster == cluster || r.Forward) && !(t.Deleted && r.Deletes == index.DeleteNone), about
}

// Remote returns the name of a repository at the remote.
func (r *Rule) Remote(repo string) string {
	from, to, ok := strings.Cut(r.RewritePrefix, "=")
	if rest, has := strings.CutPrefix(repo, from); ok && has {
		return to + rest
	}
	return repo
}
