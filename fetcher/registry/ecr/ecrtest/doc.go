// Package ecrtest is a stand-in for AWS where it gives tokens for registries: it checks
// signatures as AWS does, and knows which tokens are valid.
//
// Start from [Start]. What a registry does with tokens is the test's to say, with
// [AWS.Valid]. All of it may be called concurrently.
package ecrtest
