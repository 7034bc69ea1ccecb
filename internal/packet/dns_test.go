package packet_test

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

var update = flag.Bool("update", false, "write testdata/dns.txt")

// dnsCase is a message and what it teaches.
type dnsCase struct {
	name string
	b    []byte
	err  error
	// want is as taught prints it. Not set for an error.
	want string
}

// taught prints what a message says, without its question.
func taught(m *packet.DNS) string {
	var s []string
	for _, a := range m.Addrs[:m.NumAddrs] {
		s = append(s, fmt.Sprintf("%s/%d", a.Addr, a.TTL))
	}
	if m.Aliases > 0 {
		s = append(s, fmt.Sprintf("by %d from %s", m.Aliases, m.Last))
	}
	return strings.Join(s, " ")
}

// In a message with the question of dnsQuestion the question's name is at 12, com
// in it at 20, the class at 27, and the answers begin at 29.
var dnsQuestion = packettest.DNSQuestion{Name: packettest.DNSLabels("example.com"), Type: packettest.DNSTypeA}

const dnsAnswers = 29

func dnsA(owner, addr string, ttl uint32) packettest.DNSRecord {
	a := netip.MustParseAddr(addr)
	r := packettest.DNSRecord{Name: packettest.DNSLabels(owner), Type: packettest.DNSTypeA, TTL: ttl, Data: a.AsSlice()}
	if a.Is6() {
		r.Type = packettest.DNSTypeAAAA
	}
	return r
}

func dnsCNAME(owner, target string, ttl uint32) packettest.DNSRecord {
	return packettest.DNSRecord{Name: packettest.DNSLabels(owner), Type: packettest.DNSTypeCNAME, TTL: ttl, Target: packettest.DNSLabels(target)}
}

