package packet_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

// envNumber returns the number in an environment variable, or def.
func envNumber(t *testing.T, name string, def int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s=%q: %v", name, s, err)
	}
	return n
}

// TestReadDNSAgreesWithMiekg holds ReadDNS against github.com/miekg/dns: on
// messages that miekg wrote, on packettest's, and on both with something wrong.
//
// Of a message that both accept they say the same, by the rules of ReadDNS as
// miekgSays walks them over miekg's records. What only miekg accepts breaks a rule
// that miekg has not: see refused. What only we accept and learn from has its
// mistake in data that we skip: see opaque.
func TestReadDNSAgreesWithMiekg(t *testing.T) {
	seed := uint64(envNumber(t, "POSTERN_SEED", 20261123))
	rng := rand.New(rand.NewPCG(seed, 0))
	seen := map[string]int{}
	var m packet.DNS
	n := envNumber(t, "POSTERN_DNS_MESSAGES", 200_000)
	for i := range n {
		var b []byte
		made := "made by packettest"
		if i%2 == 0 {
			b = packettest.RandomDNS(rng)
		} else {
			b, made = packMiekg(rng), "made by miekg"
			if rng.IntN(2) == 0 {
				b, made = packettest.Spoil(rng, b), "made by miekg and spoilt"
			}
		}
		seen[made]++
		err := packet.ReadDNS(b, &m)
		if err != nil {
			seen[err.Error()]++
			nothing(t, &m)
		}
		if made == "made by miekg" && err != nil && len(b) <= 4096 {
			t.Fatalf("seed %d: %v\n%x", seed, err, b)
		}
		why, wrong := compareMiekg(b, err, &m)
		seen[why]++
		if wrong != "" {
			t.Fatalf("seed %d, %s: %s\n%x", seed, why, wrong, b)
		}
		if err == nil && m.NumAddrs > 0 {
			seen["learnt"]++
			seen[fmt.Sprintf("%d aliases", min(m.Aliases, 17))]++
			if m.NumAddrs >= 255 {
				seen[fmt.Sprintf("%d addresses", m.NumAddrs)]++
			}
		}
	}
	for _, k := range slices.Sorted(mapsKeys(seen)) {
		t.Logf("%7d %s", seen[k], k)
	}
	want := []string{"both accept", "both reject", "only miekg accepts", "only we accept", "only we accept, and learn", "17 aliases", "256 addresses"}
	for _, err := range dnsErrors {
		want = append(want, err.Error())
	}
	for _, k := range want {
		if n >= 200_000 && seen[k] == 0 {
			t.Errorf("never: %s", k)
		}
	}
	if seen["learnt"] < n/4 || seen["both accept"] < n/2 || seen["both reject"] < n/20 {
		t.Errorf("of %d messages %d taught, %d were accepted by both, %d rejected by both", n, seen["learnt"], seen["both accept"], seen["both reject"])
	}
}

func mapsKeys(m map[string]int) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// compareMiekg says who accepts a message, and what is wrong with that.
func compareMiekg(b []byte, err error, m *packet.DNS) (why, wrong string) {
	var theirs dns.Msg
	// Before miekg's reading of what it is: our sections, and the header alone is not a message.
	miekgErr := theirs.Unpack(ourSections(b))
	switch {
	case err == nil && miekgErr == nil:
		return "both accept", differ(m, &theirs)
	case err != nil && miekgErr != nil:
		return "both reject", ""
	case err != nil:
		return "only miekg accepts", refused(b, err, &theirs)
	case m.NumAddrs == 0:
		return "only we accept", ""
	}
	// Exception: miekg reads the data of all records, and we that of those that count.
	b = opaque(b, m)
	if err := theirs.Unpack(ourSections(b)); err != nil {
		return "only we accept, and learn", fmt.Sprintf("we learn %s, miekg says %v and with what we skip made opaque %v", taught(m), miekgErr, err)
	}
	return "only we accept, and learn", differ(m, &theirs)
}

// ourSections returns b with the counts of the sections that we do not read set to 0.
func ourSections(b []byte) []byte {
	b = slices.Clone(b)
	if len(b) >= 12 {
		clear(b[8:12])
		if b[2]&0x80 == 0 || b[3]&0xf != 0 {
			clear(b[6:8])
		}
	}
	return b
}

// opaque returns b with each record of the answer section of a private type that
// can be so without a change to what we learn: those that we skip. Records are
// found with miekg's reader of names.
func opaque(b []byte, m *packet.DNS) []byte {
	b = slices.Clone(b)
	_, at, err := dns.UnpackDomainName(b, 12)
	if err != nil {
		return b
	}
	at += 4
	var again packet.DNS
	for range m.AnswerCount {
		if _, at, err = dns.UnpackDomainName(b, at); err != nil {
			return b
		}
		other := slices.Clone(b)
		binary.BigEndian.PutUint16(other[at:], 65280)
		if packet.ReadDNS(other, &again) == nil && sameDNS(m, &again) {
			b = other
		}
		at += 10 + int(binary.BigEndian.Uint16(b[at+8:]))
	}
	return b
}

