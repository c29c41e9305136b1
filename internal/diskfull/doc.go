// Package diskfull says which errors are a disk that takes no more, for everybody
// who writes to one. All functions are pure.
package diskfull
