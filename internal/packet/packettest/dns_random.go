package packettest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
)

// RandomDNS returns a DNS message: about half of them well-formed, the others
// with a few octets wrong, most of those where a length, a pointer, a type or a
// count stands. Sizes, lengths of names, chains of aliases and of pointers are
// often at what a reader has as its limits, and just beyond.
func RandomDNS(rng *rand.Rand) []byte {
	g := dnsGenerator{rng: rng}
	w := g.message().write()
	if rng.IntN(2) == 0 {
		for range 1 + rng.IntN(3) {
			g.spoil(&w)
		}
	}
	return w.b
}

// Spoil returns b with one thing wrong, or nothing by chance: octets changed,
// cut off, added or moved.
func Spoil(rng *rand.Rand, b []byte) []byte {
	g, w := dnsGenerator{rng: rng}, dnsWriter{b: slices.Clone(b)}
	g.spoil(&w)
	return w.b
}

// DNSNames returns a few names that have to do with each other, some of odd
// octets and of the greatest length, some too long.
func DNSNames(rng *rand.Rand) []DNSName {
	g := dnsGenerator{rng: rng}
	var names []DNSName
	for range 2 + rng.IntN(5) {
		var below DNSName
		if len(names) > 0 && rng.IntN(3) > 0 {
			below = names[rng.IntN(len(names))]
			below = below[rng.IntN(len(below)+1):]
		}
		var n DNSName
		for range 1 + rng.IntN(3) {
			n = append(n, g.label())
		}
		names = append(names, slices.Concat(n, below))
	}
	switch rng.IntN(20) {
	case 0:
		names = append(names, DNSName{})
	case 1, 2, 3:
		names = append(names, g.long())
	}
	return names
}

type dnsGenerator struct {
	rng   *rand.Rand
	names []DNSName
}

// pick returns one of its arguments.
func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

func (g *dnsGenerator) label() string {
	switch g.rng.IntN(30) {
	case 0:
		return strings.Repeat("x", 62+g.rng.IntN(2))
	case 1:
		return pick(g.rng, "a.b", "\x00", "\\", "*", " ", "\xc0\x0c", "\xff", "@[`{", "\x00\x01\x00\x01", "\xc3\x84")
	case 2:
		b := make([]byte, 1+g.rng.IntN(8))
		for i := range b {
			b[i] = uint8(g.rng.UintN(256))
		}
		return string(b)
	}
	return pick(g.rng, "www", "example", "com", "a", "b", "cdn", "k8s", "_tcp", "xn--bcher-kva", "Z", "internal")
}

// long returns a name of 254 to 257 octets in wire form.
func (g *dnsGenerator) long() DNSName {
	var n DNSName
	left := 253 + g.rng.IntN(4) // without the root
	for left > 0 {
		size := min(1+g.rng.IntN(63), left-1)
		if left-1-size == 1 { // no room for a label
			size = max(size-1, 1)
			if left-1-size == 1 {
				size += 2
			}
		}
		n = append(n, strings.Repeat(pick(g.rng, "l", "L"), size))
		left -= 1 + size
	}
	return n
}

// name returns one of the message's names, at times in letters of other cases.
func (g *dnsGenerator) name() DNSName { return g.cased(pick(g.rng, g.names...)) }

func (g *dnsGenerator) cased(n DNSName) DNSName {
	if g.rng.IntN(4) > 0 {
		return n
	}
	n = slices.Clone(n)
	for i := range n {
		b := []byte(n[i])
		for j, c := range b {
			if ('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z') && g.rng.IntN(2) == 0 {
				b[j] ^= 0x20
			}
		}
		n[i] = string(b)
	}
	return n
}

func (g *dnsGenerator) ttl() uint32 {
	return pick(g.rng, 0, 1, 30, 60, 300, 3600, 1<<31-1, 1<<31, 1<<32-1, g.rng.Uint32())
}

func (g *dnsGenerator) octets(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = uint8(g.rng.UintN(256))
	}
	return b
}

