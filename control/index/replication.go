package index

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// Replication is how things stand with all rules.
type Replication struct {
	Rules []RuleStatus `json:"rules"`
}

// RuleStatus is how things stand with one.
type RuleStatus struct {
	Rule        Rule      `json:"rule"`
	Broken      string    `json:"broken,omitempty"` // why it cannot be read: a newer index wrote it
	Working     bool      `json:"working"`          // some index has its lease
	Pending     int       `json:"pending"`          // tags, and manifests with a subject, to be delivered; at most 100,000 are counted
	Lag         float64   `json:"lagSeconds"`       // for how long the oldest is waiting
	Parked      int       `json:"parked"`
	ParkedOnes  []Parked  `json:"parkedOnes,omitempty"` // at most 1,000
	Compared    time.Time `json:"compared,omitzero"`    // when all tags were compared the last time
	Differences int       `json:"differences"`          // that were found then
}

// Parked is what cannot be delivered.
type Parked struct {
	Repository string        `json:"repository"`
	Tag        string        `json:"tag,omitempty"`
	Digest     digest.Digest `json:"digest,omitempty"` // of a manifest with a subject
	Reason     string        `json:"reason"`           // a word
	Error      string        `json:"error"`
	Since      time.Time     `json:"since"`
}

// RetryOptions say what of that which is parked is tried again; the zero value: all.
type RetryOptions struct{ Repository, Tag string }

// VerifyEvent is a line of what comparing says: one of its fields.
type VerifyEvent struct {
	Difference string        `json:"difference,omitempty"` // repository:tag, which will be delivered
	Progress   *VerifyResult `json:"progress,omitempty"`
	Done       *VerifyResult `json:"done,omitempty"`  // the last line
	Error      string        `json:"error,omitempty"` // the last line: it was broken off
}

// VerifyResult is what was found.
type VerifyResult struct {
	Tags        int `json:"tags"`
	Differences int `json:"differences"`
}

// Retried is the answer to a Retry.
type Retried struct {
	Keys int `json:"keys"`
}

// Replication says how things stand with all rules.
func (c *Client) Replication(ctx context.Context) (Replication, error) {
	var r Replication
	err := c.do(ctx, "GET", PathReplication, nil, nil, &r)
	return r, err
}

// SetRule adds a rule, or changes it. errdefs.ErrInvalidArgument: it cannot work, or names files that the index that was asked does not
// have.
func (c *Client) SetRule(ctx context.Context, r Rule) error {
	return c.do(ctx, "PUT", PathRule, params("name", r.Name), &r, nil)
}

// RemoveRule removes a rule, and all that is pending or parked for it. What is at the remote stays.
func (c *Client) RemoveRule(ctx context.Context, name string) error {
	return c.do(ctx, "DELETE", PathRule, params("name", name), nil, nil)
}

// Retry has what is parked be tried again, and returns how much that is.
func (c *Client) Retry(ctx context.Context, rule string, o RetryOptions) (int, error) {
	var n Retried
	err := c.do(ctx, "POST", PathRetry, params("name", rule, "repository", o.Repository, "tag", o.Tag), nil, &n)
	return n.Keys, err
}

// Verify has an index compare all tags of a rule with the remote's, and deliver those that differ; deep: all that they reach is
// compared, too. It calls each with what it says, the last with Done. errdefs.ErrUnavailable if it did not come to its end.
func (c *Client) Verify(ctx context.Context, rule string, deep bool, each func(VerifyEvent) error) error {
	query := params("name", rule, "deep", strconv.FormatBool(deep))
	return lines(ctx, c, PathVerify+"?"+query.Encode(), func(e VerifyEvent) (bool, error) {
		if e.Error != "" {
			return true, fmt.Errorf("it was broken off: %s: %w", e.Error, errdefs.ErrUnavailable)
		}
		return e.Done != nil, each(e)
	})
}
