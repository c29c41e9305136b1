package ecrtest

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// What AWS knows the test's process by, and in which region it is.
const (
	Access  = "AKIAIOSFODNN7EXAMPLE"
	Secret  = "not-much-of-a-secret-key"
	Session = "not-much-of-a-session"
	Region  = "eu-west-1"
)

// Failure is an answer instead of a token.
type Failure struct {
	Status        int
	Code, Message string
}

// AWS is the stand-in.
type AWS struct {
	t testing.TB

	mu     sync.Mutex
	life   time.Duration
	fail   *Failure
	asked  int
	issued int
	valid  map[string]bool
}

// Start starts one, and points AWS's library to it and to its credentials, with nothing else
// in the environment that it would find.
func Start(t testing.TB) *AWS {
	a := &AWS{t: t, life: 12 * time.Hour, valid: map[string]bool{}}
	s := httptest.NewServer(a)
	t.Cleanup(s.Close)
	Environment(t)
	t.Setenv("AWS_ENDPOINT_URL_ECR", s.URL)
	t.Setenv("AWS_ACCESS_KEY_ID", Access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", Secret)
	t.Setenv("AWS_SESSION_TOKEN", Session)
	return a
}

// Environment is one in which AWS's library finds nothing, and asks nobody.
func Environment(t testing.TB) {
	for _, name := range []string{
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ROLE_ARN",
		"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_ENDPOINT_URL",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

// Fail has AWS answer so from now on; nil: a token.
func (a *AWS) Fail(f *Failure) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = f
}

// Live says how long tokens are valid that are given from now on.
func (a *AWS) Live(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.life = d
}

// Revoke has all tokens end that were given before.
func (a *AWS) Revoke() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.valid)
}

// Asked returns how often a token was asked for.
func (a *AWS) Asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked
}

// Valid reports whether a request to the registry has a token that is valid.
func (a *AWS) Valid(r *http.Request) bool {
	user, password, ok := r.BasicAuth()
	a.mu.Lock()
	defer a.mu.Unlock()
	return ok && user == "AWS" && a.valid[password]
}

// Secrets returns what no error, name or log may have in it.
func (a *AWS) Secrets() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := []string{Secret, Session}
	for i := range a.issued {
		all = append(all, password(i+1), base64.StdEncoding.EncodeToString([]byte("AWS:"+password(i+1))))
	}
	return all
}

func password(n int) string { return fmt.Sprintf("not-much-of-a-token-%d", n) }

// ServeHTTP implements http.Handler.
func (a *AWS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	refuse := func(f Failure) {
		w.WriteHeader(f.Status)
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": f.Code, "message": f.Message})
	}
	body, _ := io.ReadAll(r.Body)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	if got := r.Header.Get("X-Amz-Target"); got != "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken" {
		a.t.Errorf("AWS is asked for %q", got)
	}
	if err := signed(r, body); err != nil {
		refuse(Failure{http.StatusBadRequest, "InvalidSignatureException", err.Error()})
		return
	}
	if a.fail != nil {
		refuse(*a.fail)
		return
	}
	a.issued++
	p := password(a.issued)
	a.valid[p] = true
	_ = json.NewEncoder(w).Encode(map[string]any{"authorizationData": []map[string]any{{
		"authorizationToken": base64.StdEncoding.EncodeToString([]byte("AWS:" + p)),
		"expiresAt":          float64(time.Now().Add(a.life).UnixMilli()) / 1000,
		"proxyEndpoint":      "https://012345678901.dkr.ecr." + Region + ".amazonaws.com",
	}}})
}

// signed reports a request that is not signed by who has the key: it is signed again, and the signatures are compared.
func signed(r *http.Request, body []byte) error {
	got := r.Header.Get("Authorization")
	_, names, ok := strings.Cut(got, "SignedHeaders=")
	names, _, _ = strings.Cut(names, ",")
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if !ok || err != nil {
		return fmt.Errorf("there is no signature of version 4: %w", err)
	}
	again, err := http.NewRequest(r.Method, "http://"+r.Host+r.URL.RequestURI(), nil)
	if err != nil {
		return err
	}
	list := strings.Split(names, ";")
	for k, v := range r.Header {
		if slices.Contains(list, strings.ToLower(k)) {
			again.Header[k] = v
		}
	}
	if slices.Contains(list, "content-length") {
		again.ContentLength = int64(len(body))
	}
	sum := sha256.Sum256(body)
	creds := aws.Credentials{AccessKeyID: Access, SecretAccessKey: Secret, SessionToken: Session}
	if err := v4.NewSigner().SignHTTP(r.Context(), creds, again, hex.EncodeToString(sum[:]), "ecr", Region, at); err != nil {
		return err
	}
	if want := again.Header.Get("Authorization"); got != want {
		//nolint:staticcheck // AWS's words
		return fmt.Errorf("The request signature we calculated does not match the signature you provided. The Canonical String for this request "+
			"should have been 'POST\n/\n\nx-amz-security-token:%s'", r.Header.Get("X-Amz-Security-Token"))
	}
	return nil
}
