package packettest

import "encoding/binary"

// Types of TLS extensions. Source: IANA tls-extensiontype-values.
const (
	TLSServerName = 0
	TLSALPN       = 16
	TLSTicket     = 35
	TLSECH        = 0xfe0d
)

// TLSExtension is an extension of a hello.
type TLSExtension struct {
	Type   uint16
	Data   []byte
	Length *uint16 // nil: that of the data
}

// ServerName returns a server_name extension with these entries of type host_name.
// Source: RFC 6066 section 3.
func ServerName(names ...string) TLSExtension {
	var list []byte
	for _, n := range names {
		list = append(list, 0)
		list = binary.BigEndian.AppendUint16(list, uint16(len(n)))
		list = append(list, n...)
	}
	return TLSExtension{Type: TLSServerName, Data: append(binary.BigEndian.AppendUint16(nil, uint16(len(list))), list...)}
}

// ClientHello is a TLS client's first message. Source: RFC 8446 section 4.1.2.
type ClientHello struct {
	Type         *uint8 // nil: 1
	Length       *int   // the message's, of which 24 bits are written; nil: the right one
	Version      uint16 // 0: 0x0303
	Session      []byte
	Ciphers      []byte // nil: one suite
	Compressions []byte // nil: none but null
	Extensions   []TLSExtension
	// NoExtensions leaves out their length too.
	NoExtensions bool
	// ExtensionsLength nil: that of the extensions.
	ExtensionsLength *uint16
	// Trailer is put behind the extensions, within the message.
	Trailer []byte
}

// Message returns the handshake message, without records.
func (h ClientHello) Message() []byte {
	var b []byte
	version := h.Version
	if version == 0 {
		version = 0x0303
	}
	b = binary.BigEndian.AppendUint16(b, version)
	b = append(b, make([]byte, 32)...)
	b = append(append(b, uint8(len(h.Session))), h.Session...)
	ciphers, compressions := h.Ciphers, h.Compressions
	if ciphers == nil {
		ciphers = []byte{0x13, 0x01}
	}
	if compressions == nil {
		compressions = []byte{0}
	}
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(ciphers))), ciphers...)
	b = append(append(b, uint8(len(compressions))), compressions...)
	if !h.NoExtensions {
		var e []byte
		for _, x := range h.Extensions {
			e = binary.BigEndian.AppendUint16(e, x.Type)
			e = binary.BigEndian.AppendUint16(e, or(x.Length, uint16(len(x.Data))))
			e = append(e, x.Data...)
		}
		b = append(binary.BigEndian.AppendUint16(b, or(h.ExtensionsLength, uint16(len(e)))), e...)
	}
	b = append(b, h.Trailer...)
	n := or(h.Length, len(b))
	return append([]byte{or(h.Type, 1), uint8(n >> 16), uint8(n >> 8), uint8(n)}, b...)
}

// Bytes returns the message in one record of version 3.1.
func (h ClientHello) Bytes() []byte { return TLSRecords(0x0301, h.Message(), 1<<16) }

// TLSRecords returns msg in handshake records of these sizes, the last of which
// repeats as often as needed.
func TLSRecords(version uint16, msg []byte, sizes ...int) []byte {
	var b []byte
	for len(msg) > 0 {
		n := len(msg)
		if len(sizes) > 0 {
			n = min(n, sizes[0])
		}
		b = append(b, 22)
		b = binary.BigEndian.AppendUint16(b, version)
		b = binary.BigEndian.AppendUint16(b, uint16(n))
		b = append(b, msg[:n]...)
		msg = msg[n:]
		if len(sizes) > 1 {
			sizes = sizes[1:]
		}
	}
	return b
}
