// Package httpfile is a [fetcher.Backend] on the files of a web server, read only: the
// kind "http". Where a blob is, a template of a URL says.
//
// Start from [Open]. Keys are those of [fetcher.BlobKey], and no others: the digest in
// them is what the template needs.
//
// # Requests
//
// Stat is a HEAD, or a GET of the first byte if a HEAD is refused or does not tell the
// size. Open is one GET, and one more for each time that the connection breaks. How ranges
// are asked for and what is done where a server does not know them, package
// internal/httpobject says: a reader never goes on with another version of a file.
// A request that failed, or was put off (429, 5xx, Retry-After), is repeated for as long as
// Config.Retry allows.
//
// Bytes are not verified against the digest: a range cannot be, and whoever stores a blob
// does. Only 404 is errdefs.ErrNotFound. [Backend.Check] asks for a blob that cannot
// exist, because a server that has a page for everything would have every blob.
//
// # Who hears what
//
// A redirect leads to HTTP only if the configured URL is HTTP itself. The headers of
// Config.HeaderFile go to the URL's own host and nowhere else. Errors have no URL's query and
// no header.
//
// net/http does all this; no library was needed.
package httpfile
