package ecr

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/capelin-io/capelin/fetcher/registry/ecr/ecrtest"
)

func tokens(t *testing.T) *Tokens {
	tokens := New(Registry{Region: ecrtest.Region})
	t.Cleanup(tokens.Close)
	return tokens
}

// AWS's own library asks, with a signature that is the right one, and only once.
func TestAWS(t *testing.T) {
	aws := ecrtest.Start(t)
	tokens := tokens(t)
	for range 3 {
		token, err := tokens.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r := &http.Request{Header: http.Header{}}
		if token.Authorize(r); !aws.Valid(r) {
			t.Error("the token is not valid")
		}
		if life := token.by.Sub(token.got); life < 11*time.Hour || life > 12*time.Hour {
			t.Errorf("it is used for %v", life)
		}
	}
	if n := aws.Asked(); n != 1 {
		t.Errorf("AWS was asked %d times", n)
	}
}

// What AWS answers, its class, and what an operator is told; nothing of it is secret.
func TestAnswers(t *testing.T) {
	aws := ecrtest.Start(t)
	for _, tt := range []struct {
		status        int
		code, message string
		class         error
		text          string
	}{
		{400, "AccessDeniedException", "User: arn:aws:iam::1:user/x is not authorized to perform: ecr:GetAuthorizationToken\non resource: *",
			errdefs.ErrPermissionDenied, `User: arn:aws:iam::1:user/x is not authorized to perform: ecr:GetAuthorizationToken on resource: *; ` +
				`allow it the action ecr:GetAuthorizationToken on the resource "*"`},
		{400, "ThrottlingException", "Rate exceeded", errdefs.ErrUnavailable, "Rate exceeded"},
		{429, "TooManyRequestsException", "Rate exceeded", errdefs.ErrUnavailable, "Rate exceeded"},
		{500, "ServerException", "oops", errdefs.ErrUnavailable, "oops"},
		{503, "ServiceUnavailable", "", errdefs.ErrUnavailable, "ServiceUnavailable"},
		{400, "UnrecognizedClientException", "The security token included in the request is invalid: " + ecrtest.Session,
			errdefs.ErrUnauthenticated, "does not accept the credentials (UnrecognizedClientException)"},
		{400, "ExpiredTokenException", "ended", errdefs.ErrUnauthenticated, "have ended"},
		{400, "InvalidSignatureException", "canonical: " + ecrtest.Session, errdefs.ErrUnauthenticated, "the clock"},
		{400, "InvalidParameterException", strings.Repeat("long ", 1000), errdefs.ErrUnavailable, "…"},
	} {
		aws.Fail(&ecrtest.Failure{Status: tt.status, Code: tt.code, Message: tt.message})
		before := aws.Asked()
		_, err := tokens(t).Get(t.Context())
		check(t, aws, err, tt.class, tt.text)
		if n := aws.Asked() - before; n != 1 {
			t.Errorf("%s: AWS was asked %d times", tt.code, n)
		}
	}
	aws.Fail(nil)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "another")
	_, err := tokens(t).Get(t.Context())
	check(t, aws, err, errdefs.ErrUnauthenticated, "InvalidSignatureException")
}

func check(t *testing.T, aws *ecrtest.AWS, err, class error, text string) {
	t.Helper()
	if !errors.Is(err, class) || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), ecrtest.Region) ||
		strings.Contains(err.Error(), "\n") || len(err.Error()) > 800 {
		t.Errorf("%v, want %v with %q", err, class, text)
	}
	for _, secret := range aws.Secrets() {
		if err != nil && strings.Contains(fmt.Sprintf("%v %+v", err, err), secret) {
			t.Errorf("%v has a secret in it", err)
		}
	}
}

