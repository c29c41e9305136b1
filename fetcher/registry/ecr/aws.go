package ecr

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/daemon/version"
)

// maxAnswer is how long an answer may be, in bytes. A token has some thousand.
const maxAnswer = 64 << 10

// Error is the lack of a token.
type Error struct {
	region, text string
	class        error
}

func (e *Error) Error() string {
	return "no authorization token of Amazon ECR in " + e.region + ": " + e.text
}

// Is makes it one of errdefs' classes.
func (e *Error) Is(target error) bool { return target == e.class }

// asking returns what asks AWS. The library repeats nothing: whoever wants a token does.
func asking(r Registry) Asker {
	return func(ctx context.Context) (string, time.Time, error) {
		fail := func(class error, format string, args ...any) (string, time.Time, error) {
			return "", time.Time{}, &Error{r.Region, fmt.Sprintf(format, args...), class}
		}
		cfg, err := load(ctx, r)
		if err != nil {
			return fail(errdefs.ErrFailedPrecondition, "AWS's configuration (environment, ~/.aws) is broken: %v", err)
		}
		creds, err := cfg.Credentials.Retrieve(ctx)
		if err != nil {
			text, class := credentialsError(err)
			return fail(class, "%s", text)
		}
		cfg.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return creds, nil })
		out, err := ecr.NewFromConfig(cfg, func(o *ecr.Options) { o.HTTPClient = bounded{o.HTTPClient} }).
			GetAuthorizationToken(ctx, &ecr.GetAuthorizationTokenInput{})
		if err != nil {
			text, class := answerError(err)
			return fail(class, "%s", text)
		}
		if len(out.AuthorizationData) == 0 || out.AuthorizationData[0].ExpiresAt == nil ||
			!valid(aws.ToString(out.AuthorizationData[0].AuthorizationToken)) {
			return fail(errdefs.ErrUnavailable, "the answer has none")
		}
		data := out.AuthorizationData[0]
		return *data.AuthorizationToken, *data.ExpiresAt, nil
	}
}

// valid reports whether a token is what a registry takes.
func valid(token string) bool {
	data, err := base64.StdEncoding.DecodeString(token)
	return err == nil && strings.HasPrefix(string(data), "AWS:")
}

func load(ctx context.Context, r Registry) (aws.Config, error) {
	options := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithRegion(r.Region),
		awsconfig.WithLogger(logging.Nop{}), // it says nothing that errors do not say
		awsconfig.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		// No other http.Client may be given here: with AWS_CA_BUNDLE the library takes none but its own.
		awsconfig.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			t.DisableKeepAlives = true // the next request is hours away
		})),
		awsconfig.WithAPIOptions([]func(*middleware.Stack) error{awsmiddleware.AddUserAgentKeyValue("capelin", version.Version())}),
	}
	if r.FIPS {
		options = append(options, awsconfig.WithUseFIPSEndpoint(aws.FIPSEndpointStateEnabled))
	}
	if r.Dual {
		options = append(options, awsconfig.WithUseDualStackEndpoint(aws.DualStackEndpointStateEnabled))
	}
	return awsconfig.LoadDefaultConfig(ctx, options...)
}

const howTo = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for one in ~/.aws, or AWS_ROLE_ARN and " +
	"AWS_WEB_IDENTITY_TOKEN_FILE (IRSA sets them), or give the pod or the machine a role"

// credentialsError says why the chain has no credentials. What some of its errors say has
// parts of credentials in it: only what is known not to is told.
func credentialsError(err error) (text string, class error) {
	var api smithy.APIError
	var op *smithy.OperationError
	switch {
	case errors.As(err, &api) && denied(api.ErrorCode()):
		return fmt.Sprintf("the role for it may not be taken on (%s: %s): its trust policy must allow that",
			api.ErrorCode(), said(api)), errdefs.ErrPermissionDenied
	case errors.As(err, &api) && !fault(err, api):
		return fmt.Sprintf("AWS gives no credentials for what is configured (%s); %s", api.ErrorCode(), howTo), errdefs.ErrUnauthenticated
	case errors.As(err, &op) && op.Service() == "ec2imds":
		return "no AWS credentials were found in the environment or in files, and the machine has no role " +
			"that can be asked for; " + howTo, errdefs.ErrUnauthenticated
	case errors.As(err, &op):
		return fmt.Sprintf("%s does not give credentials: %s", op.Service(), network(err)), errdefs.ErrUnavailable
	}
	return fmt.Sprintf("AWS's library finds no credentials (%T); %s", root(err), howTo), errdefs.ErrUnauthenticated
}

// answerError says why AWS gives no token.
func answerError(err error) (text string, class error) {
	var api smithy.APIError
	switch {
	case !errors.As(err, &api):
		return network(err), errdefs.ErrUnavailable
	case denied(api.ErrorCode()):
		return fmt.Sprintf("%s: %s; allow it the action ecr:GetAuthorizationToken on the resource \"*\"",
			api.ErrorCode(), said(api)), errdefs.ErrPermissionDenied
	case fault(err, api):
		return fmt.Sprintf("%s: %s", api.ErrorCode(), said(api)), errdefs.ErrUnavailable
	}
	switch api.ErrorCode() {
	case "UnrecognizedClientException", "InvalidClientTokenId", "InvalidSignatureException", "SignatureDoesNotMatch", "ExpiredTokenException",
		"ExpiredToken", "RequestExpired", "MissingAuthenticationToken", "MissingAuthenticationTokenException", "IncompleteSignatureException",
		"IncompleteSignature", "OptInRequired", "NotAuthorized":
		// What AWS says of a signature may repeat what was signed.
		return fmt.Sprintf("AWS does not accept the credentials (%s): they are wrong or have ended, "+
			"or the clock is wrong (now %s)", api.ErrorCode(), time.Now().UTC().Format(time.RFC3339)), errdefs.ErrUnauthenticated
	}
	return fmt.Sprintf("%s: %s", api.ErrorCode(), said(api)), errdefs.ErrUnavailable
}

func denied(code string) bool {
	switch code {
	case "AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "BlockedByOrganizationPolicyException":
		return true
	}
	return false
}

// fault reports an error that the next request may not have.
func fault(err error, api smithy.APIError) bool {
	var resp *smithyhttp.ResponseError
	if errors.As(err, &resp) && (resp.HTTPStatusCode() >= 500 || resp.HTTPStatusCode() == http.StatusTooManyRequests) {
		return true
	}
	code := api.ErrorCode()
	return api.ErrorFault() == smithy.FaultServer || strings.Contains(code, "Throttl") || code == "TooManyRequestsException" ||
		code == "RequestLimitExceeded" || code == "RequestThrottled" || code == "SlowDown" || code == "IDPCommunicationError"
}

// said is what AWS says for people, on one line and not too long.
func said(api smithy.APIError) string {
	s := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, api.ErrorMessage())
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

// network is what is told of a request without an answer that can be read.
func network(err error) string {
	var send *smithyhttp.RequestSendError
	var resp *smithyhttp.ResponseError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("no answer within %v", askTimeout)
	case errors.As(err, &send):
		return send.Err.Error()
	case errors.As(err, &resp):
		return fmt.Sprintf("status %d and no answer that can be read", resp.HTTPStatusCode())
	}
	return fmt.Sprintf("the request cannot be made: %v", root(err))
}

func root(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// bounded reads answers up to maxAnswer.
type bounded struct{ ecr.HTTPClient }

func (b bounded) Do(r *http.Request) (*http.Response, error) {
	resp, err := b.HTTPClient.Do(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	}
	return resp, err
}
