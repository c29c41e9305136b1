// Package registries is what a node's own downloads have shown of registries, by host: how
// many bytes a second they give, and whether they can continue a blob at an offset.
//
// [Memory] is a value that one goroutine owns; time is an argument. It is bounded, and
// in memory only: an agent that starts anew learns anew. What a name has beside the host, a port,
// makes no difference to it. The host "" stands for all
// registries whose name is not known: the agent learns names from containerd, when it can.
package registries
