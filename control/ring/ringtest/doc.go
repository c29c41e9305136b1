// Package ringtest reads the vectors of [ring.Place], for the tests of all those who have to
// choose the same owners.
//
// Start from [Vectors]. All functions are pure but for the file that it reads.
package ringtest