// dnsCases are messages by hand, most of them wrong.
func dnsCases() []dnsCase {
	type (
		dns  = packettest.DNS
		rec  = packettest.DNSRecord
		name = packettest.DNSName
	)
	one := dnsA("example.com", "192.0.2.1", 60)
	const learnt = "192.0.2.1/60"
	ask := []packettest.DNSQuestion{dnsQuestion}
	response := func(answers ...rec) dns {
		return dns{ID: 0x1234, Flags: packettest.DNSResponse | 0x0180, Questions: slices.Clone(ask), Answers: answers, Compression: packettest.DNSFirst}
	}
	asked := func(n name, kind uint16, answers ...rec) dns {
		m := response(answers...)
		m.Questions = []packettest.DNSQuestion{{Name: n, Type: kind}}
		return m
	}
	edit := func(m dns, f func(m *dns)) []byte { f(&m); return m.Bytes() }
	// owned is a response with an address whose owner is these octets.
	owned := func(owner ...byte) []byte { r := one; r.Raw = owner; return response(r).Bytes() }
	// long is a name of n octets on the wire, n from 254 to 257.
	long := func(n int) name {
		l := strings.Repeat("l", 63)
		return name{l, l, l, strings.Repeat("l", n-255+61)}
	}
	// aliased is a response with an alias whose data is these octets.
	aliased := func(data ...byte) []byte {
		return response(rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeCNAME, TTL: 60, Data: data}, one).Bytes()
	}
	chain := func(n int) dns {
		var rs []rec
		at := "example.com"
		for i := range n {
			to := fmt.Sprintf("n%d.example.net", i)
			rs, at = append(rs, dnsCNAME(at, to, uint32(100-i))), to
		}
		return response(append(rs, dnsA(at, "192.0.2.1", 200))...)
	}
	// pointers is a response whose nth record is of a name of n pointers: each
	// points to the one before.
	pointers := func(n int) []byte {
		var rs []rec
		at := 12
		for i := range n {
			r := one
			r.Raw = binary.BigEndian.AppendUint16(nil, 0xc000|uint16(at))
			rs, at = append(rs, r), dnsAnswers+16*i
		}
		return response(rs...).Bytes()
	}
	// many is a response with n addresses. No more than 254 are in 4096 octets if
	// the owner is a pointer, and 271 if it is the root.
	many := func(owner name, n int) []byte {
		m := asked(owner, packettest.DNSTypeA)
		for i := range n {
			r := dnsA("", fmt.Sprintf("192.0.2.%d", i%256), uint32(i))
			r.Name = owner
			m.Answers = append(m.Answers, r)
		}
		return m.Bytes()
	}
	sized := func(n int) []byte {
		return edit(response(one), func(m *dns) { m.Trailer = make([]byte, n-len(m.Bytes())) })
	}
	times := func(s string, n int) string { return strings.TrimSuffix(strings.Repeat(s+" ", n), " ") }
	list := func(n int) string {
		var s []string
		for i := range n {
			s = append(s, fmt.Sprintf("192.0.2.%d/%d", i%256, i))
		}
		return strings.Join(s, " ")
	}
	lie := func(r rec, n uint16) rec { r.Length = new(n); return r }
	cname, opt := dnsCNAME("example.com", "b.example.net", 30), rec{Name: name{}, Type: packettest.DNSTypeOPT, Class: 1232}
	six := dnsA("example.com", "2001:db8::1", 60)

	return []dnsCase{
		// Rule 1.
		{name: "empty", err: packet.ErrDNSShort},
		{name: "11 octets", b: make([]byte, 11), err: packet.ErrDNSShort},
		{name: "header only", b: dns{QDCount: new(uint16(1))}.Bytes(), err: packet.ErrDNSEnd},
		{name: "4096 octets", b: sized(4096), want: learnt},
		{name: "4097 octets", b: sized(4097), err: packet.ErrDNSLong},
		{name: "query", b: dns{ID: 7, Flags: 0x0100, Questions: ask}.Bytes()},
		{name: "query with an answer", b: edit(response(one), func(m *dns) { m.Flags = 0 })},
		{name: "query with answers that are not there", b: dns{Questions: ask, ANCount: new(uint16(0xffff))}.Bytes()},
		{name: "query with OPT", b: dns{Questions: ask, Additionals: []rec{opt}}.Bytes()},
		{name: "inverse query", b: edit(response(one), func(m *dns) { m.Flags |= 1 << 11 }), err: packet.ErrDNSOpcode},
		{name: "update", b: edit(response(one), func(m *dns) { m.Flags |= 5 << 11 }), err: packet.ErrDNSOpcode},
		{name: "opcode 8", b: edit(response(one), func(m *dns) { m.Flags |= 8 << 11 }), err: packet.ErrDNSOpcode},
		{name: "no question", b: edit(response(one), func(m *dns) { m.Questions = nil }), err: packet.ErrDNSQuestionCount},
		{name: "QDCOUNT 0 before a question", b: edit(response(one), func(m *dns) { m.QDCount = new(uint16(0)) }), err: packet.ErrDNSQuestionCount},
		{name: "two questions", b: edit(response(one), func(m *dns) { m.Questions = append(m.Questions, dnsQuestion) }), err: packet.ErrDNSQuestionCount},
		{name: "QDCOUNT 257", b: edit(response(one), func(m *dns) { m.QDCount = new(uint16(257)) }), err: packet.ErrDNSQuestionCount},
		{name: "all flags", b: edit(response(one), func(m *dns) { m.Flags |= 0x07f0 }), want: learnt},
		{name: "truncated by its sender", b: edit(response(one), func(m *dns) { m.Flags |= packettest.DNSTruncated }), want: learnt},

		// Rule 2.
		{name: "the root", b: asked(name{}, packettest.DNSTypeA, rec{Name: name{}, Type: packettest.DNSTypeA, TTL: 60, Data: []byte{192, 0, 2, 1}}).Bytes(), want: learnt},
		{name: "label of 63", b: dns{Questions: []packettest.DNSQuestion{{Name: name{strings.Repeat("a", 63)}}}}.Bytes()},
		{name: "label of 64", b: dns{Questions: []packettest.DNSQuestion{{Name: name{strings.Repeat("a", 64)}}}}.Bytes(), err: packet.ErrDNSLabel},
		{name: "label of 128", b: dns{Questions: []packettest.DNSQuestion{{Name: name{strings.Repeat("a", 128)}}}}.Bytes(), err: packet.ErrDNSLabel},
		{name: "owner with a label of 64", b: owned(append([]byte{64}, strings.Repeat("a", 65)...)...), err: packet.ErrDNSLabel},
		{name: "name of 254", b: dns{Questions: []packettest.DNSQuestion{{Name: long(254)}}}.Bytes()},
		{name: "name of 255", b: asked(long(255), packettest.DNSTypeA, func() rec { r := one; r.Name = long(255); return r }()).Bytes(), want: learnt},
		{name: "name of 256", b: dns{Questions: []packettest.DNSQuestion{{Name: long(256)}}}.Bytes(), err: packet.ErrDNSName},
		{name: "name of 257", b: dns{Questions: []packettest.DNSQuestion{{Name: long(257)}}}.Bytes(), err: packet.ErrDNSName},
		{name: "name of 127 labels", b: dns{Questions: []packettest.DNSQuestion{{Name: strings.Split(times("a", 127), " ")}}}.Bytes()},
		{name: "name of 128 labels", b: dns{Questions: []packettest.DNSQuestion{{Name: strings.Split(times("a", 128), " ")}}}.Bytes(), err: packet.ErrDNSName},
		{name: "name of 255 by a pointer", b: asked(long(254)[1:], packettest.DNSTypeA, rec{Raw: append(append([]byte{63}, strings.Repeat("L", 63)...), 0xc0, 12), Type: packettest.DNSTypeA, Data: make([]byte, 4)}).Bytes()},
		{name: "name of 256 by a pointer", b: asked(long(255), packettest.DNSTypeA, rec{Raw: []byte{0, 1, 'a', 0xc0, 12}[1:], Type: packettest.DNSTypeA, Data: make([]byte, 4)}).Bytes(), err: packet.ErrDNSName},
		{name: "other case", b: asked(name{"eXaMpLe", "CoM"}, packettest.DNSTypeA, dnsCNAME("ExAmPlE.cOm", "B.Example.NET", 5), dnsA("b.eXample.net", "192.0.2.1", 60)).Bytes(), want: "192.0.2.1/5 by 1 from b.example.net"},
		{name: "other case outside of ASCII", b: asked(name{"\xc3\x84"}, packettest.DNSTypeA, rec{Name: name{"\xc3\xa4"}, Type: packettest.DNSTypeA, Data: make([]byte, 4)}).Bytes()},
		{name: "neighbours of letters", b: asked(name{"@["}, packettest.DNSTypeA, rec{Name: name{"`{"}, Type: packettest.DNSTypeA, Data: make([]byte, 4)}).Bytes()},
		{name: "NUL in a label", b: asked(name{"example\x00", "com"}, packettest.DNSTypeA, one, func() rec { r := one; r.Name = name{"example\x00", "com"}; r.TTL = 7; return r }()).Bytes(), want: "192.0.2.1/7"},
		{name: "dot in a label", b: asked(name{"example.com"}, packettest.DNSTypeA, one, func() rec { r := one; r.Name = name{"example.com"}; r.TTL = 7; return r }()).Bytes(), want: "192.0.2.1/7"},
		{name: "label of any octets", b: asked(name{"\xff\x01 \\.", "\xc0\x0c"}, packettest.DNSTypeA, func() rec { r := one; r.Name = name{"\xff\x01 \\.", "\xc0\x0c"}; return r }()).Bytes(), want: learnt},

		// Rule 3.
		{name: "pointer in the question", b: edit(response(), func(m *dns) { m.Questions[0].Raw = []byte{3, 'w', 'w', 'w', 0xc0, 12} }), err: packet.ErrDNSQuestionPointer},
		{name: "half a pointer in the question", b: append(dns{QDCount: new(uint16(1))}.Bytes(), 0xc0), err: packet.ErrDNSQuestionPointer},
		{name: "pointer to the question", b: owned(0xc0, 12), want: learnt},
		{name: "label and pointer", b: owned(append([]byte("\x07EXAMPLE"), 0xc0, 20)...), want: learnt},
		{name: "pointer to the header's last octet", b: owned(0xc0, 11), err: packet.ErrDNSPointer},
		{name: "pointer to the header's first octet", b: owned(0xc0, 0), err: packet.ErrDNSPointer},
		{name: "pointer to itself", b: owned(0xc0, dnsAnswers), err: packet.ErrDNSPointer},
		{name: "pointer to its second octet", b: owned(0xc0, dnsAnswers+1), err: packet.ErrDNSPointer},
		{name: "pointer to its own name", b: owned(1, 'a', 0xc0, dnsAnswers), err: packet.ErrDNSPointer},
		{name: "pointer into its own name", b: owned(2, 1, 'a', 0xc0, dnsAnswers+1), err: packet.ErrDNSPointer},
		{name: "forward pointer", b: owned(0xc0, dnsAnswers+2), err: packet.ErrDNSPointer},
		{name: "pointer to 4108, not 12", b: owned(0xd0, 12), err: packet.ErrDNSPointer},
		{name: "pointer to 8204, not 12", b: owned(0xe0, 12), err: packet.ErrDNSPointer},
		{name: "pointer past the end", b: owned(0xff, 0xff), err: packet.ErrDNSPointer},
		// From 28 a label of one octet and one of two lead back to the same pointer.
		{name: "pointer in a loop", b: owned(3, 2, 'a', 'b', 0xc0, 28), err: packet.ErrDNSPointer},
		{name: "pointer into a label", b: owned(0xc0, 13), err: packet.ErrDNSLabel},
		{name: "pointer to the root", b: asked(name{}, packettest.DNSTypeA, rec{Raw: []byte{0xc0, 12}, Type: packettest.DNSTypeA, TTL: 60, Data: []byte{192, 0, 2, 1}}).Bytes(), want: learnt},
		{name: "pointer to the root of the question", b: owned(append([]byte("\x07example\x03com"), 0xc0, 24)...), want: learnt},
		{name: "16 pointers", b: pointers(16), want: times(learnt, 16)},
		{name: "17 pointers", b: pointers(17), err: packet.ErrDNSPointers},
		{name: "half a pointer at the end", b: append(edit(response(), func(m *dns) { m.ANCount = new(uint16(1)) }), 0xc0), err: packet.ErrDNSEnd},
		{name: "reserved 01", b: owned(0x41, 'a', 0), err: packet.ErrDNSLabel},
		{name: "reserved 10", b: owned(0x80, 'a', 0), err: packet.ErrDNSLabel},

		// Rule 4.
		{name: "no such name", b: edit(response(one), func(m *dns) { m.Flags |= 3 })},
		{name: "RCODE 8", b: edit(response(one), func(m *dns) { m.Flags |= 8 })},
		{name: "no such name, and nonsense behind", b: edit(response(), func(m *dns) { m.Flags |= 3; m.ANCount = new(uint16(0xffff)); m.Trailer = []byte{0xff} })},
		{name: "no answer", b: response().Bytes()},
		{name: "254 addresses", b: many(name{"a"}, 254), want: list(254)},
		{name: "255 addresses in too many octets", b: many(name{"a"}, 255), err: packet.ErrDNSLong},
		{name: "256 addresses", b: many(name{}, 256), want: list(256)},
		{name: "257 addresses", b: many(name{}, 257), err: packet.ErrDNSAnswerCount},
		{name: "ANCOUNT one too high", b: edit(response(one), func(m *dns) { m.ANCount = new(uint16(2)) }), err: packet.ErrDNSEnd},
		{name: "ANCOUNT reaches into the next section", b: edit(response(one), func(m *dns) {
			m.ANCount, m.Authorities = new(uint16(2)), []rec{dnsA("example.com", "192.0.2.2", 5)}
		}), want: learnt + " 192.0.2.2/5"},
		{name: "ANCOUNT one too low", b: edit(response(one, dnsA("example.com", "192.0.2.2", 5)), func(m *dns) { m.ANCount = new(uint16(1)) }), want: learnt},
		{name: "ANCOUNT 0 before an answer", b: edit(response(one), func(m *dns) { m.ANCount = new(uint16(0)) })},
		{name: "ANCOUNT 256", b: edit(response(one), func(m *dns) { m.ANCount = new(uint16(256)) }), err: packet.ErrDNSEnd},
		{name: "ANCOUNT 257", b: edit(response(one), func(m *dns) { m.ANCount = new(uint16(257)) }), err: packet.ErrDNSAnswerCount},
		{name: "ANCOUNT 65535", b: edit(response(one), func(m *dns) { m.ANCount = new(uint16(65535)) }), err: packet.ErrDNSAnswerCount},
		{name: "trailing octets", b: edit(response(one), func(m *dns) { m.Trailer = []byte{0xff, 0xff} }), want: learnt},
		{name: "other sections", b: edit(response(one), func(m *dns) {
			m.Authorities, m.Additionals = []rec{dnsA("example.com", "192.0.2.9", 5)}, []rec{dnsA("example.com", "192.0.2.8", 5), opt}
		}), want: learnt},
		{name: "counts of sections that are not there", b: edit(response(one), func(m *dns) { m.NSCount, m.ARCount = new(uint16(65535)), new(uint16(65535)) }), want: learnt},
		{name: "OPT as an answer", b: response(opt, one).Bytes(), want: learnt},

		// Rule 5.
		{name: "length past the end", b: response(lie(one, 5)).Bytes(), err: packet.ErrDNSEnd},
		{name: "length of 65535", b: response(lie(one, 65535)).Bytes(), err: packet.ErrDNSEnd},
		{name: "length past the end of another's record", b: response(one, lie(dnsA("example.org", "192.0.2.2", 60), 5)).Bytes(), err: packet.ErrDNSEnd},
		{name: "another's owner has a label of 64", b: response(one, func() rec { r := one; r.Raw = []byte{64, 0}; return r }()).Bytes(), err: packet.ErrDNSLabel},

		// Rule 6.
		{name: "address", b: response(one).Bytes(), want: learnt},
		{name: "the same twice", b: response(one, one).Bytes(), want: times(learnt, 2)},
		{name: "another's address", b: response(dnsA("example.org", "192.0.2.1", 60)).Bytes()},
		{name: "another's address, of no address's length", b: response(rec{Name: name{"x"}, Type: packettest.DNSTypeA, Data: make([]byte, 3)}, one).Bytes(), want: learnt},
		{name: "the parent's and a child's addresses", b: response(dnsA("com", "192.0.2.8", 60), dnsA("www.example.com", "192.0.2.9", 60), one).Bytes(), want: learnt},
		{name: "address of class CH", b: response(func() rec { r := one; r.Class = packettest.DNSClassCH; return r }()).Bytes()},
		{name: "address of class CH and no address's length", b: response(rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeA, Class: packettest.DNSClassCH, Data: make([]byte, 3)}, one).Bytes(), want: learnt},
		{name: "address of class ANY", b: response(func() rec { r := one; r.Class = 255; return r }()).Bytes()},
		{name: "question of class CH", b: edit(response(cname, one), func(m *dns) {
			q := dnsQuestion
			q.Class = packettest.DNSClassCH
			m.Questions = []packettest.DNSQuestion{q}
		})},
		{name: "question and answer of class CH", b: edit(response(func() rec { r := one; r.Class = packettest.DNSClassCH; return r }()), func(m *dns) {
			q := dnsQuestion
			q.Class = packettest.DNSClassCH
			m.Questions = []packettest.DNSQuestion{q}
		})},
		{name: "question of class ANY", b: edit(response(one), func(m *dns) {
			q := dnsQuestion
			q.Class = 255
			m.Questions = []packettest.DNSQuestion{q}
		})},

		// Rule 7.
		{name: "alias", b: response(cname, dnsA("b.example.net", "192.0.2.1", 60)).Bytes(), want: "192.0.2.1/30 by 1 from b.example.net"},
		{name: "alias of a longer TTL", b: response(dnsCNAME("example.com", "b", 3000), dnsA("b", "192.0.2.1", 60)).Bytes(), want: "192.0.2.1/60 by 1 from b"},
		{name: "alias without an address", b: response(cname).Bytes(), want: "by 1 from b.example.net"},
		{name: "alias to the root", b: response(dnsCNAME("example.com", ".", 9)).Bytes(), want: "by 1 from ."},
		{name: "address of the name in front of the alias", b: response(cname, one).Bytes(), want: "by 1 from b.example.net"},
		{name: "alias in front of which its target's address stands", b: response(dnsA("b.example.net", "192.0.2.1", 60), cname).Bytes(), want: "by 1 from b.example.net"},
		{name: "alias behind an address", b: response(one, cname, dnsA("b.example.net", "192.0.2.2", 60)).Bytes(), want: learnt},
		{name: "malformed alias behind an address", b: response(one, rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeCNAME, Data: []byte{0x80}}).Bytes(), want: learnt},
		{name: "another's malformed alias", b: response(rec{Name: name{"x"}, Type: packettest.DNSTypeCNAME, Data: []byte{0x80}}, one).Bytes(), want: learnt},
		{name: "malformed alias of class CH", b: response(rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeCNAME, Class: 3, Data: []byte{0x80}}, one).Bytes(), want: learnt},
		{name: "two aliases of a name", b: response(cname, dnsCNAME("example.com", "c", 1), dnsA("c", "192.0.2.9", 60), dnsA("b.example.net", "192.0.2.1", 60)).Bytes(), want: "192.0.2.1/30 by 1 from b.example.net"},
		{name: "alias to itself", b: response(dnsCNAME("example.com", "example.com", 9), one).Bytes(), want: "192.0.2.1/9 by 1 from example.com"},
		{name: "aliases in a loop", b: response(cname, dnsCNAME("b.example.net", "example.com", 9), cname, dnsCNAME("b.example.net", "example.com", 9)).Bytes(), want: "by 4 from example.com"},
		{name: "16 aliases", b: chain(16).Bytes(), want: "192.0.2.1/85 by 16 from n15.example.net"},
		{name: "17 aliases", b: chain(17).Bytes(), want: "192.0.2.1/84 by 17 from n16.example.net"},
		{name: "aliases out of order", b: response(dnsCNAME("b", "c", 9), dnsCNAME("example.com", "b", 9), dnsA("c", "192.0.2.1", 60)).Bytes(), want: "by 1 from b"},
		{name: "alias with an octet behind", b: aliased(1, 'b', 0, 0), err: packet.ErrDNSAlias},
		{name: "alias that ends behind its data", b: aliased(1, 'b'), err: packet.ErrDNSAlias},
		{name: "alias of two names", b: aliased(0, 0), err: packet.ErrDNSAlias},
		{name: "alias of no octets", b: response(lie(rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeCNAME}, 0), rec{Name: name{}, Type: 1, Data: make([]byte, 4)}).Bytes(), err: packet.ErrDNSAlias},
		{name: "alias of half a pointer at the end", b: response(rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeCNAME, Data: []byte{0xc0}}).Bytes(), err: packet.ErrDNSEnd},
		{name: "alias by a pointer", b: aliased(0xc0, 20), want: "by 1 from com"},
		{name: "alias that points to its owner", b: aliased(0xc0, 12), want: "192.0.2.1/60 by 1 from example.com"},
		{name: "alias that points to itself", b: aliased(0xc0, dnsAnswers+12), err: packet.ErrDNSPointer},
		{name: "alias with a reserved label", b: aliased(0x40, 0), err: packet.ErrDNSLabel},
		{name: "alias of NUL and dots", b: response(rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeCNAME, TTL: 3, Target: name{"a.b\x00", "c"}}).Bytes(), want: `by 1 from a\.b\000.c`},
		{name: "alias asked for", b: asked(dnsQuestion.Name, packettest.DNSTypeCNAME, cname).Bytes(), want: "by 1 from b.example.net"},
		{name: "DNAME and the alias made of it", b: asked(name{"www", "example", "com"}, packettest.DNSTypeA,
			rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeDNAME, TTL: 5, Target: name{"example", "net"}},
			dnsCNAME("www.example.com", "www.example.net", 0), dnsA("www.example.net", "192.0.2.1", 60)).Bytes(), want: "192.0.2.1/0 by 1 from www.example.net"},
		{name: "DNAME alone", b: asked(name{"www", "example", "com"}, packettest.DNSTypeA,
			rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeDNAME, TTL: 5, Target: name{"example", "net"}}, dnsA("www.example.net", "192.0.2.1", 60)).Bytes()},

		// Rule 8.
		{name: "IPv6", b: asked(dnsQuestion.Name, packettest.DNSTypeAAAA, six).Bytes(), want: "2001:db8::1/60"},
		{name: "IPv6 that stands for IPv4", b: asked(dnsQuestion.Name, packettest.DNSTypeAAAA, dnsA("example.com", "::ffff:192.0.2.1", 60)).Bytes(), want: "::ffff:192.0.2.1/60"},
		{name: "IPv4 for a question for IPv6", b: asked(dnsQuestion.Name, packettest.DNSTypeAAAA, one, six).Bytes(), want: "2001:db8::1/60"},
		{name: "IPv6 for a question for IPv4", b: response(six, one).Bytes(), want: learnt},
		{name: "IPv6 of 4 octets for a question for IPv4", b: response(rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeAAAA, Data: make([]byte, 4)}, one).Bytes(), want: learnt},
		{name: "question for anything", b: asked(dnsQuestion.Name, packettest.DNSTypeANY, one, six).Bytes()},
		{name: "question for type 0", b: asked(dnsQuestion.Name, 0, func() rec { r := one; r.Type = 0; return r }()).Bytes()},
		{name: "HTTPS with hints", b: asked(dnsQuestion.Name, packettest.DNSTypeHTTPS, rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeHTTPS, TTL: 60, Data: []byte("\x00\x01\x00\x00\x04\x00\x04\xc0\x00\x02\x01")}).Bytes()},
		{name: "HTTPS with hints for a question for IPv4", b: response(rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeHTTPS, TTL: 60, Data: []byte("\x00\x01\x00\x00\x04\x00\x04\xc0\x00\x02\x09")}, one).Bytes(), want: learnt},
		{name: "IPv4 of 3 octets", b: response(rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeA, Data: make([]byte, 3)}).Bytes(), err: packet.ErrDNSAddress},
		{name: "IPv4 of 5 octets", b: response(one, rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeA, Data: make([]byte, 5)}).Bytes(), err: packet.ErrDNSAddress},
		{name: "IPv4 of no octets", b: response(rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeA}).Bytes(), err: packet.ErrDNSAddress},
		{name: "IPv4 of 16 octets", b: response(rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeA, Data: make([]byte, 16)}).Bytes(), err: packet.ErrDNSAddress},
		{name: "IPv6 of 4 octets", b: asked(dnsQuestion.Name, packettest.DNSTypeAAAA, rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeAAAA, Data: make([]byte, 4)}).Bytes(), err: packet.ErrDNSAddress},
		{name: "IPv6 of 17 octets", b: asked(dnsQuestion.Name, packettest.DNSTypeAAAA, rec{Name: dnsQuestion.Name, Type: packettest.DNSTypeAAAA, Data: make([]byte, 17)}).Bytes(), err: packet.ErrDNSAddress},
		{name: "TTLs", b: response(dnsA("example.com", "192.0.2.0", 0), dnsA("example.com", "192.0.2.1", 1<<31-1), dnsA("example.com", "192.0.2.2", 1<<31), dnsA("example.com", "192.0.2.3", 1<<32-1)).Bytes(), want: "192.0.2.0/0 192.0.2.1/2147483647 192.0.2.2/0 192.0.2.3/0"},
		{name: "alias with a TTL of 2^31", b: response(dnsCNAME("example.com", "b", 1<<31), dnsA("b", "192.0.2.1", 60)).Bytes(), want: "192.0.2.1/0 by 1 from b"},
		{name: "smallest of three TTLs", b: response(dnsCNAME("example.com", "b", 50), dnsCNAME("b", "c", 20), dnsCNAME("c", "d", 40), dnsA("d", "192.0.2.1", 30), dnsA("d", "192.0.2.2", 10)).Bytes(), want: "192.0.2.1/20 192.0.2.2/10 by 3 from d"},
	}
}

