package packet

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// The record types and the class that the reader knows by name. Every other type
// is skipped. Source: RFC 1035 section 3.2, RFC 3596 section 2.1.
const (
	DNSTypeA     uint16 = 1
	DNSTypeCNAME uint16 = 5
	DNSTypeAAAA  uint16 = 28
	DNSClassIN   uint16 = 1
)

// What a message may be. The C reader has the same bounds.
const (
	dnsHeader      = 12   // octets; RFC 1035 section 4.1.1
	maxDNS         = 4096 // octets; the most that RFC 6891 section 6.2.5 has a client begin with
	maxDNSAnswers  = 256  // records in the answer section
	maxDNSPointers = 16   // in one name
)

// Why a message is not read. There is one for each cause.
var (
	ErrDNSShort           = errors.New("dns message shorter than its header of 12 octets")
	ErrDNSLong            = errors.New("dns message longer than 4096 octets")
	ErrDNSOpcode          = errors.New("dns opcode is not QUERY")
	ErrDNSQuestionCount   = errors.New("dns message has not exactly one question")
	ErrDNSAnswerCount     = errors.New("dns message has more than 256 answers")
	ErrDNSEnd             = errors.New("dns message ends within a name or a record")
	ErrDNSLabel           = errors.New("dns name has a label that is neither one of 1 to 63 octets nor a pointer")
	ErrDNSName            = errors.New("dns name is longer than 255 octets")
	ErrDNSQuestionPointer = errors.New("dns question has a pointer in its name")
	ErrDNSPointer         = errors.New("dns name has a pointer into the header or not backwards")
	ErrDNSPointers        = errors.New("dns name has more than 16 pointers")
	ErrDNSAlias           = errors.New("dns alias is not exactly one name")
	ErrDNSAddress         = errors.New("dns address has the wrong length")
)

// DNSAddr is an address that a response gives for the name that was asked for.
type DNSAddr struct {
	// Addr is the record's octets as they are: of 4 from an A record, of 16 from an
	// AAAA record. One of ::ffff:0:0/96 in an AAAA record stays that; see Judged.
	Addr netip.Addr
	// TTL is in seconds: the smallest of the record's own and those of the aliases
	// on the way to it, each of which may lead elsewhere when its time is over. One of
	// 2^31 and more counts as 0 (RFC 2181 section 8).
	TTL uint32
}

// DNS is what a message says. ReadDNS fills it in; it is 9 KiB and made to be used again.
type DNS struct {
	ID       uint16
	Response bool  // QR
	Opcode   uint8 // 0, if the message was read
	// RCode is the header's 4 bits; the upper ones of EDNS are not read.
	RCode     uint8
	Truncated bool // TC: what is there is read

	Question                    Name
	QuestionType, QuestionClass uint16

	// AnswerCount is the number of records that were read: ANCOUNT of a response
	// with RCode 0, and 0 of any other message.
	AnswerCount uint16
	// Aliases is the number of CNAME records that led from Question to Last.
	Aliases int
	// Last is the name at the end of the chain, which the addresses belong to; Question without aliases.
	Last Name
	// Addrs has NumAddrs addresses in the order of their records. What stands behind
	// them is left from earlier messages.
	Addrs    [maxDNSAnswers]DNSAddr
	NumAddrs int
}

// ReadDNS reads a DNS message as UDP carries it, and as TCP does behind its two
// octets of length, from its first octet to the end of b. It teaches from a
// message only if it understands all that it has to read of it. Whether a response
// answers a question that someone has asked is for the caller to know. It never
// allocates. After an error m has the header's fields at most, no name and no
// address.
//
// The rules, in the order in which they are applied. They are those of the C
// reader, and the first that is broken gives the error.
//
//  1. A message is of 12 to 4096 octets. Opcode is 0 (QUERY), QDCOUNT 1 (RFC 9619).
//  2. A name is labels of 1 to 63 octets, of any values (RFC 2181 section 11), and the root's zero
//     octet: at most 255 octets when decompressed, and all in the message (RFC 1035 sections 3.1, 4.1.4).
//     A length with the top bits 11 is a pointer and 01 and 10 are errors (RFC 6891 section 5).
//  3. The question's name has no pointer: nothing is in front of it that it could point to.
//     Elsewhere a pointer's target is 12 or more and before the place where the run of labels that
//     the pointer ends began: where the name began, then the last target. So targets go down, as
//     RFC 1035 section 4.1.4 says of a prior occurrence, and no name is without end. There are at most 16.
//  4. After the question, a query and a response with an RCODE have nothing more to read.
//     Else the ANCOUNT records of the answer section are read in order, at most 256.
//     Whatever follows is not looked at, be it a section or not.
//  5. A record's name, type, class, TTL, length and data are in the message (RFC 1035 section 3.2.1).
//  6. A record counts if its class and the question's are IN and it is of the chain's current name, which
//     at first is the question's. ASCII letters are equal in both cases (RFC 4343). All others are
//     skipped, their data unseen.
//  7. A CNAME that counts moves the chain to the name that is its data, exactly (RFC 1034 section 3.6.2),
//     whatever the question's type is. It does so until an address has counted: a name has either
//     (RFC 2181 section 10.1), and such a CNAME is skipped, its data unseen.
//  8. A record that counts and is of the question's type, A or AAAA, is an address and has 4 or 16 octets
//     (RFC 1035 section 3.4.1, RFC 3596 section 2.2). All other records are skipped.
func ReadDNS(b []byte, m *DNS) error {
	m.ID, m.Response, m.Opcode, m.RCode, m.Truncated = 0, false, 0, 0, false
	m.forget()
	switch {
	case len(b) < dnsHeader:
		return ErrDNSShort
	case len(b) > maxDNS:
		return ErrDNSLong
	}
	flags := binary.BigEndian.Uint16(b[2:])
	m.ID = binary.BigEndian.Uint16(b)
	m.Response = flags&0x8000 != 0
	m.Opcode = uint8(flags >> 11 & 0xf)
	m.Truncated = flags&0x0200 != 0
	m.RCode = uint8(flags & 0xf)

	err := m.read(b)
	if err != nil {
		m.forget()
	}
	return err
}

