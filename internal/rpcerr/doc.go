// Package rpcerr has gRPC's errors say what has happened in words that people know, without
// its own ("rpc error: code = … desc = …", "transport: Error while dialing").
package rpcerr
