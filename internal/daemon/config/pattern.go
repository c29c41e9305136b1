package config

import "regexp"

// Pattern compiles a regular expression (RE2) for whole names, such as repositories':
// what it returns matches a name from its first to its last character, or not at all.
func Pattern(expr string) (*regexp.Regexp, error) {
	if _, err := regexp.Compile(expr); err != nil { // "a)|(b" is none, but would be one below
		return nil, err
	}
	return regexp.Compile(`\A(?:` + expr + `)\z`)
}
