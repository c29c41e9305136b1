package rpcerr

import (
	"context"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// plain is an error of a call, in words. It has gRPC's code.
type plain struct {
	code codes.Code
	text string
}

func (p *plain) Error() string              { return p.text }
func (p *plain) GRPCStatus() *status.Status { return status.New(p.code, p.text) }

// New returns an error with a code and a text of our own.
func New(code codes.Code, text string) error { return &plain{code, text} }

// Plain returns err in words, if it is one of gRPC's, and else err. Its code stays.
func Plain(err error) error {
	if err == nil {
		return nil
	}
	said, ok := status.FromError(err)
	if !ok {
		return err
	}
	return New(said.Code(), words(said.Code(), said.Message()))
}

// Unary has the calls of a connection return plain errors.
func Unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return Plain(call(ctx, method, req, reply, cc, opts...))
}

var (
	quoted  = regexp.MustCompile(`^(?:.*: )?connection error: desc = ("(?:[^"\\]|\\.)*")$`)
	nested  = regexp.MustCompile(`^rpc error: code = \w+ desc = `)
	dialing = regexp.MustCompile(`^dial (?:tcp|unix)(?: \S+)?: (?:connect: )?`)
	network = regexp.MustCompile(`(?:raw-)?(?:read|write) (?:tcp|unix) \S+: (?:(?:read|write): )?`)
)

// prefixes say where in gRPC something has failed.
var prefixes = []string{
	"transport: Error while dialing: ",
	"transport: authentication handshake failed: ",
	"transport: ",
	"error reading server preface: ",
	"error reading from server: ",
}

func words(code codes.Code, text string) string {
	for changed := true; changed; {
		before := text
		if m := quoted.FindStringSubmatch(text); m != nil {
			if inner, err := strconv.Unquote(m[1]); err == nil {
				text = inner
			}
		}
		text = nested.ReplaceAllString(text, "")
		for _, p := range prefixes {
			text = strings.TrimPrefix(text, p)
		}
		text = dialing.ReplaceAllString(text, "")
		changed = text != before
	}
	text = network.ReplaceAllString(text, "")
	switch {
	case text == "EOF":
		return "it ended the connection"
	case code == codes.DeadlineExceeded && strings.Contains(text, context.DeadlineExceeded.Error()), text == "i/o timeout",
		text == "use of closed network connection": // by gRPC, when its handshake has taken too long
		return "no answer in time"
	case strings.HasPrefix(text, "keepalive ping failed to receive ACK within timeout"):
		return "no answer any more"
	case text == "":
		return strings.ToLower(code.String())
	}
	return text
}
