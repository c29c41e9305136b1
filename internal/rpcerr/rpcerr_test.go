package rpcerr

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

func TestPlain(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{errors.New("mine"), "mine"},
		{status.Error(codes.Unavailable,
			`connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`),
			"connection refused"},
		{status.Error(codes.Unavailable, `last connection error: connection error: desc = "transport: Error while dialing: dial tcp: `+
			`lookup t1: no such host"`), "lookup t1: no such host"},
		{status.Error(codes.DeadlineExceeded, `received context error while waiting for new LB policy update: context deadline exceeded`),
			"no answer in time"},
		{status.Error(codes.DeadlineExceeded, "no hello"), "no hello"},
		{status.Error(codes.Unavailable,
			`connection error: desc = "transport: authentication handshake failed: tls: \"x\" is bad"`), `tls: "x" is bad`},
		{status.Error(codes.Unavailable, "error reading from server: EOF"), "it ended the connection"},
		{status.Error(codes.Unavailable, "error reading from server: read tcp 10.0.0.1:5->10.0.0.2:6: read: connection reset by peer"),
			"connection reset by peer"},
		{status.Error(codes.Internal, `rpc error: code = Aborted desc = the node connected anew`), "the node connected anew"},
		{status.Error(codes.Unavailable, `connection error: desc = "error reading server preface: raw-read tcp 127.0.0.1:4->127.0.0.1:5: `+
			`use of closed network connection"`), "no answer in time"},
		{status.Error(codes.Unavailable,
			`connection error: desc = "error reading server preface: read tcp 127.0.0.1:4->127.0.0.1:5: i/o timeout"`),
			"no answer in time"},
		{status.Error(codes.Unavailable, ""), "unavailable"},
		{status.Error(codes.PermissionDenied, `node a may not be node "b"`), `node a may not be node "b"`},
	} {
		got := Plain(tt.err)
		if got.Error() != tt.want {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.want)
		}
		if status.Code(got) != status.Code(tt.err) || status.Code(fmt.Errorf("tracker: %w", got)) != status.Code(tt.err) {
			t.Errorf("%v: %v", tt.err, status.Code(got))
		}
	}
	if Plain(nil) != nil {
		t.Error("an error of nothing")
	}
}

// What gRPC really says of connections that cannot be made, and of those that end.
func TestReal(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	for _, to := range []string{"unix://" + gone, "passthrough:///127.0.0.1:1", "passthrough:///" + l.Addr().String()} {
		conn, err := grpc.NewClient(to, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(Unary))
		if err != nil {
			t.Fatal(err)
		}
		_, err = grpc_health_v1.NewHealthClient(conn).Check(context.Background(), &grpc_health_v1.HealthCheckRequest{})
		conn.Close()
		if err == nil || status.Code(err) != codes.Unavailable {
			t.Fatalf("%s: %v", to, err)
		}
		for _, jargon := range []string{"rpc", "desc", "transport", "dial", "preface"} {
			if strings.Contains(err.Error(), jargon) {
				t.Errorf("%s: %v", to, err)
			}
		}
		t.Log(err)
	}
}
