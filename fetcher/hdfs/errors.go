package hdfs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// maxErrorBody is how much is read of the text of a refusal, in bytes. Servers send stack traces.
	maxErrorBody = 64 << 10
	// maxErrorText is how much of it is told.
	maxErrorText = 300
)

// remoteError is an answer that is no success: a status, and mostly a Java exception.
type remoteError struct {
	code      int
	exception string // the class's name without its package; "": the answer was none of WebHDFS
	text      string
}

func (e *remoteError) Error() string {
	if e.exception == "" {
		s := fmt.Sprintf("status %d", e.code)
		if t := http.StatusText(e.code); t != "" {
			s += " (" + t + ")"
		}
		if e.code == http.StatusNotFound {
			s += ", which is not an answer of WebHDFS"
		}
		return s
	}
	return e.exception + ": " + e.text
}

// Is makes an answer one of errdefs' classes.
func (e *remoteError) Is(target error) bool { return target == e.class() }

// classes are what exceptions say for certain. WebHDFS answers 403 to all that it does not know
// better, and HttpFS 500: only the name tells.
var classes = map[string]error{
	"FileNotFoundException":               errdefs.ErrNotFound,
	"AccessControlException":              errdefs.ErrPermissionDenied,
	"AuthorizationException":              errdefs.ErrPermissionDenied,
	"InvalidToken":                        errdefs.ErrUnauthenticated,
	"AuthenticationException":             errdefs.ErrUnauthenticated,
	"QuotaExceededException":              errdefs.ErrResourceExhausted,
	"DSQuotaExceededException":            errdefs.ErrResourceExhausted,
	"NSQuotaExceededException":            errdefs.ErrResourceExhausted,
	"QuotaByStorageTypeExceededException": errdefs.ErrResourceExhausted,
	"DiskOutOfSpaceException":             errdefs.ErrResourceExhausted,
	"FileAlreadyExistsException":          errdefs.ErrFailedPrecondition,
	"ParentNotDirectoryException":         errdefs.ErrFailedPrecondition,
	"PathIsNotEmptyDirectoryException":    errdefs.ErrFailedPrecondition,
	"MaxDirectoryItemsExceededException":  errdefs.ErrResourceExhausted,
	"PathComponentTooLongException":       errdefs.ErrInvalidArgument,
	"InvalidPathException":                errdefs.ErrInvalidArgument,
	"UnsupportedOperationException":       errdefs.ErrNotImplemented,
	"IllegalArgumentException":            errdefs.ErrFailedPrecondition, // of what the server was asked for, or of its configuration
}

// class is what the answer says. What is not known to say more is errdefs.ErrUnavailable.
func (e *remoteError) class() error {
	switch {
	case strings.Contains(e.text, "SecretManager$InvalidToken"): // wrapped in a SecurityException
		return errdefs.ErrUnauthenticated
	case e.exception == "AccessControlException" && strings.Contains(e.text, "(is not a directory)"),
		e.exception == "IOException" && strings.HasSuffix(e.text, "must both be directories"): // renaming a file to a directory
		return errdefs.ErrFailedPrecondition
	}
	if class, ok := classes[e.exception]; ok {
		return class
	}
	switch {
	case e.code == http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case e.exception != "":
		return errdefs.ErrUnavailable
	case e.code == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case e.code == http.StatusNotFound:
		return errdefs.ErrFailedPrecondition // no server of WebHDFS
	}
	return errdefs.ErrUnavailable
}

// inTheWay reports whether a directory is where a file should be, or the other way round, so that there is
// no object.
func inTheWay(err error) bool {
	var e *remoteError
	if !errors.As(err, &e) || !errdefs.IsFailedPrecondition(e) {
		return false
	}
	switch e.exception {
	case "PathIsNotEmptyDirectoryException", "ParentNotDirectoryException", "AccessControlException":
		return true
	}
	return false
}

// failure reads what a response says beyond its status, and closes it.
func failure(resp *http.Response) error {
	defer resp.Body.Close()
	e := &remoteError{code: resp.StatusCode}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil { // the status alone says little: a namenode in standby answers 403
		return &networkError{fmt.Errorf("reading the text of status %d: %w", e.code, unexpected(err))}
	}
	var body struct {
		RemoteException struct{ Exception, Message string }
	}
	if json.Unmarshal(data, &body) == nil {
		e.exception, e.text = printable(body.RemoteException.Exception), printable(firstLine(body.RemoteException.Message))
	}
	return e
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n") // a stack trace follows
	return s
}

func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxErrorText {
		s = strings.ToValidUTF8(s[:maxErrorText], "") + "…"
	}
	return s
}

// networkError is the lack of an answer. It does not unwrap: a timeout inside is not
// the end of a caller's context.
type networkError struct{ err error }

// Error has no URL's query, which may hold secrets.
func (e *networkError) Error() string {
	var ue *url.Error
	if !errors.As(e.err, &ue) {
		return e.err.Error()
	}
	u, err := url.Parse(ue.URL)
	if err != nil {
		return ue.Err.Error()
	}
	return fmt.Sprintf("%s %s://%s%s: %v", ue.Op, u.Scheme, u.Host, u.EscapedPath(), ue.Err)
}

func (e *networkError) Is(target error) bool {
	return target == errdefs.ErrUnavailable || target == io.ErrUnexpectedEOF && errors.Is(e.err, io.ErrUnexpectedEOF)
}

func isNetwork(err error) bool {
	var network *networkError
	return errors.As(err, &network)
}

// sourceError is not the storage's: it gets no class beyond its own.
type sourceError struct {
	at  int64
	err error
}

func (e *sourceError) Error() string { return fmt.Sprintf("its source failed at %d: %v", e.at, e.err) }
func (e *sourceError) Unwrap() error { return e.err }

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
