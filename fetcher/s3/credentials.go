package s3

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	"github.com/aws/smithy-go"
)

// credentials are AWS's library's, with errors that say what to do.
type credentials struct{ aws.CredentialsProvider }

// Retrieve implements aws.CredentialsProvider.
func (c credentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	v, err := c.CredentialsProvider.Retrieve(ctx)
	if err != nil && ctx.Err() == nil {
		err = &credentialsError{withoutCredentials(err)}
	}
	return v, err
}

// credentialsError is that there are no credentials. It does not unwrap: the library's errors have what a credential_process printed,
// which may be a secret.
type credentialsError struct{ text string }

func (e *credentialsError) Error() string { return e.text }

// withoutCredentials says why there are none.
func withoutCredentials(err error) string {
	var process *processcreds.ProviderError
	if errors.As(err, &process) {
		return "the credential_process of AWS's configuration (~/.aws/config, or AWS_CONFIG_FILE) has failed; what it printed is not shown, as " +
			"that may be a secret: run it by hand"
	}
	// The last that is asked, when nothing else was found.
	for e := err; e != nil; e = errors.Unwrap(e) {
		if op, ok := e.(*smithy.OperationError); ok && op.ServiceID == imds {
			return "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment (a service's is " +
				"/etc/capelin/server.env), or a profile, or give this machine or pod a role"
		}
	}
	return fmt.Sprintf("getting credentials: %v", innermost(err))
}

// imds is what the library calls the service from which machines have their roles.
const imds = "ec2imds"
