package packet_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/packet"
	"github.com/postern-dev/postern/internal/packet/packettest"
)

// realHello returns the first message of a crypto/tls client, without records.
func realHello(tb testing.TB, cfg *tls.Config) []byte {
	tb.Helper()
	client, server := net.Pipe()
	tb.Cleanup(func() { _ = server.Close() })
	go func() {
		_ = tls.Client(client, cfg).HandshakeContext(context.Background())
		_ = client.Close()
	}()
	header := make([]byte, 5)
	if _, err := io.ReadFull(server, header); err != nil {
		tb.Fatal(err)
	}
	msg := make([]byte, binary.BigEndian.Uint16(header[3:]))
	if _, err := io.ReadFull(server, msg); err != nil {
		tb.Fatal(err)
	}
	return msg
}

// echConfigs returns an ECHConfigList with the client-facing server's name. Source: RFC 9849 section 4.
func echConfigs(tb testing.TB, public string) []byte {
	tb.Helper()
	key, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		tb.Fatal(err)
	}
	vector := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	config := slices.Concat([]byte{1, 0, 0x20}, vector(key.PublicKey().Bytes()), vector([]byte{0, 1, 0, 1}),
		[]byte{32, uint8(len(public))}, []byte(public), []byte{0, 0})
	return vector(append([]byte{0xfe, 0x0d}, vector(config)...))
}

type helloCase struct {
	name string
	b    []byte
	err  error
	want string // as String prints the name, with " ech"
	need bool
}

func helloSays(h *packet.ClientHello) string {
	s := h.ServerName.String()
	if h.ECH {
		s += " ech"
	}
	return s
}

// realHellos are the messages of clients as there are.
func realHellos(tb testing.TB) map[string]struct {
	msg  []byte
	want string
} {
	tb.Helper()
	type hello = struct {
		msg  []byte
		want string
	}
	real := func(want string, cfg *tls.Config) hello { return hello{realHello(tb, cfg), want} }
	return map[string]hello{
		"post-quantum":   real("www.example.com", &tls.Config{ServerName: "WWW.Example.com"}),
		"TLS 1.2 only":   real("example.com", &tls.Config{ServerName: "example.com.", MaxVersion: tls.VersionTLS12}), //nolint:gosec // old clients have hellos too
		"TLS 1.3 only":   real("a_b.example", &tls.Config{ServerName: "a_b.example", MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}}),
		"ALPN":           real("example.com", &tls.Config{ServerName: "example.com", NextProtos: []string{"h2", "http/1.1"}}),
		"by its address": real("", &tls.Config{ServerName: "192.0.2.1"}),
		"no name":        real("", &tls.Config{InsecureSkipVerify: true}), //nolint:gosec // nothing is sent to anyone
		"ECH":            real("public.example ech", &tls.Config{ServerName: "secret.example", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echConfigs(tb, "public.example")}),
		"long name":      real(strings.Repeat("abcdefg.", 31)+"com", &tls.Config{ServerName: strings.Repeat("abcdefg.", 31) + "com"}),
	}
}

func TestReadRealHellos(t *testing.T) {
	for name, real := range realHellos(t) {
		if name == "post-quantum" && len(real.msg) < 1200 {
			t.Errorf("%s: of %d octets only", name, len(real.msg))
		}
		read := func(how string, b []byte) {
			t.Helper()
			var h packet.ClientHello
			need, err := packet.ReadClientHello(b, &h)
			if need != 0 || err != nil || helloSays(&h) != real.want || h.HasServerName != (real.want != "") {
				t.Errorf("%s, %s: got %q, need %d, %v, want %q", name, how, helloSays(&h), need, err, real.want)
			}
		}
		whole := packettest.TLSRecords(0x0301, real.msg)
		read("whole", whole)
		read("with more behind", append(slices.Clone(whole), 0x17, 3, 3))
		for version := uint16(0x0301); version <= 0x0304; version++ {
			read("another version", packettest.TLSRecords(version, real.msg))
		}
		segments := func(b []byte) {
			for n := range b {
				var h packet.ClientHello
				need, err := packet.ReadClientHello(b[:n:n], &h)
				if err != nil || need <= 0 || need > len(b)-n || h != (packet.ClientHello{}) {
					t.Fatalf("%s, %d octets of %d: need %d, %v, %+v", name, n, len(b), need, err, h)
				}
			}
		}
		segments(whole)
		segments(packettest.TLSRecords(0x0303, real.msg, 1, 2, 50))
		for size := 1; size < len(real.msg); size++ {
			read("in records of a size", packettest.TLSRecords(0x0301, real.msg, size))
			read("in two records", packettest.TLSRecords(0x0301, real.msg, size, len(real.msg)))
		}
	}
}