// refused sees that there is a rule for what miekg accepts and we do not.
func refused(b []byte, err error, theirs *dns.Msg) string {
	switch {
	case errors.Is(err, packet.ErrDNSQuestionPointer), errors.Is(err, packet.ErrDNSPointer), errors.Is(err, packet.ErrDNSPointers):
		// miekg follows up to 126 pointers, in any direction.
		return ""
	case errors.Is(err, packet.ErrDNSLong) && len(b) > 4096,
		errors.Is(err, packet.ErrDNSOpcode) && theirs.Opcode != 0,
		errors.Is(err, packet.ErrDNSQuestionCount) && binary.BigEndian.Uint16(b[4:]) != 1,
		errors.Is(err, packet.ErrDNSAnswerCount) && binary.BigEndian.Uint16(b[6:]) > 256:
		return ""
	}
	// A message may end in front of a section, a record, or a question's type or class.
	if errors.Is(err, packet.ErrDNSEnd) {
		if len(theirs.Question) == 0 || len(theirs.Answer) < int(binary.BigEndian.Uint16(b[6:])) {
			return ""
		}
		if _, at, err := dns.UnpackDomainName(b, 12); err == nil && at+4 > len(b) {
			return ""
		}
	}
	// A record may have no data, as RFC 2136 has it.
	for _, rr := range theirs.Answer {
		h := rr.Header()
		if h.Rdlength != 0 || h.Class != dns.ClassINET {
			continue
		}
		if h.Rrtype == dns.TypeCNAME || (errors.Is(err, packet.ErrDNSAddress) && (h.Rrtype == dns.TypeA || h.Rrtype == dns.TypeAAAA)) {
			return ""
		}
	}
	return fmt.Sprintf("we say %v and miekg accepts %v", err, theirs)
}

// differ compares what we read with what miekg did.
func differ(m *packet.DNS, theirs *dns.Msg) string {
	want := miekgSays(theirs)
	got := dnsSays{
		m.ID, m.Response, m.Truncated, m.Opcode, m.RCode, m.Question.String(), m.QuestionType, m.QuestionClass,
		m.Aliases, m.Last.String(), taught(m),
	}
	// Compared by their octets, which String shows one to one.
	if got != want {
		return fmt.Sprintf("we read\n%+v\nand miekg\n%+v", got, want)
	}
	return ""
}

type dnsSays struct {
	id                  uint16
	response, truncated bool
	opcode, rcode       uint8
	question            string
	kind, class         uint16
	aliases             int
	last, taught        string
}

// miekgSays is the rules from 4 on, over what miekg read.
func miekgSays(msg *dns.Msg) dnsSays {
	q := msg.Question[0]
	s := dnsSays{
		id: msg.Id, response: msg.Response, truncated: msg.Truncated, opcode: uint8(msg.Opcode), rcode: uint8(msg.Rcode),
		question: miekgName(q.Name), kind: q.Qtype, class: q.Qclass,
	}
	s.last = s.question
	var addrs []string
	ttls := []uint32{1<<32 - 1}
	if !msg.Response || msg.Rcode != 0 || q.Qclass != dns.ClassINET {
		return s
	}
	for _, rr := range msg.Answer {
		h := rr.Header()
		if h.Class != dns.ClassINET || miekgName(h.Name) != s.last {
			continue
		}
		ttl := h.Ttl
		if ttl >= 1<<31 {
			ttl = 0
		}
		var addr netip.Addr
		switch rr := rr.(type) {
		case *dns.CNAME:
			if len(addrs) == 0 {
				s.aliases++
				s.last = miekgName(rr.Target)
				ttls = append(ttls, ttl)
			}
		case *dns.A:
			addr, _ = netip.AddrFromSlice(rr.A.To4())
		case *dns.AAAA:
			addr, _ = netip.AddrFromSlice(rr.AAAA.To16())
		}
		if h.Rrtype == q.Qtype && addr.IsValid() {
			addrs = append(addrs, fmt.Sprintf("%s/%d", addr, slices.Min(append(slices.Clone(ttls), ttl))))
		}
	}
	s.taught = strings.Join(addrs, " ")
	if s.aliases > 0 {
		s.taught = strings.TrimPrefix(fmt.Sprintf("%s by %d from %s", s.taught, s.aliases, s.last), " ")
	}
	return s
}

// miekgName turns miekg's presentation form into ours: other escapes, a trailing dot, no folding.
func miekgName(s string) string {
	if s == "." {
		return s
	}
	var out strings.Builder
	escaped := func(c byte) {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		switch {
		case c == '.' || c == '\\':
			out.WriteString("\\" + string(rune(c)))
		case c <= 0x20 || c >= 0x7f:
			fmt.Fprintf(&out, "\\%03d", c)
		default:
			out.WriteByte(c)
		}
	}
	s = strings.TrimSuffix(s, ".")
	for len(s) > 0 {
		switch c := s[0]; {
		case c == '.':
			out.WriteByte('.')
			s = s[1:]
		case c == '\\' && len(s) > 3 && '0' <= s[1] && s[1] <= '9':
			n, _ := strconv.Atoi(s[1:4])
			escaped(byte(n))
			s = s[4:]
		case c == '\\':
			escaped(s[1])
			s = s[2:]
		default:
			escaped(c)
			s = s[1:]
		}
	}
	return out.String()
}

