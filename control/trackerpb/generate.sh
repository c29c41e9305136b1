#!/bin/sh
# Regenerates the .pb.go files with protoc and the generators that go.mod pins as
# tools. Run by `go generate` and `make proto`.
set -eu
cd "$(dirname "$0")/../.."
exec protoc \
	--plugin=protoc-gen-go="$(go tool -n protoc-gen-go)" \
	--plugin=protoc-gen-go-grpc="$(go tool -n protoc-gen-go-grpc)" \
	--go_out=. --go_opt=paths=source_relative \
	--go-grpc_out=. --go-grpc_opt=paths=source_relative \
	control/trackerpb/tracker.proto control/trackerpb/control.proto
