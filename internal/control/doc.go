// Package control is the agent's control interface: HTTP with JSON bodies over
// a unix socket that only root can open. It holds the types of both sides and
// the client; the server is in package agent.
//
//	GET  /v1/status              Status
//	GET  /v1/endpoints           []Endpoint
//	GET  /v1/policies            []Policy
//	GET  /v1/flows               flow.Record, one JSON object a line; ?follow=1 goes on, with Lost where some are missing; Filter as query
//	POST /v1/explain             ExplainRequest -> ExplainResponse
//	GET  /metrics                Prometheus text format
//
// Layer 2; imports no Kubernetes and no eBPF, so that the CLI builds anywhere.
package control
