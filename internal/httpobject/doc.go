// Package httpobject reads objects that HTTP servers have: their size, ranges of
// their bytes however the server answers to ranges, and on from where a connection
// broke. It also makes errors of answers that are no success, in errdefs' classes.
//
// Start from [Object]: what is asked for, and how a request for it is sent, its owner
// says. [Retry] repeats a request that was put off or not answered.
//
// # Ranges
//
// Some servers ignore a range, which is made up for by skipping what comes before it.
// Some answer 416 to one without an end, which is asked for again with one. Some send
// less than was asked for, and are asked for the rest.
//
// # Versions
//
// A reader never gives bytes of two versions. Unless the object is Immutable, it goes on
// after a break only if a strong ETag, or a Last-Modified that is old enough to be one
// (RFC 9110, 8.8), says that the object is the same; otherwise it ends with an error that
// is io.ErrUnexpectedEOF.
//
// # Errors
//
// Errors are errdefs' classes. Only a 404 is errdefs.ErrNotFound. No error has a URL's
// query or a header, which may be secrets.
package httpobject
