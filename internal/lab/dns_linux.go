package lab

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// maxUDPAnswer is the longest answer over UDP, in bytes; longer ones are
	// truncated for the client to ask again over TCP. Source: RFC 1035 section 2.3.4.
	maxUDPAnswer = 512
	// recordTTL is every record's lifetime in seconds.
	recordTTL = 30
)

// zone is what every DNS server of a lab answers from.
type zone struct {
	mu      sync.RWMutex
	records map[string][]string // lower-case owner to addresses or one alias
	log     []Question
}

// Question is a question that some DNS server of the lab was asked.
type Question struct {
	Name string // lower-case, without the trailing dot
	Type string // e.g. "A"
	TCP  bool
}

// maxQuestions bounds the log of questions; later ones are not kept.
const maxQuestions = 100_000

func newZone(s *Spec) *zone {
	z := &zone{records: map[string][]string{}}
	for _, h := range s.Hosts {
		for _, name := range h.Names {
			for _, a := range h.IPs {
				key := canonical(name)
				z.records[key] = append(z.records[key], a.String())
			}
		}
	}
	for name, values := range s.Records {
		z.records[canonical(name)] = values
	}
	return z
}

func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// SetRecord makes the lab's DNS servers answer for a name: addresses, or one
// name (an alias), or nothing at all (the name then does not exist). It works
// in the process that runs the servers.
func (l *Lab) SetRecord(name string, values ...string) {
	l.zone.set(name, values)
}

func (z *zone) set(name string, values []string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if len(values) == 0 {
		delete(z.records, canonical(name))
		return
	}
	z.records[canonical(name)] = slices.Clone(values)
}

// setService makes the zone answer for a service's cluster name. Source:
// the Kubernetes DNS specification, section 2.3.
func (z *zone) setService(key string, addrs []netip.Addr) {
	namespace, name, _ := strings.Cut(key, "/")
	var values []string
	for _, a := range addrs {
		values = append(values, a.String())
	}
	z.set(name+"."+namespace+".svc.cluster.local", values)
}

// Questions returns what the lab's DNS servers were asked so far, in order.
func (l *Lab) Questions() []Question {
	l.zone.mu.RLock()
	defer l.zone.mu.RUnlock()
	return slices.Clone(l.zone.log)
}

// answer returns the answer to one message, or nil for what deserves none.
func (z *zone) answer(msg []byte, limit int) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || h.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return pack(dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true, RCode: dnsmessage.RCodeFormatError}})
	}
	z.note(Question{
		Name: canonical(q.Name.String()), Type: strings.TrimPrefix(q.Type.String(), "Type"), TCP: limit > maxUDPAnswer,
	})
	out := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: h.ID, Response: true, OpCode: h.OpCode,
			RecursionDesired: h.RecursionDesired, RecursionAvailable: true,
		},
		Questions: []dnsmessage.Question{q},
	}
	if h.OpCode != 0 {
		out.RCode = dnsmessage.RCodeNotImplemented
		return pack(out)
	}
	out.Answers, out.RCode = z.resolve(q)
	b := pack(out)
	if len(b) > limit {
		out.Answers, out.Truncated = nil, true
		b = pack(out)
	}
	return b
}

func pack(m dnsmessage.Message) []byte {
	b, err := m.Pack()
	if err != nil {
		return nil // a name of the table that DNS can't carry
	}
	return b
}

func (z *zone) note(q Question) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if len(z.log) < maxQuestions {
		z.log = append(z.log, q)
	}
}

// resolve follows aliases, at most 16, and collects the addresses of q's type.
func (z *zone) resolve(q dnsmessage.Question) ([]dnsmessage.Resource, dnsmessage.RCode) {
	z.mu.RLock()
	defer z.mu.RUnlock()
	var out []dnsmessage.Resource
	name := q.Name
	for range 16 {
		values, ok := z.records[canonical(name.String())]
		if !ok {
			return out, dnsmessage.RCodeNameError
		}
		head := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: recordTTL}
		var alias string
		for _, v := range values {
			a, err := netip.ParseAddr(v)
			switch {
			case err != nil:
				alias = v
			case a.Is4() && (q.Type == dnsmessage.TypeA || q.Type == dnsmessage.TypeALL):
				out = append(out, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: a.As4()}})
			case a.Is6() && (q.Type == dnsmessage.TypeAAAA || q.Type == dnsmessage.TypeALL):
				out = append(out, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
			}
		}
		if alias == "" {
			return out, dnsmessage.RCodeSuccess
		}
		target, err := dnsmessage.NewName(canonical(alias) + ".")
		if err != nil {
			return out, dnsmessage.RCodeServerFailure
		}
		out = append(out, dnsmessage.Resource{Header: head, Body: &dnsmessage.CNAMEResource{CNAME: target}})
		name = target
	}
	return out, dnsmessage.RCodeServerFailure
}

// stream answers the messages of one TCP connection. Source: RFC 1035 section 4.2.2.
func (z *zone) stream(c net.Conn) {
	var size [2]byte
	for {
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		msg := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, msg); err != nil {
			return
		}
		out := z.answer(msg, 1<<16-1)
		if out == nil {
			return
		}
		binary.BigEndian.PutUint16(size[:], uint16(len(out)))
		if _, err := c.Write(append(size[:], out...)); err != nil {
			return
		}
	}
}
