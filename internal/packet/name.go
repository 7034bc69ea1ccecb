package packet

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// What a domain name may be, in octets. Source: RFC 1035 section 2.3.4.
const (
	maxName  = 255 // in wire form, the root's octet included
	maxLabel = 63
)

// Name is a domain name in canonical wire form: labels led by their length, the
// root's zero octet last, at most 255 octets, A to Z folded to a to z and nothing
// else folded. Labels hold any octets. A length is below 64 and so not a letter:
// folding the whole wire form folds the labels only.
//
// Names are equal if == says so. The zero value is no name at all; the root is a
// name. Source: RFC 1035 section 3.1, RFC 4034 section 6.2, RFC 4343.
type Name struct {
	n uint8
	b [maxName]byte // zeros from n on, for ==
}

// Wire returns the wire form, without a copy: it is n's own and must not be
// written to. It has no octets for the zero Name.
func (n *Name) Wire() []byte { return n.b[:n.n] }

// Len returns the length of the wire form in octets: 1 for the root, 0 for the zero Name.
func (n Name) Len() int { return int(n.n) }

// IsRoot reports whether n is the root, which is not the zero Name.
func (n Name) IsRoot() bool { return n.n == 1 }

// Labels returns the number of labels, the root's not counted.
func (n Name) Labels() int {
	count := 0
	for at := 0; at+1 < int(n.n); at += 1 + int(n.b[at]) {
		count++
	}
	return count
}

// Parent returns n without its first label. The root is its own parent, and so is the zero Name.
func (n Name) Parent() Name {
	if n.n <= 1 {
		return n
	}
	var p Name
	p.n = uint8(copy(p.b[:], n.b[1+int(n.b[0]):n.n]))
	return p
}

// IsBelow reports whether n is other with one or more whole labels in front. No
// name is below itself, every other name is below the root, nothing is below the
// zero Name.
func (n Name) IsBelow(other Name) bool {
	if other.n == 0 || n.n <= other.n {
		return false
	}
	at, want := 0, int(n.n)-int(other.n)
	for at < want {
		at += 1 + int(n.b[at])
	}
	return at == want && bytes.Equal(n.b[at:n.n], other.Wire())
}

// Compare orders names by the octets of their wire form: an order for lists that
// have to be the same every time, not that of DNSSEC. The zero Name comes first.
func (n Name) Compare(other Name) int { return bytes.Compare(n.Wire(), other.Wire()) }

// String returns the presentation form without a trailing dot, and "." for the
// root. Dots and backslashes within a label get a backslash, octets other than
// 0x21 to 0x7e are \DDD in decimal. It is "" for the zero Name.
// Source: RFC 1035 section 5.1, RFC 4343 section 2.1.
func (n Name) String() string {
	if n.IsRoot() {
		return "."
	}
	var s strings.Builder
	s.Grow(int(n.n))
	for at := 0; at+1 < int(n.n); {
		end := at + 1 + int(n.b[at])
		if at > 0 {
			s.WriteByte('.')
		}
		for _, c := range n.b[at+1 : end] {
			switch {
			case c == '.' || c == '\\':
				s.WriteByte('\\')
				s.WriteByte(c)
			case c < 0x21 || c > 0x7e:
				s.Write([]byte{'\\', '0' + c/100, '0' + c/10%10, '0' + c%10})
			default:
				s.WriteByte(c)
			}
		}
		at = end
	}
	return s.String()
}

// Why a text is not the name of a host.
var (
	errNameEmpty      = errors.New("is empty: write a name such as example.com")
	errNameEmptyLabel = errors.New("has an empty label: write one dot between labels and none in front")
	errNameLongLabel  = errors.New("has a label of more than 63 octets: RFC 1035 permits no longer one")
	errNameLong       = errors.New("has more than 253 octets: RFC 1035 permits no longer one")
	errNameNotASCII   = errors.New("is not ASCII: write its A-label form, in which such labels begin with xn-- (RFC 5890)")
	errNameLetter     = errors.New("has another character than letters, digits, hyphens, underscores and dots")
)

// ParseName reads the presentation form that a policy may write: labels of ASCII
// letters, digits, hyphens and underscores, one dot between two, one after the
// last if so wished. There are no escapes and no wildcards, and the root cannot be
// written. Hyphens may stand anywhere in a label, as DNS has it. The error quotes s
// and says what to write instead.
// Source: RFC 1035 section 2.3.1, RFC 1123 section 2.1, RFC 2181 section 11.
func ParseName(s string) (Name, error) {
	var n Name
	if err := setText(&n, s); err != nil {
		return Name{}, fmt.Errorf("domain name %q %w", s, err)
	}
	return n, nil
}

// setText is ParseName without what allocates. It leaves n half-written if it fails.
func setText[T string | []byte](n *Name, s T) error {
	*n = Name{}
	if len(s) == 0 {
		return errNameEmpty
	}
	for i := range len(s) {
		if s[i] >= 0x80 {
			return errNameNotASCII
		}
	}
	// A label's length stands in front of it, where the dot before it was.
	length, size := 0, 1
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '.':
			if length == 0 {
				return errNameEmptyLabel
			}
			n.b[size-1-length] = uint8(length)
			if i == len(s)-1 {
				n.n = uint8(size + 1)
				return nil
			}
			length = 0
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
			fallthrough
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			if length++; length > maxLabel {
				return errNameLongLabel
			}
			n.b[size] = c
		default:
			return errNameLetter
		}
		// Room for this octet, and for the root's.
		if size++; size+1 > maxName {
			return errNameLong
		}
	}
	n.b[size-1-length] = uint8(length)
	n.n = uint8(size + 1)
	return nil
}

// lower folds one octet. Source: RFC 4343 section 3: ASCII letters only.
func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}
