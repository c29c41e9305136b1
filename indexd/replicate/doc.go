// Package replicate brings what an index has to registries elsewhere, by rule, and loses nothing of it: to another cluster's gateway, or to
// any registry. docs/replication.md says what people see of it.
//
// Start from [Worker], which decides over time what is to be delivered, tried again, or parked: a value that takes events and returns actions.
//
// A Worker is not safe for concurrent use.
package replicate
