package gateway

import (
	"errors"
	"strings"
	"testing"
)

// What a rule has that cannot work is refused by its key; a pattern is one by itself,
// not only within what makes it match whole names.
func TestRulesRefused(t *testing.T) {
	fine := RuleConfig{Users: []string{"ci-*"}, Namespaces: []string{"team/.*"}, Actions: []string{"pull", "push", "delete"}}
	for _, tt := range []struct {
		change func(*RuleConfig)
		want   string // in the error; "": none
	}{
		{func(*RuleConfig) {}, ""},
		{func(r *RuleConfig) { r.Users = []string{"["} }, "rule[0].users"},
		{func(r *RuleConfig) { r.Users = nil }, "rule[0].users"},
		{func(r *RuleConfig) { r.Namespaces = []string{"("} }, "rule[0].namespaces"},
		{func(r *RuleConfig) { r.Namespaces = []string{"a)|(?:.*"} }, "rule[0].namespaces"},
		{func(r *RuleConfig) { r.Actions = []string{"pull", "list"} }, "rule[0].actions"},
	} {
		r := fine
		tt.change(&r)
		_, errs := readRules([]RuleConfig{r}, "rule")
		switch err := errors.Join(errs...); {
		case tt.want == "" && err != nil:
			t.Errorf("%+v: %v", r, err)
		case tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want+":")):
			t.Errorf("%+v: got %v, want an error of %s", r, err, tt.want)
		}
	}
}

// A namespace's pattern matches whole names.
func TestRuleMatchesWholeNames(t *testing.T) {
	rules, errs := readRules([]RuleConfig{{
		Users: []string{"ci-*"}, Namespaces: []string{"a|team/.*"}, Actions: []string{"pull"},
	}}, "rule")
	if errs != nil {
		t.Fatal(errs)
	}
	for _, tt := range []struct {
		user   string
		action Action
		repo   string
		want   bool
	}{
		{"ci-1", Pull, "a", true},
		{"ci-1", Pull, "team/app", true},
		{"ci-1", Pull, "ab", false},
		{"ci-1", Pull, "other/team/app", false},
		{"ci-1", Push, "a", false},
		{"someone", Pull, "a", false},
	} {
		if got := rules[0].allows(tt.user, tt.action, tt.repo); got != tt.want {
			t.Errorf("%s may %s %s: %v, want %v", tt.user, tt.action, tt.repo, got, tt.want)
		}
	}
}
