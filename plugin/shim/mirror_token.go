package shim

import (
	"net/url"
	"regexp"

	"github.com/capelin-io/capelin/internal/ociapi"
)

var realmOf = regexp.MustCompile(`(?i)^(Bearer .*\brealm=")([^"]*)(".*)$`)

// throughUs is a challenge as the client of a mirror can follow it: a gateway gives tokens itself, where the client perhaps gets
// nowhere, or does not trust its certificate. Token services of others' are elsewhere, and stay there.
func (r request) throughUs(challenge string) string {
	part := realmOf.FindStringSubmatch(challenge)
	if part == nil {
		return challenge
	}
	u, err := url.Parse(part[2])
	if err != nil || u.Host != r.upstream.Host || u.Path != ociapi.TokenPath || u.User != nil {
		return challenge
	}
	u.Scheme, u.Host, u.RawQuery, u.Fragment = "http", r.self, "", ""
	if r.ns != "" {
		u.RawQuery = url.Values{"ns": {r.ns}}.Encode()
	}
	return part[1] + u.String() + part[3]
}