func TestReadDNS(t *testing.T) {
	var m packet.DNS // used again, as it is meant to be
	names := map[string]bool{}
	seen := map[error]bool{}
	for _, tc := range dnsCases() {
		if names[tc.name] {
			t.Errorf("%s: twice", tc.name)
		}
		names[tc.name] = true
		err := packet.ReadDNS(tc.b, &m)
		seen[err] = true
		if !errors.Is(err, tc.err) || taught(&m) != tc.want {
			t.Errorf("%s: %x\ngot  %q, %v\nwant %q, %v", tc.name, tc.b, taught(&m), err, tc.want, tc.err)
		}
		if err != nil {
			nothing(t, &m)
		}
	}
	for _, err := range dnsErrors {
		if !seen[err] {
			t.Errorf("no message for %q", err)
		}
	}
}

// dnsErrors are all that ReadDNS returns.
var dnsErrors = []error{
	packet.ErrDNSShort, packet.ErrDNSLong, packet.ErrDNSOpcode, packet.ErrDNSQuestionCount, packet.ErrDNSAnswerCount, packet.ErrDNSEnd,
	packet.ErrDNSLabel, packet.ErrDNSName, packet.ErrDNSQuestionPointer, packet.ErrDNSPointer, packet.ErrDNSPointers, packet.ErrDNSAlias, packet.ErrDNSAddress,
}