func helloCases() []helloCase {
	type (
		hello = packettest.ClientHello
		ext   = packettest.TLSExtension
	)
	named := func(n string) []byte {
		return hello{Extensions: []ext{packettest.ServerName(n)}}.Bytes()
	}
	raw := func(data ...byte) []byte {
		return hello{Extensions: []ext{{Type: packettest.TLSServerName, Data: data}}}.Bytes()
	}
	edit := func(at int, v byte) []byte { b := named("example.com"); b[at] = v; return b }
	long := strings.Repeat(strings.Repeat("a", 62)+".", 4) // 252
	// sized is a stream of a hello in one record that ends at n.
	sized := func(n int) []byte {
		h := hello{Extensions: []ext{packettest.ServerName("example.com"), {Type: 21}}}
		h.Extensions[1].Data = make([]byte, n-len(h.Bytes()))
		return h.Bytes()
	}
	ticket := ext{Type: packettest.TLSTicket, Data: []byte("anything")}
	name := packettest.ServerName("example.com")
	ech := ext{Type: packettest.TLSECH, Data: []byte{0xff}}
	return []helloCase{
		// Rule 1.
		{name: "nothing", need: true},
		{name: "an alert", b: []byte{21}, err: packet.ErrHelloRecord},
		{name: "application data", b: []byte{23, 3, 3, 0, 1, 0}, err: packet.ErrHelloRecord},
		{name: "SSL 2.0", b: []byte{0x80, 0x2e, 1, 3, 1}, err: packet.ErrHelloRecord},
		{name: "HTTP", b: []byte("GET / HTTP/1.1\r\n"), err: packet.ErrHelloRecord},
		{name: "SSL 3.0", b: edit(2, 0), err: packet.ErrHelloVersion},
		{name: "version 3.5", b: edit(2, 5), err: packet.ErrHelloVersion},
		{name: "version 2", b: edit(1, 2), err: packet.ErrHelloVersion},
		{name: "version 2, three octets", b: []byte{22, 2}, err: packet.ErrHelloVersion},
		{name: "empty record", b: append([]byte{22, 3, 1, 0, 0}, named("example.com")...), err: packet.ErrHelloRecordLength},
		{name: "empty record in between", b: slices.Concat(packettest.TLSRecords(0x0301, hello{}.Message(), 9)[:14], []byte{22, 3, 1, 0, 0}), err: packet.ErrHelloRecordLength},
		{name: "record of 16385", b: []byte{22, 3, 1, 0x40, 1}, err: packet.ErrHelloRecordLength},
		{name: "record of 16384", b: []byte{22, 3, 1, 0x40, 0}, err: packet.ErrHelloLong},
		{name: "record of 16379", b: []byte{22, 3, 1, 0x3f, 0xfb, 1}, need: true},
		{name: "another type in between", b: slices.Concat(packettest.TLSRecords(0x0301, hello{}.Message(), 9)[:14], []byte{20, 3, 3, 0, 1, 1}), err: packet.ErrHelloRecord},

		// Rule 2.
		{name: "a server's hello", b: hello{Type: new(uint8(2))}.Bytes(), err: packet.ErrHelloType},
		{name: "a server's hello, its first octet", b: []byte{22, 3, 1, 0, 9, 2}, err: packet.ErrHelloType},
		{name: "hello request", b: []byte{22, 3, 1, 0, 4, 0, 0, 0, 0}, err: packet.ErrHelloType},
		{name: "16384 octets", b: sized(16384), want: "example.com"},
		{name: "16385 octets", b: sized(16385), err: packet.ErrHelloLong},
		{name: "says 16380", b: hello{Length: new(16375)}.Bytes(), need: true},
		{name: "says 16381", b: hello{Length: new(16376)}.Bytes(), err: packet.ErrHelloLong},
		{name: "says 2^24-1", b: hello{Length: new(1<<24 - 1)}.Bytes(), err: packet.ErrHelloLong},
		{name: "says 2^16 more", b: hello{Length: new(1<<16 + len(hello{}.Message()) - 4)}.Bytes(), err: packet.ErrHelloLong},
		{name: "too long in many records", b: packettest.TLSRecords(0x0301, hello{Extensions: []ext{{Type: 21, Data: make([]byte, 4000)}}}.Message(), 1), err: packet.ErrHelloLong},
		{name: "another message in its record", b: packettest.TLSRecords(0x0301, append(hello{}.Message(), 0)), err: packet.ErrHelloTrailing},
		{name: "another message in its record, in sight of its header", b: packettest.TLSRecords(0x0301, append(hello{}.Message(), 0))[:9], err: packet.ErrHelloTrailing},
		{name: "another record behind", b: append(named("example.com"), 20, 3, 3, 0, 1, 1), want: "example.com"},
		{name: "nonsense behind", b: append(named("example.com"), 0xff), want: "example.com"},
		{name: "says one less", b: hello{Length: new(len(hello{}.Message()) - 5)}.Bytes(), err: packet.ErrHelloTrailing},
		{name: "says one more", b: hello{Length: new(len(hello{}.Message()) - 3)}.Bytes(), need: true},

		// Rule 3.
		{name: "hello of no octets", b: []byte{22, 3, 1, 0, 4, 1, 0, 0, 0}, err: packet.ErrHelloEnd},
		{name: "legacy version 3.0", b: hello{Version: 0x0300}.Bytes(), err: packet.ErrHelloVersion},
		{name: "legacy version 2", b: hello{Version: 0x0002}.Bytes(), err: packet.ErrHelloVersion},
		{name: "legacy version 3.1", b: hello{Version: 0x0301}.Bytes()},
		{name: "legacy version 3.4", b: hello{Version: 0x0304}.Bytes()},
		{name: "legacy version 3.5", b: hello{Version: 0x0305}.Bytes(), err: packet.ErrHelloVersion},
		{name: "session of 32", b: hello{Session: make([]byte, 32)}.Bytes()},
		{name: "session of 33", b: hello{Session: make([]byte, 33)}.Bytes(), err: packet.ErrHelloSession},
		{name: "session past the end", b: edit(43, 255), err: packet.ErrHelloEnd},
		{name: "no ciphers", b: hello{Ciphers: []byte{}}.Bytes(), err: packet.ErrHelloCiphers},
		{name: "three octets of ciphers", b: hello{Ciphers: []byte{0x13, 1, 0x13}}.Bytes(), err: packet.ErrHelloCiphers},
		{name: "ciphers past the end", b: edit(44, 255), err: packet.ErrHelloEnd},
		{name: "no compression methods", b: hello{Compressions: []byte{}}.Bytes(), err: packet.ErrHelloCompression},
		{name: "compression methods past the end", b: edit(48, 255), err: packet.ErrHelloEnd},

		// Rule 4.
		{name: "no extensions and no length", b: hello{NoExtensions: true}.Bytes()},
		{name: "no extensions", b: hello{}.Bytes()},
		{name: "half a length of extensions", b: hello{NoExtensions: true, Trailer: []byte{0}}.Bytes(), err: packet.ErrHelloExtensions},
		{name: "extensions' length too high", b: hello{Extensions: []ext{name}, ExtensionsLength: new(uint16(21))}.Bytes(), err: packet.ErrHelloExtensions},
		{name: "extensions' length too low", b: hello{Extensions: []ext{name}, ExtensionsLength: new(uint16(19))}.Bytes(), err: packet.ErrHelloExtensions},
		{name: "octets behind the extensions", b: hello{Extensions: []ext{name}, Trailer: []byte{0}}.Bytes(), err: packet.ErrHelloExtensions},
		{name: "one octet of an extension", b: hello{NoExtensions: true, Trailer: []byte{0, 1, 0}}.Bytes(), err: packet.ErrHelloEnd},
		{name: "three octets of an extension", b: hello{NoExtensions: true, Trailer: []byte{0, 3, 0, 1, 0}}.Bytes(), err: packet.ErrHelloEnd},
		{name: "extension past the end", b: hello{Extensions: []ext{name, {Type: 35, Length: new(uint16(1))}}}.Bytes(), err: packet.ErrHelloEnd},
		{name: "session ticket", b: hello{Extensions: []ext{ticket, name}}.Bytes(), want: "example.com"},
		{name: "session ticket twice", b: hello{Extensions: []ext{ticket, name, ticket}}.Bytes(), err: packet.ErrHelloDuplicate},
		{name: "server name twice", b: hello{Extensions: []ext{name, name}}.Bytes(), err: packet.ErrHelloDuplicate},
		{name: "type 65535 twice", b: hello{Extensions: []ext{{Type: 65535}, {Type: 65535}}}.Bytes(), err: packet.ErrHelloDuplicate},
		{name: "types with a 64 in between", b: hello{Extensions: []ext{{Type: 1}, {Type: 65}, {Type: 0x101}, {Type: 0xfe01}}}.Bytes()},
		{name: "ECH", b: hello{Extensions: []ext{name, ech}}.Bytes(), want: "example.com ech"},
		{name: "ECH in front", b: hello{Extensions: []ext{ech, name}}.Bytes(), want: "example.com ech"},
		{name: "ECH without a name", b: hello{Extensions: []ext{ech}}.Bytes(), want: " ech"},
		{name: "ECH twice", b: hello{Extensions: []ext{ech, ech}}.Bytes(), err: packet.ErrHelloDuplicate},
		{name: "ECH and a name that is none", b: hello{Extensions: []ext{ech, packettest.ServerName("a b")}}.Bytes(), err: packet.ErrHelloName},

		// Rule 5.
		{name: "server name of no octets", b: raw(), err: packet.ErrHelloServerName},
		{name: "server name of an empty list", b: raw(0, 0), err: packet.ErrHelloServerName},
		{name: "server name of four octets", b: raw(0, 2, 0, 0), err: packet.ErrHelloServerName},
		{name: "empty server name", b: named(""), err: packet.ErrHelloServerName},
		{name: "two server names", b: hello{Extensions: []ext{packettest.ServerName("a.example", "b.example")}}.Bytes(), err: packet.ErrHelloServerName},
		{name: "server name of another type", b: raw(0, 4, 1, 0, 1, 'a'), err: packet.ErrHelloServerName},
		{name: "list's length too low", b: raw(0, 3, 0, 0, 1, 'a'), err: packet.ErrHelloServerName},
		{name: "list's length too high", b: raw(0, 5, 0, 0, 1, 'a'), err: packet.ErrHelloServerName},
		{name: "name's length too low", b: raw(0, 5, 0, 0, 1, 'a', 'b'), err: packet.ErrHelloServerName},
		{name: "name's length too high", b: raw(0, 4, 0, 0, 2, 'a'), err: packet.ErrHelloServerName},
		{name: "octets behind the list", b: raw(0, 4, 0, 0, 1, 'a', 0), err: packet.ErrHelloServerName},
		{name: "server name of one octet", b: raw(0, 4, 0, 0, 1, 'a'), want: "a"},

		// Rule 6.
		{name: "capitals and a dot behind", b: named("WWW.Example.COM."), want: "www.example.com"},
		{name: "underscore", b: named("_a.b-.example"), want: "_a.b-.example"},
		{name: "one label", b: named("localhost"), want: "localhost"},
		{name: "253 octets", b: named(long + "b"), want: long + "b"},
		{name: "253 octets and a dot", b: named(long + "b."), want: long + "b"},
		{name: "254 octets", b: named(long + "bb"), err: packet.ErrHelloName},
		{name: "256 octets", b: named(long + "bbbb"), err: packet.ErrHelloName},
		{name: "15000 octets", b: named(strings.Repeat("a", 15000)), err: packet.ErrHelloName},
		{name: "label of 64", b: named(strings.Repeat("a", 64) + ".example"), err: packet.ErrHelloName},
		{name: "the root", b: named("."), err: packet.ErrHelloName},
		{name: "two dots", b: named("a..b"), err: packet.ErrHelloName},
		{name: "two dots behind", b: named("a.."), err: packet.ErrHelloName},
		{name: "dot in front", b: named(".a"), err: packet.ErrHelloName},
		{name: "NUL", b: named("example.com\x00.evil"), err: packet.ErrHelloName},
		{name: "not ASCII", b: named("b\xc3\xbccher.example"), err: packet.ErrHelloName},
		{name: "space", b: named("example.com "), err: packet.ErrHelloName},
		{name: "wildcard", b: named("*.example.com"), err: packet.ErrHelloName},
		{name: "port", b: named("example.com:443"), err: packet.ErrHelloName},
		{name: "IPv4", b: named("192.0.2.1"), err: packet.ErrHelloAddress},
		{name: "IPv4 with a dot behind", b: named("192.0.2.1."), err: packet.ErrHelloAddress},
		{name: "IPv4 as one number", b: named("3221225985"), err: packet.ErrHelloAddress},
		{name: "IPv4 in hexadecimal", b: named("0XC0000201"), err: packet.ErrHelloAddress},
		{name: "hexadecimal at its ends", b: named("0x09afAF"), err: packet.ErrHelloAddress},
		{name: "IPv4 of 0x", b: named("10.0x"), err: packet.ErrHelloAddress},
		{name: "last label of digits", b: named("example.1"), err: packet.ErrHelloAddress},
		{name: "digits in front", b: named("192.0.2.1.example"), want: "192.0.2.1.example"},
		{name: "digits and a letter", b: named("1.0.0.1a"), want: "1.0.0.1a"},
		{name: "hexadecimal and another letter", b: named("0xfg"), want: "0xfg"},
		{name: "hexadecimal without 0x", b: named("a.cafe"), want: "a.cafe"},
		{name: "IPv6", b: named("2001:db8::1"), err: packet.ErrHelloName},
		{name: "IPv6 in brackets", b: named("[2001:db8::1]"), err: packet.ErrHelloName},
	}
}