func (g *dnsGenerator) address(n DNSName, kind uint16) DNSRecord {
	r := DNSRecord{Name: n, Type: kind, TTL: g.ttl(), Data: g.octets(4)}
	if kind == DNSTypeAAAA {
		r.Data = g.octets(16)
		if g.rng.IntN(8) == 0 {
			copy(r.Data, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff")
		}
	}
	return r
}

func (g *dnsGenerator) message() DNS {
	rng := g.rng
	g.names = DNSNames(rng)
	kind := pick[uint16](rng, DNSTypeA, DNSTypeA, DNSTypeA, DNSTypeAAAA, DNSTypeAAAA, DNSTypeAAAA, DNSTypeCNAME, DNSTypeHTTPS, DNSTypeANY)
	if rng.IntN(100) == 0 {
		kind = uint16(rng.UintN(1 << 16))
	}
	m := DNS{
		ID: uint16(rng.UintN(1 << 16)), Flags: DNSResponse | uint16(rng.UintN(1<<16))&0x0770,
		Questions:   []DNSQuestion{{Name: g.name(), Type: kind}},
		Compression: pick(rng, DNSWhole, DNSFirst, DNSFirst, DNSLatest),
	}
	switch rng.IntN(40) {
	case 0, 1, 2:
		m.Flags &^= DNSResponse
	case 3:
		m.Flags |= uint16(rng.UintN(16))
	case 4:
		m.Flags |= uint16(rng.UintN(16)) << 11
	case 5:
		m.Questions = pick(rng, nil, append(m.Questions, DNSQuestion{Name: g.name(), Type: kind}))
	case 6:
		m.Questions[0].Class = pick[uint16](rng, DNSClassCH, 255)
	}
	if len(m.Questions) > 0 && rng.IntN(20) > 0 {
		g.answer(&m)
	}
	for range rng.IntN(3) {
		m.Authorities = append(m.Authorities, g.noise(kind))
	}
	if rng.IntN(2) == 0 {
		m.Additionals = append(m.Additionals, DNSRecord{Name: DNSName{}, Type: DNSTypeOPT, Class: 1232})
	}
	for range rng.IntN(2) {
		m.Additionals = append(m.Additionals, g.noise(kind))
	}
	switch rng.IntN(30) {
	case 0: // as long as may be, or one octet more
		m.Trailer = make([]byte, max(0, 4096-len(m.Bytes())+rng.IntN(2)))
	case 1:
		m.Trailer = g.octets(1 + rng.IntN(20))
	}
	return m
}

// answer fills the answer section: aliases, addresses, and what else may stand there.
func (g *dnsGenerator) answer(m *DNS) {
	rng := g.rng
	kind, current := m.Questions[0].Type, m.Questions[0].Name
	aliases, addresses := rng.IntN(4), rng.IntN(5)
	switch rng.IntN(60) {
	case 0, 1:
		aliases = 14 + rng.IntN(6)
	case 2:
		// 256 records or 257, with what else there is: they are in 4096 octets if it is the root's addresses.
		m.Questions[0] = DNSQuestion{Name: DNSName{}, Type: DNSTypeA}
		kind, current, aliases, addresses = DNSTypeA, DNSName{}, 0, 254+rng.IntN(4)
	}
	for range aliases {
		target := g.name()
		m.Answers = append(m.Answers, DNSRecord{Name: g.cased(current), Type: DNSTypeCNAME, TTL: g.ttl(), Target: target})
		if rng.IntN(30) > 0 { // or the next is a second one
			current = target
		}
	}
	many := addresses > 100
	for range addresses {
		other := kind
		if !many && rng.IntN(10) == 0 {
			other = pick[uint16](rng, DNSTypeA, DNSTypeAAAA)
		}
		n := current
		if !many {
			n = g.cased(current)
		}
		m.Answers = append(m.Answers, g.address(n, other))
	}
	if !many {
		for range rng.IntN(3) {
			m.Answers = slices.Insert(m.Answers, rng.IntN(len(m.Answers)+1), g.noise(kind))
		}
	}
	if rng.IntN(15) == 0 {
		rng.Shuffle(len(m.Answers), func(i, j int) { m.Answers[i], m.Answers[j] = m.Answers[j], m.Answers[i] })
	}
}

// noise returns a record that need not have to do with the question. Its data is
// what its type has.
func (g *dnsGenerator) noise(kind uint16) DNSRecord {
	r := DNSRecord{Name: g.name(), TTL: g.ttl()}
	switch g.rng.IntN(9) {
	case 0:
		r.Type, r.Data = DNSTypeTXT, []byte("\x04text")
	case 1: // ALPN h2 and hints
		r.Type, r.Data = DNSTypeHTTPS, []byte("\x00\x01\x00\x00\x01\x00\x03\x02h2\x00\x04\x00\x04\xc0\x00\x02\x01")
	case 2:
		r.Type, r.Target = DNSTypeDNAME, g.name()
	case 3:
		r.Type, r.Target = DNSTypeNS, g.name()
	case 4:
		r.Type, r.Target = DNSTypeCNAME, g.name()
	case 5:
		r = g.address(r.Name, kind)
		r.Class = pick[uint16](g.rng, DNSClassCH, 254, 255)
		if kind != DNSTypeA && kind != DNSTypeAAAA {
			r.Type = DNSTypeA
		}
	case 6: // a signature over A: type covered, algorithm, labels, TTL, from, to, tag, signer, signature
		r.Type, r.Data = DNSTypeRRSIG, append(g.octets(18), "\x00sig"...)
	case 7:
		r.Type, r.Data = 65280, g.octets(g.rng.IntN(12)) // private use
	default:
		r = g.address(r.Name, pick[uint16](g.rng, DNSTypeA, DNSTypeAAAA))
	}
	return r
}

// spoil makes one thing wrong, or nothing by chance.
func (g *dnsGenerator) spoil(w *dnsWriter) {
	rng := g.rng
	if len(w.b) == 0 {
		return
	}
	at := rng.IntN(len(w.b))
	if marks := slices.DeleteFunc(slices.Clone(w.marks), func(m int) bool { return m >= len(w.b) }); len(marks) > 0 && rng.IntN(4) > 0 {
		at = pick(rng, marks...)
	}
	switch rng.IntN(12) {
	case 0:
		w.b = w.b[:at]
	case 1:
		w.b = w.b[:rng.IntN(len(w.b))]
	case 2:
		w.b[at] ^= 1 << rng.UintN(8)
	case 3:
		w.b[at] = pick[byte](rng, 0, 1, 4, 5, 12, 16, 28, 62, 63, 64, 65, 0x80, 0xc0, 0xff)
	case 4:
		w.b[at] = uint8(rng.UintN(256))
	case 5: // one more or less
		w.b[at] += pick[byte](rng, 1, 0xff)
	case 6: // in a word
		if at+2 <= len(w.b) {
			binary.BigEndian.PutUint16(w.b[at:], binary.BigEndian.Uint16(w.b[at:])+pick[uint16](rng, 1, 2, 0xffff, 0xfffe))
		}
	case 7: // a pointer: to anything, the header's end, itself, just before, the other pointers
		if at+2 <= len(w.b) {
			to := pick(rng, rng.IntN(len(w.b)), 11, 12, 13, at-2, at-1, at, at+1, at+2, pick(rng, append(w.marks, 12)...))
			binary.BigEndian.PutUint16(w.b[at:], 0xc000|uint16(max(to, 0))&0x3fff)
		}
	case 8: // a count
		if len(w.b) >= 12 {
			binary.BigEndian.PutUint16(w.b[4+2*rng.IntN(4):], pick[uint16](rng, 0, 1, 2, 255, 256, 257, 0xffff))
		}
	case 9:
		w.b = slices.Insert(w.b, at, uint8(rng.UintN(256)))
	case 10:
		w.b = slices.Delete(w.b, at, min(len(w.b), at+1+rng.IntN(3)))
	case 11: // a piece of it once more
		end := min(len(w.b), at+rng.IntN(40))
		w.b = slices.Insert(w.b, rng.IntN(len(w.b)+1), bytes.Clone(w.b[at:end])...)
	}
}
