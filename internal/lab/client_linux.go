package lab

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Echo sends data from inside the namespace to an echo server over "tcp" or
// "udp" and returns what comes back. It gives up when ctx is done.
func (n *Namespace) Echo(ctx context.Context, network string, to netip.AddrPort, data []byte) (Echo, error) {
	c, err := n.Dial(ctx, network, to.String())
	if err != nil {
		return Echo{}, err
	}
	defer func() { _ = c.Close() }()
	return Exchange(ctx, c, data)
}

// Exchange sends data over a fresh connection to an echo server and returns the answer.
func Exchange(ctx context.Context, c net.Conn, data []byte) (Echo, error) {
	stop := closeDeadline(ctx, c)
	defer stop()
	if _, err := c.Write(data); err != nil {
		return Echo{}, err
	}
	buf := make([]byte, len(data)+512)
	got := 0
	for {
		n, err := c.Read(buf[got:])
		got += n
		if err != nil {
			return Echo{}, err
		}
		// A datagram is the whole answer; a stream may come in pieces.
		if e, err := ParseEcho(buf[:got]); err == nil && len(e.Data) >= len(data) {
			return e, nil
		}
	}
}

// Get sends one HTTP request from inside the namespace, over "http" or "https",
// with host as the Host header and TLS server name, and reads the answer of one
// of the lab's servers. The server's certificate is not verified.
func (n *Namespace) Get(ctx context.Context, scheme string, to netip.AddrPort, host string) (Echo, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return n.Dial(ctx, network, to.String())
		},
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS12, ServerName: host,
			InsecureSkipVerify: true, //nolint:gosec // the lab's servers sign their own
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+host+"/", nil)
	if err != nil {
		return Echo{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return Echo{}, err
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return Echo{}, err
	}
	return ParseEcho(b)
}

// closeDeadline makes reads and writes of c fail once ctx is done, until stop is called.
func closeDeadline(ctx context.Context, c net.Conn) (stop func() bool) {
	if d, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(d)
	}
	return context.AfterFunc(ctx, func() { _ = c.Close() })
}

// Ping sends one ICMP or ICMPv6 echo request with data from inside the
// namespace, through an unprivileged socket, and waits for the reply.
func (n *Namespace) Ping(ctx context.Context, to netip.Addr, data []byte) error {
	network, local, proto := "udp4", "0.0.0.0", int(unix.IPPROTO_ICMP)
	var kind icmp.Type = ipv4.ICMPTypeEcho
	if to.Is6() {
		network, local, proto, kind = "udp6", "::", unix.IPPROTO_ICMPV6, ipv6.ICMPTypeEchoRequest
	}
	var pc *icmp.PacketConn
	err := n.Do(func() (err error) {
		if to, err = localZone(to); err != nil {
			return err
		}
		pc, err = icmp.ListenPacket(network, local)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = pc.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = pc.Close() })
	defer stop()
	msg := icmp.Message{Type: kind, Body: &icmp.Echo{Seq: 1, Data: data}}
	b, err := msg.Marshal(nil) // the kernel writes identifier and checksum
	if err != nil {
		return err
	}
	if _, err := pc.WriteTo(b, &net.UDPAddr{IP: to.AsSlice(), Zone: to.Zone()}); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		size, _, err := pc.ReadFrom(buf)
		if err != nil {
			return errors.Join(ctx.Err(), err)
		}
		m, err := icmp.ParseMessage(proto, buf[:size])
		if err != nil {
			return err
		}
		if e, ok := m.Body.(*icmp.Echo); ok && string(e.Data) == string(data) {
			return nil
		}
	}
}

// Resolve asks a DNS server from inside the namespace for the addresses of one
// type, "A" or "AAAA", over "udp" or "tcp". A name that does not exist gives no
// addresses and an error wrapping ErrNotFound.
func (n *Namespace) Resolve(ctx context.Context, network string, server netip.AddrPort, name, kind string) ([]netip.Addr, error) {
	q := dnsmessage.Question{Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	if kind == "AAAA" {
		q.Type = dnsmessage.TypeAAAA
	}
	var err error
	if q.Name, err = dnsmessage.NewName(canonical(name) + "."); err != nil {
		return nil, err
	}
	c, err := n.Dial(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	defer closeDeadline(ctx, c)()
	query := dnsmessage.Message{
		// The local port is as good as random and needs no other source.
		Header:    dnsmessage.Header{ID: addrPort(c.LocalAddr()).Port(), RecursionDesired: true},
		Questions: []dnsmessage.Question{q},
	}
	b, err := query.Pack()
	if err != nil {
		return nil, err
	}
	answer, err := exchangeDNS(c, network, b)
	if err != nil {
		return nil, err
	}
	var m dnsmessage.Message
	if err := m.Unpack(answer); err != nil {
		return nil, err
	}
	if m.RCode == dnsmessage.RCodeNameError {
		return nil, fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	if m.RCode != dnsmessage.RCodeSuccess {
		return nil, fmt.Errorf("%s: %s", name, m.RCode)
	}
	var out []netip.Addr
	for _, r := range m.Answers {
		switch body := r.Body.(type) {
		case *dnsmessage.AResource:
			out = append(out, netip.AddrFrom4(body.A))
		case *dnsmessage.AAAAResource:
			out = append(out, netip.AddrFrom16(body.AAAA))
		}
	}
	return out, nil
}

func exchangeDNS(c net.Conn, network string, query []byte) ([]byte, error) {
	if network[:3] == "udp" {
		if _, err := c.Write(query); err != nil {
			return nil, err
		}
		buf := make([]byte, 64<<10)
		n, err := c.Read(buf)
		return buf[:n], err
	}
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(c, buf)
	return buf, err
}

func addrPort(a net.Addr) netip.AddrPort {
	switch t := a.(type) {
	case *net.TCPAddr:
		return t.AddrPort()
	case *net.UDPAddr:
		return t.AddrPort()
	}
	return netip.AddrPort{}
}

// Exec runs a command inside "outside", a node, or a pod given as
// "namespace/name", and waits for it. The command sees this machine's files. If
// it ends with a code other than 0 the error is an *exec.ExitError.
func (l *Lab) Exec(ctx context.Context, target string, streams Streams, command string, args ...string) error {
	ns, err := l.Find(target)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, command, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = streams.In, streams.Out, streams.Err
	cmd.Env = append(os.Environ(), "POSTERN_LAB="+l.spec.Name, "POSTERN_LAB_TARGET="+target)
	return ns.Run(cmd)
}