// forget takes back what was read behind the header's flags.
func (m *DNS) forget() {
	m.Question, m.QuestionType, m.QuestionClass = Name{}, 0, 0
	m.AnswerCount, m.Aliases, m.Last, m.NumAddrs = 0, 0, Name{}, 0
}

func (m *DNS) read(b []byte) error {
	switch {
	case m.Opcode != 0:
		return ErrDNSOpcode
	case binary.BigEndian.Uint16(b[4:]) != 1:
		return ErrDNSQuestionCount
	}
	at, err := readName(&m.Question, b, dnsHeader, true)
	if err != nil {
		return err
	}
	if at+4 > len(b) {
		return ErrDNSEnd
	}
	m.QuestionType, m.QuestionClass = binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
	m.Last = m.Question
	if !m.Response || m.RCode != 0 {
		return nil
	}
	m.AnswerCount = binary.BigEndian.Uint16(b[6:])
	if m.AnswerCount > maxDNSAnswers {
		return ErrDNSAnswerCount
	}
	return m.readAnswers(b, at+4)
}

// readAnswers reads the answer section, which begins at offset at.
func (m *DNS) readAnswers(b []byte, at int) error {
	smallest := ^uint32(0) // of the TTLs of the aliases
	var owner Name
	for range m.AnswerCount {
		var err error
		if at, err = readName(&owner, b, at, false); err != nil {
			return err
		}
		if at+10 > len(b) {
			return ErrDNSEnd
		}
		kind, class := binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
		ttl := binary.BigEndian.Uint32(b[at+4:])
		data := at + 10
		at = data + int(binary.BigEndian.Uint16(b[at+8:]))
		if at > len(b) {
			return ErrDNSEnd
		}
		if class != DNSClassIN || m.QuestionClass != DNSClassIN || owner != m.Last {
			continue
		}
		if ttl > 1<<31-1 {
			ttl = 0
		}
		ttl = min(ttl, smallest)
		switch {
		case kind == DNSTypeCNAME && m.NumAddrs == 0:
			end, err := readName(&m.Last, b, data, false)
			if err != nil {
				return err
			}
			if end != at {
				return ErrDNSAlias
			}
			smallest = ttl
			m.Aliases++
		case kind == DNSTypeA && m.QuestionType == DNSTypeA:
			if at-data != 4 {
				return ErrDNSAddress
			}
			m.add(netip.AddrFrom4([4]byte(b[data:at])), ttl)
		case kind == DNSTypeAAAA && m.QuestionType == DNSTypeAAAA:
			if at-data != 16 {
				return ErrDNSAddress
			}
			m.add(netip.AddrFrom16([16]byte(b[data:at])), ttl)
		}
	}
	return nil
}

// add has room: there is at most one address in a record.
func (m *DNS) add(a netip.Addr, ttl uint32) {
	m.Addrs[m.NumAddrs] = DNSAddr{Addr: a, TTL: ttl}
	m.NumAddrs++
}

// readName reads the name at offset at of a message into n and returns the offset
// behind it: behind its first pointer, if it has one. Rules 2 and 3 of ReadDNS.
func readName(n *Name, b []byte, at int, question bool) (int, error) {
	*n = Name{}
	run, end, pointers, size := at, 0, 0, 0
	for {
		if at >= len(b) {
			return 0, ErrDNSEnd
		}
		length := int(b[at])
		switch length & 0xc0 {
		case 0x00:
			at++
			if length == 0 {
				n.n = uint8(size + 1)
				if pointers == 0 {
					end = at
				}
				return end, nil
			}
			if at+length > len(b) {
				return 0, ErrDNSEnd
			}
			if size+1+length+1 > maxName {
				return 0, ErrDNSName
			}
			n.b[size] = uint8(length)
			for i, c := range b[at : at+length] {
				n.b[size+1+i] = lower(c)
			}
			size += 1 + length
			at += length
		case 0xc0:
			if question {
				return 0, ErrDNSQuestionPointer
			}
			if at+2 > len(b) {
				return 0, ErrDNSEnd
			}
			target := int(binary.BigEndian.Uint16(b[at:]) & 0x3fff)
			if target < dnsHeader || target >= run {
				return 0, ErrDNSPointer
			}
			if pointers == 0 {
				end = at + 2
			}
			if pointers++; pointers > maxDNSPointers {
				return 0, ErrDNSPointers
			}
			at, run = target, target
		default:
			return 0, ErrDNSLabel
		}
	}
}
