// Package reload keeps what was read from a few files, such as a certificate and its
// key, and reads it again when they change.
//
// Start from [Open]; the [Files] that it returns may be used by any goroutine. Files
// are looked at when somebody asks for what is in them, at most once in [Every]: there
// is no goroutine and no watch. What cannot be read leaves in use what was read before.
package reload