// Answers that make no sense.
func TestNonsense(t *testing.T) {
	aws := ecrtest.Start(t)
	var body string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		fmt.Fprint(w, body)
	}))
	t.Cleanup(s.Close)
	t.Setenv("AWS_ENDPOINT_URL_ECR", s.URL)
	with := func(token, expires string) string {
		return fmt.Sprintf(`{"authorizationData":[{"authorizationToken":%q,"expiresAt":%s}]}`, token, expires)
	}
	good := base64.StdEncoding.EncodeToString([]byte("AWS:" + ecrtest.Secret))
	for _, body = range []string{
		"", "{", "{}", "[]", `{"authorizationData":[]}`, `{"authorizationData":[{}]}`, with("", "1"), with("AWS:x", "1"),
		with(base64.StdEncoding.EncodeToString([]byte("me:x")), "1"), with(good, `"x"`), with(good, "null"),
		strings.Replace(with(good, "1"), "{", "{"+strings.Repeat(" ", maxAnswer), 1),
	} {
		_, err := tokens(t).Get(t.Context())
		check(t, aws, err, errdefs.ErrUnavailable, "")
	}
	body = with(good, "1.8e9")
	if _, err := tokens(t).Get(t.Context()); err != nil {
		t.Error(err)
	}
	s.Close()
	_, err := tokens(t).Get(t.Context())
	check(t, aws, err, errdefs.ErrUnavailable, "refused")
}

// Without credentials it is said what to set, and whoever has some that are broken hears of no secret.
func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	answers := func(status int, body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	refusal := func(code string) string {
		return `<ErrorResponse><Error><Type>Sender</Type><Code>` + code + `</Code><Message>said AWS</Message></Error></ErrorResponse>`
	}
	web := func(status int, code string) map[string]string {
		return map[string]string{
			"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x", "AWS_WEB_IDENTITY_TOKEN_FILE": file("jwt", ecrtest.Session),
			"AWS_REGION":           ecrtest.Region,
			"AWS_ENDPOINT_URL_STS": answers(status, refusal(code)),
		}
	}
	process := file("process", "#!/bin/sh\necho 'SecretAccessKey: "+ecrtest.Secret+"'\n")
	for name, tt := range map[string]struct {
		env   map[string]string
		class error
		text  string
	}{
		"nothing": {nil, errdefs.ErrUnauthenticated, "set AWS_ACCESS_KEY_ID"},
		"a machine without role": {map[string]string{"AWS_EC2_METADATA_DISABLED": "", "AWS_EC2_METADATA_SERVICE_ENDPOINT": answers(404, "")},
			errdefs.ErrUnauthenticated, "set AWS_ACCESS_KEY_ID"},
		"a profile that is not":   {map[string]string{"AWS_PROFILE": "nobody"}, errdefs.ErrFailedPrecondition, "nobody"},
		"a role that is not ours": {web(403, "AccessDenied"), errdefs.ErrPermissionDenied, "said AWS"},
		"an identity that ended":  {web(400, "ExpiredTokenException"), errdefs.ErrUnauthenticated, "ExpiredTokenException"},
		"STS is away":             {web(503, "ServiceUnavailable"), errdefs.ErrUnavailable, ""},
		"no file of identity": {map[string]string{"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x", "AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere"},
			errdefs.ErrUnauthenticated, "set AWS_ACCESS_KEY_ID"},
		"a program that talks": {map[string]string{"AWS_CONFIG_FILE": file("config", "[default]\ncredential_process = "+process+"\n")},
			errdefs.ErrUnauthenticated, "set AWS_ACCESS_KEY_ID"},
		"half a pair": {map[string]string{"AWS_ACCESS_KEY_ID": ecrtest.Access}, errdefs.ErrUnauthenticated, ""},
	} {
		t.Run(name, func(t *testing.T) {
			aws := ecrtest.Start(t)
			for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} {
				t.Setenv(name, "")
			}
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			_, err := tokens(t).Get(t.Context())
			check(t, aws, err, tt.class, tt.text)
			if n := aws.Asked(); n != 0 {
				t.Errorf("AWS was asked %d times", n)
			}
		})
	}
}

// What is in files is read again for each token.
func TestRotated(t *testing.T) {
	aws := ecrtest.Start(t)
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} {
		t.Setenv(name, "")
	}
	path := filepath.Join(t.TempDir(), "credentials")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", path)
	write := func(secret string) {
		text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\naws_session_token = %s\n",
			ecrtest.Access, secret, ecrtest.Session)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ask := asking(Registry{Region: ecrtest.Region})
	write("another")
	_, _, err := ask(context.Background())
	check(t, aws, err, errdefs.ErrUnauthenticated, "InvalidSignatureException")
	write(ecrtest.Secret)
	if _, _, err := ask(context.Background()); err != nil {
		t.Error(err)
	}
}
