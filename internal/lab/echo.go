package lab

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
)

// Echo is what an echo server answers, and an HTTP server in its body: what it
// saw of the client, then, for echo servers, what the client sent.
//
// On the wire it is one line "<client> <server> <place>\n", then the data; a TCP
// echo server sends the line with the first data that it echoes.
type Echo struct {
	// Client is the source address that the server saw, after any translation.
	Client netip.AddrPort
	// Server is the address that the client's packet had at the server.
	Server netip.AddrPort
	// Place is the server's pod, node or host.
	Place string
	Data  []byte
}

func echoLine(client, server netip.AddrPort, place string) string {
	return fmt.Sprintf("%s %s %s\n", unmapped(client), unmapped(server), place)
}

// ParseEcho reads an answer of an echo server.
func ParseEcho(b []byte) (Echo, error) {
	line, data, ok := bytes.Cut(b, []byte("\n"))
	if !ok {
		return Echo{}, fmt.Errorf("echo answer %.40q: no first line", b)
	}
	fields := strings.Fields(string(line))
	if len(fields) != 3 {
		return Echo{}, fmt.Errorf("echo answer %.40q: want three words", line)
	}
	e := Echo{Place: fields[2], Data: data}
	var err error
	if e.Client, err = netip.ParseAddrPort(fields[0]); err != nil {
		return Echo{}, err
	}
	if e.Server, err = netip.ParseAddrPort(fields[1]); err != nil {
		return Echo{}, err
	}
	return e, nil
}

func unmapped(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
