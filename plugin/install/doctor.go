package install

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/capelin-io/capelin/internal/daemon/identity"
	"github.com/capelin-io/capelin/plugin"
)

// Severity says how bad a finding is.
type Severity string

// The severities.
const (
	OK   Severity = "ok"
	Warn Severity = "warn" // works, but not as it could, or not for long
	Fail Severity = "fail" // pulls or container starts fail, or the swarm is of no use
)

// Finding is one thing that a check found.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	Text     string   `json:"text"`          // what was seen
	Why      string   `json:"why,omitempty"` // why it matters; empty if Severity is OK
	Do       string   `json:"do,omitempty"`  // what to do about it
}

// Agent is the configuration of the agent that Doctor looks after.
type Agent struct {
	plugin.Config
	Path string // the file that it is from; "": the defaults
	Err  error  // why it is refused; Config then is what could be read of it
}

// patient is what checks look at.
type patient struct {
	Host
	agent   Agent
	survey  *Survey // nil: containerd's configuration cannot be read
	err     error   // why
	receipt *Receipt
	// running is what the agent says of itself; nil: it does not answer, or has no admin socket.
	running *plugin.Status
	// identity is nil if none is configured, or if it cannot be used.
	identity *identity.Source
}

// check looks at one thing.
type check struct {
	name string
	run  func(ctx context.Context, p *patient, add report)
}

// report adds a finding. why and do are empty if all is well.
type report func(s Severity, text, why, do string)

// checks, in the order of what depends on what.
var checks = []check{
	{"configuration", checkConfiguration},
	{"agent", checkObstacles},
	{"name", checkName},
	{"fallback", checkFallback},
	{"containerd", checkContainerd},
	{"drop-in", checkDropIn},
	{"content store", checkStores},
	{"units", checkUnits},
	{"socket", checkSocket},
	{"content directory", checkRoot},
	{"disk", checkDisk},
	{"kernel", checkKernel},
	{"overlayfs", checkOverlay},
	{"files", checkFiles},
	{"clock", checkClock},
	{"identity", checkIdentity},
	{"trackers", checkTrackers},
	{"peers", checkPeers},
	{"advertise", checkAdvertise},
	{"reached", checkReached},
	{"layers", checkLayers},
	{"authorize", checkAuthorize},
}

// Doctor runs all checks. It changes nothing; connecting to the agent's socket may
// start the agent, where systemd holds it. It does not take longer than ctx.
func Doctor(ctx context.Context, h Host, agent Agent, where Where) []Finding {
	p := &patient{Host: h, agent: agent}
	var err error
	if p.receipt, err = installed(h); err != nil {
		p.receipt = &Receipt{}
	}
	if where == (Where{}) {
		where = Where{Config: p.receipt.Main, Unit: p.receipt.Unit}
		if slices.Contains(Flavors, p.receipt.Flavor) { // kind is found, not chosen
			where.Flavor = p.receipt.Flavor
		}
	}
	p.survey, p.err = Look(ctx, h, where)
	if c := onHost(p, p.agent.Identity); c.Enabled() {
		p.identity, _ = identity.Load(c, agent.Cluster) // checkIdentity tells why not
	}
	if Marker(h) == "" && agent.Admin != "" {
		if st, err := h.Agent(ctx, agent.Admin); err == nil {
			p.running = &st
		}
	}
	findings := []Finding{}
	for _, c := range checks {
		c.run(ctx, p, func(s Severity, text, why, do string) {
			findings = append(findings, Finding{c.name, s, text, why, do})
		})
	}
	return findings
}

// Failed counts the failures.
func Failed(findings []Finding) (n int) {
	for _, f := range findings {
		if f.Severity == Fail {
			n++
		}
	}
	return n
}

// WriteFindings prints them for people.
func WriteFindings(w io.Writer, findings []Finding) {
	width := 0
	for _, f := range findings {
		width = max(width, len(f.Check))
	}
	for _, f := range findings {
		fmt.Fprintf(w, "%-5s %-*s  %s\n", f.Severity, width, f.Check, f.Text)
		indent := strings.Repeat(" ", 6+width+2)
		if f.Why != "" {
			fmt.Fprintf(w, "%s%s\n", indent, f.Why)
		}
		if f.Do != "" {
			fmt.Fprintf(w, "%s→ %s\n", indent, f.Do)
		}
	}
}

func (a *Agent) file() string { return cmp.Or(a.Path, ConfigPath) }

// onHost returns an identity with paths for this process.
func onHost(h Host, c identity.Config) identity.Config {
	if !c.Enabled() {
		return c
	}
	return identity.Config{CA: h.Path(c.CA), Cert: h.Path(c.Cert), Key: h.Path(c.Key)}
}