var helloErrors = []error{
	packet.ErrHelloRecord, packet.ErrHelloVersion, packet.ErrHelloRecordLength, packet.ErrHelloLong, packet.ErrHelloType, packet.ErrHelloTrailing, packet.ErrHelloEnd,
	packet.ErrHelloSession, packet.ErrHelloCiphers, packet.ErrHelloCompression, packet.ErrHelloExtensions, packet.ErrHelloDuplicate, packet.ErrHelloServerName, packet.ErrHelloName, packet.ErrHelloAddress,
}

func TestReadClientHello(t *testing.T) {
	names, seen := map[string]bool{}, map[error]bool{}
	var h packet.ClientHello
	for _, tc := range helloCases() {
		if names[tc.name] {
			t.Errorf("%s: twice", tc.name)
		}
		names[tc.name] = true
		need, err := packet.ReadClientHello(tc.b, &h)
		seen[err] = true
		if !errors.Is(err, tc.err) || helloSays(&h) != tc.want || (need > 0) != tc.need {
			t.Errorf("%s: %x\ngot  %q, need %d, %v\nwant %q, %v", tc.name, tc.b[:min(len(tc.b), 100)], helloSays(&h), need, err, tc.want, tc.err)
		}
		// With fewer octets it is not found to be something else.
		for n := range tc.b {
			need, early := packet.ReadClientHello(tc.b[:n:n], &h)
			behind := tc.err == nil && early == nil && need == 0
			if (early != nil && !errors.Is(early, tc.err)) || (early == nil && need == 0 && !behind) || need < 0 {
				t.Errorf("%s: of %d octets %v, need %d, of all %v", tc.name, n, early, need, err)
			}
			if behind && helloSays(&h) != tc.want {
				t.Errorf("%s: of %d octets %q", tc.name, n, helloSays(&h))
			}
		}
	}
	for _, err := range helloErrors {
		if !seen[err] {
			t.Errorf("no hello for %q", err)
		}
	}
	cases := helloCases()
	if n := testing.AllocsPerRun(10, func() {
		for _, tc := range cases {
			_, _ = packet.ReadClientHello(tc.b, &h)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// stream gives a server what a client sent, and takes what it answers.
type stream struct{ io.Reader }

func (stream) Write(b []byte) (int, error)      { return len(b), nil }
func (stream) Close() error                     { return nil }
func (stream) LocalAddr() net.Addr              { return nil }
func (stream) RemoteAddr() net.Addr             { return nil }
func (stream) SetDeadline(time.Time) error      { return nil }
func (stream) SetReadDeadline(time.Time) error  { return nil }
func (stream) SetWriteDeadline(time.Time) error { return nil }

// serverReads returns the name that a crypto/tls server reads, if it takes the hello.
func serverReads(b []byte) (name string, ok bool) {
	done := errors.New("seen")
	cfg := &tls.Config{MinVersion: tls.VersionTLS10, GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) { //nolint:gosec // old clients have hellos too
		name, ok = i.ServerName, true
		return nil, done
	}}
	_ = tls.Server(stream{bytes.NewReader(b)}, cfg).HandshakeContext(context.Background())
	return name, ok
}

// TestReadClientHelloAgreesWithServer spoils hellos: where a server takes what we
// take, it reads the same name.
func TestReadClientHelloAgreesWithServer(t *testing.T) {
	rng := rand.New(rand.NewPCG(20261123, 0))
	var msgs [][]byte
	for _, real := range realHellos(t) {
		msgs = append(msgs, real.msg)
	}
	msgs = append(msgs, packettest.ClientHello{Extensions: []packettest.TLSExtension{packettest.ServerName("www.example.com")}}.Message())
	var both, we, server int
	n := envNumber(t, "POSTERN_HELLOS", 20_000)
	for range n {
		msg := slices.Clone(msgs[rng.IntN(len(msgs))])
		switch rng.IntN(4) {
		case 0: // near its start
			n := min(len(msg), 140)
			msg = append(packettest.Spoil(rng, msg[:n]), msg[n:]...)
		case 1: // in the name and what is around it
			if i := bytes.Index(msg, []byte("example")); i >= 0 {
				msg[min(i-12+rng.IntN(24), len(msg)-1)] = uint8(rng.UintN(256))
			}
		case 2: // anywhere
			msg[rng.IntN(len(msg))] ^= 1 << rng.UintN(8)
		}
		if rng.IntN(4) > 0 && len(msg) > 4 {
			msg[1], msg[2], msg[3] = 0, uint8((len(msg)-4)>>8), uint8(len(msg)-4)
		}
		b := packettest.TLSRecords(0x0301+uint16(rng.IntN(3)), msg, 1+rng.IntN(600))
		var h packet.ClientHello
		need, err := packet.ReadClientHello(b, &h)
		name, ok := serverReads(b)
		switch mine := need == 0 && err == nil; {
		case mine && ok:
			both++
			if strings.ToLower(name) != h.ServerName.String() || h.HasServerName != (name != "") {
				t.Fatalf("we read %q, the server %q\n%x", h.ServerName, name, b)
			}
		case mine:
			we++
		case ok:
			server++
		}
	}
	t.Logf("of %d hellos both take %d, only we %d, only the server %d", n, both, we, server)
	if both < n/3 {
		t.Errorf("of %d hellos both take %d", n, both)
	}
}

// naiveHello is the rules once more, over slices and with copies: a second
// opinion on what is complete.
func naiveHello(b []byte) (name string, ech, ok bool) {
	var msg []byte
	for rest := b; ; {
		if len(rest) < 5 || rest[0] != 22 || rest[1] != 3 || rest[2] == 0 || rest[2] > 4 {
			return "", false, false
		}
		n := int(binary.BigEndian.Uint16(rest[3:]))
		if n == 0 || 5+n > len(rest) || len(b)-len(rest)+5+n > 16384 {
			return "", false, false
		}
		msg, rest = append(msg, rest[5:5+n]...), rest[5+n:]
		if len(msg) < 4 {
			continue
		}
		size := 4 + int(binary.BigEndian.Uint32(msg)&0xffffff)
		if msg[0] != 1 || len(msg) > size {
			return "", false, false
		}
		if len(msg) == size {
			break
		}
	}
	msg = msg[4:]
	cut := func(from []byte, lengthOctets int) (v, rest []byte, ok bool) {
		if len(from) < lengthOctets {
			return nil, nil, false
		}
		n := 0
		for _, c := range from[:lengthOctets] {
			n = n<<8 + int(c)
		}
		if from = from[lengthOctets:]; n > len(from) {
			return nil, nil, false
		}
		return from[:n], from[n:], true
	}
	if len(msg) < 34 || msg[0] != 3 || msg[1] < 1 || msg[1] > 4 {
		return "", false, false
	}
	session, rest, ok1 := cut(msg[34:], 1)
	ciphers, rest, ok2 := cut(rest, 2)
	compressions, rest, ok3 := cut(rest, 1)
	if !ok1 || !ok2 || !ok3 || len(session) > 32 || len(ciphers) == 0 || len(ciphers)%2 == 1 || len(compressions) == 0 {
		return "", false, false
	}
	if len(rest) == 0 {
		return "", false, true
	}
	extensions, rest, ok1 := cut(rest, 2)
	if !ok1 || len(rest) > 0 {
		return "", false, false
	}
	had := map[uint16]bool{}
	for len(extensions) > 0 {
		if len(extensions) < 4 {
			return "", false, false
		}
		kind := binary.BigEndian.Uint16(extensions)
		var data []byte
		if data, extensions, ok1 = cut(extensions[2:], 2); !ok1 || had[kind] {
			return "", false, false
		}
		had[kind] = true
		if kind != 0 {
			continue
		}
		list, rest, ok1 := cut(data, 2)
		if !ok1 || len(rest) > 0 || len(list) == 0 || list[0] != 0 {
			return "", false, false
		}
		host, rest, ok1 := cut(list[1:], 2)
		if !ok1 || len(rest) > 0 {
			return "", false, false
		}
		n, err := packet.ParseName(string(host))
		if err != nil {
			return "", false, false
		}
		name = n.String()
		last := name[strings.LastIndexByte(name, '.')+1:]
		digits, ishex := strings.CutPrefix(last, "0x")
		if strings.Trim(last, "0123456789") == "" || (ishex && strings.Trim(digits, "0123456789abcdef") == "") {
			return "", false, false
		}
	}
	return name, had[0xfe0d], true
}

func FuzzReadClientHello(f *testing.F) {
	for _, tc := range helloCases() {
		if len(tc.b) < 2000 {
			f.Add(tc.b)
		}
	}
	for _, real := range realHellos(f) {
		f.Add(packettest.TLSRecords(0x0301, real.msg))
		f.Add(packettest.TLSRecords(0x0303, real.msg, 1, 2, 3, 100))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var h packet.ClientHello
		need, err := packet.ReadClientHello(b, &h)
		name, ech, ok := naiveHello(b)
		if mine := need == 0 && err == nil; mine != ok || h.ServerName.String() != name || h.ECH != ech || h.HasServerName != (name != "") {
			t.Fatalf("got %+v, need %d, %v, want %q, ECH %t: %t", h, need, err, name, ech, ok)
		}
		if err != nil && (need != 0 || !slices.Contains(helloErrors, err)) || need < 0 || need > 16384 {
			t.Fatalf("need %d, %v", need, err)
		}
		if h.HasServerName {
			valid(t, h.ServerName)
		}
		// More octets never make an error something else, nor change what was read.
		var again packet.ClientHello
		more, err2 := packet.ReadClientHello(append(slices.Clone(b), 0x16), &again)
		if need == 0 && (more != 0 || !errors.Is(err2, err) || again != h) {
			t.Fatalf("%+v, %v, and with an octet more %+v, need %d, %v", h, err, again, more, err2)
		}
		// It needs as many as it says.
		if need > 1 && (more != need-1 || err2 != nil) && err2 == nil {
			t.Fatalf("need %d, and with an octet more %d", need, more)
		}
	})
}

func BenchmarkReadClientHello(b *testing.B) {
	msg := realHello(b, &tls.Config{ServerName: "www.example.com"})
	for name, stream := range map[string][]byte{"one record": packettest.TLSRecords(0x0301, msg), "records of 100": packettest.TLSRecords(0x0301, msg, 100)} {
		b.Run(name, func(b *testing.B) {
			var h packet.ClientHello
			b.ReportAllocs()
			for b.Loop() {
				if need, err := packet.ReadClientHello(stream, &h); need != 0 || err != nil {
					b.Fatal(need, err)
				}
			}
		})
	}
}
