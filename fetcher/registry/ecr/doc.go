// Package ecr has the tokens that Amazon's registries (ECR) demand of who pulls: AWS
// gives one to whoever may have it, for twelve hours.
//
// Start from [Tokens]: one for all that ask a registry, who share each request to AWS. The
// requests are made by AWS's own library (aws-sdk-go-v2, service/ecr), because of the
// credentials: the environment, ~/.aws, web identity (IRSA), pod identity and the machine's role
// are found by its chain, and by nothing that is configured here. What is in files and in
// the environment is looked at anew for each token.
//
// # Renewal
//
// A token is renewed when four fifths of its time are over, while it goes on being used:
// nobody waits, and a failure matters only when the time is over. A registry that refuses a
// token before that has one asked for at once, but not more often than every half minute,
// because a refusal may have other reasons.
//
// # Errors
//
// Errors are an [Error] with errdefs' classes: ErrUnauthenticated without credentials that
// AWS accepts, ErrPermissionDenied without the permission for a token, ErrFailedPrecondition for
// AWS's files, ErrUnavailable for all else. No error has a token or a credential.
package ecr