// packMiekg returns a well-formed message as miekg writes it.
func packMiekg(rng *rand.Rand) []byte {
	var names []string
	for _, n := range packettest.DNSNames(rng) {
		if len(packettest.WireName(n)) <= 255 {
			names = append(names, miekgText(n))
		}
	}
	name := func() string {
		n := names[rng.IntN(len(names))]
		if rng.IntN(3) > 0 {
			return n
		}
		b := []byte(n)
		for i, c := range b {
			if c|0x20 >= 'a' && c|0x20 <= 'z' && rng.IntN(2) == 0 {
				b[i] ^= 0x20
			}
		}
		return string(b)
	}
	header := func(n string, kind uint16) dns.RR_Header {
		ttls := []uint32{0, 1, 60, 300, 1<<31 - 1, 1 << 31, 1<<32 - 1, rng.Uint32()}
		return dns.RR_Header{Name: n, Rrtype: kind, Class: dns.ClassINET, Ttl: ttls[rng.IntN(len(ttls))]}
	}
	address := func(n string, kind uint16) dns.RR {
		if kind == dns.TypeA {
			return &dns.A{Hdr: header(n, kind), A: net.IPv4(192, 0, 2, byte(rng.UintN(256))).To4()}
		}
		a := netip.MustParseAddr("2001:db8::").As16()
		a[15] = byte(rng.UintN(256))
		return &dns.AAAA{Hdr: header(n, dns.TypeAAAA), AAAA: a[:]}
	}
	noise := func() dns.RR {
		n := name()
		switch rng.IntN(9) {
		case 0:
			return &dns.TXT{Hdr: header(n, dns.TypeTXT), Txt: []string{"text"}}
		case 1:
			return &dns.MX{Hdr: header(n, dns.TypeMX), Preference: 10, Mx: name()}
		case 2:
			return &dns.HTTPS{SVCB: dns.SVCB{Hdr: header(n, dns.TypeHTTPS), Priority: 1, Target: ".", Value: []dns.SVCBKeyValue{&dns.SVCBIPv4Hint{Hint: []net.IP{net.IPv4(192, 0, 2, 9)}}}}}
		case 3:
			return &dns.DNAME{Hdr: header(n, dns.TypeDNAME), Target: name()}
		case 4:
			return &dns.NS{Hdr: header(n, dns.TypeNS), Ns: name()}
		case 5:
			return &dns.SOA{Hdr: header(n, dns.TypeSOA), Ns: name(), Mbox: name(), Serial: 1}
		case 6:
			return &dns.CNAME{Hdr: header(n, dns.TypeCNAME), Target: name()}
		case 7:
			rr := address(n, dns.TypeA)
			rr.Header().Class = dns.ClassCHAOS
			return rr
		}
		return address(n, []uint16{dns.TypeA, dns.TypeAAAA}[rng.IntN(2)])
	}
	kinds := []uint16{dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeCNAME, dns.TypeANY}
	msg := &dns.Msg{Compress: rng.IntN(2) == 0}
	kind, current := kinds[rng.IntN(len(kinds))], name()
	msg.SetQuestion(current, kind)
	msg.Id = uint16(rng.UintN(1 << 16))
	msg.Truncated = rng.IntN(10) == 0
	if rng.IntN(30) == 0 {
		msg.Question[0].Qclass = dns.ClassCHAOS
	}
	if msg.Response = rng.IntN(10) > 0; msg.Response && rng.IntN(15) == 0 {
		msg.Rcode = 1 + rng.IntN(15)
	}
	for range rng.IntN(4) {
		target := name()
		msg.Answer = append(msg.Answer, &dns.CNAME{Hdr: header(current, dns.TypeCNAME), Target: target})
		current = target
	}
	for range rng.IntN(5) {
		msg.Answer = append(msg.Answer, address(current, kind))
	}
	for range rng.IntN(3) {
		msg.Answer = slices.Insert(msg.Answer, rng.IntN(len(msg.Answer)+1), noise())
	}
	for range rng.IntN(3) {
		msg.Ns = append(msg.Ns, noise())
	}
	for range rng.IntN(3) {
		msg.Extra = append(msg.Extra, noise())
	}
	if rng.IntN(2) == 0 {
		msg.SetEdns0(1232, rng.IntN(2) == 0)
	}
	b, err := msg.Pack()
	if err != nil {
		// A name that Pack does not take, such as one of more than 255 octets by its own count.
		return packMiekg(rng)
	}
	return b
}

// miekgText writes every octet of a name as miekg reads it, letters plainly.
func miekgText(n packettest.DNSName) string {
	var s strings.Builder
	for _, label := range n {
		for _, c := range []byte(label) {
			if l := c | 0x20; 'a' <= l && l <= 'z' {
				s.WriteByte(c)
			} else {
				fmt.Fprintf(&s, "\\%03d", c)
			}
		}
		s.WriteByte('.')
	}
	if s.Len() == 0 {
		return "."
	}
	return s.String()
}
