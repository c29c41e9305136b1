// Package config reads and prints the configuration of every role: TOML into a
// struct that is its own manual.
//
// Start from [Load] and [Print]. A configuration is a struct of fields with
// `toml:"name"` and `comment:"meaning, unit, default, what zero does"` tags;
// nested structs are tables, and what an embedded one has are keys of the struct
// around it. Load is strict: a key that no field has, a value that does not fit and
// a value that Validate refuses are all errors, told together, each with file, line,
// column and key. Print writes every key with
// its comment, so that its output is both the reference and a file to start
// from; it parses back to what was printed. Slices of structs are arrays of
// tables ([[name]]), which have no defaults, and are printed as an example.
//
// Strings may name variables of the environment, "${NAME}"; "$${" stands for "${".
// [Expanded] puts their values into a text that is to be read again later.
// Command lines give values as "key=value", which go over the file's.
//
// Fields with the tag `live:"true"` can change while a role runs: [Adopt] takes them
// over from a file that was read again, and says what it could not.
//
// [Duration], [Bytes] and [Rate] are numbers with units. Nothing here keeps
// state; all functions may be called at any time by anybody.
package config
