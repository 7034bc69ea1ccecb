package packet

import (
	"encoding/binary"
	"errors"
)

// maxHello is the longest hello that is read, in octets of the stream: its
// records' headers are included. Those of today have 300 to 2000.
const maxHello = 16384

const (
	tlsRecordHeader  = 5     // RFC 8446 section 5.1
	maxTLSRecord     = 16384 // octets of content: RFC 8446 section 5.1
	tlsHandshake     = 22    // content type: RFC 8446 section 5.1
	tlsMessageHeader = 4     // RFC 8446 section 4
	tlsClientHello   = 1     // handshake type: RFC 8446 section 4

	tlsServerName = 0      // RFC 6066 section 3
	tlsHostName   = 0      // RFC 6066 section 3
	tlsECH        = 0xfe0d // RFC 9849 section 5
)

// Why a stream's first octets are not a hello that is understood. There is one for
// each cause.
var (
	ErrHelloRecord       = errors.New("tls record is not one of the handshake")
	ErrHelloVersion      = errors.New("tls version is not one of 3.1 to 3.4")
	ErrHelloRecordLength = errors.New("tls record has no octets or more than 16384")
	ErrHelloLong         = errors.New("tls hello has more than 16384 octets with its records")
	ErrHelloType         = errors.New("tls handshake does not begin with a client's hello")
	ErrHelloTrailing     = errors.New("tls hello does not end where its record does")
	ErrHelloEnd          = errors.New("tls hello ends within a field")
	ErrHelloSession      = errors.New("tls hello has a session of more than 32 octets")
	ErrHelloCiphers      = errors.New("tls hello has no cipher suites or half of one")
	ErrHelloCompression  = errors.New("tls hello has no compression methods")
	ErrHelloExtensions   = errors.New("tls extensions do not end where the hello does")
	ErrHelloDuplicate    = errors.New("tls hello has an extension twice")
	ErrHelloServerName   = errors.New("tls server name is not exactly one host name")
	ErrHelloName         = errors.New("tls server name is not of letters, digits, hyphens, underscores and dots")
	ErrHelloAddress      = errors.New("tls server name is an address")
)

// ClientHello is what a TLS client's hello says of where it wants to go.
type ClientHello struct {
	// ServerName is what the client asks for, folded and without a trailing dot;
	// the zero Name without HasServerName. It is what the client claims, and says
	// nothing of who will answer. With ECH it is the name of the client-facing server.
	ServerName    Name
	HasServerName bool
	// ECH is set if there is an encrypted_client_hello, real or GREASE, which no one
	// on the way can tell apart: RFC 9849 section 6.2. Its data is not looked at.
	ECH bool
}

// ReadClientHello reads the first octets that a client sends in a TCP stream. It
// returns need > 0 if what is there is not wrong, and at least that many more
// octets are necessary to tell; it is to be called again with all of them from the
// first one on. What is behind the hello is not looked at. It never allocates. If
// need is not 0 or err is not nil, h is the zero ClientHello.
//
// The rules:
//
//  1. The stream begins with records of type handshake, of version 3.1 to 3.4, of 1 to 16384 octets
//     (RFC 8446 section 5.1). An SSL 2.0 hello is none (RFC 6176).
//  2. They have one ClientHello, which is the handshake's first message, ends where a record does, and is
//     at most 16384 octets into the stream. RFC 8446 section 5.1 has a client send nothing else before it
//     has an answer, but for another record.
//  3. Its legacy version is 3.1 to 3.4, its session of at most 32 octets, its cipher suites of 2 octets each and
//     at least one, its compression methods at least one (RFC 8446 section 4.1.2, RFC 5246 section 7.4.1.2).
//  4. Extensions may be absent. Else their length is that of the rest, exactly, and they are that long
//     together. No two are of one type (RFC 8446 section 4.2).
//  5. A server_name has exactly one entry, of type host_name, and is as long as that (RFC 6066 section 3).
//  6. A host name is as ParseName has it: letters, digits, hyphens, underscores and single dots, with or without a
//     dot at its end. Its last label is neither of digits only nor 0x and hexadecimal digits: whatever
//     reads addresses reads one then (RFC 6066 section 3 forbids them; the URL standard, "ends in a number").
//
// What is wrong is found as soon as it is there as to rules 1 and 2, and when the
// hello is complete as to the others.
func ReadClientHello(b []byte, h *ClientHello) (need int, err error) {
	*h = ClientHello{}
	end, size, need, err := findHello(b)
	if need > 0 || err != nil {
		return need, err
	}
	r := helloReader{b: b[:end], left: size}
	if err := r.read(h); err != nil {
		*h = ClientHello{}
		return 0, err
	}
	return 0, nil
}

