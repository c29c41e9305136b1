package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/httpclient"
)

// Codes of S3's errors that mean more than their status.
const (
	codeNoSuchKey    = "NoSuchKey"
	codeNoSuchUpload = "NoSuchUpload"
	codePrecondition = "PreconditionFailed"
	codeInvalidRange = "InvalidRange"
	// codeConflict is of a conditional write that met another one, and was not done.
	codeConflict = "ConditionalRequestConflict"
	codeAborted  = "OperationAborted"
	codeTimeout  = "RequestTimeout"
)

// classes has the codes that have a class of their own.
var classes = map[string]error{
	codeNoSuchKey: errdefs.ErrNotFound,

	"InvalidAccessKeyId":           errdefs.ErrUnauthenticated,
	"SignatureDoesNotMatch":        errdefs.ErrUnauthenticated,
	"ExpiredToken":                 errdefs.ErrUnauthenticated,
	"InvalidToken":                 errdefs.ErrUnauthenticated,
	"TokenRefreshRequired":         errdefs.ErrUnauthenticated,
	"RequestTimeTooSkewed":         errdefs.ErrUnauthenticated,
	"AuthorizationHeaderMalformed": errdefs.ErrUnauthenticated,
	"InvalidObjectState":           errdefs.ErrUnavailable, // it must be restored from an archive first

	"QuotaExceeded":                  errdefs.ErrResourceExhausted,
	"InsufficientStorage":            errdefs.ErrResourceExhausted,
	"XMinioStorageFull":              errdefs.ErrResourceExhausted,
	"XMinioAdminBucketQuotaExceeded": errdefs.ErrResourceExhausted,
	"EntityTooLarge":                 errdefs.ErrResourceExhausted,

	"NotImplemented": errdefs.ErrNotImplemented,

	// Of storages on file systems: an object and a directory cannot have one name.
	"ObjectParentIsFile":            errdefs.ErrFailedPrecondition,
	"ExistingObjectIsDirectory":     errdefs.ErrFailedPrecondition,
	"XMinioParentIsObject":          errdefs.ErrFailedPrecondition,
	"XMinioObjectExistsAsDirectory": errdefs.ErrFailedPrecondition,
}

// statuses has the classes of what has no code that says more. A 404 alone may be the bucket's, or that of
// something on the way.
var statuses = map[int]error{
	http.StatusUnauthorized:        errdefs.ErrUnauthenticated,
	http.StatusForbidden:           errdefs.ErrPermissionDenied,
	http.StatusInsufficientStorage: errdefs.ErrResourceExhausted,
}

// failure is an answer that is no success, or the lack of one. It does not unwrap: a
// timeout inside is not the end of a caller's context.
type failure struct {
	status int    // 0: no answer
	code   string // S3's
	text   string
	cause  error
}

func (f *failure) Error() string { return f.text }

// Is gives it one class. What is not known to say more is errdefs.ErrUnavailable.
func (f *failure) Is(target error) bool {
	return target == f.class() || target == io.ErrUnexpectedEOF && errors.Is(f.cause, io.ErrUnexpectedEOF)
}

func (f *failure) class() error {
	if f.status == 0 || f.status < 300 {
		return errdefs.ErrUnavailable
	}
	if class, ok := classes[f.code]; ok {
		return class
	}
	if class, ok := statuses[f.status]; ok {
		return class
	}
	return errdefs.ErrUnavailable
}

// certain reports that the request has certainly changed nothing.
func (f *failure) certain() bool {
	var op *net.OpError
	var c *credentialsError
	if f.status == 0 {
		return errors.As(f.cause, &c) || errors.As(f.cause, &op) && op.Op == "dial"
	}
	if f.status == http.StatusNotImplemented {
		return true
	}
	return f.status >= 400 && f.status < 500 && f.status != http.StatusRequestTimeout && f.code != codeTimeout
}

// failureOf says what the library's error is.
func failureOf(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	f = &failure{cause: err}
	var resp *awshttp.ResponseError
	if errors.As(err, &resp) {
		f.status = resp.HTTPStatusCode()
	}
	var api smithy.APIError
	if errors.As(err, &api) && f.status != 0 {
		f.code = api.ErrorCode()
	}
	switch {
	case f.status == 0:
		f.text = noAnswer(err)
	case f.status < 300:
		f.text = fmt.Sprintf("status %d, and then: %v", f.status, innermost(err))
	case f.code != "" && f.code != "UnknownError":
		f.text = fmt.Sprintf("status %d, %s", f.status, f.code)
		if text := api.ErrorMessage(); text != "" {
			f.text += ": " + text
		}
	default:
		f.text = fmt.Sprintf("status %d (%s)", f.status, http.StatusText(f.status))
	}
	if f.status >= 300 && f.status < 400 {
		f.text += "; is the region right"
		if there := resp.Response.Header.Get("X-Amz-Bucket-Region"); there != "" {
			f.text += ", or is it " + there
		}
		f.text += "?"
	}
	if f.status != 0 {
		if id := resp.ServiceRequestID(); id != "" {
			f.text += " (request " + id + ")"
		}
	}
	f.text = clean(f.text)
	return f
}

// noAnswer has no URL's query.
func noAnswer(err error) string {
	var c *credentialsError
	if errors.As(err, &c) {
		return c.Error()
	}
	if errors.Is(err, httpclient.ErrTimeout) {
		return err.Error()
	}
	var ue *url.Error
	if !errors.As(err, &ue) {
		return err.Error()
	}
	u, uerr := url.Parse(ue.URL)
	if uerr != nil {
		return ue.Err.Error()
	}
	return fmt.Sprintf("%s %s://%s%s: %v", ue.Op, u.Scheme, u.Host, u.EscapedPath(), ue.Err)
}

func innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// maxText is how much of what a storage says is told, in bytes.
const maxText = 500

func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}

// asked gives the error of a request its class: the end of ctx, or a failure.
func asked(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if cerr := ctx.Err(); cerr != nil {
		return cerr
	}
	return failureOf(err)
}

// again reports whether the same request may be answered otherwise later.
func (f *failure) again() bool {
	return !f.certain() || f.status == 0 || f.status == http.StatusTooManyRequests || is(f, codeConflict, codeAborted)
}

// is reports whether err is an answer with one of these codes.
func is(err error, codes ...string) bool {
	var f *failure
	if !errors.As(err, &f) || f.status < 300 {
		return false
	}
	for _, c := range codes {
		if f.code == c {
			return true
		}
	}
	return false
}
