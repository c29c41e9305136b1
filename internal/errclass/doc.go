// Package errclass is how errors cross HTTP APIs: by the name of their class, with
// a status that goes with it. Each API has one [Table], by which both its ends
// translate. All functions are pure.
package errclass
