// Package replicate brings what an index has to registries elsewhere, by rule, and loses nothing of it: to another cluster's
// gateway, or to any registry. docs/replication.md says what people see of it.
//
// Start from [Worker], which decides over time what is to be delivered, tried again, or parked: a value that takes events and
// returns actions. [Service] is its hands, for each rule: it asks the index and the origins, and speaks OCI's distribution API
// (deliver.go). [Outbox] is what is kept in the index's storage: rules, and the intents that are there before what they announce.
//
// # Promises
//
// Each tag that the index has acknowledged reaches the remote as it was then, or as it was later, as long as the rule stays. At a remote a
// tag is written after all that it reaches. What an index of another cluster has written later stays.
//
// # Concurrency
//
// A Worker is not safe for concurrent use; a Service and an Outbox are. A Service starts nothing before Run, and nothing outlives that.
package replicate
