package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/postern-dev/postern/internal/flow"
)

// ErrNoAgent is wrapped by errors of a Client that finds no agent at its socket.
var ErrNoAgent = errors.New("no agent")

// ErrRequest is what errors of a Client are whose question made no sense to the
// agent, such as one about a pod that does not exist; the text is the agent's.
var ErrRequest = errors.New("bad request")

// requestError is an ErrRequest.
type requestError string

// Error is error's.
func (e requestError) Error() string { return string(e) }

// Is makes it an ErrRequest.
func (requestError) Is(target error) bool { return target == ErrRequest }

// Client talks to one agent.
type Client struct {
	http   *http.Client
	socket string
}

// NewClient returns a Client for a socket; nothing is opened yet.
func NewClient(socket string) *Client {
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

func (c *Client) do(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, r)
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	res, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return nil, fmt.Errorf("agent at %s: %w\nthis needs root: run it with sudo", c.socket, cause(err))
	case err != nil && ctx.Err() == nil:
		return nil, fmt.Errorf("%w at %s (%w): is posternd agent running on this node?", ErrNoAgent, c.socket, cause(err))
	case err != nil:
		return nil, fmt.Errorf("agent: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		defer func() { _ = res.Body.Close() }()
		text, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
		if res.StatusCode == http.StatusBadRequest {
			return nil, requestError(strings.TrimSpace(string(text)))
		}
		return nil, fmt.Errorf("agent: %s", strings.TrimSpace(string(text)))
	}
	return res.Body, nil
}

// cause leaves out of an error what http and net say of themselves.
func cause(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}

func (c *Client) get(ctx context.Context, path string, to any) error {
	body, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	if err := json.NewDecoder(body).Decode(to); err != nil {
		return fmt.Errorf("agent's answer: %w", err)
	}
	return nil
}

// Status asks for the agent's state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.get(ctx, "/v1/status", &s)
}

// Endpoints asks for the node's endpoints, by namespace and name.
func (c *Client) Endpoints(ctx context.Context) ([]Endpoint, error) {
	var e []Endpoint
	return e, c.get(ctx, "/v1/endpoints", &e)
}

// Policies asks for the policies.
func (c *Client) Policies(ctx context.Context) ([]Policy, error) {
	var p []Policy
	return p, c.get(ctx, "/v1/policies", &p)
}

// Explain asks what would happen to a flow.
func (c *Client) Explain(ctx context.Context, q ExplainRequest) (ExplainResponse, error) {
	var out ExplainResponse
	body, err := c.do(ctx, http.MethodPost, "/v1/explain", q)
	if err != nil {
		return out, err
	}
	defer func() { _ = body.Close() }()
	if err := json.NewDecoder(body).Decode(&out); err != nil {
		return out, fmt.Errorf("agent's answer: %w", err)
	}
	return out, nil
}

// Flows calls each with the records that f selects, oldest first, until there
// are no more (or for ever with Follow), ctx is done or each returns an error.
// It says nothing of records that are missing.
func (c *Client) Flows(ctx context.Context, f Filter, each func(flow.Record) error) error {
	return c.FlowsAndLosses(ctx, f, each, func(Lost) error { return nil })
}

// FlowsAndLosses is Flows, and calls lost where records are missing, with Follow.
func (c *Client) FlowsAndLosses(ctx context.Context, f Filter, each func(flow.Record) error, lost func(Lost) error) error {
	body, err := c.do(ctx, http.MethodGet, "/v1/flows?"+f.Query().Encode(), nil)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	dec := json.NewDecoder(body)
	for {
		var line struct {
			flow.Record
			Where string `json:"where"`
			Lost  uint64 `json:"lost"`
		}
		if err := dec.Decode(&line); err != nil {
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("agent's answer: %w", err)
		}
		if line.Type == TypeLost {
			err = lost(Lost{Type: TypeLost, Time: line.Time, Where: line.Where, Lost: line.Lost})
		} else {
			err = each(line.Record)
		}
		if err != nil {
			return err
		}
	}
}