// nothing sees that nothing was learnt before an error.
func nothing(tb testing.TB, m *packet.DNS) {
	tb.Helper()
	var none packet.Name
	if m.Question != none || m.QuestionType != 0 || m.QuestionClass != 0 || m.Last != none || m.AnswerCount != 0 || m.Aliases != 0 || m.NumAddrs != 0 {
		tb.Errorf("an error and %s %d %d %s %s", m.Question, m.QuestionType, m.QuestionClass, m.Last, taught(m))
	}
}

// TestDNSVectors keeps the messages by hand as a file, for readers in other
// languages: name, error or what was taught, octets.
func TestDNSVectors(t *testing.T) {
	const file = "testdata/dns.txt"
	var s strings.Builder
	for _, tc := range dnsCases() {
		want := tc.want
		if tc.err != nil {
			want = "error: " + tc.err.Error()
		}
		fmt.Fprintf(&s, "%s\t%s\t%s\n", tc.name, want, hex.EncodeToString(tc.b))
	}
	if *update {
		if err := os.WriteFile(file, []byte(s.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(have), s.String()); diff != "" {
		t.Errorf("%s is not what the table says; go test -update writes it:\n%s", file, diff)
	}
}

func TestDNSHeader(t *testing.T) {
	var m packet.DNS
	b := packettest.DNS{
		ID: 0xabcd, Flags: packettest.DNSResponse | packettest.DNSTruncated | 3, Answers: []packettest.DNSRecord{dnsA("www.example.com", "192.0.2.1", 60)},
		Questions: []packettest.DNSQuestion{{Name: packettest.DNSLabels("WWW.example.com"), Type: packettest.DNSTypeHTTPS, Class: packettest.DNSClassCH}},
	}.Bytes()
	if err := packet.ReadDNS(b, &m); err != nil {
		t.Fatal(err)
	}
	if m.ID != 0xabcd || !m.Response || !m.Truncated || m.RCode != 3 || m.Opcode != 0 || m.AnswerCount != 0 ||
		m.Question.String() != "www.example.com" || m.QuestionType != packettest.DNSTypeHTTPS || m.QuestionClass != 3 || m.Last != m.Question {
		t.Errorf("got %+v", m)
	}
	b[2], b[3] = 0, 0
	if err := packet.ReadDNS(b, &m); err != nil || m.Response || m.Truncated || m.RCode != 0 || m.AnswerCount != 0 {
		t.Errorf("query: %v, %+v", err, m)
	}
	b[2] = 0x80
	if err := packet.ReadDNS(b, &m); err != nil || !m.Response || m.AnswerCount != 1 {
		t.Errorf("response: %v, %+v", err, m)
	}
	// The header is there after an error behind it.
	b[2] = 0x80 | 5<<3
	if err := packet.ReadDNS(b, &m); !errors.Is(err, packet.ErrDNSOpcode) || m.ID != 0xabcd || m.Opcode != 5 || !m.Response {
		t.Errorf("update: %v, %+v", err, m)
	}
	nothing(t, &m)
	if err := packet.ReadDNS(b[:11], &m); !errors.Is(err, packet.ErrDNSShort) || m.ID != 0 || m.Opcode != 0 || m.Response {
		t.Errorf("short: %v, %+v", err, m)
	}
}

// TestDNSCutShort: a message without its last octets teaches nothing, unless
// they were not to be read.
func TestDNSCutShort(t *testing.T) {
	for _, how := range []packettest.DNSCompression{packettest.DNSWhole, packettest.DNSFirst, packettest.DNSLatest} {
		msg := packettest.DNS{
			Flags: packettest.DNSResponse, Questions: []packettest.DNSQuestion{dnsQuestion}, Compression: how,
			Answers: []packettest.DNSRecord{dnsCNAME("example.com", "b.example.com", 60), dnsA("b.example.com", "192.0.2.1", 60), dnsA("b.example.com", "192.0.2.2", 60)},
		}
		read := len(msg.Bytes())
		msg.Authorities = []packettest.DNSRecord{{Name: packettest.DNSLabels("com"), Type: packettest.DNSTypeNS, Target: packettest.DNSLabels("ns.example.com")}}
		b := msg.Bytes()
		for n := range len(b) + 1 {
			var m packet.DNS
			err := packet.ReadDNS(b[:n:n], &m)
			switch {
			case n < 12 && !errors.Is(err, packet.ErrDNSShort), n >= 12 && n < read && !errors.Is(err, packet.ErrDNSEnd):
				t.Errorf("%d of %d octets: %v", n, len(b), err)
			case n >= read && (err != nil || m.NumAddrs != 2):
				t.Errorf("%d of %d octets: %v, %s", n, len(b), err, taught(&m))
			}
			if err != nil {
				nothing(t, &m)
			}
		}
	}
}

func TestReadDNSDoesNotAllocate(t *testing.T) {
	var m packet.DNS
	cases := dnsCases()
	if n := testing.AllocsPerRun(10, func() {
		for _, tc := range cases {
			_ = packet.ReadDNS(tc.b, &m)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// dnsLetters returns the offsets of letters in the names that a reader has to
// read, without those that are read as anything else too: written to be a second
// walk through the message.
func dnsLetters(b []byte) []int {
	label, other := map[int]bool{}, map[int]bool{}
	// name marks what a name is made of and returns what is behind it.
	name := func(at int) (int, bool) {
		end := -1
		for steps := 0; at < len(b) && steps < 5000; steps++ {
			other[at] = true
			switch n := int(b[at]); {
			case n == 0:
				if end < 0 {
					end = at + 1
				}
				return end, true
			case n < 64:
				for i := at + 1; i <= at+n; i++ {
					label[i] = true
				}
				at += 1 + n
			case n >= 0xc0 && at+1 < len(b):
				other[at+1] = true
				if end < 0 {
					end = at + 2
				}
				at = int(binary.BigEndian.Uint16(b[at:]) & 0x3fff)
			default:
				return 0, false
			}
		}
		return 0, false
	}
	fixed := func(from, to int) {
		for i := from; i < to; i++ {
			other[i] = true
		}
	}
	fixed(0, 12)
	at, ok := name(12)
	fixed(at, at+4)
	at += 4
	for n := binary.BigEndian.Uint16(b[6:]); ok && n > 0; n-- {
		if at, ok = name(at); !ok || at+10 > len(b) {
			break
		}
		fixed(at, at+10)
		data := at + 10
		kind := binary.BigEndian.Uint16(b[at:])
		at = data + int(binary.BigEndian.Uint16(b[at+8:]))
		if kind == packettest.DNSTypeCNAME {
			name(data)
		} else {
			fixed(data, at)
		}
	}
	var letters []int
	for i, c := range b {
		if c |= 0x20; label[i] && !other[i] && 'a' <= c && c <= 'z' {
			letters = append(letters, i)
		}
	}
	return letters
}

// sameDNS compares all that is not left from earlier messages.
func sameDNS(a, b *packet.DNS) bool {
	return a.ID == b.ID && a.Response == b.Response && a.Opcode == b.Opcode && a.RCode == b.RCode && a.Truncated == b.Truncated &&
		a.Question == b.Question && a.QuestionType == b.QuestionType && a.QuestionClass == b.QuestionClass &&
		a.AnswerCount == b.AnswerCount && a.Aliases == b.Aliases && a.Last == b.Last && slices.Equal(a.Addrs[:a.NumAddrs], b.Addrs[:b.NumAddrs])
}

func FuzzReadDNS(f *testing.F) {
	for _, tc := range dnsCases() {
		f.Add(tc.b)
	}
	var m, again packet.DNS
	f.Fuzz(func(t *testing.T, b []byte) {
		first := packet.ReadDNS(b, &m)
		if second := packet.ReadDNS(b, &again); !errors.Is(second, first) || !sameDNS(&m, &again) {
			t.Fatalf("read twice: %v, %v", first, second)
		}
		if first != nil {
			if !slices.Contains(dnsErrors, first) {
				t.Fatalf("error %v", first)
			}
			nothing(t, &m)
			return
		}
		valid(t, m.Question)
		valid(t, m.Last)
		if m.NumAddrs+m.Aliases > int(m.AnswerCount) || m.AnswerCount > 256 || (m.Aliases == 0 && m.Last != m.Question) {
			t.Fatalf("%d answers, %s", m.AnswerCount, taught(&m))
		}
		if m.AnswerCount > 0 && (!m.Response || m.RCode != 0) {
			t.Fatalf("%d answers of a message without", m.AnswerCount)
		}
		for _, a := range m.Addrs[:m.NumAddrs] {
			if a.TTL > 1<<31-1 || !a.Addr.IsValid() || a.Addr.Is4() != (m.QuestionType == packet.DNSTypeA) || m.QuestionClass != packet.DNSClassIN {
				t.Fatalf("%s with TTL %d for type %d, class %d", a.Addr, a.TTL, m.QuestionType, m.QuestionClass)
			}
		}
		// What follows is not looked at.
		if len(b) < 4096 {
			if err := packet.ReadDNS(append(slices.Clone(b), 0xff), &again); err != nil || !sameDNS(&m, &again) {
				t.Fatalf("an octet behind: %v", err)
			}
		}
		// Neither is the case of letters, nor are the counts of other sections.
		flipped := slices.Clone(b)
		for _, i := range dnsLetters(b) {
			flipped[i] ^= 0x20
		}
		for i := 8; i < 12; i++ {
			flipped[i] ^= 0xff
		}
		if err := packet.ReadDNS(flipped, &again); err != nil || !sameDNS(&m, &again) {
			t.Fatalf("in other letters: %v\n%x\n%x", err, b, flipped)
		}
	})
}

func BenchmarkReadDNS(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 0))
	var random [][]byte
	for range 1000 {
		random = append(random, packettest.RandomDNS(rng))
	}
	typical := packettest.DNS{
		Flags: packettest.DNSResponse, Questions: []packettest.DNSQuestion{dnsQuestion}, Compression: packettest.DNSFirst,
		Answers: []packettest.DNSRecord{
			dnsCNAME("example.com", "example.com.cdn.example.net", 300), dnsCNAME("example.com.cdn.example.net", "edge7.cdn.example.net", 300),
			dnsA("edge7.cdn.example.net", "192.0.2.1", 20), dnsA("edge7.cdn.example.net", "192.0.2.2", 20),
		},
	}
	query := packettest.DNS{Questions: []packettest.DNSQuestion{dnsQuestion}}
	for name, msgs := range map[string][][]byte{"query": {query.Bytes()}, "response": {typical.Bytes()}, "random": random} {
		b.Run(name, func(b *testing.B) {
			var m packet.DNS
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				_ = packet.ReadDNS(msgs[i%len(msgs)], &m)
			}
		})
	}
}
