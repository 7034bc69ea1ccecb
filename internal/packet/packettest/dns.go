package packettest

import (
	"encoding/binary"
	"strings"
)

// DNS types, as far as tests name them. Source: IANA dns-parameters.
const (
	DNSTypeA     = 1
	DNSTypeNS    = 2
	DNSTypeCNAME = 5
	DNSTypeTXT   = 16
	DNSTypeAAAA  = 28
	DNSTypeDNAME = 39
	DNSTypeOPT   = 41
	DNSTypeRRSIG = 46
	DNSTypeHTTPS = 65
	DNSTypeANY   = 255

	DNSClassIN = 1
	DNSClassCH = 3
)

// Flags of a DNS header's second word.
const (
	DNSResponse  = 0x8000
	DNSTruncated = 0x0200
)

// DNSName is a domain name as its labels, of any octets; the root has none.
type DNSName []string

// DNSLabels cuts a name at its dots; there are no escapes. "" and "." are the root.
func DNSLabels(s string) DNSName {
	if s = strings.TrimSuffix(s, "."); s == "" {
		return DNSName{}
	}
	return strings.Split(s, ".")
}

// DNSQuestion is an entry of the question section.
type DNSQuestion struct {
	Name  DNSName
	Raw   []byte // if not nil, the name's octets in the place of Name
	Type  uint16
	Class uint16 // 0: IN
}

// DNSRecord is a resource record.
type DNSRecord struct {
	Name  DNSName
	Raw   []byte // if not nil, the name's octets in the place of Name
	Type  uint16
	Class uint16 // 0: IN
	TTL   uint32 // seconds
	Data  []byte
	// Target, if not nil, is a name behind Data that may be compressed.
	Target DNSName
	// Length nil: that of the data.
	Length *uint16
}

// DNSCompression is what a DNS message does about names that it had before. Only
// octets in the same case are the same.
type DNSCompression uint8

// Ways to compress.
const (
	DNSWhole DNSCompression = iota // names are written in full
	DNSFirst                       // the rest of a name is a pointer to where it stood first
	// DNSLatest points to where it stood last, be it as a pointer too: a name that
	// comes again and again becomes a chain of pointers.
	DNSLatest
)

// DNS is a DNS message. It is a Layer, for the end of UDP. Source: RFC 1035 section 4.
type DNS struct {
	ID                                uint16
	Flags                             uint16 // the header's second word
	Questions                         []DNSQuestion
	Answers, Authorities, Additionals []DNSRecord
	Compression                       DNSCompression
	// Counts nil: those of the sections.
	QDCount, ANCount, NSCount, ARCount *uint16
	// Trailer is put after everything else.
	Trailer []byte
}

// Bytes returns the message. There is no limit to its length, and labels may be
// longer than 63 octets (B1).
func (m DNS) Bytes() []byte {
	w := m.write()
	return w.b
}

func (m DNS) write() dnsWriter {
	w := dnsWriter{how: m.Compression}
	w.word(m.ID)
	w.word(m.Flags)
	w.word(or(m.QDCount, uint16(len(m.Questions))))
	w.word(or(m.ANCount, uint16(len(m.Answers))))
	w.word(or(m.NSCount, uint16(len(m.Authorities))))
	w.word(or(m.ARCount, uint16(len(m.Additionals))))
	for _, q := range m.Questions {
		w.name(q.Name, q.Raw)
		w.word(q.Type)
		w.word(orIN(q.Class))
	}
	for _, section := range [][]DNSRecord{m.Answers, m.Authorities, m.Additionals} {
		for _, r := range section {
			w.record(r)
		}
	}
	w.b = append(w.b, m.Trailer...)
	return w
}

func (m DNS) marshal(p pseudo, rest []Layer) []byte {
	return append(m.Bytes(), marshalAll(p, rest)...)
}
func (DNS) etherType() uint16 { return 0 }
func (DNS) proto() int        { return noProto }

func orIN(class uint16) uint16 {
	if class == 0 {
		return DNSClassIN
	}
	return class
}

// dnsWriter writes a message and remembers what is where.
type dnsWriter struct {
	how   DNSCompression
	b     []byte
	seen  map[string]int // offsets of names, by their wire form
	marks []int          // offsets of lengths, pointers, types, classes and TTLs: where a mutation tells
}

func (w *dnsWriter) mark() { w.marks = append(w.marks, len(w.b)) }

func (w *dnsWriter) word(v uint16) {
	w.mark()
	w.b = binary.BigEndian.AppendUint16(w.b, v)
}

func (w *dnsWriter) name(n DNSName, raw []byte) {
	if raw != nil {
		w.mark()
		w.b = append(w.b, raw...)
		return
	}
	if w.seen == nil {
		w.seen = map[string]int{}
	}
	rest := string(WireName(n))
	for i := 0; rest != "\x00"; i++ {
		at, ok := w.seen[rest]
		if w.how == DNSLatest || !ok {
			w.seen[rest] = len(w.b)
		}
		w.mark()
		if ok && w.how != DNSWhole && at < 1<<14 {
			w.b = binary.BigEndian.AppendUint16(w.b, 0xc000|uint16(at))
			return
		}
		label := rest[:1+len(n[i])]
		w.b = append(w.b, label...)
		rest = rest[len(label):]
	}
	w.mark()
	w.b = append(w.b, 0)
}

func (w *dnsWriter) record(r DNSRecord) {
	w.name(r.Name, r.Raw)
	w.word(r.Type)
	w.word(orIN(r.Class))
	w.mark()
	w.b = binary.BigEndian.AppendUint32(w.b, r.TTL)
	length := len(w.b)
	w.word(0)
	w.b = append(w.b, r.Data...)
	if r.Target != nil {
		w.name(r.Target, nil)
	}
	binary.BigEndian.PutUint16(w.b[length:], or(r.Length, uint16(len(w.b)-length-2)))
}

// WireName returns a name's uncompressed octets, in its own case. A label's
// length is written as one octet, whatever it is.
func WireName(n DNSName) []byte {
	var b []byte
	for _, label := range n {
		b = append(append(b, uint8(len(label))), label...)
	}
	return append(b, 0)
}