// findHello walks the records: rules 1 and 2. It returns where the hello ends in b
// and the length of the message, its header included.
func findHello(b []byte) (end, size, need int, err error) {
	var header [tlsMessageHeader]byte
	at, have := 0, 0 // offset of the record; octets of the message in front of it
	for {
		record := b[at:]
		switch {
		case len(record) > 0 && record[0] != tlsHandshake:
			return 0, 0, 0, ErrHelloRecord
		case len(record) > 1 && record[1] != 3, len(record) > 2 && (record[2] < 1 || record[2] > 4):
			return 0, 0, 0, ErrHelloVersion
		case len(record) < tlsRecordHeader:
			return 0, 0, tlsRecordHeader - len(record), nil
		}
		length := int(binary.BigEndian.Uint16(record[3:]))
		content := record[tlsRecordHeader:]
		content = content[:min(length, len(content))]
		at += tlsRecordHeader + length
		switch {
		case length == 0 || length > maxTLSRecord:
			return 0, 0, 0, ErrHelloRecordLength
		case at > maxHello:
			return 0, 0, 0, ErrHelloLong
		}
		if have < tlsMessageHeader {
			copy(header[have:], content)
			if len(content) > 0 && header[0] != tlsClientHello {
				return 0, 0, 0, ErrHelloType
			}
			if have+len(content) >= tlsMessageHeader {
				size = tlsMessageHeader + int(header[1])<<16 + int(header[2])<<8 + int(header[3])
			}
		}
		switch {
		case size > maxHello-tlsRecordHeader:
			return 0, 0, 0, ErrHelloLong
		case size > 0 && have+length > size:
			return 0, 0, 0, ErrHelloTrailing
		case len(content) < length:
			return 0, 0, length - len(content), nil
		}
		if have += length; have == size {
			return at, size, 0, nil
		}
	}
}

// helloReader reads a message that findHello has found, through its records.
type helloReader struct {
	b      []byte
	at     int // offset of what comes next
	record int // octets left in its record
	left   int // octets left of the message
}

// number reads an integer of 1 to 3 octets, if the message has them.
func (r *helloReader) number(octets int) (n int, ok bool) {
	if octets > r.left {
		return 0, false
	}
	for range octets {
		if r.record == 0 {
			r.nextRecord()
		}
		n = n<<8 | int(r.b[r.at])
		r.at, r.record, r.left = r.at+1, r.record-1, r.left-1
	}
	return n, true
}

// skip goes over n octets, if the message has them.
func (r *helloReader) skip(n int) bool {
	if n > r.left {
		return false
	}
	r.left -= n
	for n > r.record {
		n -= r.record
		r.at += r.record
		r.nextRecord()
	}
	r.at, r.record = r.at+n, r.record-n
	return true
}

// vector reads a length of 1 or 2 octets and goes over what is that long.
func (r *helloReader) vector(octets int) (n int, ok bool) {
	n, ok = r.number(octets)
	return n, ok && r.skip(n)
}

// nextRecord is called at a record's end, and only if there is more of the message.
func (r *helloReader) nextRecord() {
	r.record = int(binary.BigEndian.Uint16(r.b[r.at+3:]))
	r.at += tlsRecordHeader
}

// read is rules 3 and 4.
func (r *helloReader) read(h *ClientHello) error {
	r.skip(tlsMessageHeader)
	version, ok := r.number(2)
	if !ok {
		return ErrHelloEnd
	}
	if version < 0x0301 || version > 0x0304 {
		return ErrHelloVersion
	}
	if !r.skip(32) { // random
		return ErrHelloEnd
	}
	if n, ok := r.vector(1); !ok {
		return ErrHelloEnd
	} else if n > 32 {
		return ErrHelloSession
	}
	if n, ok := r.vector(2); !ok {
		return ErrHelloEnd
	} else if n == 0 || n%2 != 0 {
		return ErrHelloCiphers
	}
	if n, ok := r.vector(1); !ok {
		return ErrHelloEnd
	} else if n == 0 {
		return ErrHelloCompression
	}
	if r.left == 0 {
		return nil
	}
	if n, ok := r.number(2); !ok || n != r.left {
		return ErrHelloExtensions
	}
	var seen [1 << 16 / 64]uint64
	for r.left > 0 {
		kind, _ := r.number(2)
		n, ok := r.number(2)
		if !ok || n > r.left {
			return ErrHelloEnd
		}
		if seen[kind/64]&(1<<(kind%64)) != 0 {
			return ErrHelloDuplicate
		}
		seen[kind/64] |= 1 << (kind % 64)
		switch kind {
		case tlsServerName:
			if err := r.readServerName(h, n); err != nil {
				return err
			}
		default:
			h.ECH = h.ECH || kind == tlsECH
			r.skip(n)
		}
	}
	return nil
}

// readServerName reads an extension of n octets, which are there: rules 5 and 6.
func (r *helloReader) readServerName(h *ClientHello, n int) error {
	if n < 5 {
		return ErrHelloServerName
	}
	list, _ := r.number(2)
	kind, _ := r.number(1)
	length, _ := r.number(2)
	if list != n-2 || kind != tlsHostName || length != n-5 || length == 0 {
		return ErrHelloServerName
	}
	var text [maxName]byte
	if length > len(text) {
		return ErrHelloName
	}
	for i := range length {
		c, _ := r.number(1)
		text[i] = uint8(c)
	}
	if setText(&h.ServerName, text[:length]) != nil {
		return ErrHelloName
	}
	if h.ServerName.endsInNumber() {
		return ErrHelloAddress
	}
	h.HasServerName = true
	return nil
}

// endsInNumber reports whether the last label is of digits only, or 0x and
// hexadecimal digits only: what readers of addresses take for a part of one.
// Source: URL standard section 3.5, "ends-in-a-number checker".
func (n *Name) endsInNumber() bool {
	at := 0
	for at+1+int(n.b[at]) < int(n.n)-1 {
		at += 1 + int(n.b[at])
	}
	label := n.b[at+1 : at+1+int(n.b[at])]
	hex := len(label) >= 2 && label[0] == '0' && label[1] == 'x'
	if hex {
		label = label[2:]
	}
	for _, c := range label {
		if (c < '0' || c > '9') && (!hex || c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
