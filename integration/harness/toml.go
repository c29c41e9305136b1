package harness

import (
	"slices"
	"strings"
)

// tomlOf writes keys, with their tables before them and a dot between, and their values, which are TOML.
func tomlOf(keys map[string]string) string {
	var lines []string
	for k, v := range keys {
		lines = append(lines, k+" = "+v+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
