package plugin

import (
	"fmt"
	"slices"
	"strings"

	"github.com/capelin-io/capelin/internal/daemon/config"
	"github.com/capelin-io/capelin/internal/daemon/identity"
)

// Survive returns the configuration with which an agent runs on whose file is refused, for
// these problems: that of the last file with which it worked. refused is what could be
// read of the new one, and tells whether that meant to change who this node is and who
// may have what (trusted). Then, or if it cannot be told, the node must not act on what it
// was before, and is Alone.
func Survive(last, refused Config, problems []*config.Problem) Config {
	last.Alone = distrust(&last, &refused, problems)
	return last
}

// trusted are the keys that are never taken from an earlier file if the new one has another
// value, or none.
var trusted = []trust{
	{"cluster", func(c *Config) any { return c.Cluster }},
	{"identity", func(c *Config) any { return c.Identity }},
	{"insecure", func(c *Config) any { return c.Insecure }},
	{"authorize", func(c *Config) any { return c.Authorize }},
}

type trust struct {
	key   string
	value func(*Config) any
}

// distrust returns why the last configuration cannot be acted upon, "" if it can.
func distrust(last, refused *Config, problems []*config.Problem) string {
	for _, p := range problems {
		top, _, _ := strings.Cut(p.Key, ".")
		switch {
		case p.Key == "":
			return "what the refused configuration says of identity and authorize cannot be read"
		case p.Unknown() && mayMean(p.Key):
			return fmt.Sprintf("nobody knows %s, which may mean a key of the identity, or of who may have what", p.Key)
		case !p.Unknown() && slices.ContainsFunc(trusted, func(t trust) bool { return t.key == top }):
			return fmt.Sprintf("%s is among what is refused", p.Key)
		}
	}
	for _, t := range trusted {
		if t.value(last) != t.value(refused) {
			return t.key + " has changed in the configuration that is refused"
		}
	}
	return ""
}

// mayMean reports whether somebody who wrote a key that does not exist may have meant one
// that is trusted: it is nearly that, or in another table.
func mayMean(key string) bool {
	parts := strings.Split(key, ".")
	for _, t := range trusted {
		if near(parts[0], t.key) || near(parts[len(parts)-1], t.key) {
			return true
		}
	}
	return slices.Contains([]string{"ca", "cert", "key"}, parts[len(parts)-1])
}

// near reports whether a becomes b by at most two letters that are changed, left out or put in.
func near(a, b string) bool {
	a, b = strings.ToLower(a), strings.ToLower(b)
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0]++
		for j := range len(b) {
			change := before
			if a[i] != b[j] {
				change++
			}
			before = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)] <= 2
}

// alone is c for a node that takes no part in the swarm: what it may do there is not in it.
func (c Config) alone() Config {
	c.Identity, c.Trackers, c.Listen, c.Advertise = identity.Config{}, nil, "127.0.0.1:0", ""
	c.Authorize = "blob"
	return c
}
