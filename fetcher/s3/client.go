package s3

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/internal/daemon/version"
	"github.com/capelin-io/capelin/internal/httpclient"
)

const (
	// maxTries is how often a request is sent at most.
	maxTries = 5
	// The pause before the next try grows from firstPause to maxPause.
	firstPause, maxPause = 100 * time.Millisecond, 5 * time.Second
	// stallLimit is how long the storage may take nothing and send nothing.
	stallLimit = time.Minute
	// completeLimit is the same for the end of an upload, when the storage may have all of it to copy.
	completeLimit = 15 * time.Minute
	// maxAnswer is the size of an answer at most that is not an object, in bytes: a thousand names, escaped.
	maxAnswer = 16 << 20
	// maxRefusal is the same for what is no success.
	maxRefusal = 64 << 10
)

// newClient returns a client of AWS's library. It asks nobody.
func newClient(cfg Config) (*s3.Client, *transport, error) {
	options := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithLogger(logging.Nop{}), // it says nothing that errors do not say
		// No other http.Client may be given here: with AWS_CA_BUNDLE the library takes none but its own.
		awsconfig.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			t.MaxIdleConns, t.MaxIdleConnsPerHost = 0, 64
			t.ReadBufferSize, t.WriteBufferSize = 64<<10, 64<<10
			t.DisableCompression = true
			t.ForceAttemptHTTP2 = false // bodies are large: each has a connection for itself
		})),
	}
	if cfg.Region != "" {
		options = append(options, awsconfig.WithRegion(cfg.Region))
	}
	if cfg.Profile != "" {
		options = append(options, awsconfig.WithSharedConfigProfile(cfg.Profile))
	}
	loaded, err := awsconfig.LoadDefaultConfig(context.Background(), options...)
	if err != nil {
		return nil, nil, fmt.Errorf("AWS's configuration (environment, ~/.aws): %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	built, ok := loaded.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		return nil, nil, fmt.Errorf("AWS's library has another HTTP client: %T: %w", loaded.HTTPClient, errdefs.ErrFailedPrecondition)
	}
	loaded.Credentials = credentials{loaded.Credentials}
	t := newTransport(built.GetTransport())
	client := s3.NewFromConfig(loaded, func(o *s3.Options) {
		o.HTTPClient = t
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
		}
		if o.Region == "" && o.BaseEndpoint != nil {
			o.Region = defaultRegion
		}
		o.UsePathStyle = o.UsePathStyle || cfg.PathStyle
		o.RequestChecksumCalculation = cfg.checksums(o.BaseEndpoint != nil)
		// Whoever reads verifies digests; what is cut short is noticed here.
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.DisableLogOutputChecksumValidationSkipped = true
		o.Retryer = newRetryer()
		o.APIOptions = append(o.APIOptions, awsmiddleware.AddUserAgentKeyValue("capelin", version.Version()))
	})
	if client.Options().Region == "" {
		return nil, nil, fmt.Errorf("there is no region, here or in AWS's environment and files: set region: %w", errdefs.ErrFailedPrecondition)
	}
	return client, t, nil
}

func newRetryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = maxTries
		o.RateLimiter = ratelimit.None // whoever calls has pauses of his own
		o.Retryables = append(slices.Clone(retry.DefaultRetryables),
			retry.RetryableHTTPStatusCode{Codes: map[int]struct{}{http.StatusRequestTimeout: {}, http.StatusTooManyRequests: {}}},
			retry.RetryableErrorCode{Codes: map[string]struct{}{codeConflict: {}, codeAborted: {}}})
		o.Backoff = retry.BackoffDelayerFunc(func(attempt int, _ error) (time.Duration, error) { return pause(attempt), nil })
	})
}

// pause returns how long is waited after so many tries, from 1 on.
func pause(tries int) time.Duration {
	d := min(firstPause<<min(tries-1, 10), maxPause)
	return d/2 + rand.N(d/2)
}

// once is for a request that is not to be sent again by the library.
func once(o *s3.Options) { o.Retryer = aws.NopRetryer{} }

// transport sends requests, ends those by which nothing moves any more, and bounds answers.
type transport struct {
	http            *http.Client
	stall, complete time.Duration
}

func newTransport(t *http.Transport) *transport {
	refuse := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &transport{&http.Client{Transport: t, CheckRedirect: refuse}, stallLimit, completeLimit}
}

// Do implements aws.HTTPClient.
func (t *transport) Do(req *http.Request) (*http.Response, error) {
	limit := t.stall
	if req.Method == http.MethodPost && req.URL.Query().Has("uploadId") {
		limit = t.complete
	}
	resp, err := httpclient.Guard(req, limit, t.http.Do)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode >= http.StatusMultipleChoices:
		resp.Body = httpclient.Bounded(resp.Body, maxRefusal)
	case req.Method != http.MethodGet || req.URL.Query().Has("list-type") || req.URL.Query().Has("uploads"):
		resp.Body = httpclient.Bounded(resp.Body, maxAnswer)
	}
	return resp, nil
}
